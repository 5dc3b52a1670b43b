"""How candidates are compared: alternately, by the median over the rounds of their ratio.

A machine's speed drifts, and others use it too; this affects all candidates of a round alike.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from errors import RunError
from files import check_file_for, write_atomically

subject = None  # in a process of InItsOwnProcess: the object that `make` returned


def alternating_rates(candidates: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Units per second of each candidate in each round.

    A candidate does its work and returns how many units it was, or, if it has to clean up as well,
    (units, seconds). An unmeasured round comes first, to warm up. The order rotates.
    """
    names = list(candidates)
    rates = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            done = candidates[name]()
            units, seconds = (
                done if isinstance(done, tuple) else (done, time.perf_counter() - began)
            )
            if number >= 0:
                rates[name].append(units / seconds)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return rates


class InItsOwnProcess:
    """Calls methods of an object that `make(*args)` creates in a separate process, which is kept.

    So no candidate is affected by what another has set or left behind.
    """

    def __init__(self, make: Callable, *args):
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, initializer=set_subject, initargs=(make, *args))

    def call(self, method: str):
        """Raises RunError if the process has died."""
        try:
            return self.pool.submit(call_subject, method).result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process has died; if memory was short, give a smaller --batch_size"
            ) from error


def set_subject(make: Callable, *args) -> None:
    global subject
    subject = make(*args)


def call_subject(method: str):
    return getattr(subject, method)()


def ratios(rates: dict[str, list[float]], name: str, to: str) -> list[float]:
    """One ratio per round."""
    return [a / b for a, b in zip(rates[name], rates[to])]


def print_rates(title: str, unit: str, rates: dict[str, list[float]], to: str) -> None:
    """A table: median rate, median ratio to the candidate `to`, and the ratio's range."""
    print(f"\n{title}\n{'':<44}{unit:>14}{'ratio':>8}{'lowest':>9}{'highest':>9}")
    for name, values in rates.items():
        ratio = ratios(rates, name, to)
        print(
            f"{name:<44}{statistics.median(values):>14,.1f}{statistics.median(ratio):>8.3f}"
            f"{min(ratio):>9.3f}{max(ratio):>9.3f}"
        )


def machine() -> dict:
    """What the figures were measured on."""
    import torch

    return {
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def output_file(text: str) -> Path:
    """An argparse type: a file that can be written, which is found out before the measurements."""
    try:
        check_file_for("", Path(text))
    except RunError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from error
    return Path(text)


def write_json(path: Path | None, content: dict) -> None:
    """The figures as JSON, if a file was asked for."""
    if path is not None:
        write_atomically(path, json.dumps({"machine": machine(), **content}, indent=1) + "\n")
        print(f"\nwritten to {path}")
