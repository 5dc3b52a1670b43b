"""Files that are written completely or not at all, and locks that are waited for."""

import subprocess
import sys
import time

import pytest

import files
from conftest import ROOT
from files import locked, replacing, write_atomically


def holder(path, seconds: float) -> subprocess.Popen:
    """A process that holds a lock for so long; returns once it holds it."""
    code = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from files import locked
with locked(Path({str(path)!r})):
    print("held", flush=True)
    time.sleep({seconds})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_waited_for_but_not_for_ever(tmp_path, monkeypatch):
    path = tmp_path / "a.lock"
    process = holder(path, 60)
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.3)
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    monkeypatch.setattr(files, "LOCK_SECONDS", 10)
    process.kill()
    with locked(path, wait=False):
        pass
    process.wait()


def test_a_lock_without_a_limit_waits_until_it_is_free(tmp_path):
    path = tmp_path / "a.lock"
    process = holder(path, 1)
    began = time.monotonic()
    with locked(path):
        assert time.monotonic() - began > 0.3
    process.wait()


def test_an_error_leaves_what_was_there_and_no_temporary_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "before")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_file_before_is_kept_if_asked_for(tmp_path):
    path, before = tmp_path / "a.txt", tmp_path / "b.txt"
    for text in ("one", "two", "three"):
        with replacing(path, before=before) as file:
            file.write(text.encode())
    assert (path.read_text(), before.read_text()) == ("three", "two")
