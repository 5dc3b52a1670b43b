"""Interventions in the software under test: one place knows what lives where.

Tests that kill, signal or disturb a run say at which event; this file says which function that is.
Used within the tests' process, and by the code of processes that tests start.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import data_loader  # noqa: E402
import evaluation  # noqa: E402
import files  # noqa: E402, F401 (for the code of tests)
import models_resnet_improved  # noqa: E402, F401
import train_resnet_improved  # noqa: E402, F401
import training.run  # noqa: E402
import training.run_files  # noqa: E402
from datasets import pixel_store  # noqa: E402, F401


def replace(original: Callable, wrapper: Callable) -> None:
    """Put `wrapper` in the place of a function in every module of the software that has it."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and Path(file).is_relative_to(ROOT):
            for name, value in list(vars(module).items()):
                if value is original:
                    setattr(module, name, wrapper)


def before_each_step(act: Callable[[dict], None]) -> None:
    """Call `act` with the batch before each step of training or evaluation."""
    original = data_loader.to_network_input

    def wrapped(batch, device):
        act(batch)
        return original(batch, device)

    replace(original, wrapped)


def at_call(number: int, act: Callable[[], None]) -> Callable:
    """A function that calls `act` when it is called for the `number`-th time."""
    calls = [0]

    def counted(*_) -> None:
        calls[0] += 1
        if calls[0] == number:
            act()

    return counted


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(owner, name: str, at: int, half: Callable | None = None) -> None:
    """Kill the process at the `at`-th call of a function of a module or class."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args, **options):
        calls[0] += 1
        if calls[0] == at:
            if half:
                half(*args)
            die()
        return original(*args, **options)

    if isinstance(owner, type) or owner in (torch, os):
        setattr(owner, name, wrapped)
    else:
        replace(original, wrapped)


# The events at which a run is killed: each takes at which of its occurrences.
EVENTS = {
    "a step of training or evaluation": lambda at: before_each_step(at_call(at, die)),
    "evaluation": lambda at: dies_at(evaluation, "evaluate", at),
    "the end of an epoch": lambda at: dies_at(evaluation, "agreement_by_split", at),
    "half of a checkpoint": lambda at: dies_at(torch, "save", at, lambda _, f: f.write(b"PK half")),
    "before a rename": lambda at: dies_at(os, "replace", at),
    "before the last checkpoint": lambda at: dies_at(training.run_files.RunFiles, "save_last", at),
    "before the best checkpoint": lambda at: dies_at(training.run_files.RunFiles, "save_best", at),
    "before a sync": lambda at: dies_at(os, "fsync", at),
}
