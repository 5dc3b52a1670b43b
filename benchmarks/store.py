"""What the pixel store costs: building, reading, and opening one of KonIQ-10k's full size.

    python3 benchmarks/store.py
    python3 benchmarks/store.py --dataset koniq-10k --data_path ./koniq-10k
    python3 benchmarks/store.py --part full_size

- reading: random 224 crops as uint8 batches, patches/s on one core, from a store in memory;
- building: images/s over plain Pillow decode and resize on all cores, which keeps nothing;
- full_size: 10,073 images of 512 x 384 as random bytes (5.9 GB of disk, removed again): seconds and
  memory to open store, labels, split and the plan of 176,150 crops, and what a training step on it
  needs above the same step on a batch in memory. Memory is anonymous memory: pages of the store
  itself are the system's cache, which it takes back when it needs them.

Further flags are those of train_resnet_improved.py; without --data_path the demo data set is drawn.
About 3 minutes.
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

from PIL import Image

import data_loader as data
import train_resnet_improved as train
from loop import training_flags
from rounds import InItsOwnProcess, print_rates, rates_in_turn, write_json

FULL = {"train": 7046, "test": 2010, "others": 1017}  # 10,073 images, as in KonIQ-10k
PATCHES = 25


def reading(args, table, store, rounds: int) -> dict:
    """Crops as batches of 32 on one core; plain copies of as many bytes for comparison."""
    train.keep_freed_memory()  # as training does
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    rows = table["row"].to_numpy()
    size = {"resize": args.resize, "patch_size": args.patch_size}
    plan = data.training_plan(np.arange(len(rows)), patches=4, seed=0, epoch=1, **size)
    batches = data.Batches(store, rows, plan, patch_size=args.patch_size, batch_size=32)
    source = np.zeros((args.patch_size, args.patch_size, 3), np.uint8)
    target = np.empty((32, args.patch_size, args.patch_size, 3), np.uint8)
    store.pixels.max()  # in memory, all of it

    def crops() -> int:
        for i in range(len(batches)):
            batches[i]
        return len(plan)

    def copies() -> int:
        for i in range(len(plan)):
            target[i % 32] = source
        return len(plan)

    rates = rates_in_turn({"plain copies of as many bytes": copies, "crops": crops}, rounds)
    os.sched_setaffinity(0, cores)
    return rates


class Pillow:
    """Plain decoding and resizing on all cores; nothing is kept."""

    def __init__(self, args):
        self.args, self.table = args, train.load_data(args)[0]

    def work(self) -> int:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(self.decode, self.table["image"]))
        return len(self.table)

    def decode(self, image: str) -> None:
        with Image.open(Path(self.args.data_path, image)) as file:
            file.convert("RGB").resize(self.args.resize[::-1], Image.Resampling.BILINEAR)


class Build(Pillow):
    """The store from nothing to file and header on disk."""

    def work(self) -> tuple[int, float]:
        args = self.args
        train.keep_freed_memory()  # as training does
        with tempfile.TemporaryDirectory(dir=args.store_dir) as store_dir:
            began = time.perf_counter()
            data.open_store(
                self.table,
                args.data_path,
                resize=args.resize,
                store_dir=store_dir,
                name=args.dataset,
            )
            return len(self.table), time.perf_counter() - began


def building(args, rounds: int) -> dict:
    """Build over Pillow alone, each in a process of its own, in turn."""
    makers = {"Pillow, nothing kept": Pillow, "store": Build}
    processes = {name: InItsOwnProcess(make, args) for name, make in makers.items()}
    turns = {name: functools.partial(p.call, "work") for name, p in processes.items()}
    return rates_in_turn(turns, rounds)


def make_full_size(folder: Path) -> None:
    """KonIQ-10k's layout with empty files for images, and a store that fits them, of noise."""
    (folder / "512x384").mkdir()
    names = [f"{i}.jpg" for i in range(sum(FULL.values()))]
    noise = np.random.default_rng(1).integers(0, 256, (64, 512, 384, 3), np.uint8)
    sums = [zlib.crc32(image) for image in noise]  # of the images that come again and again
    images = {}
    for row, name in enumerate(names):
        path = folder / "512x384" / name
        path.touch()
        image = {"row": row, "crc32": sums[row % 64], "file": data.file_state(path)}
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

    header = {"version": data.STORE_VERSION, "resize": [512, 384], "images": images}
    path = data.store_path(folder, name="koniq-10k", resize=(512, 384), store_dir=folder)
    with open(path, "wb") as file:
        for start in range(0, len(names), 64):
            file.write(noise[: len(names) - start])
    path.with_suffix(".json").write_text(json.dumps(header))


