"""Label tables: which images a data set has, with which scores, in which split.

A label table (pandas) has one row per image: `image` (path inside the data folder), `mos` (0..100,
higher is better) and `split` (train, val, test). It is checked for counts, range and overlap.

To add a data set, write a reader in readers.py, (folder, split mode) -> (label table, description
of its source), and add it to DATASETS, with the folders that may hold the images.
"""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datasets import readers
from datasets.koniq10k import read_koniq10k
from datasets.label_files import SPLITS, first_few
from datasets.places import find_images, find_place
from datasets.readers import CsvOptions, csv_options
from errors import DataError

if TYPE_CHECKING:
    import pandas as pd

DEMO_MARKER = "demo.json"  # a file in the demo's folder: results on it are marked as the demo's


class DataSet(NamedTuple):
    """How a data set is read, and what is known about it."""

    read: Callable[[Path, str], tuple["pd.DataFrame", str]]
    resize: tuple[int, int]  # height, width: as in the literature, or the size of most images
    val_fraction: float  # fraction of training used for validation if there is no such split
    published: tuple[tuple[int, int, int], ...]  # train, val, test counts of the known splits
    images: int | None = None  # number of images, for data sets without a split
    places: tuple[str, ...] | None = ("",)  # folders of the images; None: whichever holds them


DATASETS = {
    # HyperIQA's transforms.Resize((512, 384)) makes 1024x768 portrait; kept to be comparable.
    "koniq-10k": DataSet(
        read_koniq10k,
        (512, 384),
        0.0,
        ((7046, 1000, 2010), (7046, 0, 2010), (7058, 1000, 2015), (8058, 0, 2015)),
        places=("1024x768", "512x384"),
    ),
    "biq2021": DataSet(
        readers.read_biq2021, (512, 512), 0.1, ((10000, 0, 2000),), places=("Images",)
    ),
    "spaq": DataSet(readers.read_spaq, (512, 384), 0.0, (), 11_125, ("TestImage", "")),
    "kadid-10k": DataSet(readers.read_kadid10k, (384, 512), 0.0, (), 10_125, ("images",)),
    "agiqa-3k": DataSet(
        readers.read_agiqa3k, (512, 512), 0.0, (), 2_982, ("", "AGIQA-3K", "images")
    ),
    "live-challenge": DataSet(readers.read_live_challenge, (500, 500), 0.0, (), 1_162, ("Images",)),
    "live": DataSet(readers.read_live, (512, 768), 0.0, (), 779),
    "csiq": DataSet(readers.read_csiq, (512, 512), 0.0, (), 866, ("dst_imgs", "dst_imgs_all")),
    "tid2013": DataSet(readers.read_tid2013, (384, 512), 0.0, (), 3_000, ("distorted_images",)),
    "bid": DataSet(readers.read_bid, (512, 512), 0.0, (), 586, ("", "ImageDatabase")),
    "csv": DataSet(readers.read_own_csv, (512, 512), 0.0, (), places=None),
}


