"""The flags of a training run as keyword arguments, for Python."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from datasets.flags import with_negative_numbers
from errors import RunError
from training.flags import build_parser, parsed


def flags_of(keywords: dict) -> argparse.Namespace:
    """The flags of a run from keyword arguments, checked as those of a command line are.

    Names are those of the flags without '--'; values are numbers, strings, paths, lists of these,
    or True and False for flags without a value. None is the default. Raises RunError with one
    sentence for flags that cannot be used.
    """
    parser = build_parser(PythonParser)
    known = {option: action for action in parser._actions for option in action.option_strings}
    argv = []
    for name, value in keywords.items():
        if f"--{name}" not in known or name == "help":
            raise RunError(f"{name}: no such flag; docs/flags.md lists them")
        argv += as_arguments(name, known[f"--{name}"], value)
    return parsed(parser, with_negative_numbers(argv))


class PythonParser(argparse.ArgumentParser):
    """A parser for a program that goes on: errors are raised."""

    def error(self, message: str):
        raise RunError(message)


def as_arguments(name: str, action: argparse.Action, value: object) -> list[str]:
    """A keyword argument as the command line would give it; RunError if it could not."""
    if value is None:
        return []
    if isinstance(value, bool) and action.nargs in (0, "?"):  # without a value, as --resume may be
        has_off = isinstance(action, argparse.BooleanOptionalAction)
        return [f"--{name}"] if value else [f"--no-{name}"] if has_off else []
    is_one = isinstance(value, (str, Path)) or not isinstance(value, Iterable)
    values = [value] if is_one else [*value]
    if action.nargs == 0:
        raise RunError(f"{name}={value!r}: takes True or False")
    if isinstance(value, bool):
        raise RunError(f"{name}={value!r}: takes a value")
    if action.nargs == "+" or isinstance(action.nargs, int):
        return [f"--{name}", *map(str, values)]
    if len(values) != 1 and not isinstance(action, argparse._AppendAction):
        raise RunError(f"{name}={value!r}: takes one value")
    return [f"--{name}={one}" for one in values]
