"""What goes in: labels and splits, the pixel store, the crop plan, the batches.

    python3 data_loader.py --dataset koniq-10k --data_path ./koniq-10k

checks a data folder before anyone trains on it: labels, splits, every image.

A label table (pandas) has one row an image: `image` (path under the data folder), `mos` (0..100,
higher is better) and `split` (train, val, test). Each image is decoded once into a pixel store on
disk. A crop plan says which crops an epoch sees; it comes from (seed, epoch) alone, and nothing
else in the data is random.

To add a data set, write a reader (folder, split mode) -> (label table, where it came from), and
give it a line in DATASETS.
"""

import argparse
import csv
import functools
import hashlib
import io
import json
import math
import os
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

SPLITS = ("train", "val", "test")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in 0..1
TEST_SEED = 2020  # of the crops that test and validation images are judged by, in every run
STORE_VERSION = 1
SECONDS_BETWEEN_LINES = 60  # of progress in a log file
DEMO_MARKER = "demo.json"  # a file that the demo's folder has, so that its figures say so


class DataError(ValueError):
    """The data can't be used as it is; the message says which file, and what to do."""


# Labels and splits ------------------------------------------------------------------------------


def read_csv(path: Path, columns: Iterable[str]) -> "pd.DataFrame":
    """The named columns of a CSV file as text; DataError where it isn't one or lacks a column.

    Fields are parted by commas, semicolons or tabs, whichever gives the columns. A line may end in
    empty fields more than there are titles, and is refused with other fields more or fewer.
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
    for number, row in enumerate(rows[1:], 1):
        if len(row) < len(titles) or any(row[len(titles) :]):
            raise DataError(
                f"{path}: entry {number} has {len(row)} fields, and there are {len(titles)} titles"
            )
    return pd.DataFrame({c: [row[titles.index(c)] for row in rows[1:]] for c in columns}, dtype=str)


def read_sheet(path: Path) -> "pd.DataFrame":
    """The first sheet of an .xlsx file, or the .csv of that name where that is there instead."""
    import pandas as pd

    other = path.with_suffix(".csv")
    if not path.is_file() and other.is_file():
        try:
            return pd.read_csv(other, encoding="utf-8-sig")
        except (OSError, ValueError) as error:  # of the disk, its encoding or its form
            raise DataError(f"{other}: can't be read as CSV ({first_line(error)})") from error
    try:
        return pd.read_excel(path)
    except ImportError as error:
        raise DataError(
            f"{path}: reading it takes openpyxl: pip install openpyxl, or save it as {other.name}"
        ) from error
    except Exception as error:  # of zip, XML or openpyxl, which raises many kinds
        raise DataError(f"{path}: can't be read as .xlsx ({first_line(error)})") from error


def read_mat(path: Path, name: str) -> np.ndarray:
    """A variable of a MATLAB file, flat, with strings for cells of text."""
    from scipy.io import loadmat

    try:
        values = loadmat(path)[name].ravel()
    except Exception as error:  # of files that are missing, damaged, or lack the variable
        raise DataError(f"{path}: has no readable variable {name} ({first_line(error)})") from error
    return np.array([str(v.ravel()[0]) for v in values]) if values.dtype == object else values


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def scaled(scores: "pd.Series", low: float, high: float, path: Path, *, lower_is_better=False):
    """Scores of the publisher's scale as 0..100, higher is better; DataError outside the scale."""
    outside = scores[~scores.between(low, high)]
    if len(outside):
        raise DataError(
            f"{path}: {len(outside)} scores are outside {low:g}..{high:g}, such as "
            f"{outside.iloc[0]:g}"
        )
    part = (scores - low) / (high - low)
    return 100 * (1 - part if lower_is_better else part)


def numbers(texts: "pd.Series", path: Path) -> "pd.Series":
    """Text as float64; DataError with the first values that are no numbers."""
    import pandas as pd

    values = pd.to_numeric(texts, errors="coerce").astype("float64")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        first = ", ".join(f"{texts.iloc[i]!r} (entry {i + 1})" for i in bad[:3])
        raise DataError(f"{path}: {len(bad)} scores are not numbers: {first}")
    return values


def read_split_json(path: Path) -> "pd.DataFrame":
    """A JSON list of {"image": "any/folder/NAME", ...} as a table: name, and score where given."""
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


KONIQ_SCORES = "koniq10k_scores_and_distributions.csv"


def read_koniq10k(folder: Path, split: str) -> tuple["pd.DataFrame", str]:
    """KonIQ-10k (Hosu et al., IEEE TIP 29, 2020): 10,073 photographs, 1024x768 or 512x384.

    Labels: `MOS_zscore` of koniq10k_scores_and_distributions.csv (its `MOS` is 1..5), or `MOS` of
    koniq10k_distributions_sets.csv, or the scores inside the split JSONs; all of them 0..100.
    Splits: 'json' (koniq_train.json 7,046 and koniq_test.json 2,010, with the sets CSV's 1,000
    validation images where that is there too), or 'official' (the sets CSV's 7,058, 1,000, 2,015).
    """
    split = koniq_split(folder, split)
    sets = read_koniq_sets(folder / "koniq10k_distributions_sets.csv")
    jsons = {part: folder / f"koniq_{part}.json" for part in ("train", "test")}
    has_csv = sets is not None or (folder / KONIQ_SCORES).is_file()
    lists = {}
    if split == "json" or (not has_csv and all(path.is_file() for path in jsons.values())):
        lists = {part: read_split_json(path) for part, path in jsons.items()}
    table, source = read_koniq_labels(folder, sets, lists)

    release = koniq_release(folder, set(table["name"]))
    parts = {}
    if split == "json":
        parts = {part: set(lists[part]["name"]) for part in lists}
        source += "; koniq_train.json and koniq_test.json"
        if sets is not None:
            parts["val"] = set(sets["image_name"][sets["set"] == "validation"])
            source += ", validation of koniq10k_distributions_sets.csv"
    elif split == "official":
        names = {"training": "train", "validation": "val", "test": "test"}
        parts = {names[k]: set(group) for k, group in sets.groupby("set")["image_name"]}
        source += "; set of koniq10k_distributions_sets.csv"
    if parts:
        check_parts(parts, lists, table, folder)
        where = {name: part for part, members in parts.items() for name in members}
        table["split"] = table["name"].map(where)
        table = table.dropna(subset="split")  # the JSON lists leave out 17 images of the 10,073
    else:
        table["split"] = "train"

    return table.assign(image=release + "/" + table["name"]), f"{source}; images in {release}/"


