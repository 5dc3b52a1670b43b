"""What the pixel store costs: building, reading, and opening one of KonIQ-10k's full size.

    python3 benchmarks/store.py
    python3 benchmarks/store.py --dataset koniq-10k --data_path ./koniq-10k
    python3 benchmarks/store.py --part full_size

- reading: random 224 crops as uint8 batches, crops/s on one core, from a store in memory;
- building: images/s compared with plain decoding and resizing by Pillow on all cores, which keeps
  nothing;
- full_size: 10,073 images of 512 x 384 as random bytes (5.9 GB of disk, removed again): seconds and
  memory to open store, labels, split and the plan of 176,150 crops, and what a training step on it
  needs more than the same step on a batch in memory. Memory is anonymous memory: pages of the store
  are the system's cache, which it takes back when it needs them.

Further flags are those of train_resnet_improved.py; without --data_path the demo data set is
generated. About 3 minutes.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image

import data_loader as data
from console import command
from datasets.labels import load_labels
from datasets.pixel_store import STORE_VERSION, file_state, open_store, store_path
from devices import keep_freed_memory
from loop import prepare, training_flags
from rounds import InItsOwnProcess, alternating_rates, output_file, print_rates, write_json
from train_resnet_improved import train_one_epoch
from training.flags import parse_args
from training.learner import StepResults, build_learner

FULL = {"train": 7046, "test": 2010, "others": 1017}  # 10,073 images, as in KonIQ-10k
PATCHES = 25


def reading(args: argparse.Namespace, opened: data.OpenData, rounds: int) -> dict[str, list[float]]:
    """Crops as batches of 32 on one core, compared with plain copies of as many bytes."""
    keep_freed_memory()  # as training does
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    rows = opened.table["row"].to_numpy()
    size = {"resize": args.resize, "patch_size": args.patch_size}
    plan = data.training_plan(np.arange(len(rows)), per_image=4, seed=0, epoch=1, **size)
    batches = data.Batches(opened.store, rows, plan, size=args.patch_size, batch_size=32)
    source = np.zeros((args.patch_size, args.patch_size, 3), np.uint8)
    target = np.empty((32, args.patch_size, args.patch_size, 3), np.uint8)
    opened.store.pixels.max()  # now all of it is in memory

    def crops() -> int:
        for i in range(len(batches)):
            batches[i]
        return len(plan)

    def copies() -> int:
        for i in range(len(plan)):
            target[i % 32] = source
        return len(plan)

    rates = alternating_rates({"plain copies of as many bytes": copies, "crops": crops}, rounds)
    os.sched_setaffinity(0, cores)
    return rates


class Pillow:
    """Plain decoding and resizing on all cores; nothing is kept."""

    def __init__(self, args):
        self.args, self.table = args, load_labels(args)[0]

    def work(self) -> int:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(self.decode, self.table["image"]))
        return len(self.table)

    def decode(self, image: str) -> None:
        with Image.open(Path(self.args.data_path, image)) as file:
            file.convert("RGB").resize(self.args.resize[::-1], Image.Resampling.BILINEAR)


class Build(Pillow):
    """The store, from no file to file and header on disk."""

    def work(self) -> tuple[int, float]:
        args = self.args
        keep_freed_memory()  # as training does
        with tempfile.TemporaryDirectory(dir=args.store_dir) as store_dir:
            began = time.perf_counter()
            open_store(
                self.table,
                args.data_path,
                resize=args.resize,
                store_dir=store_dir,
                name=args.dataset,
            )
            return len(self.table), time.perf_counter() - began


def building(args: argparse.Namespace, rounds: int) -> dict[str, list[float]]:
    """Building compared with Pillow alone, each in its own process, alternately."""
    makers = {"Pillow, nothing kept": Pillow, "store": Build}
    processes = {name: InItsOwnProcess(make, args) for name, make in makers.items()}
    turns = {name: functools.partial(p.call, "work") for name, p in processes.items()}
    return alternating_rates(turns, rounds)


def make_full_size(folder: Path) -> None:
    """KonIQ-10k's layout with empty files as images, and a store of noise that belongs to them."""
    (folder / "512x384").mkdir()
    names = [f"{i}.jpg" for i in range(sum(FULL.values()))]
    noise = np.random.default_rng(1).integers(0, 256, (64, 512, 384, 3), np.uint8)
    sums = [zlib.crc32(image) for image in noise]  # of these 64 images, which repeat
    images = {}
    for row, name in enumerate(names):
        path = folder / "512x384" / name
        path.touch()
        image = {"row": row, "crc32": sums[row % 64], "content": "", "file": file_state(path)}
        images[f"512x384/{name}"] = image
    scores = np.random.default_rng(0).uniform(0, 100, len(names))
    lines = [f"{name},{score:.4f}" for name, score in zip(names, scores)]
    labels = folder / "koniq10k_scores_and_distributions.csv"
    labels.write_text("\n".join(["image_name,MOS_zscore", *lines]) + "\n")
    first = 0
    for part in ("train", "test"):
        entries = [{"image": name} for name in names[first : first + FULL[part]]]
        (folder / f"koniq_{part}.json").write_text(json.dumps(entries))
        first += FULL[part]

    header = {"version": STORE_VERSION, "resize": [512, 384], "images": images}
    path = store_path(folder, name="koniq-10k", resize=(512, 384), store_dir=folder)
    with open(path, "wb") as file:
        for start in range(0, len(names), 64):
            file.write(noise[: len(names) - start])
    path.with_suffix(".json").write_text(json.dumps(header))


