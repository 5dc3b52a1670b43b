"""BatchNorms that only scale and shift: the convolutions before them do their work.

In eval mode BatchNorm is one multiplication and one addition per channel, which the weights and the
bias of the convolution before it take in: the same scores, up to rounding, in less time.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    from torch import Tensor, nn


def folded(model: "nn.Module") -> "nn.Module":
    """A copy for inference, in eval mode, whose convolutions take in what BatchNorms they can."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model = copy.deepcopy(model).eval()
    names = {module: name for name, module in model.named_modules()}
    for conv, norm in foldable(model):
        model.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
        model.set_submodule(names[norm], without_norm(norm))
    return model


def foldable(model: "nn.Module") -> list[tuple["nn.Module", "nn.Module"]]:
    """Each convolution of a model in eval mode with the BatchNorm that it can take in."""
    from torch import nn

    return [  # others than these may do something else besides
        (conv, norm)
        for conv, norm in convolutions_with_norm(model)
        if type(norm) is nn.BatchNorm2d or (hasattr(norm, "drop") and hasattr(norm, "act"))
    ]


def without_norm(norm: "nn.Module") -> "nn.Module":
    """What is left of a BatchNorm that is taken in: timm's and training's hold an activation."""
    from torch import nn

    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def convolutions_with_norm(model: "nn.Module") -> list[tuple["nn.Module", "nn.Module"]]:
    """Each convolution whose result one BatchNorm reads and nothing else, by a forward pass."""
    import torch
    from torch import nn
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    results, pairs, hooks = {}, [], []  # results are kept, so that each has another id
    reads, calls = Counter(), Counter()

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            reads.update(id(each) for each in tree_leaves((args, kwargs)) if id(each) in results)
            return operation(*args, **(kwargs or {}))

    def note(module: nn.Module, inputs: tuple, result: "Tensor") -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            results[id(result)] = module, result
        elif id(inputs[0]) in results:
            pairs.append((id(inputs[0]), module))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            hooks.append(module.register_forward_hook(note))
    if not hooks:
        return []
    with torch.inference_mode(), Reads():
        model(any_image(model.backbone))
    for hook in hooks:
        hook.remove()
    found = [(results[result][0], norm) for result, norm in pairs if reads[result] == 1]
    return [(conv, norm) for conv, norm in found if calls[conv] == calls[norm] == 1]


@contextmanager
def in_eval_mode(module: "nn.Module") -> "Iterator[nn.Module]":
    """The module in eval mode; afterwards it is in the mode that it was in."""
    was_training = module.training
    try:
        yield module.eval()
    finally:
        module.train(was_training)


def any_image(backbone: "nn.Module") -> "Tensor":
    """A black image (1, 3, H, W) that the backbone takes, on its device."""
    import torch

    side = backbone.input_size or backbone.takes
    return torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device)