def read_labels(
    dataset: str,
    data_path: str | Path,
    *,
    split: str = "auto",
    split_seed: int = 0,
    val_fraction: float | None = None,
    own_csv: CsvOptions | None = None,
    images: bool = True,
) -> tuple["pd.DataFrame", str]:
    """The label table of a data set (image, mos, split; sorted by image) and its source, as text.

    split: 'auto' (the data set's split, or a random one if it has none), 'json', 'official', or
    'random' (80/20 by `split_seed`). val_fraction: the fraction of the training images used for
    validation, drawn by `split_seed`, if the data set has no validation images; None takes the data
    set's default. Images of one reference (column group) are kept in one split. own_csv: the table
    of data set 'csv' and, for all data sets, the folder of the images (image_dir). images: False if
    there need not be any: their names are then those of the label file. Where the label files say
    so, the table also has `mos_sd` and `votes` (standard deviation and number of an image's votes),
    and `vote_mean` where the MOS is not the mean vote, on 0..100. Raises DataError for everything
    that is wrong with the files.
    """
    folder, own_csv = check_folder(dataset, data_path), own_csv or CsvOptions()
    known = DATASETS[dataset]
    if dataset == "csv":
        table, source = known.read(folder, own_csv)
    else:
        table, source = known.read(folder, split)
    if known.images is not None and len(table) != known.images:
        raise DataError(
            f"{folder}: its label files name {len(table):,} images, and {dataset} has "
            f"{known.images:,}: they are of another release, or incomplete"
        )
    check_labels(table, folder)
    place = ""
    if images:
        place = find_place(table["image"], folder, known.places, own_csv.image_dir)
        if known.places is None or len(known.places) > 1 or own_csv.image_dir:
            source += f"; images in {place or '.'}/"
    table = table.assign(image=(f"{place}/" if place else "") + table["image"])
    table["group"] = groups_of(table)
    columns = ["image", "mos", "split", "group", "vote_mean", "mos_sd", "votes"]
    table = table[[column for column in columns if column in table]]
    table = table.sort_values("image", ignore_index=True)
    table["mos"] = table["mos"].round(9)  # 56.29, not 100 * 0.5629 = 56.28999999999999

    rng = np.random.default_rng(split_seed)
    groups = np.unique(table["group"].astype(str), return_inverse=True)[1]
    has_split = (table["split"] != "train").any()
    if not has_split and split in ("json", "official"):
        raise DataError(f"--split {split}: {dataset} has no such split; take auto or random")
    if split == "random" or not has_split:
        order = rng.permutation(groups.max() + 1)
        is_test = np.isin(groups, order[: round(0.2 * len(order))])
        table["split"] = np.where(is_test, "test", "train")
        what = "" if len(order) == len(table) else f" of {len(order)} contents"
        source += f"; random 80/20{what} by --split_seed {split_seed}"

    has_val = (table["split"] == "val").any()
    if val_fraction and has_val:
        raise DataError(
            f"--val_fraction {val_fraction}: {folder} has validation images of its own; leave the "
            "flag out"
        )
    fraction = known.val_fraction if val_fraction is None else val_fraction
    if fraction and not has_val:
        train = np.unique(groups[table["split"] == "train"])
        chosen = rng.permutation(train)[: max(1, round(fraction * len(train)))]
        table.loc[np.isin(groups, chosen) & (table["split"] == "train"), "split"] = "val"
        source += f"; {fraction:.0%} of training as validation by --split_seed {split_seed}"

    check_splits(table, folder)
    return table.drop(columns="group"), source


def groups_of(table: "pd.DataFrame") -> "pd.Series":
    """The group of each image: that of its column, or its own where there is none."""
    if "group" not in table:
        return table["image"]
    groups = table["group"].astype(str).str.strip()
    return groups.mask(groups == "", "image " + table["image"])


def check_folder(dataset: str, data_path: str | Path) -> Path:
    """The data folder; DataError if it does not exist. Imports nothing slow, so it comes first."""
    folder = Path(data_path)
    try:
        str(data_path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"--data_path {str(data_path)!a}: not UTF-8; rename the folder") from error
    if not folder.is_dir():
        raise DataError(
            f"--data_path {data_path}: no such folder; it should hold {dataset}'s images and "
            "labels, as README.md shows under 'Data'; without any data there is 'bash "
            "run_resnet_ablation.sh --demo'"
        )
    return folder


def check_labels(table: "pd.DataFrame", folder: Path) -> None:
    """Raise DataError for an empty table, scores outside 0..100, duplicate or unsafe names."""
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
        raise DataError(f"{folder}: names that are no file names inside it: {first_few(away)}")


def check_splits(table: "pd.DataFrame", folder: Path) -> None:
    """Raise DataError if a group of images is in two splits, or if there is nothing to train on."""
    splits = table.groupby("group")["split"].nunique()
    across = splits.index[splits > 1]
    if len(across):
        raise DataError(f"{folder}: {len(across)} contents are in two splits: {first_few(across)}")
    for name in ("train", "test"):
        if not (table["split"] == name).any():
            raise DataError(f"{folder}: no {name} images are left by this split")


def count_splits(table: "pd.DataFrame") -> dict[str, int]:
    """{'train': 7046, 'val': 1000, 'test': 2010}."""
    return {s: int((table["split"] == s).sum()) for s in SPLITS}


def label_fingerprint(table: "pd.DataFrame") -> str:
    """12 hex digits that identify the images' names, scores and splits, but not their pixels."""
    return fingerprint(table.assign(crc32=0))


def fingerprint(table: "pd.DataFrame") -> str:
    """12 hex digits that identify the images' names, pixels (as stored), scores and splits."""
    lines = (f"{r.image}\t{r.crc32:08x}\t{r.mos:.6f}\t{r.split}\n" for r in table.itertuples())
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def load_labels(args: argparse.Namespace) -> tuple["pd.DataFrame", str]:
    """read_labels and find_images, as the data flags say (datasets/flags.py)."""
    table, source = read_labels(
        args.dataset,
        args.data_path,
        split=args.split,
        split_seed=args.split_seed,
        val_fraction=args.val_fraction,
        own_csv=csv_options(args),
    )
    return find_images(table, args.data_path), source
