"""The data flags, written once, for training, prediction and the check of a data folder.

Each function takes `add`, the add_argument of a parser or of a group of its flags.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable

from datasets.labels import DATASETS


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to a flag's help, except for flags that are unset by default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        unset = action.default is None or action.default is False or action.default == []
        return action.help if unset else super()._get_help_string(action)


def number(
    kind: type, low: float, high: float = math.inf, *, open_end: bool = False
) -> Callable[[str], float]:
    """An argparse type: a number (int or float) from low to high, or below high if open_end."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high) or (open_end and value == high) or math.isinf(value):
            most = "" if math.isinf(high) else f" and {'below' if open_end else 'at most'} {high:g}"
            kind_name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {kind_name} of at least {low:g}{most}")
        return value

    return parse


def with_negative_numbers(argv: list[str] | None) -> list[str]:
    """The arguments (None: those of the command) as argparse needs them.

    It takes -5 and -2.6 for numbers, but -2.6e0 and -5. for flags, unless a blank is before them.
    """

    def is_number(text: str) -> bool:
        try:
            return text.startswith("-") and math.isfinite(float(text))
        except ValueError:
            return False

    plain = re.compile(r"-\d+|-\d*\.\d+")
    return [
        f" {text}" if is_number(text) and not plain.fullmatch(text) else text
        for text in (sys.argv[1:] if argv is None else argv)
    ]


def add_data_flags(add: Callable[..., argparse.Action]) -> None:
    """Which data set, where it is, how it is split and resized; resolve_data_flags completes it."""
    add(
        "--dataset",
        choices=sorted(DATASETS),
        default="koniq-10k",
        help="the data set, which decides how labels and images are read; csv: your own table",
    )
    add("--data_path", metavar="DIR", help="folder of the data set (default: ./DATASET)")
    add_csv_flags(add, "--dataset csv")
    add(
        "--split",
        choices=["auto", "json", "official", "random"],
        default="auto",
        help="auto: koniq_train.json and koniq_test.json if available, else the official split, "
        "else (but not for koniq-10k) random; random: 80/20 by --split_seed",
    )
    add(
        "--split_seed",
        type=number(int, 0),
        metavar="N",
        help="seed of the random split and of --val_fraction (default: 0; in a training with "
        "--preset hyperiqa_paper the --seed, so that every seed has its own split)",
    )
    own = ", ".join(f"{d.val_fraction:g} for {n}" for n, d in DATASETS.items() if d.val_fraction)
    add(
        "--val_fraction",
        type=number(float, 0, 0.5),
        metavar="F",
        help="fraction of the training images used for validation if the data set has no "
        f"validation images (default: {own}, else 0)",
    )
    height, width = DATASETS["koniq-10k"].resize
    add(
        "--resize",
        type=number(int, 32, 8192),
        nargs=2,
        metavar=("H", "W"),
        help="height and width of every image before crops are cut (default: that of the "
        f"literature, see docs/data-sets.md; for koniq-10k {height} {width} as in HyperIQA, which "
        f"makes 1024x768 portrait; {width} {height} keeps the aspect ratio)",
    )


def add_csv_flags(add: Callable[..., argparse.Action], of: str) -> None:
    """How the table of data set csv is read (CsvOptions); of: the flag that selects it."""
    add(
        "--csv",
        nargs="+",
        default=[],
        metavar="[SPLIT=]FILE",
        help=f"for {of}: the table, or one table per split (train=FILE test=FILE), in its folder",
    )
    add(
        "--csv_columns",
        nargs="+",
        default=[],
        metavar="KEY=NAME",
        help="names of the table's columns: image=, score=, and if available split=, group= "
        "(images of one group are kept in one split), sd= and votes= (standard deviation and "
        "number of an image's votes); numbers from 1 for a table without titles",
    )
    add("--lower_is_better", action="store_true", help="the table's scores are DMOS or similar")
    add(
        "--score_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the ends of the scale of the table's scores; they become 0 and 100",
    )
    add(
        "--average_ratings",
        action="store_true",
        help="the table has several rows per image: take their mean",
    )
    add(
        "--image_dir",
        metavar="DIR",
        help="folder of the images inside the data folder (default: the one that holds them)",
    )


def add_store_dir(add: Callable[..., argparse.Action]) -> None:
    add("--store_dir", default="pixel_store", metavar="DIR", help="folder for the decoded images")


def resolve_data_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Set the defaults that depend on the data set; parser.error for flags that cannot be used."""
    check_csv_flags(parser, args)
    args.data_path = args.data_path or f"./{args.dataset}"
    args.resize = tuple(args.resize or DATASETS[args.dataset].resize)
    if args.split_seed is None:
        args.split_seed = 0


def check_csv_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.score_range and not -math.inf < args.score_range[0] < args.score_range[1] < math.inf:
        parser.error("--score_range: LOW must be below HIGH")
