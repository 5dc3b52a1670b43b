"""How a script begins and ends: a console that stops nothing, errors in one sentence, the status.

    @command
    def main() -> int: ...

A console goes away (a pipe to `head`, a closed terminal), its disk is full, it was closed before
the script began, or it lacks a character: none of this may end work that takes days.
"""

import functools
import io
import os
import select
import sys
from collections.abc import Callable

from errors import DataError, ReportError, RunError


class Console(io.FileIO):
    """Standard output or error without buffering; what can't be written to it is dropped.

    lost: why the first write failed, or None.
    """

    lost: OSError | None = None

    def write(self, data: memoryview) -> int:
        try:
            while (written := super().write(data)) is None:  # full, and not to be waited for
                select.select([], [self], [])
            return written
        except OSError as error:
            if self.lost is None and self.fileno() == 1:
                print(
                    f"note: standard output can't be written to ({error.strerror}); "
                    "the work goes on without it",
                    file=sys.stderr,
                )
            self.lost = self.lost or error
            return len(data)


def open_console() -> None:
    """Put Consoles in the place of standard output and error, unless others are there already.

    Characters that a console lacks are written as \\xb1. Standard streams that are closed are
    opened on /dev/null, so that no file gets their numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):  # a notebook's, or a test's
            continue
        raw = Console(number, "w", closefd=False)
        opened = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding if stream else "utf-8",
            errors="backslashreplace",
            line_buffering=stream is None or stream.line_buffering or stream.write_through,
        )
        setattr(sys, name, opened)


def check_shown() -> None:
    """Raise OSError if standard output could not be written, as results that are only there need.

    A reader that has read enough, such as `head`, is no error.
    """
    sys.stdout.flush()
    lost = getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", None)
    if lost is not None and not isinstance(lost, BrokenPipeError):
        raise OSError(lost.errno, lost.strerror, "standard output")


def command(main: Callable[[], int | None]) -> Callable[[], int]:
    """The main function of a script, on such a console: it returns the exit status.

    Errors that a user can mend are one sentence on stderr and status 1, Ctrl-C is status 130.
    """

    @functools.wraps(main)
    def run() -> int:
        open_console()
        try:
            return main() or 0
        except (DataError, RunError, ReportError) as error:
            return fail(str(error))
        except OSError as error:  # a disk that is full, a file that went away
            return fail(described(error))
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", file=sys.stderr)
            return 130

    return run


def described(error: OSError) -> str:
    """The file, if the error names one, and what is wrong with it."""
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)


def fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1
