"""The benchmarks run, on the smallest of work; what they measure is not tested."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, SMALL, TINY
from errors import RunError
from experiment import CONFIGURATIONS
from training.flags import parse_args

# --help of all scripts in one process, as most import torch.
HELP = """
import runpy, sys
folder, *scripts = sys.argv[1:]
sys.path.insert(0, folder)
for script in scripts:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(folder + "/" + script, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, script
"""


def run(tmp_path, script, *arguments, fails=False):
    """What it prints; with fails, its one sentence on stderr."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def test_each_explains_itself(tmp_path):
    scripts = {p.name for p in (ROOT / "benchmarks").glob("*.py")} - {"rounds.py"}  # shared
    done = subprocess.run(
        [sys.executable, "-c", HELP, ROOT / "benchmarks", *sorted(scripts)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(scripts)


def test_a_step_launches_little_more_than_the_bare_network(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import launches

    bare = launches.of_bare_network().total()
    for name, limit in launches.LIMITS.items():
        calls = launches.of_our_step(CONFIGURATIONS[name].flags)
        assert calls.total() <= limit * bare, f"{name}: {calls.total()} of {bare}: {calls}"


def test_the_first_day_with_a_gpu_needs_one(tmp_path):
    script = ROOT / "benchmarks" / "first_gpu_day.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    checker = shutil.which("shellcheck")
    assert checker is None or subprocess.run([checker, script]).returncode == 0
    for flags, status, text in (("--help", 0, "one table to paste"), ("--what", 1, "not known")):
        done = subprocess.run(["bash", script, flags], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == status and text in done.stdout + done.stderr
    no_gpu = {"PYTHON": "false"}  # what asks for one fails
    done = subprocess.run(
        ["bash", script], cwd=tmp_path, env=os.environ | no_gpu, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr == "error: PyTorch sees no CUDA device here\n"
    assert list(tmp_path.iterdir()) == []


def test_minutes_until_a_quality_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import time_to_quality as benchmark

    config = {
        "type": "config",
        "flags": {"train_patch_num": 1, "epochs": 40},
        "images": {"train": 100, "val": 20, "test": 30},
    }
    values = [None, *[0.5] * 25, 0.7, 0.6]  # reached in the 27th epoch: two of 25 crops an image
    record = [config] + [
        {"type": "epoch", "epoch": i, "val_srcc": value, "seconds": 60.0}
        for i, value in enumerate(values, 1)
    ]
    assert benchmark.reached(record, 0.7) == 27 and benchmark.minutes(record, 0.7) == 27
    assert benchmark.reached(record, 0.8) is None and benchmark.minutes(record, 0.8) == math.inf
    assert benchmark.ending(record) == "never (0.600 after 28 epochs, 28.0 min)"
    rates = {"training": 10.0, "evaluation": 50.0}
    by_hand = (27 * 100 / 10 + 2 * 50 * 25 / 50) / 60
    assert benchmark.predecessors_minutes(record, 0.7, rates) == pytest.approx(by_hand)
    assert benchmark.predecessors_minutes(record, 0.8, rates) == math.inf

    older = json.loads(json.dumps(vars(parse_args(TINY.copy()))))
    del older["freeze_bn"]  # a record from before there was the flag
    benchmark.check_same(older, TINY, Path("a.jsonl"))
    with pytest.raises(RunError, match="has --freeze_bn False, not True"):
        benchmark.check_same(older, [*TINY, "--freeze_bn"], Path("a.jsonl"))

    each = [parse_args([*flags.split(), *TINY]) for flags in benchmark.RECIPES.values()]
    assert {(args.model, args.backbone) for args in each} == {("resnet_improved", "resnet50")}


@pytest.mark.slow
def test_a_run_is_stopped_at_the_quality_and_kept(biq2021, tmp_path):
    data = ["--dataset", "biq2021", "--data_path", biq2021, "--val_fraction", 0.3, *TINY]
    data += ["--store_dir", tmp_path / "store", "--epochs", 500, "--backbone", SMALL]
    command = ["--recipes", "short", "--seeds", 42, "--target", -1, "--out", tmp_path / "out"]
    first = run(tmp_path, "time_to_quality.py", *command, *data)
    assert "min to a validation SRCC of -1 (seeds 42: " in first
    record = (tmp_path / "out" / "short_seed42.jsonl").read_text()
    assert record.count("\n") < 500
    assert run(tmp_path, "time_to_quality.py", *command, *data) == first
    assert (tmp_path / "out" / "short_seed42.jsonl").read_text() == record

    others = [*command, *data, "--lr", 0.1]
    assert "has --lr 0.0001, not 0.1" in run(tmp_path, "time_to_quality.py", *others, fails=True)


@pytest.mark.slow
def test_they_run(koniq10k, tmp_path):
    data = ["--data_path", koniq10k, "--store_dir", tmp_path / "store", *TINY]
    out = run(tmp_path, "loop.py", "--rounds", 1, "--steps", 1, "--json", "loop.json", *data)
    assert "bare ResNet-50" in out and (tmp_path / "loop.json").is_file()
    assert "copies" in run(tmp_path, "store.py", "--rounds", 1, "--part", "reading", *data)
    assert "building" in run(tmp_path, "store.py", "--part", "building", *data)
    assert "500" in run(tmp_path, "coverage.py", "--simulations", 2, "--images", 500)
