"""What an exported model computes: from photographs of any size to scores, in one torch module.

The preprocessing is that of datasets/images.py and data_loader.py, written in operations that
torch.export and ONNX have. An image gets exactly the pixels that datasets.images.resized gives it,
so scores agree up to rounding.
"""

import torch
from torch import Tensor, nn

from data_loader import SCALE, SHIFT
from folding import folded

COEFFICIENT = 2**22  # Pillow's weights are multiples of one part of this


class ImageScorer(nn.Module):
    """Scores of photographs: resize, crops, normalisation, network, mean over the crops.

    model: a network in eval mode on the CPU, which is copied. resize: (height, width). plan
    (P, 4): image, top, left, flip of each crop, as of data_loader.test_plan. crop: (height, width)
    of the crops.

    Input: uint8 RGB (B, H, W, 3); the images of a batch have one size, batches may differ.
    Output: scores (B,), and for models with attention the stage weights (B, 4).
    """

    def __init__(self, model: nn.Module, *, resize: tuple[int, int], plan, crop: tuple[int, int]):
        super().__init__()
        self.model = folded(model).to(memory_format=torch.contiguous_format)
        self.resize, self.crop = tuple(resize), tuple(crop)
        self.corners = [(int(top), int(left), bool(flip)) for _, top, left, flip in plan]
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # (B, H, W, 3)
        pixels = resize(images.permute(0, 3, 1, 2), *self.resize)
        pixels = torch.addcmul(self.shift, pixels, self.scale)

        (high, wide), crops = self.crop, []
        for top, left, flip in self.corners:
            crop = pixels[:, :, top : top + high, left : left + wide]
            crops.append(crop.flip(3) if flip else crop)
        scores, weights = self.model(torch.stack(crops, 1).flatten(0, 1))  # (B * P,)

        score = scores.view(-1, len(crops)).mean(1)  # (B,)
        if weights is None:
            return (score,)
        return score, weights.view(-1, len(crops), weights.shape[1]).mean(1)  # (B,), (B, 4)


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W) of 0..255 as Pillow's bilinear resize makes them: float32.

    Columns are resized and rounded first, then rows, as in datasets.images.resized. Sums are
    computed in float64, where they are exact, because values halfway between two levels are common.
    """
    across = resize_weights(images.shape[3], width)  # (width, W)
    down = resize_weights(images.shape[2], height)  # (height, H)
    resized = torch.floor(images.double() @ across.T + 0.5)
    return torch.floor(down @ resized + 0.5).float()


def resize_weights(size: int, new_size: int) -> Tensor:
    """What each of `size` pixels in a row contributes to each of `new_size`: float64.

    A triangle about each new pixel's centre, as wide as the scale (at least one pixel), with
    Pillow's rounding of each weight.
    """
    centres = torch.arange(size, dtype=torch.float64) + 0.5
    scale = (centres[-1] + 0.5) / new_size  # of a tensor, so that an exported size stays variable
    new_centres = (torch.arange(new_size, dtype=torch.float64) + 0.5) * scale
    distances = (centres - new_centres[:, None]).abs() / scale.clamp(min=1)
    weights = (1 - distances).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.floor(weights * COEFFICIENT + 0.5) / COEFFICIENT
