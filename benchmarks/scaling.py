"""How cost grows with the work: seconds and memory by number of images and of patches.

    python3 benchmarks/scaling.py
    python3 benchmarks/scaling.py --images 250,1000,2500 --patches 1,5,25 --data_path ./koniq-10k

Each case runs in a process of its own: it builds a pixel store of so many images, then trains one
epoch and evaluates all of them at so many patches an image. Patches are small (--patch_size 32) so
that what surrounds the network is not lost behind it. Below the cases stand the constants of the
straight line through them, seconds = a + b x units, and the largest deviation from it.

Further flags are those of train_resnet_improved.py; without --data_path the demo data set is drawn,
which has 480 images. About 10 minutes for 2,500 images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import data_loader as data
import train_resnet_improved as train
from loop import Ours, training_flags
from rounds import write_json
from store import anonymous_memory


def one_case(args, images: int, patches: int) -> None:
    """Print one case's figures as JSON."""
    table, _ = train.load_data(args)
    table = table.sample(images, random_state=0).sort_values("image", ignore_index=True)
    table["split"] = "train"
    with tempfile.TemporaryDirectory(dir=args.store_dir) as store_dir:
        began = time.perf_counter()
        store, table = data.open_store(
            table, args.data_path, resize=args.resize, store_dir=store_dir, name=args.dataset
        )
        figures = {"build": time.perf_counter() - began}

        args.train_patch_num = patches
        ours = Ours(args, {}, -(-images * patches // args.batch_size), (table, store))
        for phase, work in (("train", ours.train), ("evaluate", ours.evaluate)):
            began = time.perf_counter()
            count = work()
            figures[phase] = time.perf_counter() - began
            figures[f"{phase}_patches"] = count
        figures["bytes"] = anonymous_memory()
    print(json.dumps(figures))


def line(units: list[float], seconds: list[float]) -> str:
    """'a s + b ms a unit, within c%' of the straight line by least squares."""
    slope, start = np.polyfit(units, seconds, 1)
    fitted = start + slope * np.array(units)
    worst = np.abs(np.array(seconds) / fitted - 1).max()
    return f"{start:.2f} s + {slope * 1000:.3f} ms each, within {worst:.0%}"


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(n) for n in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=numbers, default=[120, 240, 480], metavar="N,N,...")
    parser.add_argument("--patches", type=numbers, default=[1, 5, 25], metavar="N,N,...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--case", type=numbers, help=argparse.SUPPRESS)
    own, rest = parser.parse_known_args()
    args = training_flags(["--patch_size", "32", *rest])
    if own.case:
        return one_case(args, *own.case)

    Path(args.store_dir).mkdir(parents=True, exist_ok=True)
    cases = [(n, max(own.patches)) for n in own.images]
    cases += [(max(own.images), p) for p in own.patches if p != max(own.patches)]
    print(f"{'images':>8}{'patches':>9}{'build s':>9}{'train s':>9}{'evaluate s':>12}{'GB':>7}")
    results = []
    for images, patches in cases:
        command = [sys.executable, __file__, "--case", f"{images},{patches}", *rest]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        r = json.loads(out.splitlines()[-1])
        results.append({"images": images, "patches": patches, **r})
        print(
            f"{images:>8,}{patches:>9}{r['build']:>9.2f}{r['train']:>9.1f}{r['evaluate']:>12.1f}"
            f"{r['bytes'] / 1e9:>7.2f}",
            flush=True,
        )
    print("store, by images:      ", line(*zip(*((r["images"], r["build"]) for r in results))))
    for phase in ("train", "evaluate"):
        points = zip(*((r[f"{phase}_patches"], r[phase]) for r in results))
        print(f"{phase + ', by patches:':<23}", line(*points))
    write_json(own.json, {"cases": results})


if __name__ == "__main__":
    main()
