"""Files that are written completely or not at all; locks; folders that can be written to."""

import os
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
    """Write `text` in the place of `path`, completely or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def locked(path: Path, *, wait: bool = True):
    """Hold an exclusive lock on the file `path`.

    Waits for a process that holds it. With wait=False it waits for LOCK_SECONDS only, and then
    raises BlockingIOError. Raises DataError if the file can't be opened.
    """
    import fcntl

    try:
        file = open(path, "w")  # noqa: SIM115 (closed below, once it is known to open)
    except OSError as error:
        raise DataError(
            f"{path.parent}: can't be written to ({error.strerror}); give --store_dir or "
            "--checkpoint_dir a folder that can"
        ) from error
    with file:
        if wait:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        yield


def make_folder(flag: str, folder: str) -> Path:
    """The folder, which is made if it isn't there; RunError if it can't be written to."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{flag} {folder}: can't be made ({error.strerror})") from error
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"a byte")
    except OSError as error:
        raise RunError(
            f"{flag} {folder}: can't be written to ({error.strerror}); give a folder that can"
        ) from error
    return path