def koniq_split(folder: Path, split: str) -> str:
    """'json', 'official' or 'random': which split of KonIQ-10k is wanted and there."""
    sets_csv = folder / "koniq10k_distributions_sets.csv"
    jsons = [folder / f"koniq_{part}.json" for part in ("train", "test")]
    missing = [str(path) for path in jsons if not path.is_file()]
    if split == "auto":
        split = "json" if len(missing) < 2 else "official" if sets_csv.is_file() else "none"
    if split == "none" or (split == "official" and not sets_csv.is_file()):
        raise DataError(
            f"{folder}: no split of KonIQ-10k there: put koniq_train.json and koniq_test.json "
            "(7,046 / 2,010, the lists that SMART-IQA trains with: github.com/cny123222/"
            "Perceptual-IQA-CS3324) or koniq10k_distributions_sets.csv (the official 7,058 / "
            "1,000 / 2,015, from the authors: github.com/subpic/koniq, folder metadata) there, or "
            "give --split random for 80/20 by --split_seed"
        )
    if split == "json" and missing:
        raise DataError(f"{' and '.join(missing)}: no such file; --split json needs both lists")
    return split


def read_koniq_sets(path: Path) -> "pd.DataFrame | None":
    """image_name, MOS (0..100) and set of the sets CSV; None where it isn't there."""
    if not path.is_file():
        return None
    sets = read_csv(path, ("image_name", "MOS", "set"))
    sets["MOS"] = numbers(sets["MOS"], path)
    unknown = set(sets["set"]) - {"training", "validation", "test"}
    if unknown:
        raise DataError(f"{path}: unknown values in column set: {first_few(unknown)}")
    if sets["MOS"].max() <= 5:
        raise DataError(f"{path}: its MOS is on 1..5, and 0..100 is needed")
    return sets


def read_koniq_labels(folder: Path, sets, lists: dict) -> tuple["pd.DataFrame", str]:
    """name and mos from the best of the label files that are there, and which that is."""
    import pandas as pd

    scores_csv = folder / KONIQ_SCORES
    if scores_csv.is_file():
        table = read_csv(scores_csv, ("image_name", "MOS_zscore"))
        table.columns = ["name", "mos"]
        table["mos"] = numbers(table["mos"], scores_csv)
        if table["mos"].max() <= 5:
            raise DataError(f"{scores_csv}: its MOS_zscore is on 1..5, and 0..100 is needed")
        if sets is not None:
            both = table.merge(sets, left_on="name", right_on="image_name")
            wrong = both["name"][(both["mos"] - both["MOS"]).abs() > 0.01]
            if len(wrong):
                raise DataError(
                    f"{folder}: {len(wrong)} labels differ between {scores_csv.name} and "
                    f"koniq10k_distributions_sets.csv: {first_few(wrong)}"
                )
        return table, "MOS_zscore of koniq10k_scores_and_distributions.csv"
    if sets is not None:
        table = sets[["image_name", "MOS"]].set_axis(["name", "mos"], axis=1)
        return table, "MOS of koniq10k_distributions_sets.csv"
    if lists:
        table = pd.concat(lists.values(), ignore_index=True).set_axis(["name", "mos"], axis=1)
        table["mos"] = numbers(table["mos"].astype(str), folder / "koniq_*.json")
        if table["mos"].max() <= 5:
            raise DataError(
                f"{folder}: the scores of koniq_*.json are on 1..5; a label CSV is needed"
            )
        return table, "scores of koniq_train.json and koniq_test.json"
    raise DataError(
        f"{folder}: no labels of KonIQ-10k there: put koniq10k_scores_and_distributions.csv "
        "(from database.mmsp-kn.de) or koniq10k_distributions_sets.csv there"
    )


def check_parts(parts: dict, lists: dict, table: "pd.DataFrame", folder: Path) -> None:
    """Raise DataError where splits overlap, name unknown images or contradict the labels."""
    for a, b in (("train", "test"), ("train", "val"), ("test", "val")):
        both = parts.get(a, set()) & parts.get(b, set())
        if both:
            raise DataError(f"{folder}: {len(both)} images in both {a} and {b}: {first_few(both)}")
    mos = dict(zip(table["name"], table["mos"]))
    for part, names in parts.items():
        unknown = [name for name in names if name not in mos]
        if unknown:
            raise DataError(
                f"{folder}: {len(unknown)} images of the {part} split have no label: "
                f"{first_few(unknown)}"
            )
    for part, entries in lists.items():
        path = folder / f"koniq_{part}.json"
        scored = entries[entries["score"].notna()]
        scores = numbers(scored["score"].astype(str), path)
        wrong = scored["name"][(scores - scored["name"].map(mos)).abs() > 0.01]
        on_labels_scale = scores.max() > 5  # lists on 1..5 are met as well: their split counts
        if on_labels_scale and len(wrong):
            raise DataError(
                f"{path}: {len(wrong)} scores differ from the labels in the CSV: {first_few(wrong)}"
            )


def koniq_release(folder: Path, names: set[str]) -> str:
    """The release that is there, 1024x768 or 512x384; where both are, that with more of `names`."""
    counts = {
        release: len(names & set(os.listdir(folder / release)))
        for release in ("1024x768", "512x384")
        if (folder / release).is_dir()
    }
    return max(counts, key=counts.get, default="1024x768")  # the first on a tie


def read_biq2021(folder: Path, split: str) -> tuple["pd.DataFrame", str]:
    """BIQ2021 (Ahmed and Asif, J. Electronic Imaging 31(5), 2022): 12,000 photographs of 512x512.

    Labels: `MOS`, 0..1, of 'Train (Images and MOS).csv' and 'Test (Images and MOS).csv', which are
    the split as well; photographs in Images/. No validation images.
    """
    import pandas as pd

    if split == "json":
        raise DataError("--split json: BIQ2021 has no split JSONs; take auto, official or random")
    tables = []
    for name in ("train", "test"):
        path = folder / f"{name.title()} (Images and MOS).csv"
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; BIQ2021 is Images/ and two lists of images and MOS"
            )
        table = read_csv(path, ("Image Name", "MOS"))
        mos = numbers(table["MOS"], path)
        if not mos.between(0, 1).all():
            raise DataError(f"{path}: its MOS reach from {mos.min()} to {mos.max()}, not 0..1")
        tables.append(
            pd.DataFrame(
                {"image": "Images/" + table["Image Name"], "mos": mos * 100, "split": name}
            )
        )
    table = pd.concat(tables, ignore_index=True)
    return table, "MOS of the Train and Test CSVs; the same two files"


# The readers below follow what public readers of these data sets say of the publishers' files (see
# README.md, 'Other data sets'); none of them has met the real files. Counts other than the
# published ones are refused, so that a difference can't pass unseen.


def labels(names, scores, folder: Path, places: tuple[str, ...], groups=None) -> "pd.DataFrame":
    """A label table without a split: images lie in the first of `places` that holds the first."""
    import pandas as pd

    names = [str(name).strip().replace("\\", "/") for name in names]
    table = pd.DataFrame({"image": names, "mos": scores, "split": "train"})
    if groups is not None:
        table["group"] = groups
    first = names[0].rsplit("/", 1)[-1].lower() if names else ""
    for place in places:
        if (folder / place).is_dir() and first in map(str.lower, os.listdir(folder / place)):
            break
    else:
        place = places[0]
    return table.assign(image=[f"{place}/{name}" if place else name for name in names])


