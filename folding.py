"""BatchNorms that only scale and shift: the convolutions before them do their work.

In eval mode BatchNorm is one multiplication and one addition per channel, which the weights and the
bias of the convolution before it take in: the same scores, up to rounding, in less time.
"""

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    from torch import Tensor, nn

SMALLEST = 64  # side of an image that shows what a network computes, in pixels


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
    """Each convolution with the BatchNorm that reads its result, by a forward pass."""
    import torch
    from torch import nn

    made, found, hooks = {}, [], []  # results are kept, so that each has another id

    def note(module: nn.Module, inputs: tuple, result: "Tensor") -> None:
        if isinstance(module, nn.Conv2d):
            made[id(result)] = module, result
        elif id(inputs[0]) in made:
            found.append((made[id(inputs[0])][0], module))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            hooks.append(module.register_forward_hook(note))
    if not hooks:
        return []
    with torch.inference_mode():
        model(small_image(model.backbone))
    for hook in hooks:
        hook.remove()
    return found


def small_image(backbone: "nn.Module") -> "Tensor":
    """A black image (1, 3, H, W) that the backbone takes, on its device."""
    import torch

    side = backbone.input_size or SMALLEST
    return torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device)
