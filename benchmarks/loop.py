"""How fast the whole loops are: over a bare ResNet-50, and over the predecessors' way.

    python3 benchmarks/loop.py
    python3 benchmarks/loop.py --rounds 7 --dataset koniq-10k --data_path ./koniq-10k --compile

Training and evaluation in patches/s, by the very functions of train_resnet_improved.py: store,
crops, augmentation, network, loss, backward, clipping, AdamW. Compared with

- a bare torchvision ResNet-50 (forward, backward, AdamW) on one random batch kept in memory, at
  the same precision, layout and batch size: what the network's arithmetic costs;
- the predecessors' way: each patch decoded, resized and cropped anew by Pillow and torchvision,
  float32, NCHW, no workers, the loss read after each step; in evaluation one patch at a time.

Each of them has a process of its own, and they work in turn.

Further flags are those of train_resnet_improved.py; without --data_path the demo data set is
drawn. About 10 minutes on two CPU cores.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision import transforms

import data_loader as data
import train_resnet_improved as train
from demo_dataset import make_demo
from models_resnet_improved import CONFIGURATIONS
from rounds import InItsOwnProcess, print_rates, rates_in_turn, write_json

LABELS = {"ss_noatt": "baseline", "ms_noatt": "multi-scale", "ms_att": "multi-scale + attention"}


def training_flags(rest: list[str]) -> argparse.Namespace:
    """The flags of training; the demo data set (drawn where it isn't yet) without --data_path."""
    if not any(flag.split("=")[0] == "--data_path" for flag in rest):
        make_demo(Path("demo/koniq-10k"))
        rest = [*rest, "--data_path", "demo/koniq-10k", "--store_dir", "demo/pixel_store"]
    if "--backbone_weights" not in rest:
        rest = [*rest, "--backbone_weights", "none"]
    return train.parse_args(rest)


def prepare(args: argparse.Namespace) -> tuple[torch.device, str]:
    """Device and precision of the flags, and what every candidate sets."""
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(args.seed)
    device = train.choose_device(args.device)
    return device, train.choose_precision(args.amp, device)


def open_data(args: argparse.Namespace):
    """The label table and the pixel store, which is built where there is none."""
    table, _ = train.load_data(args)
    store, table = data.open_store(
        table, args.data_path, resize=args.resize, store_dir=args.store_dir, name=args.dataset
    )
    return table, store


class Ours:
    """The loops of train_resnet_improved.py on a few batches of a configuration's own plan."""

    def __init__(self, args, flags: dict, steps: int, labels_and_store: tuple | None = None):
        args = argparse.Namespace(**vars(args) | flags)
        train.keep_freed_memory()
        table, store = labels_and_store or open_data(args)
        device, precision = prepare(args)
        store = train.place_store(store, args.store_device, device)
        self.device, self.precision, self.compiled = device, precision, args.compile
        self.model = train.build_model(args, 50.0).to(device, memory_format=torch.channels_last)
        if args.compile:
            train.compile_in_place(self.model, device)
        self.optimizer, self.scheduler = train.build_optimizer(args, self.model, 100_000)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.mos = torch.tensor(table["mos"].to_numpy(), dtype=torch.float32, device=device)
        self.crops = args.test_patch_num = 25
        self.gradient_clip = args.gradient_clip
        images = np.flatnonzero(table["split"] == "train")
        sizes = {"resize": args.resize, "patch_size": args.patch_size}
        train_plan = data.training_plan(
            images, patches=args.train_patch_num, seed=args.seed, epoch=1, **sizes
        )[: steps * args.batch_size]
        test_batch = train.evaluation_batch(device, args.patch_size)
        test_images = np.resize(images, -(-steps * test_batch // self.crops))
        test_plan = data.test_plan(test_images, crop="random", patches=self.crops, **sizes)

        def loader(plan: np.ndarray, batch_size: int):
            batches = data.Batches(
                store,
                table["row"].to_numpy(),
                plan,
                patch_size=args.patch_size,
                batch_size=batch_size,
            )
            workers = args.workers if args.workers is not None else 4 * (device.type == "cuda")
            return data.make_loader(batches, workers=workers, pin=device.type == "cuda")

        self.train_loader = loader(train_plan, args.batch_size)
        self.test_loader = loader(test_plan, test_batch)
        self.counts = len(train_plan), len(test_plan)

    def train(self) -> int:
        train.train_one_epoch(
            self.model,
            self.train_loader,
            self.mos,
            self.optimizer,
            self.scheduler,
            self.scaler,
            precision=self.precision,
            gradient_clip=self.gradient_clip,
            watch=data.Progress("training", self.counts[0], "patches"),
            keep=lambda scores: None,
        )
        return self.counts[0]

    def evaluate(self) -> int:
        train.evaluate(
            self.model,
            self.test_loader,
            self.crops,
            device=self.device,
            precision=self.precision,
            watch=data.Progress("evaluation", self.counts[1], "patches"),
            compiled=self.compiled,
        )
        return self.counts[1]


class Bare:
    """torchvision's ResNet-50 on one random batch kept in memory: the network's arithmetic."""

    def __init__(self, args, steps: int):
        device, precision = prepare(args)
        self.device, self.precision, self.steps = device, precision, steps
        self.model = torchvision.models.resnet50().to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        shape = (args.batch_size, 3, args.patch_size, args.patch_size)
        self.images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        self.classes = torch.randint(1000, (args.batch_size,), device=device)
        shape = (train.evaluation_batch(device, args.patch_size), *shape[1:])
        self.test_images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)

    def train(self) -> int:
        self.model.train()
        for _ in range(self.steps):
            with train.autocast(self.device, self.precision):
                loss = F.cross_entropy(self.model(self.images), self.classes)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        loss.item()  # waits for the device
        return self.steps * len(self.images)

    def evaluate(self) -> int:
        self.model.eval()
        with torch.inference_mode(), train.autocast(self.device, self.precision):
            for _ in range(self.steps):
                scores = self.model(self.test_images)
        scores.sum().item()
        return self.steps * len(self.test_images)


class Predecessors:
    """Each patch decoded, resized and cropped anew; float32, NCHW; the loss read at each step."""

    def __init__(self, args, steps: int):
        table, _ = train.load_data(args)
        device, _ = prepare(args)
        self.device, self.steps, self.batch_size = device, steps, args.batch_size
        self.model = train.build_model(args, 50.0).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.paths = [Path(args.data_path, image) for image in table["image"]]
        self.mos = table["mos"].to_numpy(np.float32)
        normalise = transforms.Normalize(data.MEAN, data.STD)
        self.transform = transforms.Compose(
            [
                transforms.Resize(tuple(args.resize)),
                transforms.RandomCrop(args.patch_size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                normalise,
            ]
        )
        self.rng = np.random.default_rng(0)

    def patches(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self.rng.integers(len(self.paths), size=count)
        images = [self.transform(Image.open(self.paths[i]).convert("RGB")) for i in chosen]
        return torch.stack(images).to(self.device), torch.tensor(self.mos[chosen]).to(self.device)

    def train(self) -> int:
        self.model.train()
        for _ in range(self.steps):
            images, mos = self.patches(self.batch_size)
            self.optimizer.zero_grad()
            scores, _ = self.model(images)
            loss = F.l1_loss(scores, mos)
            loss.item()
            loss.backward()
            self.optimizer.step()
            scores.cpu().tolist()
        return self.steps * self.batch_size

    def evaluate(self) -> int:
        self.model.eval()
        with torch.no_grad():
            for _ in range(self.batch_size):
                images, _ = self.patches(1)
                float(self.model(images)[0].item())
        return self.batch_size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="median over so many (default: 5)")
    parser.add_argument(
        "--steps", type=int, default=4, help="batches a candidate and round (default: 4)"
    )
    parser.add_argument("--part", choices=["training", "evaluation", "both"], default="both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    own, rest = parser.parse_known_args()
    args = training_flags(rest)

    open_data(args)  # builds the store, so that none of them has to

    runs = {"bare ResNet-50": InItsOwnProcess(Bare, args, own.steps)}
    for name, (flags, _) in CONFIGURATIONS.items():
        runs[LABELS[name]] = InItsOwnProcess(Ours, args, flags, own.steps)
    few = max(1, own.steps // 4)
    runs["the predecessors' way (float32)"] = InItsOwnProcess(Predecessors, args, few)

    device, precision = prepare(args)
    print(f"device {device}, precision {precision}, batch {args.batch_size}, {own.rounds} rounds")
    results = {}
    for part, method in (("training", "train"), ("evaluation", "evaluate")):
        if own.part not in (part, "both"):
            continue
        turns = {name: functools.partial(run.call, method) for name, run in runs.items()}
        rates = rates_in_turn(turns, own.rounds)
        print_rates(f"{part}, whole loop", "patches/s", rates, "bare ResNet-50")
        results[part] = rates
    write_json(own.json, {"flags": vars(args), **results})


if __name__ == "__main__":
    main()
