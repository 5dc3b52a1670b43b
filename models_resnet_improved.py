"""What is computed: ResNet-50 with multi-scale fusion and channel attention for image quality.

    python3 models_resnet_improved.py

prints, for each of the three configurations of the ablation, the number of parameters and the
shapes of a forward pass, offline and in a few seconds; it exits with 1 when anything is off.

Letters in the shape comments: B images, C channels of the fused maps (2048, or 3840 with
multi-scale fusion). Sizes are those of a 224 x 224 input.

Sources: HyperIQA (Su et al., Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive
Hyper Network, CVPR 2020) for hyper network and target network; Chang et al., Principled Weight
Initialization for Hypernetworks, ICLR 2020, for their initial weights; ResNet-50 (He et al., CVPR
2016) from torchvision.
"""

import copy
import pickle
import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.flop_counter import FlopCounterMode

STAGE_CHANNELS = (256, 512, 1024, 2048)
MAP_SIZE = 7  # every fused map is MAP_SIZE x MAP_SIZE
REDUCED = 512
TARGET_WIDTHS = (112, 224, 112, 56, 28, 1)  # the target network, from its input to the score
# The ablation: name of the configuration, its flags, its exact number of parameters.
CONFIGURATIONS = {
    "ss_noatt": ({"use_multiscale": False, "use_attention": False}, 25_624_337),
    "ms_noatt": ({"use_multiscale": True, "use_attention": False}, 28_124_177),
    "ms_att": ({"use_multiscale": True, "use_attention": True}, 28_649_749),
}


NAMES = {"resnet50": "ResNet-50", "swin_t": "Swin-T", "swin_s": "Swin-S", "swin_b": "Swin-B"}
CLASSIFIERS = ("fc.", "head.")  # torchvision's, not used here


class WeightsError(ValueError):
    """The backbone's weights can't be had; the message says which file, and what to do."""


class Backbone(nn.Module):
    """torchvision's ResNet-50 without avgpool and fc, returning the maps of its four stages."""

    def __init__(self, weights: dict[str, Tensor] | None = None):
        super().__init__()
        resnet = torchvision.models.resnet50(weights=None)
        if weights is not None:
            resnet.load_state_dict(weights, strict=False)  # load_backbone_weights checked the keys
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
        self.stage1, self.stage2 = resnet.layer1, resnet.layer2
        self.stage3, self.stage4 = resnet.layer3, resnet.layer4

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        f1 = self.stage1(self.stem(images))  # (B, 256, 56, 56)
        f2 = self.stage2(f1)  # (B, 512, 28, 28)
        f3 = self.stage3(f2)  # (B, 1024, 14, 14)
        f4 = self.stage4(f3)  # (B, 2048, 7, 7)
        return f1, f2, f3, f4


class LastStage(nn.Module):
    """No fusion: stage 4 alone."""

    channels = STAGE_CHANNELS[-1]

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, None]:
        return F.adaptive_avg_pool2d(stages[-1], MAP_SIZE), None  # (B, 2048, 7, 7)


class EqualWeights(nn.Module):
    """No attention: every stage counts in full, and there are no weights to report."""

    def forward(self, stages: list[Tensor]) -> tuple[list[Tensor], None]:
        return stages, None


