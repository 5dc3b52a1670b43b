"""How many minutes a recipe needs until its validation SRCC reaches a given value.

    python3 benchmarks/time_to_quality.py --target 0.72 --out DIR \\
        --dataset biq2021 --data_path BIQ2021 --val_fraction 0.2 --backbone_weights filters.pth

Trains the baseline with each recipe and each seed, one run after the other, so keep the machine
free of other work. A run is stopped when it has reached the target. Prints the minutes of training
and evaluation up to then, with the median over the seeds:

- short: the experiment's recipe, as docs/results.md uses it on BIQ2021 (crops of 160, 3 epochs);
- strong: --preset strong;
- published: HyperIQA's published recipe on the same network. Its minutes are an estimate for a
  program like the original, which would take hours: each crop decoded, resized and cut anew,
  float32, one crop at a time in evaluation. The estimate has the crops that the recipe needs in
  this software, at the rates that are measured here for such a program, and an evaluation of 25
  crops an image after each 25 training crops an image. HyperIQA's learning rates do not change
  within its first six epochs, so here each crop an image is followed by an evaluation.

Three seeds of all three take about half an hour on two CPU cores (1,600 images of 512 x 512,
EfficientNet-Lite0).

Further flags are those of train_resnet_improved.py, for all recipes. Runs that DIR has already are
not trained again; if their flags were others, that is an error. An interrupted run is restarted,
because its time is not known; its record is kept as NAME_interrupted.jsonl.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from console import command
from errors import RunError
from experiment import FREE_FLAGS, LATER_RECIPE, MODELS
from files import unused
from loop import Predecessors
from rounds import InItsOwnProcess, alternating_rates, output_file, write_json
from training.flags import parse_args

SCRIPT = Path(__file__).resolve().parents[1] / "train_resnet_improved.py"
CROPS = 25  # of HyperIQA, of each image: in an epoch, and in an evaluation
RECIPES = {
    "short": "--resize 256 256 --patch_size 160 --train_patch_num 1 --test_patch_num 2 --epochs 3",
    "strong": "--preset strong",
    "published": f"--preset hyperiqa_paper --model {MODELS[0]} --split auto --split_seed 0 "
    f"--schedule constant --train_patch_num 1 --test_patch_num 5 --epochs {6 * CROPS}",
}


def reached(record: list[dict], target: float) -> int | None:
    """The first epoch whose validation SRCC is at least the target."""
    epochs = (e["epoch"] for e in record if e["type"] == "epoch" and (e["val_srcc"] or 0) >= target)
    return next(epochs, None)


def read(path: Path) -> list[dict]:
    """The record of a run; empty if there is none yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def run(out: Path, name: str, flags: list[str], target: float) -> list[dict]:
    """The record of a run that ended, or that has reached the target and was stopped.

    Raises RunError if it failed, or if there is a record of other flags.
    """
    path = out / f"{name}.jsonl"
    record = read(path)
    if record:
        check_same(record[0]["flags"], flags, path)
        if reached(record, target) or len(record) > record[0]["flags"]["epochs"]:
            return record
        path.replace(unused(path.with_stem(f"{path.stem}_interrupted")))
    names = ["--log_dir", str(out), "--run_name", name]
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen([sys.executable, SCRIPT, *flags, *names], stdout=log, stderr=log)
        try:
            while process.poll() is None and not reached(read(path), target):
                time.sleep(1)
        finally:
            process.terminate()
            process.wait()
    record = read(path)
    if not reached(record, target) and process.returncode:
        raise RunError(f"{name} failed; the end of {log.name} says why")
    return record


def check_same(recorded: dict, flags: list[str], path: Path) -> None:
    """Raise RunError if a recorded run had other flags, such that its results may differ."""
    asked = json.loads(json.dumps(vars(parse_args(flags))))  # with lists, as a record has them
    for name, value in (LATER_RECIPE | recorded).items():
        if name not in FREE_FLAGS and value != asked.get(name):
            raise RunError(
                f"{path} has --{name} {value}, not {asked.get(name)}; give another --out"
            )


def minutes(record: list[dict], target: float) -> float:
    """Training and evaluation up to the epoch that reaches the target; infinite if none does."""
    epoch = reached(record, target)
    return sum(e["seconds"] for e in record[1 : epoch + 1]) / 60 if epoch else math.inf


def ending(record: list[dict]) -> str:
    """How a run ended that never reached the target."""
    epochs = record[1:]
    spent = sum(e["seconds"] for e in epochs) / 60
    last = epochs[-1]["val_srcc"] or math.nan
    return f"never ({last:.3f} after {len(epochs)} epochs, {spent:.1f} min)"


def predecessors_minutes(record: list[dict], target: float, rates: dict[str, float]) -> float:
    """The same if each crop costs what it costs the predecessors (crops/s of `rates`)."""
    epoch, images = reached(record, target), record[0]["images"]
    if epoch is None:
        return math.inf
    evaluations = math.ceil(epoch * record[0]["flags"]["train_patch_num"] / CROPS)
    train_crops = epoch * record[0]["flags"]["train_patch_num"] * images["train"]
    test_crops = evaluations * (images["val"] + images["test"]) * CROPS
    return (train_crops / rates["training"] + test_crops / rates["evaluation"]) / 60


def predecessors_rates(flags: list[str]) -> dict[str, float]:
    """Crops/s of the predecessors' way with these flags: medians of three rounds."""
    run = InItsOwnProcess(Predecessors, parse_args(flags), 1)
    turns = {
        "training": lambda: run.call("train"),
        "evaluation": lambda: run.call("evaluate"),
    }
    return {name: statistics.median(r) for name, r in alternating_rates(turns, 3).items()}


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--target", type=float, required=True, help="the validation SRCC to reach")
    flag("--out", type=Path, required=True, help="folder for records and console outputs")
    flag("--recipes", default=",".join(RECIPES), help="some of them (default: %(default)s)")
    flag("--seeds", default="42,43,44", help="default: %(default)s")
    flag("--json", type=output_file, metavar="FILE", help="write the figures there as well")
    own, rest = parser.parse_known_args()
    chosen, seeds = own.recipes.split(","), own.seeds.split(",")
    if unknown := set(chosen) - set(RECIPES):
        parser.error(f"--recipes {unknown.pop()}: there are {', '.join(RECIPES)}")
    flags = {name: [*RECIPES[name].split(), *rest] for name in chosen}
    for each in flags.values():
        parse_args(each)
    own.out.mkdir(parents=True, exist_ok=True)

    found = {}
    for name in chosen:
        records = [
            run(own.out, f"{name}_seed{seed}", [*flags[name], "--seed", seed], own.target)
            for seed in seeds
        ]
        if name == "published":
            rates = predecessors_rates(flags[name])
            each = ", ".join(f"{rate:.1f} in {task}" for task, rate in rates.items())
            print(f"the predecessors' way: {each} (crops/s)")
            found[name] = [predecessors_minutes(r, own.target, rates) for r in records]
        else:
            found[name] = [minutes(r, own.target) for r in records]
        each = " ".join(f"{value:.1f}" for value in found[name])
        epochs = ", ".join(str(reached(r, own.target) or ending(r)) for r in records)
        print(
            f"{name}: {statistics.median(found[name]):.1f} min to a validation SRCC of "
            f"{own.target:g} (seeds {own.seeds}: {each}; epochs {epochs})",
            flush=True,
        )
    write_json(own.json, {"target": own.target, "seeds": seeds, "flags": rest, "minutes": found})


if __name__ == "__main__":
    sys.exit(main())
