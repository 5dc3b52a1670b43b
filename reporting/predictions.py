"""Predictions of other models on the same test images: --predictions NAME=FILE."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datasets.label_files import alike, as_numbers, first_few, read_table
from errors import DataError, ReportError
from experiment import CONFIGURATIONS

if TYPE_CHECKING:
    import pandas as pd


class Predictions(NamedTuple):
    """A file of predictions: image names as they stand there, and scores (any scale), both (M,)."""

    path: Path
    images: list[str]
    scores: np.ndarray
    skip_others: bool = False  # leave out images that are no test images


def read_predictions(
    entries: list[str], *, skip_others: bool = False, beside_runs: bool = True
) -> dict[str, Predictions]:
    """The files of NAME=FILE, by name. Each has the columns image and score (see read_table).

    Beside runs, a name that a configuration has gets '(given)' behind it. Raises ReportError for an
    entry that is no NAME=FILE, for a name that is given twice, and for a file that can't be read.
    """
    taken = {*CONFIGURATIONS, *(row.title for row in CONFIGURATIONS.values())}
    found: dict[str, Predictions] = {}
    for entry in entries:
        name, equals, file = entry.partition("=")
        if not (equals and name and file):
            raise ReportError(f"--predictions {entry}: takes NAME=FILE")
        name += " (given)" if beside_runs and name in taken else ""
        if name in found:
            raise ReportError(f"--predictions {entry}: another model has this name")
        path = Path(file)
        try:
            table = read_table(path, ("image", "score"))
            scores = as_numbers(table["score"], path).to_numpy()
        except DataError as error:
            raise ReportError(f"--predictions {name}: {error}") from error
        found[name] = Predictions(path, table["image"].str.strip().tolist(), scores, skip_others)
    return found


def scores_for(name: str, given: Predictions, wanted: list[str]) -> np.ndarray:
    """The scores (N,) of the wanted images, in their order.

    An image is known by its path, or by its file name alone if all file names differ. Raises
    ReportError if an image is missing or occurs twice, and for images that are not wanted, unless
    they are to be left out.
    """
    found = match_names(wanted, given.images)
    problem = f"--predictions {name}: {given.path}"
    at: dict[int, int] = {}
    for row, image in enumerate(found):
        if image is not None and at.setdefault(image, row) != row:
            raise ReportError(f"{problem}: has two scores for {given.images[row]}")
    missing = [image for i, image in enumerate(wanted) if i not in at]
    if missing:
        raise ReportError(
            f"{problem}: lacks {len(missing):,} of the {len(wanted):,} test images: "
            f"{first_few(missing)}"
        )
    others = [image for image, position in zip(given.images, found) if position is None]
    if others and not given.skip_others:
        raise ReportError(
            f"{problem}: has {len(others):,} images that are not among the {len(wanted):,} test "
            f"images: {first_few(others)}; if it is right that these are not compared, give "
            "--skip_others"
        )
    if others:
        print(
            f"note: --predictions {name}: left out {len(others):,} "
            f"image{'s' if len(others) > 1 else ''} that are no test images here "
            f"({first_few(others)})",
            file=sys.stderr,
        )
    return given.scores[[at[i] for i in range(len(wanted))]]


def match_names(wanted: list[str], given: list[str]) -> list[int | None]:
    """For each given image its position among the wanted ones, or None.

    By path; by file name, whatever the folders, if no two wanted images share theirs.
    """
    paths = {alike(image): i for i, image in enumerate(wanted)}
    names = {alike(image.rpartition("/")[2]): i for i, image in enumerate(wanted)}
    if len(names) < len(wanted):
        names = {}
    slashed = [alike(image.replace("\\", "/")) for image in given]
    return [paths.get(image, names.get(image.rpartition("/")[2])) for image in slashed]


def matched(
    predictions: dict[str, Predictions],
    rows: dict[tuple[str, int], "pd.DataFrame"],
    splits: int,
) -> dict[str, np.ndarray]:
    """The scores (N,) of each file for the test images of the runs: see scores_for.

    rows: the test images of each run. Raises ReportError if each seed has its own test images.
    """
    if predictions and splits > 1:
        raise ReportError(
            "--predictions: each seed of these runs has its own random split, so there is no one "
            "list of test images to compare them on"
        )
    images = list(next(iter(rows.values()))["image"])
    return {name: scores_for(name, given, images) for name, given in predictions.items()}
