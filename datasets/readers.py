"""Readers of the data sets other than KonIQ-10k, and of your own table.

A reader takes the data folder and the split mode, and returns a label table (datasets/labels.py)
and a description of its source. Without a published split all images are marked as training images.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datasets.label_files import (
    SPLIT_NAMES,
    SPLITS,
    as_numbers,
    as_splits,
    first_few,
    has_columns,
    read_mat,
    read_rows,
    read_table,
    read_words,
    scaled,
    sheet_or_csv,
)
from datasets.places import as_path
from errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def read_biq2021(folder: Path, split: str) -> tuple["pd.DataFrame", str]:
    """BIQ2021 (Ahmed and Asif, J. Electronic Imaging 31(5), 2022): 12,000 photographs of 512x512.

    Labels: `MOS`, 0..1, of 'Train (Images and MOS).csv' and 'Test (Images and MOS).csv'; the two
    files are also the split. Photographs in Images/. No validation images.
    """
    import pandas as pd

    if split == "json":
        raise DataError("--split json: BIQ2021 has no split JSONs; take auto, official or random")
    tables = []
    for name in ("train", "test"):
        path = folder / f"{name.title()} (Images and MOS).csv"
        table = read_table(path, ("Image Name", "MOS"))
        mos = as_numbers(table["MOS"], path)
        if not mos.between(0, 1).all():
            raise DataError(f"{path}: its MOS reach from {mos.min()} to {mos.max()}, not 0..1")
        table = pd.DataFrame({"image": table["Image Name"], "mos": mos * 100, "split": name})
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    return table, "MOS of the Train and Test CSVs; the same two files"


def label_table(
    names: Iterable, scores: "pd.Series", folder: Path, groups: Iterable | None = None
) -> "pd.DataFrame":
    """A label table without a split: image, mos, split ('train') and, if given, group.

    groups: for each image the name of its reference or prompt.
    """
    import pandas as pd

    names = [as_path(name, folder) for name in names]
    table = pd.DataFrame({"image": names, "mos": scores, "split": "train"})
    return table if groups is None else table.assign(group=groups)


def read_spaq(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """SPAQ (Fang et al., CVPR 2020): 11,125 smartphone photographs; MOS 0..100.

    Labels: 'Image name' and 'MOS' of 'Annotations/MOS and Image attribute scores.xlsx' (or the
    .csv file of the same name); photographs in TestImage/.
    """
    path = sheet_or_csv(folder / "Annotations" / "MOS and Image attribute scores.xlsx")
    sheet = read_table(path, ("Image name", "MOS"))
    mos = scaled(as_numbers(sheet["MOS"], path), 0, 100, path)
    return label_table(sheet["Image name"], mos, folder), "MOS of the SPAQ sheet"


def read_kadid10k(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """KADID-10k (Lin et al., QoMEX 2019): 10,125 distorted images of 81 references.

    Labels: `dmos` of dmos.csv, 1..5; despite its name, higher is better. `var`, if it is there, is
    the variance of an image's 30 votes. Images in images/.
    """
    path = folder / "dmos.csv"
    table = read_table(path, ("dist_img", "ref_img", "dmos"))
    mos = scaled(as_numbers(table["dmos"], path), 1, 5, path)
    table = label_table(table["dist_img"], mos, folder, table["ref_img"])
    if has_columns(path, ("var",)):
        variance = as_numbers(read_table(path, ("var",))["var"], path)
        table = table.assign(mos_sd=25 * np.sqrt(variance.clip(0)).to_numpy(), votes=30)
    return table, "dmos of dmos.csv"


def read_agiqa3k(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """AGIQA-3K (Li et al., IEEE TCSVT 2023): 2,982 generated images; MOS 0..5.

    Labels: `mos_quality` of data.csv; images beside it, or in AGIQA-3K/ or images/. Images of one
    prompt are one group.
    """
    path = folder / "data.csv"
    table = read_table(path, ("name", "prompt", "mos_quality"))
    mos = scaled(as_numbers(table["mos_quality"], path), 0, 5, path)
    return label_table(table["name"], mos, folder, table["prompt"]), "mos_quality of data.csv"


def read_live_challenge(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """LIVE In the Wild Challenge (Ghadiyaram and Bovik, IEEE TIP 2016): 1,162 photographs.

    Labels: AllMOS_release.mat (0..100) and AllImages_release.mat in Data/; photographs in Images/.
    The first seven entries, the images that observers were trained on, are left out.
    """
    import pandas as pd

    names = read_mat(folder / "Data" / "AllImages_release.mat", "AllImages_release")[7:]
    path = folder / "Data" / "AllMOS_release.mat"
    mos = pd.Series(read_mat(path, "AllMOS_release")[7:].astype(float))
    if len(mos) != len(names):
        raise DataError(f"{path}: {len(mos)} scores for {len(names)} images")
    return label_table(names, scaled(mos, 0, 100, path), folder), "AllMOS_release.mat"


LIVE_TYPES = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}


def read_live(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """LIVE release 2 (Sheikh et al., IEEE TIP 2006): 779 distorted images of 29 references.

    Labels: `dmos_new` (lower is better) and `orgs` of dmos_realigned.mat, `refnames_all` of
    refnames_all.mat; the entries are TYPE/imgN.bmp, type by type. Reference images are left out.
    The realigned DMOS reach from -2.64 to 111.78: -5..115 is mapped to 100..0.
    """
    import pandas as pd

    path = folder / "dmos_realigned.mat"
    dmos, orgs = (read_mat(path, name) for name in ("dmos_new", "orgs"))
    references = read_mat(folder / "refnames_all.mat", "refnames_all")
    names = [f"{kind}/img{i}.bmp" for kind, n in LIVE_TYPES.items() for i in range(1, n + 1)]
    if not len(dmos) == len(orgs) == len(references) == len(names):
        raise DataError(f"{path}: {len(dmos)} scores, and LIVE release 2 has {len(names)} entries")
    mos = scaled(pd.Series(dmos.astype(float)), -5, 115, path, lower_is_better=True)
    table = label_table(names, mos, folder, references)
    return table[orgs == 0], "dmos_new of dmos_realigned.mat, lower is better"


def read_csiq(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """CSIQ (Larson and Chandler, J. Electronic Imaging 2010): 866 images of 30 references.

    Labels: csiq_label.txt of HyperIQA's authors (github.com/SSL92/hyperIQA), lines of a name such
    as 1600.AWGN.1.png and DMOS 0..1 (lower is better); the publisher's csiq.DMOS.xlsx is not read.
    Images in dst_imgs/TYPE/, or all in dst_imgs_all/.
    """
    names, dmos = read_words(folder / "csiq_label.txt", name_first=True)
    mos = scaled(dmos, 0, 1, folder / "csiq_label.txt", lower_is_better=True)
    references = [name.split(".")[0] for name in names]
    if (folder / "dst_imgs").is_dir():
        listed = {d.lower(): d for d in os.listdir(folder / "dst_imgs")}
        kinds = [[*name.split("."), ""][1] for name in names]
        names = [f"{listed.get(k.lower(), k)}/{n}" for k, n in zip(kinds, names)]
    return label_table(names, mos, folder, references), "DMOS of csiq_label.txt, lower is better"


def read_tid2013(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """TID2013 (Ponomarenko et al., Signal Processing: Image Comm. 2015): 3,000 of 25 references.

    Labels: mos_with_names.txt, lines of MOS 0..9 and a name such as I01_01_1.bmp; images in
    distorted_images/, whose file names differ in upper and lower case.
    """
    names, mos = read_words(folder / "mos_with_names.txt", name_first=False)
    mos = scaled(mos, 0, 9, folder / "mos_with_names.txt")
    references = [name.split("_")[0].lower() for name in names]
    return label_table(names, mos, folder, references), "mos_with_names.txt"


def read_bid(folder: Path, _: str) -> tuple["pd.DataFrame", str]:
    """BID (Ciancio et al., IEEE TIP 2011): 586 blurred photographs; MOS 0..5.

    Labels: the first two columns (image number, MOS) of DatabaseGrades.xlsx, below one title row;
    photographs DatabaseImage0001.JPG and so on, beside it or in ImageDatabase/.
    """
    import pandas as pd

    path = sheet_or_csv(folder / "DatabaseGrades.xlsx")
    rows = max(read_rows(path), key=lambda rows: len(rows[0]))[1:]  # by the delimiter that splits
    if any(len(row) < 2 for row in rows):
        raise DataError(f"{path}: has fewer than two columns; image number and MOS are needed")
    image_numbers, mos = (as_numbers(pd.Series([row[i] for row in rows]), path) for i in (0, 1))
    names = [f"DatabaseImage{int(n):04d}.JPG" for n in image_numbers]
    return label_table(names, scaled(mos, 0, 5, path), folder), "DatabaseGrades.xlsx"


CSV_KEYS = ("image", "score", "split", "group", "sd", "votes")  # of --csv_columns


class CsvOptions(NamedTuple):
    """How your own table is read: a field for each flag of datasets.flags.add_csv_flags."""

    csv: Sequence[str] = ()  # FILE or SPLIT=FILE, in the data folder
    csv_columns: Sequence[str] = ()  # KEY=NAME, where KEY is one of CSV_KEYS
    lower_is_better: bool = False
    score_range: tuple[float, float] | None = None
    average_ratings: bool = False
    image_dir: str | None = None  # of any data set


def csv_options(args: argparse.Namespace) -> CsvOptions:
    """The table that the flags describe."""
    return CsvOptions(*(getattr(args, name) for name in CsvOptions._fields))


def read_own_csv(folder: Path, options: CsvOptions) -> tuple["pd.DataFrame", str]:
    """Your own table: columns image and score, and optionally split (train, val, test) and group.

    Image paths are relative to the data folder, or to the subfolder that contains the images.
    Scores on a scale other than 0..100 need `score_range`. With `average_ratings`, an image may
    have several rows: its mean counts, and the columns `mos_sd` (the standard deviation of its
    ratings, on 0..100) and `votes` (their number) are added. A table of means may have these two in
    columns of its own, on the scale of the scores: keys sd and votes.
    """
    import pandas as pd

    if not options.csv:
        raise DataError("--dataset csv: name the table with --csv FILE, or train=FILE test=FILE")
    columns = columns_of(options.csv_columns)
    if options.average_ratings and {"sd", "votes"} & set(columns):
        raise DataError("--average_ratings: counts the votes itself; leave out sd= and votes=")
    tables = []
    for entry in options.csv:
        part, equals, name = entry.partition("=")
        part, name = (SPLIT_NAMES.get(part.lower()), name) if equals else ("", entry)
        if part is None:
            raise DataError(f"--csv {entry}: takes FILE, or SPLIT=FILE with {', '.join(SPLITS)}")
        path = folder / name
        texts = read_table(path, columns.values())
        table = pd.DataFrame({key: texts[name] for key, name in columns.items()})
        table["image"] = [as_path(name, folder) for name in table["image"]]
        for key in {"score", "sd", "votes"} & set(table):
            table[key] = as_numbers(table[key], path)
        if part and "split" in columns:
            raise DataError(f"--csv {entry}: the split is named twice, by {part}= and by a column")
        if "split" in columns:
            table["split"] = as_splits(table["split"], path)
        tables.append(table.assign(split=part) if part else table)
    table = pd.concat(tables, ignore_index=True)

    low, high = options.score_range or (0, 100)
    if options.score_range is None and len(table) and table["score"].max() <= 10:
        raise DataError(
            f"--csv: the scores reach from {table['score'].min():g} to {table['score'].max():g}: "
            "give the ends of their scale with --score_range LOW HIGH"
        )
    mos = scaled(table["score"], low, high, folder, lower_is_better=options.lower_is_better)
    table = table.drop(columns="score").assign(mos=mos)
    if "sd" in table:
        table["mos_sd"] = table.pop("sd") * (100 / (high - low))
    table = table if "split" in table else table.assign(split="train")
    scale = f"{low:g}..{high:g}, {'lower' if options.lower_is_better else 'higher'} is better"
    source = f"{columns['score']} ({scale}) of {', '.join(options.csv)}"
    if options.average_ratings:
        return average_ratings(table, folder), f"means of {source}"
    several = table["image"][table["image"].duplicated()].unique()
    if len(several):
        raise DataError(
            f"{folder}: {len(several):,} images have two labels or more: {first_few(several)}; "
            "--average_ratings takes the mean of an image's rows"
        )
    return table, source


def columns_of(entries: Sequence[str]) -> dict[str, str]:
    """The table's columns by their keys: image, score and, if they are named, the others."""
    columns = {"image": "image", "score": "score"}
    for entry in entries:
        key, equals, name = entry.partition("=")
        if not equals or key not in CSV_KEYS:
            keys = f"{', '.join(CSV_KEYS[:-1])} or {CSV_KEYS[-1]}"
            raise DataError(f"--csv_columns {entry}: takes KEY=NAME, with KEY {keys}")
        columns[key] = name
    return columns


def average_ratings(table: "pd.DataFrame", folder: Path) -> "pd.DataFrame":
    """One row per image: the mean of its rows' mos, their standard deviation and number.

    The standard deviation is that of a sample; NaN for a single rating. Raises DataError if rows
    of one image name different splits or groups.
    """
    rows = table.groupby("image")
    for column in set(table) & {"split", "group"}:
        differing = rows[column].nunique()
        if (differing > 1).any():
            names = first_few(differing.index[differing > 1])
            raise DataError(f"{folder}: rows of one image name several {column}s: {names}")
    means = rows.first().assign(
        mos=rows["mos"].mean(), mos_sd=rows["mos"].std(), votes=rows["mos"].size()
    )
    return means.reset_index()
