"""Files that are written completely or not at all; locks; folders that can be written to."""

import fcntl
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from errors import DataError, RunError

LOCK_SECONDS = 10  # a process that was killed a moment ago may still hold its lock


@contextmanager
def replacing(path: Path, *, before: Path | None = None):
    """A temporary binary file that takes the place of `path` once it is complete on disk.

    What was there is renamed to `before`, if given. One process at a time may replace a path; what
    a killed one has left behind is overwritten. Raises OSError that names `path`.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None and path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
    except OSError as error:
        reason = f"can't be written ({error.strerror}); the previous file is unchanged"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in the place of `path`, completely or not at all.

    Characters that UTF-8 does not have (bytes of a file name) are written as \\udce9.
    """
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


@contextmanager
def locked(path: Path, *, wait: bool = True):
    """Hold an exclusive lock on the file `path`.

    Waits for a process that holds it. With wait=False it waits for LOCK_SECONDS only, and then
    raises BlockingIOError. Raises DataError if the file can't be opened. Some file systems have no
    locks (Lustre, NFS): then a line on stderr says so, and the work goes on without one.
    """
    try:
        file = open(path, "w")  # noqa: SIM115 (closed below, once it is known to open)
    except OSError as error:
        raise DataError(
            f"{path.parent}: can't be written to ({error.strerror}); give --store_dir or "
            "--checkpoint_dir a folder that can"
        ) from error
    with file:
        try:
            lock(file, wait=wait)
        except BlockingIOError:
            raise
        except OSError as error:
            print(
                f"note: {path.parent}: its file system has no locks ({error.strerror}); make sure "
                "that no other run writes the same files",
                file=sys.stderr,
            )
        yield


def lock(file, *, wait: bool) -> None:
    """Take the exclusive lock of an open file, as `locked` says."""
    if wait:
        fcntl.flock(file, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def unused(path: Path) -> Path:
    """The path, or if it exists the first of NAME_2.SUFFIX, NAME_3.SUFFIX ... that does not."""
    number, free = 2, path
    while os.path.lexists(free):
        number, free = number + 1, path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free


def make_folder(flag: str, folder: str | Path) -> Path:
    """The folder, which is made if it isn't there; RunError if it can't be written to."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{flag} {folder}: can't be made ({error.strerror})") from error
    check_folder_for(flag, path)
    return path


def check_folder_for(flag: str, folder: str | Path) -> None:
    """RunError if the folder can't be written to, or can't be made; makes nothing that stays."""
    existing = Path(folder).absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"a byte")
    except OSError as error:
        what = "can't be written to" if existing == Path(folder).absolute() else "can't be made"
        raise RunError(
            f"{flag} {folder}: {what} ({error.strerror}); give a folder that can"
        ) from error


def check_file_for(flag: str, path: Path) -> None:
    """RunError if a file can't be written at `path`, whose folder has to be there."""
    if path.is_dir():
        raise RunError(f"{flag} {path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise RunError(f"{flag} {path}: no folder {path.parent}; make it, or give another")
    check_folder_for(f"{flag} {path}: its folder", path.parent)
