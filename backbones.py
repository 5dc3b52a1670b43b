"""Where the four stages come from: torchvision's ResNet-50, or another backbone of timm.

    build_backbone("resnet50", "imagenet")
    build_backbone("tf_efficientnet_lite0", "tf_efficientnet_lite0.pth")

A backbone takes ImageNet-normalised images (B, 3, H, W) and returns the maps of four stages at
strides 4, 8, 16 and 32, each (B, c, h, w); `channels` has the four c. timm is imported only if
another backbone than ResNet-50 is asked for.
"""

import logging
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from backbone_weights import load_backbone_weights, load_timm_weights
from data_loader import MEAN, STD
from errors import RunError, first_line
from experiment import RESNET50

STRIDES = (4, 8, 16, 32)


def build_backbone(
    name: str, weights: str | Path | None = None, *, image_size: int | None = None
) -> nn.Module:
    """The backbone of that name, with ImageNet weights, those of a file, or random ones.

    weights: 'imagenet', 'none' or None, a file, or for ResNet-50 'imagenet1k_v1' or
    'imagenet1k_v2'. image_size: side of the square images, which backbones with a fixed input size
    check. Raises RunError for a backbone that does not fit, WeightsError for weights.
    """
    if name == RESNET50:
        return ResNet50(load_backbone_weights(weights))
    return TimmBackbone(name, weights, image_size=image_size)


class ResNet50(nn.Module):
    """torchvision's ResNet-50 without avgpool and fc."""

    channels = (256, 512, 1024, 2048)
    input_size = None  # any of at least 32
    takes = 64  # the side of a small image, to look at what it computes
    normalisation = (MEAN, STD)

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


class TimmBackbone(nn.Module):
    """A backbone of timm by its name there: its last map at each of the four strides.

    normalisation: mean and standard deviation of its pretrained configuration. Images come
    normalised for ImageNet, and are normalised again where the two differ. input_size: the only
    side of square images that it takes; None if it takes others, such as `takes`. options: for
    timm.
    """

    def __init__(self, name: str, weights: str | Path | None, *, image_size: int | None, **options):
        super().__init__()
        with torch.device("meta"):
            empty = create(name)
        strides, config = empty.feature_info.reduction(), empty.pretrained_cfg
        if not set(STRIDES) <= set(strides):
            raise RunError(
                f"--backbone {name}: its feature maps are at strides {', '.join(map(str, strides))}"
                f"; it takes backbones with maps at strides {', '.join(map(str, STRIDES))}"
            )
        at = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
        self.input_size = config["input_size"][-1] if config.get("fixed_input_size") else None
        if self.input_size and image_size not in (None, self.input_size):
            raise RunError(
                f"--backbone {name} takes crops of {self.input_size} only: give --patch_size "
                f"{self.input_size}"
            )
        self.takes = image_size or 224
        state = load_timm_weights(weights, name)
        self.net = create(name, out_indices=at, **state, **options)
        self.channels = tuple(self.net.feature_info.channels())
        self.channels_last = getattr(self.net, "output_fmt", None) == "NHWC"
        self.normalisation = tuple(config["mean"]), tuple(config["std"])
        (mean, std), own = (MEAN, STD), self.normalisation
        scale = [s / own_s for s, own_s in zip(std, own[1])]
        shift = [(m - own_m) / own_s for m, own_m, own_s in zip(mean, *own)]
        for buffer, values in (("scale", scale), ("shift", shift)):
            self.register_buffer(buffer, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.normalisation != (MEAN, STD):
            images = torch.addcmul(self.shift, images, self.scale)
        maps = self.net(images)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else maps


def create(name: str, **options) -> nn.Module:
    """timm's network of that name with features only; RunError if there is none."""
    import timm

    if not timm.is_model(name):
        raise RunError(
            f"--backbone {name}: timm has no such model; it takes resnet50 or a name of timm's, "
            "such as resnet18, convnext_tiny or tf_efficientnet_lite0"
        )
    # It would warn of every layer that features do not need; load_timm_weights has checked them.
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        return timm.create_model(name, features_only=True, **options)
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError) as error:
        raise RunError(
            f"--backbone {name}: timm gives no feature maps of it ({first_line(error)}); give "
            "another backbone"
        ) from error
