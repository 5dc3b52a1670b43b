"""The benchmarks run, on the smallest of work; what they measure is not tested."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT, TINY
from experiment import CONFIGURATIONS


def run(tmp_path, script, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "benchmarks").glob("*.py")))
def test_each_explains_itself(tmp_path, script):
    if script != "rounds.py":  # what the others share
        assert "usage:" in run(tmp_path, script, "--help")


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


@pytest.mark.slow
def test_they_run(koniq10k, tmp_path):
    data = ["--data_path", koniq10k, "--store_dir", tmp_path / "store", *TINY]
    out = run(tmp_path, "loop.py", "--rounds", 1, "--steps", 1, "--json", "loop.json", *data)
    assert "bare ResNet-50" in out and (tmp_path / "loop.json").is_file()
    assert "copies" in run(tmp_path, "store.py", "--rounds", 1, "--part", "reading", *data)
    assert "building" in run(tmp_path, "store.py", "--part", "building", *data)
    assert "500" in run(tmp_path, "coverage.py", "--simulations", 2, "--images", 500)
