"""What a batch is: crop plans, batches, the loader, and what the network gets."""

import argparse
import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as transforms

import data_loader as data
from datasets.pixel_store import DeviceStore, PixelStore
from errors import RunError
from training.flags import parse_args

# The crop plan


PLAN = {"resize": (48, 40), "patch_size": 32}


def test_the_training_plan_comes_from_seed_and_epoch_alone():
    images = np.arange(100, 140)
    plans = {
        (seed, epoch): data.training_plan(images, per_image=3, seed=seed, epoch=epoch, **PLAN)
        for seed in (1, 2)
        for epoch in (1, 2)
    }
    np.random.seed(5)  # global states must not matter
    torch.manual_seed(5)
    again = data.training_plan(images, per_image=3, seed=1, epoch=2, **PLAN)
    assert (plans[1, 2] == again).all()
    assert len({plan.tobytes() for plan in plans.values()}) == 4


def test_each_image_comes_once_a_round():
    plan = data.training_plan(np.arange(40), per_image=25, seed=1, epoch=1, **PLAN)
    assert plan.shape == (1000, 4)
    for turn in range(25):
        assert sorted(plan[turn * 40 : turn * 40 + 40, 0]) == list(range(40))


def test_training_crops_cover_the_image_evenly():
    plan = data.training_plan(np.arange(1000), per_image=20, seed=3, epoch=1, **PLAN)
    for column, positions in ((1, 48 - 32 + 1), (2, 40 - 32 + 1), (3, 2)):
        counts = np.bincount(plan[:, column], minlength=positions)
        assert len(counts) == positions  # the last position is reached, none lies outside
        expected = len(plan) / positions
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_the_test_plan_is_always_the_same_and_image_by_image():
    plan = data.test_plan(np.array([7, 9]), crop="random", per_image=5, **PLAN)
    again = data.test_plan(np.array([7, 9]), crop="random", per_image=5, **PLAN)
    assert (plan == again).all() and plan[:, 0].tolist() == [7] * 5 + [9] * 5
    assert not plan[:, 3].any()
    assert len({tuple(row) for row in plan[:, 1:3]}) > 5


def test_grid_and_center_crops():
    grid = data.test_plan(np.array([7, 9]), crop="grid", per_image=9, **PLAN)
    assert grid[:9, 1:3].tolist() == [[t, c] for t in (0, 8, 16) for c in (0, 4, 8)]
    assert (grid[:9, 1:] == grid[9:, 1:]).all() and set(grid[9:, 0]) == {9}
    assert data.test_plan(np.array([7]), crop="grid", per_image=1, **PLAN).tolist() == [
        [7, 8, 4, 0]
    ]
    center = data.test_plan(np.array([7, 9]), crop="center", per_image=1, **PLAN)
    assert center.tolist() == [[7, 8, 4, 0], [9, 8, 4, 0]]


# Batches


