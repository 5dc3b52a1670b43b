"""What goes in: labels and splits, the pixel store, the crop plan, the batches.

A label table (pandas) has one row an image: `image` (path under the data folder), `mos` (0..100,
higher is better) and `split` (train, val, test). Each image is decoded once into a pixel store on
disk. A crop plan says which crops an epoch sees; it comes from (seed, epoch) alone, and nothing
else in the data is random.

To add a data set, write a reader (folder, split mode) -> (label table, where it came from), and
give it a line in DATASETS.
"""

import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable
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


class DataError(ValueError):
    """The data can't be used as it is; the message says which file, and what to do."""


# Labels and splits ------------------------------------------------------------------------------


def read_csv(path: Path, columns: tuple[str, ...]) -> "pd.DataFrame":
    """The named columns of a CSV file as text; DataError where it isn't one or lacks a column."""
    import pandas as pd

    try:
        table = pd.read_csv(
            path, dtype=str, encoding="utf-8-sig", keep_default_na=False, index_col=False
        )
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path}: can't be read as CSV ({str(error).strip()})") from error
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise DataError(
            f"{path}: has no column {' or '.join(missing)}; its columns are "
            f"{', '.join(map(str, table.columns))}"
        )
    return table[list(columns)]


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


def read_koniq10k(folder: Path, split: str) -> tuple["pd.DataFrame", str]:
    """KonIQ-10k (Hosu et al., IEEE TIP 29, 2020): 10,073 photographs, 1024x768 or 512x384.

    Labels: `MOS_zscore` of koniq10k_scores_and_distributions.csv (its `MOS` is 1..5), or `MOS` of
    koniq10k_distributions_sets.csv, or the scores inside the split JSONs; all of them 0..100.
    Splits: 'json' (koniq_train.json 7,046 and koniq_test.json 2,010, with the sets CSV's 1,000
    validation images where that is there too), or 'official' (the sets CSV's 7,058, 1,000, 2,015).
    """
    import pandas as pd

    scores_csv = folder / "koniq10k_scores_and_distributions.csv"
    sets_csv = folder / "koniq10k_distributions_sets.csv"
    jsons = {s: folder / f"koniq_{s}.json" for s in ("train", "test")}
    there = [path for path in jsons.values() if path.is_file()]
    if split == "auto":
        split = "json" if there else "official" if sets_csv.is_file() else "none"
    if split == "none" or (split == "official" and not sets_csv.is_file()):
        raise DataError(
            f"{folder}: no split of KonIQ-10k there: put koniq_train.json and koniq_test.json "
            "(7,046 / 2,010, the lists that SMART-IQA trains with: github.com/cny123222/"
            "Perceptual-IQA-CS3324) or koniq10k_distributions_sets.csv (the official 7,058 / "
            "1,000 / 2,015, from the authors: github.com/subpic/koniq, folder metadata) there, or "
            "give --split random for 80/20 by --split_seed"
        )
    if split == "json" and len(there) < 2:
        missing = [str(path) for path in jsons.values() if path not in there]
        raise DataError(f"{' and '.join(missing)}: no such file; --split json needs both lists")

    sets = None
    if sets_csv.is_file():
        sets = read_csv(sets_csv, ("image_name", "MOS", "set"))
        sets["MOS"] = numbers(sets["MOS"], sets_csv)
        unknown = set(sets["set"]) - {"training", "validation", "test"}
        if unknown:
            raise DataError(f"{sets_csv}: unknown values in column set: {first_few(unknown)}")
        if sets["MOS"].max() <= 5:
            raise DataError(f"{sets_csv}: its MOS is on 1..5, and 0..100 is needed")
    lists = {s: read_split_json(jsons[s]) for s in jsons} if split == "json" else {}

    if scores_csv.is_file():
        table = read_csv(scores_csv, ("image_name", "MOS_zscore"))
        table.columns = ["name", "mos"]
        table["mos"] = numbers(table["mos"], scores_csv)
        source = "MOS_zscore of koniq10k_scores_and_distributions.csv"
        if sets is not None:
            both = table.merge(sets, left_on="name", right_on="image_name")
            wrong = both["name"][(both["mos"] - both["MOS"]).abs() > 0.01]
            if len(wrong):
                raise DataError(
                    f"{folder}: {len(wrong)} labels differ between {scores_csv.name} and "
                    f"{sets_csv.name}: {first_few(wrong)}"
                )
    elif sets is not None:
        table = sets[["image_name", "MOS"]].set_axis(["name", "mos"], axis=1)
        source = "MOS of koniq10k_distributions_sets.csv"
    elif lists:
        table = pd.concat(lists.values(), ignore_index=True).set_axis(["name", "mos"], axis=1)
        table["mos"] = numbers(table["mos"].astype(str), folder / "koniq_*.json")
        if table["mos"].max() <= 5:
            raise DataError(
                f"{folder}: the scores of koniq_*.json are on 1..5; a label CSV is needed"
            )
        source = "scores of koniq_train.json and koniq_test.json"
    else:
        raise DataError(
            f"{folder}: no labels of KonIQ-10k there: put koniq10k_scores_and_distributions.csv "
            "(from database.mmsp-kn.de) or koniq10k_distributions_sets.csv there"
        )

    release = koniq_release(folder, set(table["name"]))
    parts = {}
    if split == "json":
        parts = {s: set(lists[s]["name"]) for s in lists}
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


