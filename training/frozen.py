"""What of a backbone stays as it came: its BatchNorms (--freeze_bn), its first stages."""

import copy

import torch
from torch import Tensor, nn

from errors import RunError
from folding import any_image, foldable, in_eval_mode, without_norm
from training.batch_norm import is_batch_norm


def freeze(model: nn.Module, *, norms: bool, stages: int) -> list[nn.Module]:
    """Switch off the gradients of what is frozen; return the BatchNorms that are part of it.

    norms: freeze all BatchNorms of the backbone. stages: freeze the stem and this many stages.
    Raises RunError if `norms` is given and the backbone has no BatchNorm.
    """
    all_norms = [m for m in model.backbone.modules() if is_batch_norm(m)]
    if norms and not all_norms:
        raise RunError("--freeze_bn: this backbone has no BatchNorm; train without the flag")
    frozen = first_stages(model.backbone, stages)
    frozen_norms = [m for m in all_norms if norms or frozen.intersection(m.parameters())]
    for parameter in frozen.union(*(norm.parameters() for norm in frozen_norms)):
        parameter.requires_grad_(False)
    return frozen_norms


def first_stages(backbone: nn.Module, count: int) -> set[nn.Parameter]:
    """The parameters that the first maps depend on, found by the gradients of their sums."""
    if count == 0:
        return set()
    parameters = list(backbone.parameters())
    with in_eval_mode(backbone):
        maps = backbone(any_image(backbone))[:count]
    gradients = torch.autograd.grad(sum(m.sum() for m in maps), parameters, allow_unused=True)
    return {p for p, gradient in zip(parameters, gradients) if gradient is not None}


class FrozenNorms(nn.Module):
    """A network as a step calls it: some BatchNorms of its backbone don't change, and cost nothing.

    Their running statistics, weights and biases stay as they came (as in TOPIQ's and QCN's
    recipes). The convolution before each of them does its work: in every forward pass its weights
    are multiplied by one factor per channel, so that gradients reach the weights themselves. Scores
    and gradients are those of BatchNorm in eval mode, up to rounding.

    model: the network itself, with the names and numbers that it always has. It must be on its
    device, with its final weights of BatchNorm, before the first call of train or eval, which comes
    before the first forward pass. norms: those of its modules that `freeze` returned.
    """

    def __init__(self, model: nn.Module, norms: list[nn.Module]):
        super().__init__()
        names = {module: name for name, module in model.named_modules()}
        self.names = [names[norm] for norm in norms]
        self.model = model
        self.skeleton: list[nn.Module] = []  # in a list, as its tensors are not this network's
        self.taken_in: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        tensors = dict(self.tensors)
        for conv, (factor, shift) in self.taken_in.items():
            weight, bias = f"{conv}.weight", f"{conv}.bias"
            tensors[weight] = tensors[weight] * factor[:, None, None, None]
            tensors[bias] = shift + tensors[bias] * factor if bias in tensors else shift
        return torch.func.functional_call(self.skeleton[0], tensors, (images,))

    def train(self, mode: bool = True) -> "FrozenNorms":
        super().train(mode)
        if not self.skeleton:  # not in the forward pass, which is compiled
            self.build()
        for network in (self.model, *self.skeleton):
            network.train(mode)
            for name in self.names:
                if is_batch_norm(norm := network.get_submodule(name)):
                    norm.eval()  # of the model, or one that no convolution takes in
        return self

    @torch.no_grad()
    def build(self) -> None:
        """The skeleton: the network without these BatchNorms, whose tensors come with each call."""
        skeleton = copy.deepcopy(self.model).eval()
        frozen = {skeleton.get_submodule(name) for name in self.names}
        names = {module: name for name, module in skeleton.named_modules()}
        for conv, norm in foldable(skeleton):
            if norm not in frozen or norm.weight is None:
                continue
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            self.taken_in[names[conv]] = factor, norm.bias - norm.running_mean * factor
            if conv.bias is None:
                conv.bias = nn.Parameter(torch.empty(0))  # so that there is one to be given
            skeleton.set_submodule(names[norm], without_norm(norm))
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        names = [n for n, _ in (*skeleton.named_parameters(), *skeleton.named_buffers())]
        self.tensors = {name: own[name] for name in names if name in own}  # not new biases
        self.skeleton.append(skeleton.to("meta"))
