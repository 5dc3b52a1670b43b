"""Files that are written completely or not at all, and locks that are waited for."""

import errno
import os
import subprocess
import sys
import time

import pytest

import files
from conftest import ROOT
from errors import RunError
from files import (
    check_file_for,
    check_folder_for,
    locked,
    replacing,
    unused,
    write_atomically,
)


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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
@pytest.mark.parametrize("wait", [True, False])
def test_without_locks_the_work_goes_on_with_a_warning(tmp_path, monkeypatch, capsys, number, wait):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", fails)
    with locked(tmp_path / "a.lock", wait=wait):
        said = capsys.readouterr().err
    assert said.startswith(f"note: {tmp_path}: its file system has no locks ({os.strerror(number)}")


def test_an_error_of_the_work_is_none_of_the_lock(tmp_path, capsys):
    with pytest.raises(OSError, match="of the work"), locked(tmp_path / "a.lock"):
        raise OSError("of the work")
    assert capsys.readouterr().err == ""


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    path = tmp_path / "a.20260102_030405.pth"
    for name in ("a.20260102_030405.pth", "a.20260102_030405_2.pth", "a.20260102_030405_3.pth"):
        assert unused(path).name == name
        (tmp_path / name).symlink_to("nowhere")  # also a link to nothing is taken


def test_what_is_checked_for_output_is_left_as_it_was(tmp_path):
    (tmp_path / "file").write_text("precious")
    check_folder_for("--output", tmp_path / "new" / "deep")
    check_file_for("--output", tmp_path / "file")
    for path in (tmp_path / "file" / "deep", tmp_path / "file"):
        with pytest.raises(RunError, match=f"--output {path}: can't be .* \\(Not a directory\\)"):
            check_folder_for("--output", path)
    with pytest.raises(RunError, match=f"no folder {tmp_path}/new"):
        check_file_for("--output", tmp_path / "new" / "a.csv")
    with pytest.raises(RunError, match="is a folder"):
        check_file_for("--output", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_text_that_utf8_does_not_have_is_escaped(tmp_path):
    write_atomically(tmp_path / "a.txt", "caf\udce9 \u56fe")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "caf\\udce9 \u56fe"
