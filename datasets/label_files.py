"""Read label and split files: CSV, spreadsheets, MATLAB files, JSON lists, plain text."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from errors import DataError, first_line

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")


def read_csv(path: Path, columns: Iterable[str]) -> "pd.DataFrame":
    """The named columns of a CSV file, as text.

    The delimiter is the comma, the semicolon or the tab: the first one that yields all columns.
    Raises DataError if the file is not CSV, if a column is missing or occurs twice, and if a row
    has too few fields or too many. Extra fields at the end of a row are accepted if they are empty.
    """
    import pandas as pd

    columns = list(columns)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        readings = [
            [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=d) if row]
            for d in ",;\t"
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: can't be read as CSV ({first_line(error)})") from error
    for rows in readings:
        titles = rows[0] if rows else []
        if all(titles.count(column) == 1 for column in columns):
            break
    else:
        titles = readings[0][0] if readings[0] else []
        missing = [c for c in columns if titles.count(c) != 1]
        raise DataError(
            f"{path}: has no column {' or '.join(missing)}, or has it twice; its columns are "
            f"{', '.join(titles)}"
        )
    for entry, row in enumerate(rows[1:], 1):
        if len(row) < len(titles) or any(row[len(titles) :]):
            raise DataError(
                f"{path}: entry {entry} has {len(row)} fields, and there are {len(titles)} titles"
            )
    return pd.DataFrame({c: [row[titles.index(c)] for row in rows[1:]] for c in columns}, dtype=str)


def read_sheet(path: Path) -> "pd.DataFrame":
    """The first sheet of an .xlsx file, or the .csv file of the same name if only that exists.

    Raises DataError if neither can be read.
    """
    import pandas as pd

    other = path.with_suffix(".csv")
    if not path.is_file() and other.is_file():
        try:
            return pd.read_csv(other, encoding="utf-8-sig")
        except (OSError, ValueError) as error:  # the disk, the encoding or the format
            raise DataError(f"{other}: can't be read as CSV ({first_line(error)})") from error
    try:
        return pd.read_excel(path)
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs openpyxl: pip install openpyxl, or save it as {other.name}"
        ) from error
    except Exception as error:  # zip, XML and openpyxl raise many kinds
        raise DataError(f"{path}: can't be read as .xlsx ({first_line(error)})") from error


def read_mat(path: Path, name: str) -> np.ndarray:
    """One variable of a MATLAB file, flattened; cells of text become strings.

    Raises DataError if the file or the variable cannot be read.
    """
    from scipy.io import loadmat

    try:
        values = loadmat(path)[name].ravel()
    except Exception as error:  # missing or damaged file, missing variable
        raise DataError(f"{path}: has no readable variable {name} ({first_line(error)})") from error
    return np.array([str(v.ravel()[0]) for v in values]) if values.dtype == object else values


def read_split_json(path: Path) -> "pd.DataFrame":
    """A JSON list of {"image": "any/folder/NAME", "score": ...} as a table of name and score.

    The score is None for entries without one. Raises DataError for any other content.
    """
    import pandas as pd

    try:
        entries = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: can't be read as JSON ({error})") from error
    if not (
        isinstance(entries, list)
        and entries
        and all(isinstance(e, dict) and isinstance(e.get("image"), str) for e in entries)
    ):
        raise DataError(f'{path}: is not a list of objects with an "image"')
    names = [e["image"].replace("\\", "/").split("/")[-1] for e in entries]
    table = pd.DataFrame({"name": names, "score": [e.get("score") for e in entries]})
    if table["name"].duplicated().any():
        raise DataError(
            f"{path}: names {first_few(table['name'][table['name'].duplicated()])} twice"
        )
    return table


def read_words(path: Path, *, name_first: bool) -> tuple[list[str], "pd.Series"]:
    """Names (list) and scores (float64) of a text file with one name and one score per line.

    name_first: whether the name comes before the score. Raises DataError for any other content.
    """
    import pandas as pd

    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({first_line(error)})") from error
    rows = [row for row in rows if row]
    bad = [i for i, row in enumerate(rows, 1) if len(row) != 2]
    if bad:
        raise DataError(f"{path}: entry {bad[0]} is not a name and a number")
    order = slice(None) if name_first else slice(None, None, -1)
    names, texts = zip(*(row[order] for row in rows)) if rows else ((), ())
    return list(names), as_numbers(pd.Series(texts, dtype=str), path)


def scaled(
    scores: "pd.Series", low: float, high: float, path: Path, *, lower_is_better: bool = False
) -> "pd.Series":
    """Map scores from the publisher's scale low..high to 0..100, where higher is better.

    Raises DataError for scores outside low..high; the message names `path`.
    """
    outside = scores[~scores.between(low, high)]
    if len(outside):
        raise DataError(
            f"{path}: {len(outside)} scores are outside {low:g}..{high:g}, such as "
            f"{outside.iloc[0]:g}"
        )
    fraction = (scores - low) / (high - low)
    return 100 * (1 - fraction if lower_is_better else fraction)


def as_numbers(texts: "pd.Series", path: Path) -> "pd.Series":
    """Convert text to float64; DataError lists the first values that are not finite numbers."""
    import pandas as pd

    values = pd.to_numeric(texts, errors="coerce").astype("float64")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        first = ", ".join(f"{texts.iloc[i]!r} (entry {i + 1})" for i in bad[:3])
        raise DataError(f"{path}: {len(bad)} scores are not numbers: {first}")
    return values


def first_few(names: Iterable, most: int = 3) -> str:
    """'a, b, c and 7 more': the first names of a list, sorted, for an error message."""
    names = sorted(map(str, names))
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
