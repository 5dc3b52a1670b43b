"""Check a data folder: labels, splits, every image, duplicates, disk space.

python3 data_loader.py --dataset koniq-10k --data_path ./koniq-10k

It only reads. It decodes all images, on all cores. The exit status is 1 if there are problems.
"""

import argparse
import hashlib
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from console import check_shown, command
from datasets.flags import (
    HelpFormatter,
    add_data_flags,
    add_store_dir,
    resolve_data_flags,
    with_negative_numbers,
)
from datasets.images import load_image, resized
from datasets.labels import count_splits, load_labels
from devices import cores
from errors import first_line
from progress import Progress

if TYPE_CHECKING:
    import pandas as pd


def check_images(
    table: "pd.DataFrame", folder: Path, resize: tuple[int, int]
) -> tuple[dict[tuple[int, int], int], list[str], list[list[str]]]:
    """Decode every image of a label table.

    Returns the number of images of each size (width, height, as they are shown), a line for each
    bad file, and groups of duplicates: images whose pixels are the same after decoding and
    resizing.
    """

    def check(image: str) -> tuple[tuple[int, int], bytes, str]:
        try:
            picture = load_image(folder / image)
            pixels = resized(picture, *resize)
        except Exception as error:  # Pillow raises many kinds
            return (0, 0), b"", first_line(error)
        return picture.size, hashlib.sha256(pixels.tobytes()).digest(), ""

    sizes, bad, images_of = {}, [], {}
    images = list(table["image"])
    with ThreadPoolExecutor(cores()) as pool:
        checked = Progress("checking images", len(images), "images")(pool.map(check, images))
        for image, (size, digest, error) in zip(images, checked):
            if error:
                bad.append(f"{image}: {error}")
                continue
            sizes[size] = sizes.get(size, 0) + 1
            images_of.setdefault(digest, []).append(image)
    return sizes, bad, [group for group in images_of.values() if len(group) > 1]


def print_labels(table: "pd.DataFrame", source: str) -> None:
    """Source, number of images in each split, and the distribution of the scores."""
    print(f"labels      {source}")
    counts = count_splits(table)
    print("images      " + ", ".join(f"{count:,} {split}" for split, count in counts.items()))
    print("splits      no image is in two splits")
    if "votes" in table:
        votes, spread = table["votes"], table["mos_sd"].mean()
        print(f"votes       {votes.min()} to {votes.max()} per image, mean SD {spread:.2f}")
    mos = table["mos"]
    print(f"MOS         {mos.min():.2f} to {mos.max():.2f}, mean {mos.mean():.2f}")
    histogram, edges = np.histogram(mos, bins=10, range=(0, 100))
    for count, low in zip(histogram, edges):
        print(f"  {low:>3.0f}..{low + 10:<4.0f}{count:>7,}  {'#' * round(50 * count / len(table))}")


def print_sizes(sizes: dict[tuple[int, int], int]) -> None:
    """The five most frequent image sizes."""
    most = sorted(sizes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{wide}x{high} ({count:,})" for (wide, high), count in most[:5])
    print(f"sizes       {shown}{f' and {len(most) - 5} more' if len(most) > 5 else ''}")


def print_store(needed: int, resize: tuple[int, int], store_dir: str) -> bool:
    """Disk space that the pixel store needs (bytes), and what is free; whether it is enough."""
    place = Path(store_dir)
    while not place.exists():
        place = place.absolute().parent
    free = shutil.disk_usage(place).free
    print(
        f"store       {needed / 1e9:.2f} GB at {resize[0]} x {resize[1]} (H x W); "
        f"{free / 1e9:.1f} GB free for {store_dir}"
    )
    return free >= needed


def print_duplicates(table: "pd.DataFrame", duplicates: list[list[str]]) -> int:
    """Up to ten groups of duplicates; returns how many groups are split across two splits."""
    split_of = dict(zip(table["image"], table["split"]))
    across = [group for group in duplicates if len({split_of[image] for image in group}) > 1]
    print(f"duplicates  {len(duplicates)} groups of images with the same pixels")
    for group in sorted(duplicates, key=lambda group: group not in across)[:10]:
        print("  " + " = ".join(f"{image} ({split_of[image]})" for image in group))
    return len(across)


@command
def main() -> int:
    """Check a data folder before training; 1 if there are problems."""
    parser = argparse.ArgumentParser(
        description="check a data folder: labels, splits, every image, duplicates, disk space",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_data_flags(parser.add_argument)
    add_store_dir(parser.add_argument)
    args = parser.parse_args(with_negative_numbers(None))
    resolve_data_flags(parser, args)
    table, source = load_labels(args)
    sizes, problems, duplicates = check_images(table, Path(args.data_path), args.resize)

    print_labels(table, source)
    print_sizes(sizes)
    height, width = args.resize
    enough_space = print_store(len(table) * height * width * 3, args.resize, args.store_dir)
    across = print_duplicates(table, duplicates)
    if across:
        problems.append(
            f"{across} groups of duplicates are in two splits or more: keep one image of each"
        )
    if not enough_space:
        problems.append("not enough disk space for the pixel store")
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    if problems:
        return 1
    print("no problems found" if not duplicates else "no problems found, except the duplicates")
    check_shown()
    return 0
