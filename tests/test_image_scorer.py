"""Preprocessing as part of a network: the pixels of Pillow, the crops of a plan."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.images import decode, load_image, resized
from image_scorer import ImageScorer, resize


class CropMeans(torch.nn.Module):
    """A network without layers: the mean of each crop, and its first column's means as weights."""

    def forward(self, images):
        return images.mean((1, 2, 3)), images[:, :, :, 0].mean((1, 2))[:, None].repeat(1, 4)


@pytest.mark.parametrize(
    "size", [(768, 1024), (96, 128), (64, 48), (1, 1), (3, 500), (700, 90), (768, 432), (513, 701)]
)
@pytest.mark.parametrize("new_size", [(512, 384), (256, 256)])
def test_pixels_are_those_of_pillow(size, new_size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ours = resize(torch.tensor(pixels).permute(2, 0, 1)[None], *new_size)
    assert (ours[0].permute(1, 2, 0).numpy() == resized(Image.fromarray(pixels), *new_size)).all()


def test_real_photographs_have_the_pixels_of_pillow(real_data):
    paths = sorted(real_data.glob("koniq-10k/*/*.jpg"))
    paths += sorted((real_data / "biq2021" / "Images").iterdir())[::250]
    for path in paths:
        pixels = np.array(load_image(path))
        ours = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], 512, 384)
        assert (ours[0].permute(1, 2, 0).numpy() == decode(path, 512, 384)).all(), path


def test_a_score_is_the_mean_over_the_crops_of_the_plan():
    images = torch.randint(256, (2, 48, 40, 3), dtype=torch.uint8)
    plan = [(0, 0, 0, 0), (0, 16, 8, 0), (0, 16, 8, 1)]
    scorer = ImageScorer(CropMeans(), resize=(48, 40), plan=plan, crop=(32, 24))
    scores, weights = scorer(images)
    pixels = (images / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    crops = pixels[:, :32, :24], pixels[:, 16:48, 8:32], pixels[:, 16:48, 8:32]
    torch.testing.assert_close(scores, torch.stack([c.mean((1, 2, 3)) for c in crops]).mean(0))
    columns = crops[0][:, :, 0], crops[1][:, :, 0], crops[2][:, :, -1]
    wanted = torch.stack([c.mean((1, 2)) for c in columns]).mean(0)
    torch.testing.assert_close(weights, wanted[:, None].repeat(1, 4))
