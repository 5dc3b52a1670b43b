"""How fast the complete loops are: compared with a bare ResNet-50, and with the predecessors' way.

    python3 benchmarks/loop.py
    python3 benchmarks/loop.py --rounds 7 --dataset koniq-10k --data_path ./koniq-10k --compile

Training and evaluation in crops/s, by the functions that a run uses: store, crops, augmentation,
network, loss, backward, clipping, AdamW. Compared with

- a bare torchvision ResNet-50, or with --backbone timm's complete network of that name (forward,
  backward, AdamW), on one random batch kept in memory, at the same precision, layout and batch
  size: what the network's arithmetic costs;
- the predecessors' way: each crop decoded, resized and cut anew by Pillow and torchvision,
  float32, NCHW, no workers, the loss read after each step; in evaluation one crop at a time.

Each of them has its own process, and they are timed alternately. Further flags are those of
train_resnet_improved.py; without --data_path the demo data set is generated. Two CPU cores take
about 10 minutes and 14 GB with bfloat16, and in float32 half an hour and 25 GB.
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
from console import command
from datasets.labels import load_labels
from demo_dataset import make_demo
from devices import (
    autocast,
    choose_device,
    choose_precision,
    keep_freed_memory,
)
from evaluation import build_model, evaluate, evaluation_batch
from experiment import RESNET50, Configuration, rows_of
from rounds import InItsOwnProcess, alternating_rates, output_file, print_rates, write_json
from train_resnet_improved import train_one_epoch, train_step
from training.flags import parse_args
from training.graph import GraphedSteps, obstacle
from training.learner import StepResults, build_learner


def training_flags(rest: list[str]) -> argparse.Namespace:
    """The flags of training; the demo data set (made if it isn't there) without --data_path."""
    if not any(flag.split("=")[0] == "--data_path" for flag in rest):
        make_demo(Path("demo/koniq-10k"))
        rest = [*rest, "--data_path", "demo/koniq-10k", "--store_dir", "demo/pixel_store"]
    if "--backbone_weights" not in rest:
        rest = [*rest, "--backbone_weights", "none"]
    return parse_args(rest)


def prepare(args: argparse.Namespace) -> tuple[torch.device, str]:
    """Device and precision of the flags, and what every candidate sets."""
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(args.seed)
    device = choose_device(args.device)
    return device, choose_precision(args.amp, device)


class Ours:
    """The loops of a run on a few batches of its own plan, for one configuration."""

    crops = 25  # of each test image

    def __init__(self, args: argparse.Namespace, row: Configuration, steps: int):
        args = argparse.Namespace(**vars(args) | row.flags)
        keep_freed_memory()  # as training does
        self.device, self.precision = prepare(args)
        self.compiled = args.compile
        opened = data.open_data(args, self.device)
        self.learner = build_learner(
            args, initial_score=50.0, steps=100_000, device=self.device, precision=self.precision
        )
        mos = opened.table["mos"].to_numpy()
        self.mos = torch.tensor(mos, dtype=torch.float32, device=self.device)

        images = np.flatnonzero(opened.table["split"] == "train")
        sizes = {"resize": args.resize, "patch_size": args.patch_size}
        train_plan = data.training_plan(
            images, per_image=args.train_patch_num, seed=args.seed, epoch=1, **sizes
        )
        train_plan = np.resize(train_plan, (steps * args.batch_size, train_plan.shape[1]))
        test_batch = evaluation_batch(self.device, (args.patch_size, args.patch_size))
        test_images = np.resize(images, -(-steps * test_batch // self.crops))
        test_plan = data.test_plan(test_images, crop="random", per_image=self.crops, **sizes)
        self.train_loader = opened.loader(train_plan, args.batch_size)
        self.test_loader = opened.loader(test_plan, test_batch)
        self.counts = len(train_plan), len(test_plan)
        self.results = StepResults(len(train_plan), len(self.train_loader), self.device)
        self.graphed = None
        if args.cuda_graph == "auto" and not obstacle(
            args, opened.store, self.learner, processes=1
        ):
            self.graphed = GraphedSteps(train_step, self.learner, self.mos, self.results)

    def train(self) -> int:
        self.results.clear()
        batches, learner = self.train_loader, self.learner
        if self.graphed:
            batches = self.graphed.begin(batches)
        train_one_epoch(learner, batches, self.mos, self.results, graphed=self.graphed)
        self.results.so_far()  # waits for the device
        return self.counts[0]

    def evaluate(self) -> int:
        evaluate(
            self.learner.model,
            self.test_loader,
            self.crops,
            device=self.device,
            precision=self.precision,
            compiled=self.compiled,
        )
        return self.counts[1]


class Bare:
    """The bare network on one random batch kept in memory: its arithmetic."""

    def __init__(self, args, steps: int):
        device, precision = prepare(args)
        self.device, self.precision, self.steps = device, precision, steps
        self.model = bare_network(args.backbone).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        shape = (args.batch_size, 3, args.patch_size, args.patch_size)
        self.images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
        self.classes = torch.randint(1000, (args.batch_size,), device=device)
        shape = (evaluation_batch(device, shape[2:]), *shape[1:])
        self.test_images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)

    def train(self) -> int:
        self.model.train()
        for _ in range(self.steps):
            with autocast(self.device, self.precision):
                loss = F.cross_entropy(self.model(self.images), self.classes)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        loss.item()  # waits for the device
        return self.steps * len(self.images)

    def evaluate(self) -> int:
        self.model.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            for _ in range(self.steps):
                scores = self.model(self.test_images)
        scores.sum().item()
        return self.steps * len(self.test_images)


def bare_network(backbone: str) -> torch.nn.Module:
    """The classifier that the backbone comes from."""
    if backbone == RESNET50:
        return torchvision.models.resnet50()
    import timm

    return timm.create_model(backbone, num_classes=1000)


class Predecessors:
    """Each crop decoded, resized and cut anew; float32, NCHW; the loss read at each step."""

    def __init__(self, args, steps: int):
        table, _ = load_labels(args)
        device, _ = prepare(args)
        self.device, self.steps, self.batch_size = device, steps, args.batch_size
        self.model = build_model(vars(args), 50.0).to(device)
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

    def crops(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = self.rng.integers(len(self.paths), size=count)
        images = [self.transform(Image.open(self.paths[i]).convert("RGB")) for i in chosen]
        return torch.stack(images).to(self.device), torch.tensor(self.mos[chosen]).to(self.device)

    def train(self) -> int:
        self.model.train()
        for _ in range(self.steps):
            images, mos = self.crops(self.batch_size)
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
                images, _ = self.crops(1)
                float(self.model(images)[0].item())
        return self.batch_size


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="medians are over these (default: 5)")
    parser.add_argument(
        "--steps", type=int, help="batches per candidate and round (default: 4; 200 on CUDA)"
    )
    parser.add_argument("--part", choices=["training", "evaluation", "both"], default="both")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the figures there as well"
    )
    own, rest = parser.parse_known_args()
    args = training_flags(rest)

    device, precision = prepare(args)
    own.steps = own.steps or (200 if device.type == "cuda" else 4)
    data.open_data(args, device)  # builds the store, so that no candidate has to

    runs = {"bare ResNet-50": InItsOwnProcess(Bare, args, own.steps)}
    for row in rows_of(args.model).values():
        runs[row.title] = InItsOwnProcess(Ours, args, row, own.steps)
    few = max(1, min(own.steps // 4, 10))
    runs["the predecessors' way (float32)"] = InItsOwnProcess(Predecessors, args, few)

    print(f"device {device}, precision {precision}, batch {args.batch_size}, {own.rounds} rounds")
    results = {}
    for part, method in (("training", "train"), ("evaluation", "evaluate")):
        if own.part not in (part, "both"):
            continue
        turns = {name: functools.partial(run.call, method) for name, run in runs.items()}
        rates = alternating_rates(turns, own.rounds)
        print_rates(f"{part}, complete loop", "crops/s", rates, "bare ResNet-50")
        results[part] = rates
    write_json(own.json, {"flags": vars(args), **results})


if __name__ == "__main__":
    sys.exit(main())