def anonymous_memory() -> int:
    """Bytes of this process's own memory, without mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux")


def open_full_size(folder: Path, train_on: str) -> None:
    """In a separate process: open everything, train a few steps, print the figures as JSON."""
    began = time.perf_counter()
    args = parse_args(
        f"--dataset koniq-10k --data_path {folder} --store_dir {folder} --device cpu "
        "--backbone_weights none --workers 0".split()
    )
    device, precision = prepare(args)
    opened = data.open_data(args, device)
    plan = data.training_plan(
        np.flatnonzero(opened.table["split"] == "train"),
        per_image=PATCHES,
        resize=args.resize,
        patch_size=args.patch_size,
        seed=0,
        epoch=1,
    )
    figures = {
        "images": len(opened.store.pixels),
        "crops": len(plan),
        "open_seconds": time.perf_counter() - began,
        "open_bytes": anonymous_memory(),
    }

    learner = build_learner(args, initial_score=50.0, steps=100, device=device, precision=precision)
    mos = torch.tensor(opened.table["mos"].to_numpy(), dtype=torch.float32)
    loader = opened.loader(plan[:96], 32)
    results = StepResults(96, len(loader), device)
    if train_on == "memory":
        loader = [next(iter(loader))] * len(loader)
        del opened

    peak, done = [0], threading.Event()

    def watch_memory() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch_memory)
    watcher.start()
    try:
        train_one_epoch(learner, loader, mos, results)
    finally:
        done.set()
    watcher.join()
    print(json.dumps(figures | {"training_bytes": peak[0]}))


def full_size(rounds: int) -> list[dict]:
    """Each round in new processes, from the store and from one batch in memory."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        make_full_size(Path(folder))
        for _ in range(rounds):
            for train_on in ("memory", "store"):
                command = [sys.executable, __file__, "--open", folder, "--train_on", train_on]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                results.append({"train_on": train_on, **json.loads(out.splitlines()[-1])})
    print("\nfull size, opened in a new process")
    print(f"{'images':>8}{'crops':>10}{'seconds':>9}{'GB':>6}   trained on   peak GB")
    for r in results:
        print(
            f"{r['images']:>8,}{r['crops']:>10,}{r['open_seconds']:>9.2f}"
            f"{r['open_bytes'] / 1e9:>6.2f}   {r['train_on']:<10}{r['training_bytes'] / 1e9:>10.2f}"
        )
    return results


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="medians are over these (default: 5)")
    parser.add_argument(
        "--part", choices=["reading", "building", "full_size", "all"], default="all"
    )
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the figures there as well"
    )
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train_on", help=argparse.SUPPRESS)
    own, rest = parser.parse_known_args()
    if own.open:
        return open_full_size(own.open, own.train_on)

    results = {}
    if own.part != "full_size":
        args = training_flags(rest)
        opened = data.open_data(args, torch.device("cpu"))
    if own.part in ("reading", "all"):
        results["reading"] = reading(args, opened, own.rounds)
        print_rates(
            "reading, one core", "crops/s", results["reading"], "plain copies of as many bytes"
        )
    if own.part in ("building", "all"):
        results["building"] = building(args, own.rounds)
        print_rates("building", "images/s", results["building"], "Pillow, nothing kept")
    if own.part in ("full_size", "all"):
        results["full_size"] = full_size(min(own.rounds, 3))
    write_json(own.json, results)


if __name__ == "__main__":
    sys.exit(main())
