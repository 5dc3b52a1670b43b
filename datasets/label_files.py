"""Read label and split files: CSV, spreadsheets, JSON, MATLAB files, plain text; all as text."""

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from errors import DataError, first_line

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def read_table(path: Path, columns: Iterable[str]) -> "pd.DataFrame":
    """The named columns of a table, as text.

    The file is CSV (delimited by commas, semicolons or tabs; a first line such as sep=; is
    accepted), .xlsx, or JSON: a list of objects, or one object per line. A column is named by its
    title, in which upper and lower case may differ, or by its number, from 1. If all columns are
    numbers, there is no row of titles. Raises DataError if the file is none of these, if a column
    is missing or occurs twice, and if a row has too few fields or too many. Empty fields at the
    end of a row are accepted.
    """
    import pandas as pd

    columns = list(columns)
    has_titles = not all(is_number_of_column(c) for c in columns)
    readings = read_rows(path)
    for rows in readings if has_titles else readings[::-1]:  # commas may be decimal commas
        titles = rows[0] if has_titles else min(rows, key=len)
        found = [positions(titles, column) for column in columns]
        if all(len(at) == 1 for at in found):
            break
    else:
        titles = max((rows[0] for rows in readings), key=len)
        absent = [shortened(c) for c in columns if len(positions(titles, c)) != 1]
        raise DataError(
            f"{path}: has no column {' or '.join(absent)}, or has it twice; its columns are "
            f"{first_few((shortened(t, 40) for t in titles), most=12, sort=False)}"
        )
    wide = len(rows[0])
    for entry, row in enumerate(rows[has_titles:], 1):
        if len(row) < wide or any(row[wide:]):
            titled = f"there are {wide} titles" if has_titles else f"the first one has {wide}"
            raise DataError(f"{path}: entry {entry} has {len(row)} fields, and {titled}")
    values = {c: [row[at[0]] for row in rows[has_titles:]] for c, at in zip(columns, found)}
    return pd.DataFrame(values, dtype=str)


def has_columns(path: Path, columns: Iterable[str]) -> bool:
    """Whether a table has each of these columns, once. Raises DataError if it can't be read."""
    return any(
        all(len(positions(rows[0], column)) == 1 for column in columns) for rows in read_rows(path)
    )


def is_number_of_column(name: str) -> bool:
    return name.isascii() and name.isdigit() and int(name) > 0


def positions(titles: list[str], column: str) -> list[int]:
    """Where a column is in a row of titles: its exact title, or alike, or its number."""
    if is_number_of_column(column):
        return [int(column) - 1] if int(column) <= len(titles) else []
    exact = [i for i, title in enumerate(titles) if title == column]
    return exact or [i for i, title in enumerate(titles) if alike(title) == alike(column)]


def read_rows(path: Path) -> list[list[list[str]]]:
    """The rows of a table as lists of text, in each way in which the file can be read.

    Of the delimiters, the comma comes first. Each reading has a row.
    """
    if path.suffix.lower() == ".xlsx":
        return [read_sheet(path)]
    text = read_text(path, "CSV")
    if text.lstrip()[:1] in ("[", "{"):
        return [read_json_table(path, text)]
    delimiters, (first, _, rest) = ",;\t", text.partition("\n")
    said = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)
    if said:
        delimiters, text = said[1], rest
    readings, errors = [], []
    for delimiter in delimiters:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            readings.append([row for row in lines if row])
        except csv.Error as error:  # also of quotes beside another delimiter than the file's
            errors.append(error)
    has_columns = any(rows and len(rows[0]) > 1 for rows in readings)
    if not has_columns and (errors or not text.strip()):
        reason = first_line(errors[0]) if errors else "it is empty"
        raise DataError(f"{path}: can't be read as CSV ({reason})")
    return [rows for rows in readings if rows]


def read_text(path: Path, kind: str) -> str:
    """A text file in UTF-8. Raises DataError; if the file is nearby, it says where."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise missing_file(path) from None
    except (OSError, UnicodeDecodeError) as error:
        hint = "; save it in UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"{path}: can't be read as {kind} ({first_line(error)}){hint}") from error


def read_json_table(path: Path, text: str) -> list[list[str]]:
    """The rows, titles first, of a JSON list of objects, or of JSON with one object per line."""
    entries = parse_json(path, text, lines=True)
    if not (isinstance(entries, list) and all(isinstance(e, dict) for e in entries)):
        raise DataError(f"{path}: is not a list of objects, each with its image and score")
    titles = list(dict.fromkeys(key for entry in entries for key in entry))

    def as_text(value: object) -> str:
        return "" if value is None else value if isinstance(value, str) else json.dumps(value)

    return [titles, *([as_text(e.get(title)) for title in titles] for e in entries)]


def parse_json(path: Path, text: str, *, lines: bool = False) -> object:
    """What a JSON file holds; with lines=True a list of what each line holds is taken too."""
    try:
        content = json.loads(text)
        return [content] if lines and isinstance(content, dict) else content
    except (ValueError, RecursionError) as error:
        try:
            if not lines:
                raise error
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise DataError(f"{path}: can't be read as JSON ({first_line(error)})") from error


def read_sheet(path: Path) -> list[list[str]]:
    """The rows of the first sheet of an .xlsx file, as text; DataError if it can't be read."""
    import pandas as pd

    if not path.is_file():
        raise missing_file(path)
    try:
        sheet = pd.read_excel(path, header=None, dtype=str, keep_default_na=False, na_filter=False)
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs openpyxl: pip install openpyxl, or save it as "
            f"{path.with_suffix('.csv').name}"
        ) from error
    except Exception as error:  # zip, XML and openpyxl raise many kinds
        raise DataError(f"{path}: can't be read as .xlsx ({first_line(error)})") from error
    rows = [[str(cell) for cell in row] for row in sheet.itertuples(index=False)]
    rows = [row for row in rows if any(row)]
    if not rows:
        raise DataError(f"{path}: its first sheet is empty")
    return rows