@pytest.fixture
def store(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    return PixelStore(tmp_path / "pixels.u8", pixels.shape)


def make_batches(store, **options):
    rows = np.array([5, 4, 3, 2, 1, 0])
    plan = data.training_plan(np.arange(6), per_image=3, seed=0, epoch=1, **PLAN)
    return data.Batches(store, rows, plan, size=32, batch_size=4, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_plans_crops_in_order(store, workers):
    batches = make_batches(store)
    loader = data.make_loader(batches, workers=workers, pin=False)
    seen = list(loader)
    assert [len(b["images"]) for b in seen] == [4, 4, 4, 4, 2]
    patches = torch.cat([b["crops"] for b in seen])
    assert patches.dtype == torch.uint8 and patches.shape == (18, 3, 32, 32)
    assert seen[0]["crops"].is_contiguous(memory_format=torch.channels_last)
    for (image, top, left, _), patch in zip(batches.plan.tolist(), patches):
        plain = store.pixels[5 - image, top : top + 32, left : left + 32]
        assert (patch.permute(1, 2, 0).numpy() == plain).all()
    assert torch.cat([b["images"] for b in seen]).tolist() == batches.plan[:, 0].tolist()
    assert torch.equal(torch.cat([b["flips"] for b in seen]), batches.plan[:, 3].bool())


def test_a_store_on_the_device_gives_the_same_batches(store):
    on_device = DeviceStore(store, torch.device("cpu"))
    assert (on_device.pixels.numpy() == store.pixels).all()
    jitter = data.jitter_plan(18, seed=1, epoch=1)
    plain, gathered = (
        list(
            data.make_loader(
                make_batches(s, augmentations={"jitter": jitter}), workers=2, pin=False
            )
        )
        for s in (store, on_device)
    )
    for one, other in zip(plain, gathered):
        assert one.keys() == other.keys()
        assert one.pop("divisor") == other.pop("divisor") == len(one["images"])
        assert all(torch.equal(one[k], other[k]) for k in one)
        assert other["crops"].is_contiguous(memory_format=torch.channels_last)
    corner = on_device.crops(*torch.tensor([[5], [48 - 32], [40 - 32]]), 32)
    assert (corner[0].permute(1, 2, 0).numpy() == store.pixels[5, 16:, 8:]).all()


def test_loading_leaves_the_global_random_state_alone(store):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(data.make_loader(make_batches(store), workers=0, pin=False))
    assert torch.equal(before, torch.get_rng_state())


def test_network_input_is_torchvisions_flip_and_normalisation(store):
    batch = make_batches(store)[1]
    images = data.to_network_input(batch, torch.device("cpu"))
    assert images.dtype == torch.float32 and batch["flips"].any() and not batch["flips"].all()
    for image, patch, flip in zip(images, batch["crops"], batch["flips"]):
        expected = transforms.to_tensor(patch.permute(1, 2, 0).numpy())
        expected = transforms.hflip(expected) if flip else expected
        expected = transforms.normalize(expected, data.MEAN, data.STD)
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-5)


def test_colour_jitter_is_torchvisions_in_a_fixed_order(store):
    jitter = data.jitter_plan(18, seed=1, epoch=1)
    assert jitter.min() >= 0.9 and jitter.max() <= 1.1 and len(np.unique(jitter)) > 50
    batch = make_batches(store, augmentations={"jitter": jitter})[2]
    jittered = data.colour_jitter(batch["crops"].float(), batch["jitter"]) / 255
    for image, patch, factors in zip(jittered, batch["crops"], jitter[8:12].tolist()):
        expected = transforms.adjust_brightness(patch / 255, factors[0])
        expected = transforms.adjust_contrast(expected, factors[1])
        expected = transforms.adjust_saturation(expected, factors[2])
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-3)


def test_a_store_travels_to_a_worker_as_its_path(store):
    assert store.pixels.shape == (6, 48, 40, 3)
    assert len(pickle.dumps(store)) < 1000
    assert (pickle.loads(pickle.dumps(store)).pixels == store.pixels).all()


# Data opened for use


def test_data_is_opened_as_the_flags_say(biq2021, tmp_path):
    flags = ["--dataset", "biq2021", "--data_path", biq2021, "--store_dir", tmp_path / "store"]
    flags += ["--resize", "48", "40", "--patch_size", "32", "--workers", "0"]
    args, device = parse_args(list(map(str, flags))), torch.device("cpu")
    opened = data.open_data(args, device)
    assert len(opened.table) == 17 and "MOS of the Train and Test CSVs" in opened.source
    images = np.flatnonzero(opened.table["split"] == "test")
    plan = data.test_plan(images, crop="center", per_image=1, **PLAN)
    (batch,) = opened.loader(plan, 8)
    assert batch["images"].tolist() == images.tolist()
    row = opened.table["row"][images[0]]
    first = opened.store.pixels[row, 8:40, 4:36]
    assert (batch["crops"][0].permute(1, 2, 0).numpy() == first).all()
    other = argparse.Namespace(**(vars(args) | {"store_device": "cuda"}))
    with pytest.raises(RunError, match="--store_device cuda: this run is on the CPU"):
        data.open_data(other, device)
