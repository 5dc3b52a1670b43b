"""The benchmarks run, on the smallest of work; what they measure is not tested."""

import subprocess
import sys

import pytest

from conftest import ROOT, TINY


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


@pytest.mark.slow
def test_they_run(koniq10k, tmp_path):
    data = ["--data_path", koniq10k, "--store_dir", tmp_path / "store", *TINY]
    out = run(tmp_path, "loop.py", "--rounds", 1, "--steps", 1, "--json", "loop.json", *data)
    assert "bare ResNet-50" in out and (tmp_path / "loop.json").is_file()
    assert "copies" in run(tmp_path, "store.py", "--rounds", 1, "--part", "reading", *data)
    assert "building" in run(tmp_path, "store.py", "--part", "building", *data)
    assert "500" in run(tmp_path, "coverage.py", "--simulations", 2, "--images", 500)