def anonymous_memory() -> int:
    """Bytes of this process's own memory, without files that are mapped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux")


def open_full_size(folder: Path, train_on: str) -> None:
    """In a process of its own: open everything, train two steps, print the figures as JSON."""
    began = time.perf_counter()
    args = train.parse_args(
        f"--dataset koniq-10k --data_path {folder} --store_dir {folder} --backbone_weights "
        "none".split()
    )
    table, _ = train.load_data(args)
    store, table = data.open_store(
        table, folder, resize=args.resize, store_dir=folder, name="koniq-10k"
    )
    plan = data.training_plan(
        np.flatnonzero(table["split"] == "train"),
        patches=PATCHES,
        resize=args.resize,
        patch_size=args.patch_size,
        seed=0,
        epoch=1,
    )
    figures = {
        "images": len(store.pixels),
        "crops": len(plan),
        "open_seconds": time.perf_counter() - began,
        "open_bytes": anonymous_memory(),
    }

    import torch

    device, peak, done = torch.device("cpu"), [0], threading.Event()
    precision = train.choose_precision("auto", device)
    model = train.build_model(args, 50.0).to(memory_format=torch.channels_last)
    optimizer, scheduler = train.build_optimizer(args, model, 100)
    batches = data.Batches(
        store, table["row"].to_numpy(), plan[:96], patch_size=args.patch_size, batch_size=32
    )
    if train_on == "memory":
        loader = [batches[0]] * len(batches)
        del batches, store
    else:
        loader = data.make_loader(batches, workers=0, pin=False)

    def watch_memory() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch_memory)
    watcher.start()
    train.train_one_epoch(
        model,
        loader,
        torch.tensor(table["mos"].to_numpy(), dtype=torch.float32),
        optimizer,
        scheduler,
        torch.amp.GradScaler("cpu", enabled=False),
        precision=precision,
        gradient_clip=args.gradient_clip,
        watch=lambda steps: steps,
        keep=lambda scores: None,
    )
    done.set()
    watcher.join()
    print(json.dumps(figures | {"training_bytes": peak[0]}))


def full_size(rounds: int) -> list[dict]:
    """Each round in fresh processes, from the store and from one batch in memory."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        make_full_size(Path(folder))
        for _ in range(rounds):
            for train_on in ("memory", "store"):
                command = [sys.executable, __file__, "--open", folder, "--train_on", train_on]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                results.append({"train_on": train_on, **json.loads(out.splitlines()[-1])})
    print("\nfull size, opened in a fresh process")
    print(f"{'images':>8}{'crops':>10}{'seconds':>9}{'GB':>6}   trained on   peak GB")
    for r in results:
        print(
            f"{r['images']:>8,}{r['crops']:>10,}{r['open_seconds']:>9.2f}"
            f"{r['open_bytes'] / 1e9:>6.2f}   {r['train_on']:<10}{r['training_bytes'] / 1e9:>10.2f}"
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="median over so many (default: 5)")
    parser.add_argument(
        "--part", choices=["reading", "building", "full_size", "all"], default="all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train_on", help=argparse.SUPPRESS)
    own, rest = parser.parse_known_args()
    if own.open:
        return open_full_size(own.open, own.train_on)

    results = {}
    if own.part in ("reading", "building", "all"):
        args = training_flags(rest)
        table, _ = train.load_data(args)
        store, table = data.open_store(
            table, args.data_path, resize=args.resize, store_dir=args.store_dir, name=args.dataset
        )
    if own.part in ("reading", "all"):
        results["reading"] = reading(args, table, store, own.rounds)
        print_rates(
            "reading, one core", "patches/s", results["reading"], "plain copies of as many bytes"
        )
    if own.part in ("building", "all"):
        results["building"] = building(args, own.rounds)
        print_rates("building", "images/s", results["building"], "Pillow, nothing kept")
    if own.part in ("full_size", "all"):
        results["full_size"] = full_size(min(own.rounds, 3))
    write_json(own.json, results)


if __name__ == "__main__":
    main()
