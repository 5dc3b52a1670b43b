"""What a batch is: crop plans, batches, the loader, and how data is opened for use.

    python3 data_loader.py --dataset koniq-10k --data_path ./koniq-10k

checks a data folder before anyone trains on it: labels, splits, every image.

A crop plan says which crops an epoch sees; it comes from (seed, epoch) alone, and nothing else in
the data is random.
"""

import argparse
import copy
import functools
import signal
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datasets.labels import load_labels
from datasets.pixel_store import DeviceStore, PixelStore, open_store
from devices import memory_format
from errors import RunError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in 0..1
SCALE = tuple(1 / (255 * std) for std in STD)  # of pixels in 0..255: times SCALE, plus SHIFT
SHIFT = tuple(-mean / std for mean, std in zip(MEAN, STD))
TEST_SEED = 2020  # of the crops of test and validation images, in every run


# Crop plans -------------------------------------------------------------------------------------


def training_plan(
    images: np.ndarray,
    *,
    per_image: int,
    resize: tuple[int, int],
    patch_size: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """The crops of one training epoch in their order: int32 (N * per_image, 4).

    Columns: image, top, left, flip. Each image comes once in each of `per_image` shuffled rounds,
    so that a batch holds different images (except where two rounds meet). It depends on
    (seed, epoch) alone.
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.concatenate([rng.permutation(images) for _ in range(per_image)])
    tops, lefts = random_corners(rng, len(order), resize, patch_size)
    return np.stack([order, tops, lefts, rng.integers(0, 2, len(order))], 1).astype(np.int32)


def test_plan(
    images: np.ndarray,
    *,
    crop: str,
    per_image: int,
    resize: tuple[int, int],
    patch_size: int,
    flip: bool = False,
) -> np.ndarray:
    """The crops on which each image is evaluated, image by image: int32 (N * P, 4).

    crop: 'random' (drawn once from TEST_SEED: the same in every epoch, configuration and run),
    'grid' (a square grid; P = per_image must be a square number), 'center' (P = 1), or 'full' (the
    whole image; P = 1). flip: each crop is followed by its mirror image, which makes 2 P of them.
    """
    if crop == "full":
        per_image, resize = 1, (patch_size, patch_size)  # begins in the corner
    high, wide = resize[0] - patch_size, resize[1] - patch_size
    count = len(images) * per_image
    if crop == "random":
        tops, lefts = random_corners(np.random.default_rng(TEST_SEED), count, resize, patch_size)
    elif crop == "grid":
        side = round(per_image**0.5)
        at = np.array([0.5]) if side == 1 else np.linspace(0, 1, side)
        rows, columns = np.meshgrid(np.rint(at * high), np.rint(at * wide), indexing="ij")
        tops, lefts = np.tile(rows.ravel(), len(images)), np.tile(columns.ravel(), len(images))
    else:
        tops, lefts = np.full(count, high // 2), np.full(count, wide // 2)
    plan = np.stack([np.repeat(images, per_image), tops, lefts, np.zeros(count)], 1)
    if flip:
        plan = np.repeat(plan, 2, axis=0)
        plan[1::2, 3] = 1
    return plan.astype(np.int32)


def random_corners(
    rng: np.random.Generator, count: int, resize: tuple[int, int], patch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tops and lefts of `count` crops, each position inside the image as likely as another."""
    tops = rng.integers(0, resize[0] - patch_size + 1, count)
    return tops, rng.integers(0, resize[1] - patch_size + 1, count)


def augmentation_plans(
    count: int, *, seed: int, epoch: int, color_jitter: bool
) -> dict[str, np.ndarray]:
    """The random numbers of the augmentations that are on, by name, a row for each crop.

    Each augmentation needs a number of its own as the third of its generator's seeds.
    """
    plans = {}
    if color_jitter:
        plans["jitter"] = jitter_plan(count, seed=seed, epoch=epoch)
    return plans


def jitter_plan(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Factors of brightness, contrast, saturation for each crop: float32 (count, 3), 0.9..1.1."""
    return np.random.default_rng([seed, epoch, 1]).uniform(0.9, 1.1, (count, 3)).astype(np.float32)


# Batches ----------------------------------------------------------------------------------------


class Batches:
    """A map-style data set whose items are complete batches of a crop plan.

    size: side of the crops, or their height and width. Item: a dict of tensors on the store's
    device: `crops` uint8 (B, 3, height, width) in channels_last memory, `images` int64 (B,) (the
    plan's), `flips` bool (B,), and the numbers of each augmentation (`jitter` float32 (B, 3)); and
    `divisor`, a float: the size of the complete batch over the number of processes, of which this
    is number `rank` and takes its part. (A sum over the part, divided by it, becomes the mean over
    the complete batch once the processes average.) `rows` maps the plan's images to rows of the
    store.
    """

    def __init__(
        self,
        store: PixelStore | DeviceStore,
        rows: np.ndarray,
        plan: np.ndarray,
        *,
        size: "int | tuple[int, int]",
        batch_size: int,
        augmentations: dict[str, np.ndarray] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ):
        import torch

        self.store, self.size, self.batch_size = store, size, batch_size
        self.rank, self.ranks = rank, ranks
        self.rows = torch.tensor(rows, device=store.device)
        self.plan = torch.tensor(plan, dtype=torch.int64, device=store.device)
        self.augmentations = {
            name: torch.tensor(numbers, device=store.device)
            for name, numbers in (augmentations or {}).items()
        }
        assert all(len(a) == len(plan) for a in self.augmentations.values()), "a row for each crop"

    def __len__(self) -> int:
        return -(-len(self.plan) // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, "Tensor"]:
        return self.at(slice(index * self.batch_size, (index + 1) * self.batch_size))

    def at(self, part: "slice | Tensor") -> dict[str, "Tensor"]:
        """The batch of a part of the plan's rows, which may be a tensor on the device."""
        complete = self.plan[part]
        plan = complete.tensor_split(self.ranks)[self.rank]
        images, tops, lefts, flips = plan.unbind(1)
        batch = {
            "divisor": len(complete) / self.ranks,
            "crops": self.store.crops(self.rows[images], tops, lefts, self.size),
            "images": images,
            "flips": flips.bool(),
        }
        for name, numbers in self.augmentations.items():
            batch[name] = numbers[part].tensor_split(self.ranks)[self.rank]
        return batch

    def with_room(self, count: int) -> "Batches":
        """The same with a plan of `count` rows, in tensors that `take_plan` fills."""
        other = copy.copy(self)
        wider = [t.new_zeros(count, *t.shape[1:]) for t in self.plans()]
        other.plan, other.augmentations = wider[0], dict(zip(self.augmentations, wider[1:]))
        return other

    def take_plan(self, batches: "Batches") -> None:
        """Copy the plan of other batches, and the numbers of its augmentations, in place."""
        for own, new in zip(self.plans(), batches.plans()):
            own[: len(new)] = new

    def plans(self) -> list["Tensor"]:
        return [self.plan, *self.augmentations.values()]


def share_of(count: int, batch_size: int, rank: int, ranks: int) -> np.ndarray:
    """Which of a plan's `count` rows process `rank` of `ranks` takes: of each batch its part."""
    batches = np.split(np.arange(count), range(batch_size, count, batch_size))
    return np.concatenate([np.array_split(batch, ranks)[rank] for batch in batches])


def make_loader(batches: Batches, *, workers: int, pin: bool) -> "torch.utils.data.DataLoader":
    """A DataLoader over complete batches, in the plan's order whatever the number of workers.

    `pin` puts the batches of a store in host memory where a CUDA device copies them fastest. A
    store on the device needs neither that nor workers.
    """
    import torch

    on_host = isinstance(batches.store, PixelStore)
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        num_workers=workers if on_host else 0,
        worker_init_fn=begin_worker,
        pin_memory=pin and on_host,
        generator=torch.Generator(),  # its own, so that the loader leaves the global one alone
    )


def begin_worker(_: int) -> None:
    """A worker leaves signals and the last word to the run, which ends it in time.

    multiprocessing hands batches over in a thread that shows its errors by sys.excepthook. A
    connection that ends there means that the run ends, which the run explains itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def show(kind: type, *rest: Any) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, *rest)

    sys.excepthook = show


def to_network_input(batch: dict[str, "Tensor"], device: "torch.device") -> "Tensor":
    """The batch on the device: float32 (B, 3, height, width), flipped, jittered, normalised."""
    import torch

    moved = {
        k: batch[k].to(device, non_blocking=True)
        for k in ("crops", "flips", "jitter")
        if k in batch
    }
    pixels = moved["crops"].contiguous(memory_format=memory_format(device))
    pixels = torch.where(moved["flips"][:, None, None, None], pixels.flip(3), pixels).float()
    if "jitter" in moved:
        pixels = colour_jitter(pixels, moved["jitter"])
    return torch.addcmul(colour(SHIFT, device), pixels, colour(SCALE, device))


@functools.cache  # made once, as a copy from the host makes a CUDA device wait
def colour(values: tuple[float, float, float], device: "torch.device") -> "Tensor":
    """One value for each of R, G and B: float32 (3, 1, 1) on the device."""
    import torch

    return torch.tensor(values)[:, None, None].to(device)


def colour_jitter(pixels: "Tensor", factors: "Tensor") -> "Tensor":
    """Brightness, then contrast (about the mean grey), then saturation (about each pixel's grey).

    pixels (B, 3, H, W) in 0..255; factors (B, 3). Grey is ITU-R 601 luma, as in torchvision.
    """
    luma = colour((0.299, 0.587, 0.114), pixels.device)
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)  # 3 x (B, 1, 1, 1)
    pixels = (pixels * brightness).clamp(0, 255)
    middle = (pixels * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = (middle + (pixels - middle) * contrast).clamp(0, 255)
    grey = (pixels * luma).sum(1, keepdim=True)
    return (grey + (pixels - grey) * saturation).clamp(0, 255)


# Data opened for use ----------------------------------------------------------------------------


class OpenData(NamedTuple):
    """A data set that is ready for training, evaluation or a test on it.

    table: its label table, with each image's `row` in the store; source: where the labels come
    from; store: the decoded images, on the CPU or the GPU.
    """

    table: "pd.DataFrame"
    source: str
    store: PixelStore | DeviceStore
    patch_size: int
    workers: int
    pin: bool

    def loader(
        self,
        plan: np.ndarray,
        batch_size: int,
        *,
        size: "int | tuple[int, int] | None" = None,
        **part,
    ) -> "torch.utils.data.DataLoader":
        """The batches of a crop plan; `part` (augmentations, rank, ranks) as for Batches.

        size: of the crops, if it is not that of training.
        """
        batches = Batches(
            self.store,
            self.table["row"].to_numpy(),
            plan,
            size=size or self.patch_size,
            batch_size=batch_size,
            **part,
        )
        return make_loader(batches, workers=self.workers, pin=self.pin)


def open_data(
    args: argparse.Namespace,
    device: "torch.device",
    labels: tuple["pd.DataFrame", str] | None = None,
) -> OpenData:
    """Open the data set that the flags name: labels, then the pixel store, then its place.

    args: the data flags (datasets/flags.py), resize, patch_size, store_device and workers. labels:
    those of load_labels(args) if they have been read already; the table may be a subset.
    Raises DataError for everything that is wrong with the files, RunError for --store_device.
    """
    table, source = labels or load_labels(args)
    store, table = open_store(
        table, args.data_path, resize=args.resize, store_dir=args.store_dir, name=args.dataset
    )
    on_cuda = device.type == "cuda"
    workers = 4 * on_cuda if args.workers is None else args.workers
    store = place_store(store, args.store_device, device)
    return OpenData(table, source, store, args.patch_size, workers, pin=on_cuda)


def place_store(store: PixelStore, choice: str, device: "torch.device"):
    """The store as it is, or its images in the device's memory, as `--store_device` says."""
    import torch

    if choice == "cuda" and device.type != "cuda":
        where = "the CPU" if device.type == "cpu" else device.type
        raise RunError(f"--store_device cuda: this run is on {where}; take auto or cpu")
    if choice == "cpu" or device.type != "cuda":
        return store
    if choice == "auto" and store.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return store
    return DeviceStore(store, device)


if __name__ == "__main__":
    from datasets.check_folder import main

    sys.exit(main())