class DataSet(NamedTuple):
    read: Callable[[Path, str], tuple["pd.DataFrame", str]]
    resize: tuple[int, int]  # height, width that the literature uses
    val_fraction: float  # taken out of training where there are no validation images
    published: tuple[tuple[int, int, int], ...]  # train, val, test counts of the known splits


DATASETS = {
    # HyperIQA's transforms.Resize((512, 384)) turns 1024x768 into portrait; kept to compare.
    "koniq-10k": DataSet(
        read_koniq10k,
        (512, 384),
        0.0,
        ((7046, 1000, 2010), (7046, 0, 2010), (7058, 1000, 2015)),
    ),
    "biq2021": DataSet(read_biq2021, (512, 512), 0.1, ((10000, 0, 2000),)),
}


def read_labels(
    dataset: str,
    data_path: str | Path,
    *,
    split: str = "auto",
    split_seed: int = 0,
    val_fraction: float | None = None,
) -> tuple["pd.DataFrame", str]:
    """The label table of a data set (image, mos, split; sorted by image), and where it came from.

    split: 'auto' (the data set's own), 'json', 'official', or 'random': 80/20 by `split_seed`.
    val_fraction: the part of the training images that becomes validation images, by `split_seed`,
    where the data set has none; None takes the data set's default.
    Raises DataError for everything that is wrong with the files.
    """
    folder = check_folder(dataset, data_path)
    table, source = DATASETS[dataset].read(folder, split)
    table = table[["image", "mos", "split"]].sort_values("image", ignore_index=True)
    table["mos"] = table["mos"].round(9)  # 56.29, not 100 * 0.5629 = 56.28999999999999
    check_labels(table, folder)

    rng = np.random.default_rng(split_seed)
    if split == "random":
        order = rng.permutation(len(table))
        table.loc[order[: round(0.2 * len(table))], "split"] = "test"
        table.loc[order[round(0.2 * len(table)) :], "split"] = "train"
        source += f"; random 80/20 by --split_seed {split_seed}"

    has_val = bool((table["split"] == "val").any())
    if val_fraction and has_val:
        raise DataError(
            f"--val_fraction {val_fraction}: {folder} has validation images of its own already; "
            "leave the flag out"
        )
    fraction = DATASETS[dataset].val_fraction if val_fraction is None else val_fraction
    if fraction and not has_val:
        train = np.flatnonzero(table["split"] == "train")
        chosen = rng.permutation(train)[: max(1, round(fraction * len(train)))]
        table.loc[chosen, "split"] = "val"
        source += f"; {fraction:.0%} of training as validation by --split_seed {split_seed}"

    for name in ("train", "test"):
        if not (table["split"] == name).any():
            raise DataError(f"{folder}: no {name} images are left by this split")
    return table, source


def check_folder(dataset: str, data_path: str | Path) -> Path:
    """The data folder; DataError where there is none. Needs nothing heavy, so it comes first."""
    folder = Path(data_path)
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
    # A reader puts one folder before a plain name, so more parts or none can only come from a name.
    away = [i for i in table["image"] if i.count("/") != 1 or i[-1] in "/." or "\\" in i]
    if away:
        raise DataError(f"{folder}: names that are no file names: {first_few(away)}")


def find_images(table: "pd.DataFrame", data_path: str | Path) -> "pd.DataFrame":
    """The table with each image's name as it is on disk (its case may differ there).

    Raises DataError that counts and names the missing ones, and says where they should lie.
    """
    folder = Path(data_path)
    found, missing = [], []
    for directory, images in table.groupby(table["image"].str.split("/").str[0])["image"]:
        listed = os.listdir(folder / directory) if (folder / directory).is_dir() else []
        exact, lowered = set(listed), {}
        for name in listed:
            lowered.setdefault(name.lower(), []).append(name)
        for row, image in images.items():
            name = image.split("/")[1]
            alike = [name] if name in exact else lowered.get(name.lower(), [])
            if len(alike) == 1:
                found.append((row, f"{directory}/{alike[0]}"))
            else:
                missing.append(image)
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(table):,} images are missing: {first_few(missing)}; they "
            f"should lie under {folder.resolve()} (README.md, 'Data', says where they come from)"
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
        turn = EXIF_TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image)
            if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 65535:
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


class PixelStore:
    """Decoded images as one memory-mapped file: `pixels` is uint8 (N, height, width, 3).

    A later run may put another file in its place: this store keeps to the one it was opened on,
    and raises DataError in a process that can't get at that any more.
    """

    device = "cpu"

    def __init__(self, path: Path, shape: tuple[int, int, int, int], inode: int | None = None):
        self.path, self.shape = path, shape
        with open(path, "rb") as file:
            self.inode = os.fstat(file.fileno()).st_ino
            if inode not in (None, self.inode):
                raise DataError(f"{path}: another run has rebuilt the pixel store; start again")
            # An np.ndarray view: slices of an np.memmap are memmaps too, which costs 10 us each.
            self.pixels = np.memmap(file, np.uint8, mode="r", shape=shape).view(np.ndarray)

    def __reduce__(self):  # a worker process maps the file itself instead of receiving the pixels
        return PixelStore, (self.path, self.shape, self.inode)

    def crops(self, rows: "Tensor", tops: "Tensor", lefts: "Tensor", size: int) -> "Tensor":
        """The crops at (rows, tops, lefts): uint8 (B, 3, size, size) in channels_last memory."""
        import torch

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
        store = PixelStore(path, (len(known), *resize, 3))
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
            and all(set(entry) == {"row", "crc32", "file"} for entry in images.values())
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
        raise DataError(f"{path}: can't be written ({error.strerror})") from error

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