def read_spaq(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """SPAQ (Fang et al., CVPR 2020): 11,125 smartphone photographs; MOS 0..100.

    Labels: 'Image name' and 'MOS' of 'Annotations/MOS and Image attribute scores.xlsx' (or the .csv
    of that name); photographs in TestImage/.
    """
    path = folder / "Annotations" / "MOS and Image attribute scores.xlsx"
    sheet = read_sheet(path)
    missing = {"Image name", "MOS"} - set(sheet.columns)
    if missing:
        raise DataError(f"{path}: has no column {' or '.join(sorted(missing))}")
    mos = scaled(numbers(sheet["MOS"], path), 0, 100, path)
    return labels(sheet["Image name"], mos, folder, ("TestImage", "")), "MOS of the SPAQ sheet"


def read_kadid10k(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """KADID-10k (Lin et al., QoMEX 2019): 10,125 distorted images of 81 references.

    Labels: `dmos` of dmos.csv, 1..5: in spite of its name higher is better; images in images/.
    """
    path = folder / "dmos.csv"
    table = read_csv(path, ("dist_img", "ref_img", "dmos"))
    mos = scaled(numbers(table["dmos"], path), 1, 5, path)
    return labels(table["dist_img"], mos, folder, ("images",), table["ref_img"]), "dmos of dmos.csv"


def read_agiqa3k(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """AGIQA-3K (Li et al., IEEE TCSVT 2023): 2,982 generated images; MOS 0..5.

    Labels: `mos_quality` of data.csv; images beside it, or in AGIQA-3K/ or images/. Images of one
    prompt are one content.
    """
    path = folder / "data.csv"
    table = read_csv(path, ("name", "prompt", "mos_quality"))
    mos = scaled(numbers(table["mos_quality"], path), 0, 5, path)
    places = ("", "AGIQA-3K", "images")
    return labels(table["name"], mos, folder, places, table["prompt"]), "mos_quality of data.csv"


def read_live_challenge(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """LIVE In the Wild Challenge (Ghadiyaram and Bovik, IEEE TIP 2016): 1,162 photographs.

    Labels: AllMOS_release.mat (0..100) and AllImages_release.mat in Data/; photographs in Images/.
    The first seven entries are the images that observers were trained on, and are left out.
    """
    import pandas as pd

    names = read_mat(folder / "Data" / "AllImages_release.mat", "AllImages_release")[7:]
    path = folder / "Data" / "AllMOS_release.mat"
    mos = pd.Series(read_mat(path, "AllMOS_release")[7:].astype(float))
    if len(mos) != len(names):
        raise DataError(f"{path}: {len(mos)} scores for {len(names)} images")
    return labels(names, scaled(mos, 0, 100, path), folder, ("Images",)), "AllMOS_release.mat"


LIVE_TYPES = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}


def read_live(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """LIVE release 2 (Sheikh et al., IEEE TIP 2006): 779 distorted images of 29 references.

    Labels: `dmos_new` (lower is better) and `orgs` of dmos_realigned.mat, `refnames_all` of
    refnames_all.mat; the entries are TYPE/imgN.bmp, type by type. References themselves are left
    out. The realigned DMOS reach from -2.64 to 111.78: -5..115 becomes 100..0.
    """
    import pandas as pd

    path = folder / "dmos_realigned.mat"
    dmos, orgs = (read_mat(path, name) for name in ("dmos_new", "orgs"))
    references = read_mat(folder / "refnames_all.mat", "refnames_all")
    names = [f"{kind}/img{i}.bmp" for kind, n in LIVE_TYPES.items() for i in range(1, n + 1)]
    if not len(dmos) == len(orgs) == len(references) == len(names):
        raise DataError(f"{path}: {len(dmos)} scores, and LIVE release 2 has {len(names)} entries")
    mos = scaled(pd.Series(dmos.astype(float)), -5, 115, path, lower_is_better=True)
    table = labels(names, mos, folder, ("",), references)
    return table[orgs == 0], "dmos_new of dmos_realigned.mat, lower is better"


def read_csiq(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """CSIQ (Larson and Chandler, J. Electronic Imaging 2010): 866 images of 30 references.

    Labels: csiq_label.txt, lines of a name such as 1600.AWGN.1.png and DMOS 0..1 (lower is better),
    as HyperIQA's authors circulate it (github.com/SSL92/hyperIQA); the publisher's own
    csiq.DMOS.xlsx is not read. Images in dst_imgs/TYPE/, or all in dst_imgs_all/.
    """
    names, dmos = read_words(folder / "csiq_label.txt", name_first=True)
    mos = scaled(dmos, 0, 1, folder / "csiq_label.txt", lower_is_better=True)
    references = [name.split(".")[0] for name in names]
    if (folder / "dst_imgs").is_dir():
        listed = {d.lower(): d for d in os.listdir(folder / "dst_imgs")}
        kinds = [[*name.split("."), ""][1] for name in names]
        names = [f"dst_imgs/{listed.get(k.lower(), k)}/{n}" for k, n in zip(kinds, names)]
        table = labels(names, mos, folder, ("",), references)
    else:
        table = labels(names, mos, folder, ("dst_imgs_all",), references)
    return table, "DMOS of csiq_label.txt, lower is better"


def read_tid2013(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """TID2013 (Ponomarenko et al., Signal Processing: Image Comm. 2015): 3,000 of 25 references.

    Labels: mos_with_names.txt, lines of MOS 0..9 and a name such as I01_01_1.bmp; images in
    distorted_images/, where the case of names differs.
    """
    names, mos = read_words(folder / "mos_with_names.txt", name_first=False)
    mos = scaled(mos, 0, 9, folder / "mos_with_names.txt")
    references = [name.split("_")[0].lower() for name in names]
    table = labels(names, mos, folder, ("distorted_images",), references)
    return table, "mos_with_names.txt"


def read_words(path: Path, *, name_first: bool) -> tuple[list[str], "pd.Series"]:
    """The names and numbers of a text file with a name and a number a line, in either order."""
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
    return list(names), numbers(pd.Series(texts, dtype=str), path)


def read_bid(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """BID (Ciancio et al., IEEE TIP 2011): 586 blurred photographs; MOS 0..5.

    Labels: the first two columns (number of the image, MOS) of DatabaseGrades.xlsx, below one line
    of titles; photographs DatabaseImage0001.JPG and so on beside it or in ImageDatabase/.
    """
    path = folder / "DatabaseGrades.xlsx"
    sheet = read_sheet(path).dropna(how="all")
    if sheet.shape[1] < 2:
        raise DataError(f"{path}: has fewer than the two columns of image number and MOS")
    number, grade = (numbers(sheet.iloc[:, i], path) for i in (0, 1))
    names = [f"DatabaseImage{int(n):04d}.JPG" for n in number]
    mos = scaled(grade, 0, 5, path)
    return labels(names, mos, folder, ("", "ImageDatabase")), "DatabaseGrades.xlsx"


class CsvOptions(NamedTuple):
    """How a table of one's own is read: the flags --csv, --csv_columns and so on."""

    files: tuple[str, ...] = ()  # FILE or SPLIT=FILE, in the data folder
    columns: tuple[str, ...] = ()  # KEY=NAME, with KEY one of image, score, split, group
    lower_is_better: bool = False
    score_range: tuple[float, float] | None = None


def read_own_csv(folder: Path, options: CsvOptions) -> tuple["pd.DataFrame", str]:
    """Any table of image and score, and optionally split (train, val, test) and group.

    Paths of images are relative to the data folder, or to the one folder in it where they lie.
    Scores on another scale than 0..100 need `score_range`.
    """
    import pandas as pd

    if not options.files:
        raise DataError("--dataset csv: name the table with --csv FILE, or train=FILE test=FILE")
    columns = {"image": "image", "score": "score"}
    for entry in options.columns:
        key, equals, name = entry.partition("=")
        if not equals or key not in ("image", "score", "split", "group"):
            raise DataError(
                f"--csv_columns {entry}: takes KEY=NAME, with KEY image, score, split or group"
            )
        columns[key] = name
    tables = []
    for entry in options.files:
        part, equals, name = entry.partition("=")
        if equals and part not in SPLITS:
            raise DataError(f"--csv {entry}: takes FILE, or SPLIT=FILE with {', '.join(SPLITS)}")
        part, name = (part, name) if equals else ("", entry)
        path = folder / name
        texts = read_csv(path, columns.values())
        table = pd.DataFrame({key: texts[name] for key, name in columns.items()})
        table["score"] = numbers(table["score"], path)
        if part and "split" in columns:
            raise DataError(f"--csv {entry}: its split is named twice, by {part}= and by a column")
        tables.append(table.assign(split=part) if part else table)
    table = pd.concat(tables, ignore_index=True)
    unknown = set(table["split"]) - set(SPLITS) if "split" in table else set()
    if unknown:
        raise DataError(f"--csv: splits other than train, val, test: {first_few(unknown)}")

    low, high = options.score_range or (0, 100)
    if options.score_range is None and len(table) and table["score"].max() <= 10:
        raise DataError(
            f"--csv: the scores reach from {table['score'].min():g} to {table['score'].max():g}: "
            "give the ends of their scale with --score_range LOW HIGH"
        )
    mos = scaled(table["score"], low, high, folder, lower_is_better=options.lower_is_better)
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = labels(table["image"], mos, folder, ("", *inside), table.get("group"))
    if "/" in str(table["image"].iloc[0] if len(table) else ""):
        found["image"] = [str(name).strip() for name in table["image"]]  # a path as it is given
    if "split" in table:
        found["split"] = table["split"]
    scale = f"{low:g}..{high:g}, {'lower' if options.lower_is_better else 'higher'} is better"
    return found, f"{columns['score']} ({scale}) of {', '.join(options.files)}"


class DataSet(NamedTuple):
    read: Callable[[Path, str], tuple["pd.DataFrame", str]]
    resize: tuple[int, int]  # height, width: those of the literature, or of most images as they are
    val_fraction: float  # taken out of training where there are no validation images
    published: tuple[tuple[int, int, int], ...]  # train, val, test counts of the known splits
    images: int | None = None  # of a data set without a split of its own


DATASETS = {
    # HyperIQA's transforms.Resize((512, 384)) turns 1024x768 into portrait; kept to compare.
    "koniq-10k": DataSet(
        read_koniq10k,
        (512, 384),
        0.0,
        ((7046, 1000, 2010), (7046, 0, 2010), (7058, 1000, 2015), (8058, 0, 2015)),
    ),
    "biq2021": DataSet(read_biq2021, (512, 512), 0.1, ((10000, 0, 2000),)),
    "spaq": DataSet(read_spaq, (512, 384), 0.0, (), 11_125),
    "kadid-10k": DataSet(read_kadid10k, (384, 512), 0.0, (), 10_125),
    "agiqa-3k": DataSet(read_agiqa3k, (512, 512), 0.0, (), 2_982),
    "live-challenge": DataSet(read_live_challenge, (500, 500), 0.0, (), 1_162),
    "live": DataSet(read_live, (512, 768), 0.0, (), 779),
    "csiq": DataSet(read_csiq, (512, 512), 0.0, (), 866),
    "tid2013": DataSet(read_tid2013, (384, 512), 0.0, (), 3_000),
    "bid": DataSet(read_bid, (512, 512), 0.0, (), 586),
    "csv": DataSet(read_own_csv, (512, 512), 0.0, ()),
}


def read_labels(
    dataset: str,
    data_path: str | Path,
    *,
    split: str = "auto",
    split_seed: int = 0,
    val_fraction: float | None = None,
    own_csv: CsvOptions | None = None,
) -> tuple["pd.DataFrame", str]:
    """The label table of a data set (image, mos, split; sorted by image), and where it came from.

    split: 'auto' (the data set's own, or a random one where it has none), 'json', 'official', or
    'random': 80/20 by `split_seed`. val_fraction: the part of the training images that becomes
    validation images, by `split_seed`, where the data set has none; None takes the data set's
    default. Images of one reference (column group) are never parted. own_csv: for data set 'csv'.
    Raises DataError for everything that is wrong with the files.
    """
    folder = check_folder(dataset, data_path)
    known = DATASETS[dataset]
    if dataset == "csv":
        table, source = known.read(folder, own_csv or CsvOptions())
    else:
        table, source = known.read(folder, split)
    if known.images is not None and len(table) != known.images:
        raise DataError(
            f"{folder}: its label files name {len(table):,} images, and {dataset} has "
            f"{known.images:,}: they are of another release, or incomplete"
        )
    group = table["group"] if "group" in table else table["image"]
    table = table[["image", "mos", "split"]].assign(group=group)
    table = table.sort_values("image", ignore_index=True)
    table["mos"] = table["mos"].round(9)  # 56.29, not 100 * 0.5629 = 56.28999999999999
    check_labels(table, folder)

    rng = np.random.default_rng(split_seed)
    groups = np.unique(table["group"].astype(str), return_inverse=True)[1]
    undivided = not (table["split"] != "train").any()
    if undivided and split in ("json", "official") and split != "auto":
        raise DataError(f"--split {split}: {dataset} has no such split; take auto or random")
    if split == "random" or (undivided and split == "auto"):
        order = rng.permutation(groups.max() + 1)
        is_test = np.isin(groups, order[: round(0.2 * len(order))])
        table["split"] = np.where(is_test, "test", "train")
        what = "" if len(order) == len(table) else f" of {len(order)} contents"
        source += f"; random 80/20{what} by --split_seed {split_seed}"

    has_val = bool((table["split"] == "val").any())
    if val_fraction and has_val:
        raise DataError(
            f"--val_fraction {val_fraction}: {folder} has validation images of its own already; "
            "leave the flag out"
        )
    fraction = known.val_fraction if val_fraction is None else val_fraction
    if fraction and not has_val:
        train = np.unique(groups[table["split"] == "train"])
        chosen = rng.permutation(train)[: max(1, round(fraction * len(train)))]
        table.loc[np.isin(groups, chosen) & (table["split"] == "train"), "split"] = "val"
        source += f"; {fraction:.0%} of training as validation by --split_seed {split_seed}"

    parted = table.groupby("group")["split"].nunique()
    if (parted > 1).any():
        raise DataError(
            f"{folder}: {(parted > 1).sum()} contents are in two splits: "
            f"{first_few(parted.index[parted > 1])}"
        )
    for name in ("train", "test"):
        if not (table["split"] == name).any():
            raise DataError(f"{folder}: no {name} images are left by this split")
    return table.drop(columns="group"), source


def check_folder(dataset: str, data_path: str | Path) -> Path:
    """The data folder; DataError where there is none. Needs nothing heavy, so it comes first."""
    folder = Path(data_path)
    try:
        str(data_path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"--data_path {str(data_path)!a}: not UTF-8; rename the folder") from error
    if not folder.is_dir():
        raise DataError(
            f"--data_path {data_path}: no such folder; it should hold {dataset}'s images and "
            "labels, as README.md shows under 'Data'"
        )
    return folder


def check_labels(table: "pd.DataFrame", folder: Path) -> None:
    """Raise DataError for empty tables, scores outside 0..100, images twice or outside `folder`."""
    if not len(table):
        raise DataError(f"{folder}: its label files name no images")
    outside = table[~table["mos"].between(0, 100)]
    if len(outside):
        raise DataError(
            f"{folder}: {len(outside)} scores are outside 0..100, such as {outside['mos'].iloc[0]} "
            f"of {outside['image'].iloc[0]}"
        )
    twice = table["image"][table["image"].duplicated()]
    if len(twice):
        raise DataError(f"{folder}: {len(twice)} images have two labels: {first_few(twice)}")
    away = [
        image
        for image in table["image"]
        if "\\" in image or not set(image.split("/")).isdisjoint({"", ".", ".."})
    ]
    if away:  # '/etc/x', 'a/../../x', 'folder/'
        raise DataError(f"{folder}: names that are no file names: {first_few(away)}")


def find_images(table: "pd.DataFrame", data_path: str | Path) -> "pd.DataFrame":
    """The table with each image's name as it is on disk (its case may differ there).

    Raises DataError that counts and names the missing ones, and says where they should lie, and for
    files that are links to places outside the folder. (The folders in it may be links.)
    """
    folder = Path(data_path)
    found, missing, away = [], [], []
    directories = table["image"].str.rpartition("/")[0]
    for directory, images in table.groupby(directories)["image"]:
        inside = folder.resolve(), (folder / directory).resolve()
        listed = os.listdir(folder / directory) if (folder / directory).is_dir() else []
        exact, lowered = set(listed), {}
        for name in listed:
            lowered.setdefault(name.lower(), []).append(name)
        for row, image in images.items():
            name = image.rpartition("/")[2]
            alike = [name] if name in exact else lowered.get(name.lower(), [])
            if len(alike) == 1:
                path = folder / directory / alike[0]
                if path.is_symlink() and not any(map(path.resolve().is_relative_to, inside)):
                    away.append(image)
                found.append((row, f"{directory}/{alike[0]}" if directory else alike[0]))
            else:
                missing.append(image)
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(table):,} images are missing: {first_few(missing)}; they "
            f"should lie under {folder.resolve()} (README.md, 'Data', says where they come from)"
        )
    if away:
        raise DataError(
            f"{folder}: {len(away):,} images are links to places outside it: {first_few(away)}; "
            "put the files themselves there"
        )
    table = table.copy()
    table["image"] = dict(found)
    twice = table["image"][table["image"].duplicated()]
    if len(twice):
        raise DataError(f"{folder}: two labels fit one file each: {first_few(twice)}")
    return table


def first_few(names, most: int = 3) -> str:
    """'a, b, c and 7 more': enough of a list to find the trouble."""
    names = sorted(map(str, names))
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def count_splits(table: "pd.DataFrame") -> dict[str, int]:
    """{'train': 7046, 'val': 1000, 'test': 2010}."""
    return {s: int((table["split"] == s).sum()) for s in SPLITS}


def label_fingerprint(table: "pd.DataFrame") -> str:
    """12 hex digits that stand for images' names, scores and splits, whatever their pixels."""
    return fingerprint(table.assign(crc32=0))


def fingerprint(table: "pd.DataFrame") -> str:
    """12 hex digits that stand for images' names, pixels (as stored), scores and splits."""
    lines = (f"{r.image}\t{r.crc32:08x}\t{r.mos:.6f}\t{r.split}\n" for r in table.itertuples())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


# The pixel store --------------------------------------------------------------------------------


EXIF_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}  # how to undo each EXIF orientation, by Pillow's names


def decode(path: Path, height: int, width: int) -> np.ndarray:
    """An image file as uint8 RGB (height, width, 3): turned as EXIF says, resized bilinearly.

    16-bit grey is scaled to 8 bits, transparency is laid on white, CMYK, grey and palette become
    RGB, of several frames the first counts; smaller images are enlarged. Raises whatever Pillow
    raises for files that aren't whole images, and ValueError for pixels of unknown range.
    """
    from PIL import ExifTags, Image

    with Image.open(path) as image:
        if image.format in ("JPEG", "MPO"):
            check_jpeg_end(path)
        image.load()  # which turns a TIFF, and drops what it says of it
        turn = EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image)
            low, high = values.min(), values.max()
            is_8_bit = image.mode == "I" and high < 256  # 8-bit values in 32 bits, or all but black
            if values.dtype.kind not in "iu" or low < 0 or high > 65535 or is_8_bit:
                raise ValueError(f"pixels of mode {image.mode} that are not 16-bit grey")
            image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
        if turn is not None:
            image = image.transpose(Image.Transpose[turn])
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image)


def check_jpeg_end(path: Path) -> None:
    """ValueError where a JPEG's pixels never come to their end marker.

    Of a download that was cut short and padded with zeros the decoder makes grey without a word.
    """
    file, at = path.read_bytes(), 2
    while file[at : at + 1] == b"\xff" and file[at + 1 : at + 2] != b"\xda":  # up to the pixels
        if file[at + 1 : at + 2] == b"\xff":  # fills the space between segments
            at += 1
        else:  # past a segment, as some hold thumbnails with ends of their own
            at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    if file.find(b"\xff\xd9", at) < 0:
        raise ValueError("a JPEG without its end: cut short, or padded")


class PixelStore:
    """Decoded images as one memory-mapped file: `pixels` is uint8 (N, height, width, 3).

    With `crc32`, those of the rows (N,), a row is checked before its first crop is given out, so
    that a damaged file is never trained on: DataError says to delete it.
    A later run may put another file in its place: this store keeps to the one it was opened on,
    and raises DataError in a process that can't get at that any more.
    """

    device = "cpu"

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int, int],
        crc32: np.ndarray | None = None,
        inode: int | None = None,
    ):
        self.path, self.shape, self.crc32 = path, shape, crc32
        self.checked = np.full(shape[0], crc32 is None)
        with open(path, "rb") as file:
            self.inode = os.fstat(file.fileno()).st_ino
            if inode not in (None, self.inode):
                raise DataError(f"{path}: another run has rebuilt the pixel store; start again")
            # An np.ndarray view: slices of an np.memmap are memmaps too, which costs 10 us each.
            self.pixels = np.memmap(file, np.uint8, mode="r", shape=shape).view(np.ndarray)

    def __reduce__(self):  # a worker process maps the file itself instead of receiving the pixels
        return PixelStore, (self.path, self.shape, self.crc32, self.inode)

    def check(self, rows: np.ndarray) -> None:
        """DataError where the pixels of a row are not those that were stored."""
        for row in rows[~self.checked[rows]]:
            if zlib.crc32(self.pixels[row].data) != self.crc32[row]:
                raise DataError(
                    f"{self.path}: row {row} is damaged (its checksum differs): delete the file, "
                    "and the next run builds it anew"
                )
            self.checked[row] = True

    def crops(self, rows: "Tensor", tops: "Tensor", lefts: "Tensor", size: int) -> "Tensor":
        """The crops at (rows, tops, lefts): uint8 (B, 3, size, size) in channels_last memory."""
        import torch

        self.check(rows.numpy())
        crops = torch.empty((len(rows), size, size, 3), dtype=torch.uint8)
        corners = zip(rows.tolist(), tops.tolist(), lefts.tolist())
        for crop, (row, top, left) in zip(crops.numpy(), corners):
            crop[:] = self.pixels[row, top : top + size, left : left + size]
        return crops.permute(0, 3, 1, 2)


