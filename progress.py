"""What a person sees of long work: a bar on a terminal, a line per minute in a log."""

import sys
import time
from collections.abc import Iterable, Iterator

SECONDS_BETWEEN_LINES = 60  # of progress in a log file
ESTIMATE_AFTER = 10  # training steps, which are timed to say how long a run takes on the CPU


class Progress:
    """Shows how far the steps of an iterable have come.

    It counts to `total` units (such as crops), `scale` of them per step.
    """

    def __init__(self, what: str, total: int, unit: str, scale: int = 1):
        self.what, self.total, self.unit, self.scale = what, total, unit, scale

    def __call__(self, steps: Iterable) -> Iterator:
        """The steps, one at a time; progress is shown before each."""
        if on_terminal():
            from tqdm import tqdm

            with tqdm(
                desc=self.what,
                total=self.total,
                unit=f" {self.unit}",
                leave=False,
                dynamic_ncols=True,
            ) as bar:
                for step in steps:
                    yield step
                    bar.update(min(self.scale, self.total - bar.n))
            return
        began = spoken = time.monotonic()
        for step_number, step in enumerate(steps):
            now, done = time.monotonic(), step_number * self.scale
            if done and now - spoken >= SECONDS_BETWEEN_LINES:
                spoken, rate = now, done / (now - began)
                print(
                    f"{self.what}: {done:,} of {self.total:,} {self.unit}, {rate:.1f}/s, "
                    f"{duration((self.total - done) / rate)} left",
                    file=sys.stderr,
                    flush=True,
                )
            yield step


class TimeEstimate:
    """Says once, after the first training steps, how long a run takes on this CPU.

    crops: of training, and test_crops: of evaluation, per epoch; steps: that are left of this one.
    """

    def __init__(self, *, epochs: int, crops: int, test_crops: int, batch_size: int, steps: int):
        # A crop of evaluation costs about a quarter of one of training.
        self.epochs, self.work = epochs, epochs * (crops + test_crops / 4)
        self.batch_size, self.steps_done = batch_size, 0
        self.last = min(ESTIMATE_AFTER, steps - 1)
        self.first = min(1, self.last - 1)  # the first step warms up, if there are others to time
        self.began = time.monotonic()
        if self.last == 0:
            say("no CUDA device in use: this trains on the CPU, one step per epoch")

    def after_step(self) -> None:
        self.steps_done += 1
        if self.steps_done == self.first:
            self.began = time.monotonic()
        if self.steps_done == self.last:
            timed = (self.last - self.first) * self.batch_size
            rate = timed / (time.monotonic() - self.began)
            say(
                "no CUDA device in use: this trains on the CPU, about "
                f"{duration(self.work / rate)} for {self.epochs} epochs at {rate:.1f} crops/s"
            )


def say(line: str) -> None:
    """Print a line, above the bar if there is one."""
    if on_terminal():
        from tqdm import tqdm

        tqdm.write(line)
    else:
        print(line, flush=True)


def on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '3.4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
