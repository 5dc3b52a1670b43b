"""What score an image gets: the mean over its own crops, whatever else is in the batch."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import data_loader as data
from datasets.pixel_store import PixelStore
from evaluation import evaluate, mean_by_image, predictions_frame, score_crops
from experiment import rows_of
from folding import folded
from models_resnet_improved import ResNetImproved


class Brightness(torch.nn.Module):
    """A network whose score is the mean of its own patch, to see whose score is whose."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return mean, mean[:, None].repeat(1, 4)


class Linear(torch.nn.Module):
    """A network with one weight, (1, 3)."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1, bias=False)

    def forward(self, images):
        return self.linear(images.mean((2, 3)))[:, 0], None


class Casts(TorchDispatchMode):
    """Counts the conversions of the weight of Linear."""

    calls = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        is_cast = operator is torch.ops.aten._to_copy.default
        self.calls += is_cast and args[0].shape == (1, 3)
        return operator(*args, **kwargs or {})


def test_weights_are_cast_once_for_all_batches():
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    batches = [{"crops": pixels, "flips": torch.zeros(2, dtype=torch.bool)}] * 5
    with Casts() as casts:
        scores, _ = score_crops(Linear(), batches, device=torch.device("cpu"), precision="bf16")
    assert len(scores) == 10 and casts.calls == 1


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_evaluation_means_over_each_images_own_crops(tmp_path, batch_size):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    store = PixelStore(tmp_path / "pixels.u8", pixels.shape)
    images = np.array([4, 0, 5])
    plan = data.test_plan(images, crop="random", per_image=5, resize=(48, 40), patch_size=32)
    loader = data.make_loader(
        data.Batches(store, np.arange(6), plan, size=32, batch_size=batch_size),
        workers=0,
        pin=False,
    )
    scores, weights = evaluate(Brightness(), loader, 5, device=torch.device("cpu"), precision="off")
    normalised = (pixels / 255 - data.MEAN) / data.STD
    for score, image, crops in zip(scores, images, plan.reshape(3, 5, 4)):
        assert set(crops[:, 0]) == {image}
        means = [normalised[image, t : t + 32, c : c + 32].mean() for _, t, c, _ in crops]
        assert score == pytest.approx(np.mean(means), abs=1e-5)
    assert weights.shape == (3, 4) and weights[:, 2] == pytest.approx(scores, abs=1e-6)


@pytest.mark.slow
def test_compiled_scores_are_those_of_the_same_weights_uncompiled():
    model = ResNetImproved(use_multiscale=True, use_attention=True).eval()
    patches = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    batches = [{"crops": patches, "flips": torch.zeros(4, dtype=torch.bool)}]
    last = 0
    for _ in range(2):
        (same, shares), (wanted, _) = (
            score_crops(
                model,
                batches,
                device=torch.device("cpu"),
                precision="off",
                compiled=compiled,
            )
            for compiled in (True, False)
        )
        torch.testing.assert_close(same, wanted, rtol=1e-4, atol=1e-4)
        assert shares.shape == (4, 4) and (same - last).abs().min() > 0.01
        last = same
        with torch.no_grad():  # what is compiled next has other weights
            model.hyper_net.biases.bias[-1] += 5


def test_train_scores_are_means_by_image():
    means, present = mean_by_image(np.array([1.0, 5, 3, 7]), np.array([4, 2, 4, 2]))
    assert present.tolist() == [2, 4] and means.tolist() == [6, 2]


@pytest.fixture(scope="module", params=rows_of("resnet_improved").values(), ids=lambda row: row.run)
def model(request):
    torch.manual_seed(0)
    return ResNetImproved(**request.param.options)


def test_folding_batch_norms_changes_no_score(model):
    model = copy.deepcopy(model)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -0.2, 0.2)
    model.train()
    fast = folded(model)
    assert model.training and not fast.training
    assert len(norms) > 50 and not any(isinstance(m, torch.nn.BatchNorm2d) for m in fast.modules())
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        scores, weights = model.eval()(images)
        folded_scores, folded_weights = fast(images)
    torch.testing.assert_close(folded_scores, scores, rtol=1e-4, atol=1e-4)
    if weights is not None:
        torch.testing.assert_close(folded_weights, weights, rtol=1e-4, atol=1e-5)


def test_predictions_keep_what_is_known_of_the_votes():
    table = pd.DataFrame({"image": ["a", "b"], "mos": [20.0, 50.0], "split": "test", "row": [0, 1]})
    scores, weights = np.array([21.0, 48.0]), np.full((2, 4), 0.25)
    plain = predictions_frame(table, scores, None)
    assert list(plain) == ["split", "image", "mos", "score"]
    table = table.assign(mos_sd=[10.0, 12.123456], votes=[30, 31])
    found = predictions_frame(table, scores, weights)
    assert list(found)[4:] == ["w1", "w2", "w3", "w4", "mos_sd", "votes"]
    assert found["mos_sd"].tolist() == [10, 12.1235] and found["votes"].tolist() == [30, 31]