class DeviceStore:
    """A pixel store's images in a device's memory: `pixels` is uint8 (N, height, width, 3) there.

    Crops are gathered on the device, so that no pixel travels during training.
    """

    def __init__(self, store: PixelStore, device: "torch.device"):
        import torch

        self.device = torch.device(device)
        store.check(np.arange(store.shape[0]))
        self.pixels = torch.empty(store.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self.pixels), 256):  # the host never holds all of it
            part = torch.from_numpy(np.array(store.pixels[start : start + 256]))
            self.pixels[start : start + 256] = part.to(device)

    def crops(self, rows: "Tensor", tops: "Tensor", lefts: "Tensor", size: int) -> "Tensor":
        """The same as PixelStore.crops, from tensors on the device, without waiting for it."""
        import torch

        side = torch.arange(size, device=self.device)
        down, across = tops[:, None] + side, lefts[:, None] + side  # (B, size) each
        crops = self.pixels[rows[:, None, None], down[:, :, None], across[:, None, :]]
        return crops.permute(0, 3, 1, 2)  # (B, 3, size, size)


def open_store(
    table: "pd.DataFrame",
    data_path: str | Path,
    *,
    resize: tuple[int, int],
    store_dir: str | Path,
    name: str,
) -> tuple[PixelStore, "pd.DataFrame"]:
    """The pixel store of the table's images, built first where none fits.

    Returns the store and the table with two more columns: `row` (in the store) and `crc32` (of
    the row's pixels). The store is STORE_DIR/NAME-HEIGHTxWIDTH-XXXXXXXX.u8 with a .json header;
    XXXXXXXX stands for the data folder's path. It fits as long as the header lists every image
    with its present size and time of change; otherwise a new one is built, with the rows of those
    that do. One process builds while others wait.
    Raises DataError that lists every file that is no image, and for a disk that is too small.
    """
    folder, store_dir = Path(data_path).resolve(), Path(store_dir)
    path = store_path(folder, name=name, resize=resize, store_dir=store_dir)
    try:
        store_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--store_dir {store_dir}: can't be made ({error.strerror})") from error

    files = {image: file_state(folder / image) for image in table["image"]}
    with locked(path.with_suffix(".lock")):
        known = read_header(path, resize)
        if not all(i in known and known[i]["file"] == file for i, file in files.items()):
            known = build_store(path, folder, files, resize, known)
        crc32 = np.zeros(len(known), np.uint32)
        for entry in known.values():
            crc32[entry["row"]] = entry["crc32"]
        store = PixelStore(path, (len(known), *resize, 3), crc32)
    table = table.assign(
        row=[known[image]["row"] for image in table["image"]],
        crc32=[known[image]["crc32"] for image in table["image"]],
    )
    return store, table