def sheet_or_csv(path: Path) -> Path:
    """The .xlsx file, or the .csv file of the same name if only that exists."""
    other = path.with_suffix(".csv")
    return other if other.is_file() and not path.is_file() else path


def read_mat(path: Path, name: str) -> np.ndarray:
    """One variable of a MATLAB file, flattened; cells of text become strings.

    Raises DataError if the file or the variable cannot be read.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise missing_file(path)
    try:
        variables = loadmat(path)
    except Exception as error:  # of damaged files and of other versions: many kinds
        raise DataError(
            f"{path}: can't be read as a MATLAB file of version 7 or older ({first_line(error)})"
        ) from error
    if name not in variables:
        known = first_few(v for v in variables if not v.startswith("__"))
        raise DataError(f"{path}: has no variable {name}; it has {known or 'none'}")
    values = np.asarray(variables[name]).ravel()
    if values.dtype != object:
        return values
    try:
        return np.array([str(np.asarray(v).ravel()[0]) for v in values])
    except IndexError as error:
        raise DataError(f"{path}: an entry of {name} is empty") from error


def read_split_json(path: Path) -> "pd.DataFrame":
    """A JSON list of {"image": "any/folder/NAME", "score": ...} as a table of name and score.

    The score is None for entries without one. Raises DataError for any other content.
    """
    import pandas as pd

    entries = parse_json(path, read_text(path, "JSON"))
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

    rows = [line.split() for line in read_text(path, "text").splitlines() if line.strip()]
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
    """Convert text to float64; DataError lists the first values that are not finite numbers.

    If no value has a point, a comma is the decimal point.
    """
    import pandas as pd

    texts = texts.astype(str)
    has_decimal_commas = not texts.str.contains(".", regex=False).any()
    numbers = texts.str.replace(",", ".", regex=False) if has_decimal_commas else texts
    values = pd.to_numeric(numbers, errors="coerce").astype("float64")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        first = ", ".join(f"{shortened(texts.iloc[i])!r} (entry {i + 1})" for i in bad[:3])
        raise DataError(f"{path}: {len(bad)} scores are not numbers: {first}")
    return values


def as_splits(texts: "pd.Series", path: Path) -> "pd.Series":
    """The splits train, val and test under the names that tables give them; DataError for others.

    Training, validation, valid, dev, eval and testing, in upper or lower case.
    """
    splits = texts.str.strip().str.lower().map(SPLIT_NAMES)
    unknown = set(texts[splits.isna()])
    if unknown:
        raise DataError(f"{path}: splits other than train, val, test: {first_few(unknown)}")
    return splits


def missing_file(path: Path) -> DataError:
    """The error for a label file that is not there."""
    return DataError(f"{path}: no such file{seen_nearby(path)}")


def seen_nearby(path: Path) -> str:
    """Where a file of that name is, in another case, or one level up or down; '' if nowhere."""
    for folder in (path.parent, path.parent.parent, *subfolders(path.parent)):
        try:
            names = sorted(name for name in os.listdir(folder) if alike(name) == alike(path.name))
        except OSError:
            continue
        if names:
            return f"; there is one at {folder.resolve() / names[0]}"
    return ""


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones; [] if it can't be listed."""
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def composed(name: str) -> str:
    """The name in Unicode's form NFC; some systems write accents as letters of their own (NFD)."""
    return unicodedata.normalize("NFC", name)


def alike(name: str) -> str:
    """What names share that differ in case, in blanks around them, or in their Unicode form."""
    return composed(name).lower().strip()


def first_few(names: Iterable, most: int = 3, *, sort: bool = True) -> str:
    """'a, b, c and 7 more': the first names of a list, sorted, for an error message."""
    names = [shortened(str(name)) for name in names]
    names = sorted(names) if sort else names
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def shortened(text: str, most: int = 120) -> str:
    """The text in one line of at most `most` characters, for an error message."""
    text = " ".join(text.split("\n"))
    return text if len(text) <= most else text[: most - 3] + "..."