class StageAttention(nn.Module):
    """One weight for each stage and image, from the global average of stage 4, summing to 1.

    The weights are found in float32: in bfloat16 they would sum to 1 within a thousandth only.
    """

    def __init__(
        self, *, channels: int = STAGE_CHANNELS[-1], hidden: int = 256, dropout_rate: float = 0.3
    ):
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout_rate),
            nn.Linear(hidden, len(STAGE_CHANNELS)),
            nn.Softmax(dim=1),
        )
        nn.init.normal_(self.weigh[-2].weight, std=0.01)  # all stages start at about 1/4
        nn.init.zeros_(self.weigh[-2].bias)

    def forward(self, stages: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        with torch.autocast(stages[-1].device.type, enabled=False):
            weights = self.weigh(stages[-1].float().mean((2, 3)))  # (B, 4)
        shares = weights.to(stages[-1].dtype)[:, :, None, None, None].unbind(1)  # 4 x (B, 1, 1, 1)
        return [stage * share for stage, share in zip(stages, shares)], weights


class MultiScaleFusion(nn.Module):
    """All four stages at 7 x 7, weighted by `attention`, concatenated.

    Stages 1 to 3 pass a 1x1 convolution with BatchNorm and ReLU that keeps their channels;
    stage 4 goes on as it is.
    """

    channels = sum(STAGE_CHANNELS)

    def __init__(self, *, attention: nn.Module):
        super().__init__()
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.ReLU(inplace=True))
            for c in STAGE_CHANNELS[:-1]
        )
        self.attention = attention

    def forward(self, stages: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        maps = [F.adaptive_avg_pool2d(stage, MAP_SIZE) for stage in stages]  # 4 x (B, c, 7, 7)
        maps = [project(m) for project, m in zip(self.project, maps)] + maps[-1:]

        maps, stage_weights = self.attention(maps)
        return torch.cat(maps, 1), stage_weights  # (B, 3840, 7, 7), (B, 4) or None


class HyperNet(nn.Module):
    """Generates the weights and biases of the target network for each image (HyperIQA, sec. 3.3).

    The matrices of the first four layers are 1x1 convolutions' 7 x 7 maps read in memory order;
    the last layer's weights and all biases come from the global average through a linear layer.
    The linear layers run in float32: the last bias is near 60 on a scale of 0 to 100, where
    bfloat16 knows steps of 0.25 only.
    """

    def __init__(self, *, initial_score: float):
        super().__init__()
        self.shapes = [*zip(TARGET_WIDTHS[1:-1], TARGET_WIDTHS[:-2])]  # (out, in) of layers 1-4
        self.maps = [rows * columns // MAP_SIZE**2 for rows, columns in self.shapes]
        self.matrices = nn.Conv2d(REDUCED, sum(self.maps), 1)
        self.last_weight = nn.Linear(REDUCED, TARGET_WIDTHS[-2])
        self.biases = nn.Linear(REDUCED, sum(TARGET_WIDTHS[1:]))
        with torch.no_grad():
            # The generated matrices start at the scale of their own inputs (Chang et al.:
            # hyperfan-in); at that of an ordinary convolution they saturate every sigmoid.
            for part, (_, columns) in zip(self.matrices.weight.split(self.maps), self.shapes):
                nn.init.normal_(part, std=(REDUCED * columns) ** -0.5)
            nn.init.zeros_(self.matrices.bias)
            # Scores start near initial_score, whatever the scale of the maps.
            self.last_weight.weight.mul_(0.1)
            self.biases.weight[-1].mul_(0.1)
            self.biases.bias[-1] = initial_score

    def forward(self, reduced: Tensor) -> list[tuple[Tensor, Tensor]]:
        matrices = self.matrices(reduced).float().split(self.maps, 1)  # 4 x (B, maps, 7, 7)
        with torch.autocast(reduced.device.type, enabled=False):
            pooled = reduced.float().mean((2, 3))  # (B, 512)
            last_weight = self.last_weight(pooled).unsqueeze(1)  # (B, 1, 28)
            biases = self.biases(pooled).split(TARGET_WIDTHS[1:], 1)  # 5 x (B, out)

        weights = [m.reshape(-1, *shape) for m, shape in zip(matrices, self.shapes)]
        return [*zip([*weights, last_weight], biases)]  # 5 x ((B, out, in), (B, out))


class TargetNet(nn.Module):
    """Five fully connected layers with weights of each image's own (HyperIQA, eq. 4-5).

    Batched matrix products: image b's query meets image b's weights and no other's. Sigmoid after
    the first four layers, and dropout after the first three. It has no parameters, and runs in
    float32.
    """

    def __init__(self, *, dropout_rate: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, query: Tensor, rules: list[tuple[Tensor, Tensor]]) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            x = query.float().unsqueeze(2)  # (B, 112, 1)
            for weight, bias in rules[:-2]:
                x = torch.sigmoid(torch.baddbmm(bias.unsqueeze(2), weight, x))  # (B, out, 1)
                x = self.dropout(x)

            weight, bias = rules[-2]
            x = torch.sigmoid(torch.baddbmm(bias.unsqueeze(2), weight, x))
            weight, bias = rules[-1]
            score = torch.baddbmm(bias.unsqueeze(2), weight, x)  # (B, 1, 1)
        return score.squeeze(2).squeeze(1)  # (B,)


class ResNetImproved(nn.Module):
    """Quality scores from images by a ResNet-50 under a HyperIQA head.

    Arguments (keyword-only):
        use_multiscale: fuse all four stages instead of taking stage 4 alone.
        use_attention: weight the stages for each image; needs `use_multiscale`.
        dropout_rate: of the reduced maps and of the attention, 0 <= rate < 1.
        backbone_weights: None or 'none' (random), 'imagenet1k_v1', 'imagenet1k_v2', or the path
            of a torchvision ResNet-50 state dict.
        initial_score: where scores start: the mean MOS of the training images. It is the initial
            value of the target network's last bias.

    Input: ImageNet-normalised images (B, 3, H, W); 224 x 224 in the experiment, and any size of
    at least 32 x 32 otherwise. Output: scores (B,) on the MOS scale of 0 to 100, higher is better,
    and the stage weights (B, 4), or None without attention.

    Raises ValueError for options that don't go together, WeightsError for weights that can't be
    had.
    """

    def __init__(
        self,
        *,
        use_multiscale: bool,
        use_attention: bool,
        dropout_rate: float = 0.3,
        backbone_weights: str | Path | None = None,
        initial_score: float = 50.0,
    ):
        super().__init__()
        if use_attention and not use_multiscale:
            raise ValueError(
                "use_attention weights several stages: it needs use_multiscale as well"
            )
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate is {dropout_rate}; it must be at least 0 and below 1")

        self.backbone = Backbone(load_backbone_weights(backbone_weights))
        if use_multiscale:
            attend = StageAttention(dropout_rate=dropout_rate) if use_attention else EqualWeights()
            self.fusion = MultiScaleFusion(attention=attend)
        else:
            self.fusion = LastStage()
        self.query = nn.Conv2d(self.fusion.channels, TARGET_WIDTHS[0], 1)
        self.reduce = nn.Sequential(
            nn.Conv2d(self.fusion.channels, REDUCED, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout_rate),
        )
        self.hyper_net = HyperNet(initial_score=initial_score)
        self.target_net = TargetNet()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:  # (B, 3, 224, 224)
        stages = self.backbone(images)  # four maps at strides 4, 8, 16, 32
        fused, stage_weights = self.fusion(stages)  # (B, C, 7, 7), (B, 4) or None

        # The convolution is linear, so it may follow the average that it precedes in the design.
        query = self.query(fused.mean((2, 3), keepdim=True)).flatten(1)  # (B, 112)
        rules = self.hyper_net(self.reduce(fused))  # weights and biases of five layers

        return self.target_net(query, rules), stage_weights  # (B,), (B, 4) or None

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The backbone's parameters, and those of all layers that are new."""
        backbone = list(self.backbone.parameters())
        known = {id(p) for p in backbone}
        return backbone, [p for p in self.parameters() if id(p) not in known]


def folded(model: nn.Module) -> nn.Module:
    """A copy for inference whose convolutions do the work of the BatchNorms that follow them.

    In eval mode BatchNorm is one multiplication and one addition a channel, which weights and bias
    of the convolution before it take in: the same scores, up to rounding, in less time.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model


def multiply_adds(model: nn.Module, patch_size: int) -> int:
    """Multiply-adds of convolutions and matrix products in one patch's forward pass."""
    was_training, image = model.training, torch.zeros(1, 3, patch_size, patch_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image.to(next(model.parameters()).device))
    model.train(was_training)
    return counter.get_total_flops() // 2


def load_backbone_weights(
    source: str | Path | None, architecture: str = "resnet50"
) -> dict[str, Tensor] | None:
    """A torchvision state dict of `architecture` without its classifier; None for random weights.

    'imagenet1k_v1' and 'imagenet1k_v2' come from torchvision's cache, or are downloaded into it.
    Raises WeightsError where the weights can't be had or don't fit.
    """
    if source is None or source == "none":
        return None
    if source in ("imagenet1k_v1", "imagenet1k_v2"):
        known = torchvision.models.get_model_weights(architecture)
        if str(source).upper() not in known.__members__:
            raise WeightsError(
                f"--backbone_weights {source}: torchvision has none of that name for "
                f"{architecture}; take imagenet1k_v1, none or a file"
            )
        weights = known[str(source).upper()]
        path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:  # of the network, the disk or the file: many kinds
            raise WeightsError(
                f"the ImageNet weights {source} are not to be had ({first_line(error)}): put "
                f"{weights.url} at {path}, or give --backbone_weights a path to a torchvision "
                f"{NAMES[architecture]} state dict, or 'none' for random weights"
            ) from error
    else:
        path = Path(source)
        if not path.is_file():
            raise WeightsError(
                f"--backbone_weights {source}: no such file; it takes imagenet1k_v1, "
                f"imagenet1k_v2, none, or the path of a torchvision {NAMES[architecture]} state "
                "dict (.pth)"
            )
        state = load_tensors(path)
    return check_backbone_weights(state, path, architecture)


def load_tensors(path: Path) -> object:
    """What torch.save has written to a file, without running code; WeightsError for all else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the disk, zip, pickle or struct: many kinds
        raise WeightsError(
            f"{path}: damaged, or not a file of tensors that PyTorch can load safely "
            f"({first_line(error)})"
        ) from error


def check_backbone_weights(
    state: object, path: Path, architecture: str = "resnet50"
) -> dict[str, Tensor]:
    """`state` without its classifier; WeightsError unless it is of `architecture`."""
    with torch.device("meta"):
        wanted = torchvision.models.get_model(architecture, weights=None).state_dict()
    wanted = {k: v for k, v in wanted.items() if not k.startswith(CLASSIFIERS)}
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a state dict")
    wrong = [
        key
        for key, tensor in wanted.items()
        if not (isinstance(state.get(key), Tensor) and state[key].shape == tensor.shape)
        and not key.endswith("num_batches_tracked")
    ]
    extra = [k for k in state if k not in wanted and not str(k).startswith(CLASSIFIERS)]
    if wrong or extra:
        raise WeightsError(
            f"{path}: not a torchvision {NAMES[architecture]} state dict; {len(wrong)} tensors "
            f"missing or of another shape ({', '.join(wrong[:3])}...), {len(extra)} unknown "
            f"({', '.join(map(str, extra[:3]))}...)"
        )
    return {k: v for k, v in state.items() if not str(k).startswith(CLASSIFIERS)}


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop, to stand inside a sentence."""
    if isinstance(error, pickle.UnpicklingError):  # whose own line advises to load it unsafely
        return "it holds something else, or code"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@torch.no_grad()
def main() -> int:
    """The smoke test: 0 when all three configurations compute what they should."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 224, 224)
    query = torch.randn(4, TARGET_WIDTHS[0])
    rules = [(torch.randn(4, o, i), torch.randn(4, o)) for i, o in pairwise(TARGET_WIDTHS)]
    problems = []

    for name, (flags, expected) in CONFIGURATIONS.items():
        model = ResNetImproved(**flags)
        count = sum(p.numel() for p in model.parameters())
        for module in model.modules():  # statistics of these images, as of a network in training
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(images)
        scores, weights = model.eval()(images)
        alone = torch.cat([model(image[None])[0] for image in images])
        # A fresh network's scores differ little, those by random rules by about 1.
        ruled = model.target_net(query, rules)
        each = [
            model.target_net(q[None], [(w[i, None], b[i, None]) for w, b in rules])
            for i, q in enumerate(query)
        ]

        print(f"{name}: {', '.join(f'{k}={v}' for k, v in flags.items())}")
        print(f"  parameters     {count:,} ({count / 1e6:.2f} M)")
        print(f"  forward pass   succeeded: {tuple(images.shape)} -> {tuple(scores.shape)}")
        print(f"  scores         {', '.join(f'{s:.3f}' for s in scores.tolist())}")
        if weights is not None:
            for row in weights.tolist():
                shares = "  ".join(f"w{i}={w:.4f}" for i, w in enumerate(row, 1))
                print(f"  stage weights  {shares}  sum={sum(row):.4f}")

        checks = {
            f"{count:,} parameters instead of {expected:,}": count == expected,
            f"scores of shape {tuple(scores.shape)}": scores.shape == (4,),
            "a score that is not finite": bool(scores.isfinite().all()),
            "a score that depends on the other images": torch.allclose(
                scores, alone, rtol=0, atol=5e-5
            ),
            "a target network that mixes images": torch.allclose(
                ruled, torch.cat(each), rtol=0, atol=1e-4
            ),
            "stage weights where there is no attention, or none where there is": (
                (weights is not None) == flags["use_attention"]
            ),
            "stage weights that don't sum to 1": (
                weights is None or torch.allclose(weights.sum(1), torch.ones(4))
            ),
        }
        problems += [f"{name}: {problem}" for problem, right in checks.items() if not right]

    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not problems:
        print("all three configurations are as designed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