def store_path(folder: Path, *, name: str, resize: tuple[int, int], store_dir: Path) -> Path:
    """STORE_DIR/NAME-HEIGHTxWIDTH-XXXXXXXX.u8, where the last part stands for the data folder.

    The header lies beside it, with .json in the place of .u8.
    """
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return store_dir / f"{name}-{resize[0]}x{resize[1]}-{place}.u8"


def file_state(path: Path) -> list[int]:
    """Size and time of change, by which a changed file is known; [] where there is none."""
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


@contextmanager
def locked(path: Path, *, wait: bool = True):
    """Hold an exclusive lock on `path`; a second process waits until the first is done.

    Raises BlockingIOError instead of waiting where `wait` is False.
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
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def read_header(path: Path, resize: tuple[int, int]) -> dict[str, dict]:
    """What the store holds: row, crc32 and file state by image; empty where it isn't whole."""
    try:
        header = json.loads(path.with_suffix(".json").read_text())
        images = header["images"]
        whole = (
            header["version"] == STORE_VERSION
            and header["resize"] == list(resize)
            and path.stat().st_size == len(images) * resize[0] * resize[1] * 3
            and sorted(entry["row"] for entry in images.values()) == [*range(len(images))]
            and all(0 <= entry["crc32"] < 2**32 and "file" in entry for entry in images.values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return images if whole else {}


def build_store(
    path: Path,
    folder: Path,
    files: dict[str, list[int]],
    resize: tuple[int, int],
    known: dict[str, dict],
) -> dict[str, dict]:
    """Decode all `files` on all cores into a temporary file, rename it, write the header.

    Images that the present store has (`known`) as they are now are copied from it.
    """
    size = resize[0] * resize[1] * 3
    old = PixelStore(path, (len(known), *resize, 3)).pixels if known else None
    path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)  # of a build that was killed
    free = shutil.disk_usage(path.parent).free
    if free < size * len(files):
        raise DataError(
            f"--store_dir {path.parent}: the pixel store needs {size * len(files) / 1e9:.1f} GB "
            f"and {free / 1e9:.1f} GB are free; give it a folder with more"
        )

    def stored(image: str) -> np.ndarray | None:
        """The present store's pixels of an image that hasn't changed, if they are whole."""
        entry = known.get(image)
        if entry is None or entry["file"] != files[image]:
            return None
        pixels = old[entry["row"]]
        return pixels if zlib.crc32(pixels.data.cast("B")) == entry["crc32"] else None

    def store(row_and_image: tuple[int, str]) -> tuple[str, int, str]:
        row, image = row_and_image
        try:
            pixels = stored(image)
            if pixels is None:
                pixels = decode(folder / image, *resize)
        except Exception as error:  # Pillow raises many kinds; each file is named in one list below
            return image, 0, str(error).splitlines()[0] if str(error) else type(error).__name__
        data = np.ascontiguousarray(pixels).data.cast("B")
        written = os.pwrite(file.fileno(), data, row * size)
        if written != size:  # the disk is full: writing the rest says so
            os.pwrite(file.fileno(), data[written:], row * size + written)
        return image, zlib.crc32(data), ""

    done = []
    try:
        with replacing(path) as file:
            with (
                ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,  # Pillow frees the GIL
                closing(pool.map(store, enumerate(files))) as jobs,  # Ctrl-C drops those that wait
            ):
                for job in Progress("decoding images", len(files), "images")(jobs):
                    done.append(job)
                    if len(done) % 64 == 0:  # to disk while others decode, not all at the end
                        os.fdatasync(file.fileno())
            bad = [f"{image}: {error}" for image, _, error in done if error]
            if bad:
                raise DataError(
                    f"{len(bad)} of {len(files):,} files under {folder} can't be read as images; "
                    "replace them:\n  " + "\n  ".join(bad)
                )
            path.with_suffix(".json").unlink(missing_ok=True)  # never an old header for new pixels
    except OSError as error:
        raise DataError(f"--store_dir: {path}: {error.strerror}") from error

    images = {
        image: {"row": row, "crc32": crc32, "file": files[image]}
        for row, (image, crc32, _) in enumerate(done)
    }
    header = {"version": STORE_VERSION, "resize": list(resize), "images": images}
    write_atomically(path.with_suffix(".json"), json.dumps(header))
    return images


@contextmanager
def replacing(path: Path, *, before: Path | None = None):
    """A temporary binary file that takes the place of `path` when it is whole on disk.

    What was there becomes `before`, where that is given. One process at a time may replace a path;
    what one that was killed has left behind is overwritten.
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
        reason = f"can't be written ({error.strerror}); what was there is as it was"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` in the place of `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


class Progress:
    """Wraps an iterable: a bar with rate and time left on a terminal, a line a minute in a log.

    It counts to `total` units (such as patches), `scale` of them a step.
    """

    def __init__(self, what: str, total: int, unit: str, scale: int = 1):
        self.what, self.total, self.unit, self.scale = what, total, unit, scale

    def __call__(self, steps):
        if sys.stderr.isatty():
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


def say(line: str) -> None:
    """Print a line, above the bar where there is one."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line)
    else:
        print(line, flush=True)


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '3.4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# The crop plan ----------------------------------------------------------------------------------


def training_plan(
    images: np.ndarray,
    *,
    patches: int,
    resize: tuple[int, int],
    patch_size: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """The crops of one training epoch in their order: int32 (N * patches, 4).

    Columns: image, top, left, flip. Each image comes once a round, in `patches` shuffled rounds,
    so that a batch holds different images (save where two rounds meet). It comes from
    (seed, epoch) alone.
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.concatenate([rng.permutation(images) for _ in range(patches)])
    tops, lefts = random_corners(rng, len(order), resize, patch_size)
    return np.stack([order, tops, lefts, rng.integers(0, 2, len(order))], 1).astype(np.int32)


def test_plan(
    images: np.ndarray, *, crop: str, patches: int, resize: tuple[int, int], patch_size: int
) -> np.ndarray:
    """The crops by which each image is judged, image by image: int32 (N * P, 4), never flipped.

    crop: 'random' (drawn once from TEST_SEED: the same in every epoch, configuration and run),
    'grid' (a square grid; P = patches must be a square number), or 'center' (P = 1).
    """
    high, wide = resize[0] - patch_size, resize[1] - patch_size
    count = len(images) * patches
    if crop == "random":
        tops, lefts = random_corners(np.random.default_rng(TEST_SEED), count, resize, patch_size)
    elif crop == "grid":
        side = round(patches**0.5)
        at = np.array([0.5]) if side == 1 else np.linspace(0, 1, side)
        rows, columns = np.meshgrid(np.rint(at * high), np.rint(at * wide), indexing="ij")
        tops, lefts = np.tile(rows.ravel(), len(images)), np.tile(columns.ravel(), len(images))
    else:
        tops, lefts = np.full(count, high // 2), np.full(count, wide // 2)
    return np.stack([np.repeat(images, patches), tops, lefts, np.zeros(count)], 1).astype(np.int32)


def random_corners(
    rng: np.random.Generator, count: int, resize: tuple[int, int], patch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tops and lefts of `count` crops, each position inside the image as likely as another."""
    tops = rng.integers(0, resize[0] - patch_size + 1, count)
    return tops, rng.integers(0, resize[1] - patch_size + 1, count)


def jitter_plan(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Factors of brightness, contrast, saturation for each crop: float32 (count, 3), 0.9..1.1."""
    return np.random.default_rng([seed, epoch, 1]).uniform(0.9, 1.1, (count, 3)).astype(np.float32)


# Batches ----------------------------------------------------------------------------------------


class Batches:
    """A map-style data set whose items are whole batches of a crop plan.

    Item: a dict of tensors on the store's device: `patches` uint8 (B, 3, size, size) in
    channels_last memory, `images` int64 (B,) (the plan's), `flips` bool (B,), and `jitter` float32
    (B, 3) where there is any; and `share`, a float: the size of the whole batch over the number of
    processes, of which this is number `rank` and takes its part. `rows` maps the plan's images to
    rows of the store.
    """

    def __init__(
        self,
        store: PixelStore | DeviceStore,
        rows: np.ndarray,
        plan: np.ndarray,
        *,
        patch_size: int,
        batch_size: int,
        jitter: np.ndarray | None = None,
        rank: int = 0,
        ranks: int = 1,
    ):
        import torch

        self.store, self.patch_size, self.batch_size = store, patch_size, batch_size
        self.rank, self.ranks = rank, ranks
        self.rows = torch.tensor(rows, device=store.device)
        self.plan = torch.tensor(plan, dtype=torch.int64, device=store.device)
        self.jitter = None if jitter is None else torch.tensor(jitter, device=store.device)

    def __len__(self) -> int:
        return -(-len(self.plan) // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, "Tensor"]:
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        plan = self.plan[part].tensor_split(self.ranks)[self.rank]
        images, tops, lefts, flips = plan.unbind(1)
        batch = {
            "share": len(self.plan[part]) / self.ranks,
            "patches": self.store.crops(self.rows[images], tops, lefts, self.patch_size),
            "images": images,
            "flips": flips.bool(),
        }
        if self.jitter is not None:
            batch["jitter"] = self.jitter[part].tensor_split(self.ranks)[self.rank]
        return batch


def share_of(count: int, batch_size: int, rank: int, ranks: int) -> np.ndarray:
    """Which of a plan's `count` rows process `rank` of `ranks` takes: of each batch its part."""
    batches = np.split(np.arange(count), range(batch_size, count, batch_size))
    return np.concatenate([np.array_split(batch, ranks)[rank] for batch in batches])


def make_loader(batches: Batches, *, workers: int, pin: bool) -> "torch.utils.data.DataLoader":
    """A DataLoader over whole batches, in the plan's order whatever the number of workers.

    `pin` puts the batches of a store in host memory where a CUDA device copies them fastest. A
    store on the device needs neither that nor workers.
    """
    import torch

    on_host = isinstance(batches.store, PixelStore)
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        num_workers=workers if on_host else 0,
        worker_init_fn=leave_signals_to_the_run,
        pin_memory=pin and on_host,
        generator=torch.Generator(),  # its own, so that the loader leaves the global one alone
    )


def leave_signals_to_the_run(_: int) -> None:
    """A worker goes on when Ctrl-C or SIGTERM reach all processes: the run ends it in time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def to_network_input(batch: dict[str, "Tensor"], device: "torch.device") -> "Tensor":
    """The batch on the device: float32 (B, 3, size, size), flipped, jittered, normalised there."""
    import torch

    moved = {
        k: batch[k].to(device, non_blocking=True)
        for k in ("patches", "flips", "jitter")
        if k in batch
    }
    pixels = moved["patches"]
    pixels = torch.where(moved["flips"][:, None, None, None], pixels.flip(3), pixels).float()
    if "jitter" in moved:
        pixels = colour_jitter(pixels, moved["jitter"])
    return pixels.sub_(colour(MEAN, 255, device)).div_(colour(STD, 255, device))


@functools.cache  # made once, as a copy from the host makes a CUDA device wait
def colour(values: tuple[float, float, float], scale: float, device: "torch.device") -> "Tensor":
    """One value for each of R, G and B, times `scale`: float32 (3, 1, 1) on the device."""
    import torch

    return (torch.tensor(values) * scale)[:, None, None].to(device)


def colour_jitter(pixels: "Tensor", factors: "Tensor") -> "Tensor":
    """Brightness, then contrast (about the mean grey), then saturation (about each pixel's grey).

    pixels (B, 3, H, W) in 0..255; factors (B, 3). Grey is ITU-R 601 luma, as in torchvision.
    """
    luma = colour((0.299, 0.587, 0.114), 1, pixels.device)
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)  # 3 x (B, 1, 1, 1)
    pixels = (pixels * brightness).clamp(0, 255)
    middle = (pixels * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = (middle + (pixels - middle) * contrast).clamp(0, 255)
    grey = (pixels * luma).sum(1, keepdim=True)
    return (grey + (pixels - grey) * saturation).clamp(0, 255)


# The check of a folder --------------------------------------------------------------------------


def check_images(
    table: "pd.DataFrame", folder: Path, resize: tuple[int, int]
) -> tuple[dict[tuple[int, int], int], list[str], list[list[str]]]:
    """Every image decoded: how many have each size (width, height), bad files, twins by content.

    Twins are groups of files whose pixels are the same once decoded and resized.
    """
    from PIL import Image

    def look(image: str) -> tuple[tuple[int, int], bytes, str]:
        path = folder / image
        try:
            with Image.open(path) as opened:
                size = opened.size
            pixels = decode(path, *resize)
        except Exception as error:  # Pillow raises many kinds
            return (0, 0), b"", first_line(error)
        return size, hashlib.sha256(pixels.tobytes()).digest(), ""

    sizes, bad, seen = {}, [], {}
    images = list(table["image"])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        looked = Progress("checking images", len(images), "images")(pool.map(look, images))
        for image, (size, digest, error) in zip(images, looked):
            if error:
                bad.append(f"{image}: {error}")
                continue
            sizes[size] = sizes.get(size, 0) + 1
            seen.setdefault(digest, []).append(image)
    return sizes, bad, [group for group in seen.values() if len(group) > 1]


def number(kind: type, low: float, high: float = math.inf, *, open_end: bool = False):
    """An argparse type: a number within low..high (below high if open_end)."""

    def parse(text: str):
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


def main() -> int:
    """Check a data folder before anyone trains on it; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description="check a data folder: labels, splits, every image")
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="koniq-10k")
    parser.add_argument("--data_path", help="its folder (default: ./DATASET)")
    parser.add_argument("--split", choices=["auto", "json", "official", "random"], default="auto")
    parser.add_argument("--split_seed", type=number(int, 0), default=0)
    parser.add_argument("--val_fraction", type=number(float, 0, 0.5))
    parser.add_argument(
        "--resize", type=number(int, 32, 8192), nargs=2, metavar=("H", "W"), help="as in training"
    )
    parser.add_argument("--store_dir", default="pixel_store")
    parser.add_argument("--csv", nargs="+", default=[], metavar="[SPLIT=]FILE")
    parser.add_argument("--csv_columns", nargs="+", default=[], metavar="KEY=NAME")
    parser.add_argument("--lower_is_better", action="store_true")
    parser.add_argument("--score_range", type=float, nargs=2, metavar=("LOW", "HIGH"))
    args = parser.parse_args()
    folder = Path(args.data_path or f"./{args.dataset}")
    resize = tuple(args.resize or DATASETS[args.dataset].resize)
    try:
        table, source = read_labels(
            args.dataset,
            folder,
            split=args.split,
            split_seed=args.split_seed,
            val_fraction=args.val_fraction,
            own_csv=CsvOptions(args.csv, args.csv_columns, args.lower_is_better, args.score_range),
        )
        table = find_images(table, folder)
        sizes, bad, twins = check_images(table, folder, resize)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    counts = count_splits(table)
    print(f"labels      {source}")
    print("images      " + ", ".join(f"{count:,} {split}" for split, count in counts.items()))
    print("splits      no image in two of them")
    mos = table["mos"]
    print(f"MOS         {mos.min():.2f} to {mos.max():.2f}, mean {mos.mean():.2f}")
    histogram, edges = np.histogram(mos, bins=10, range=(0, 100))
    for count, low in zip(histogram, edges):
        print(f"  {low:>3.0f}..{low + 10:<4.0f}{count:>7,}  {'#' * round(50 * count / len(table))}")
    most = sorted(sizes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{wide}x{high} ({count:,})" for (wide, high), count in most[:5])
    print(f"sizes       {shown}{f' and {len(most) - 5} more' if len(most) > 5 else ''}")
    needed = len(table) * resize[0] * resize[1] * 3
    place = Path(args.store_dir)
    while not place.exists():
        place = place.absolute().parent
    free = shutil.disk_usage(place).free
    print(
        f"store       {needed / 1e9:.2f} GB at {resize[0]} x {resize[1]} (H x W); "
        f"{free / 1e9:.1f} GB free for {args.store_dir}"
    )
    split_of = dict(zip(table["image"], table["split"]))
    parted = [group for group in twins if len({split_of[image] for image in group}) > 1]
    print(f"twins       {len(twins)} groups of images with the same content")
    for group in sorted(twins, key=lambda group: group not in parted)[:10]:
        print("  " + " = ".join(f"{image} ({split_of[image]})" for image in group))
    errors = list(bad)
    if parted:
        errors.append(f"{len(parted)} groups of twins are in two splits or more: keep one of each")
    if free < needed:
        errors.append("too little disk is free for the pixel store")
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    if errors:
        return 1
    print("nothing is wrong" if not twins else "nothing is wrong but the twins")
    return 0


if __name__ == "__main__":
    sys.exit(main())
