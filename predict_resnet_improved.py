"""Scores for image files and folders, and tests of trained models on data sets.

    python3 predict_resnet_improved.py --checkpoint checkpoints/resnet_improved_ms_att_last.pth DIR
    python3 predict_resnet_improved.py --checkpoint FILE photo.jpg more/ --output scores.csv
    python3 predict_resnet_improved.py --checkpoint A.pth --checkpoint B.pth --test_on biq2021=DIR

The first two print one line per image: path, score (0..100, higher is better) and, if the model has
attention, the stage weights w1..w4. The third tests checkpoints on data sets, without training:
SRCC with its 95% interval, PLCC, KRCC. About 45 crops/s on two CPU cores, thousands on a GPU. In
Python:

    from predict_resnet_improved import load_model, score_images
    model = load_model("checkpoints/resnet_improved_ms_att_last.pth")
    table = score_images(model, ["one.jpg", "two.jpg"])  # pandas: path, score, w1..w4, error
"""

import argparse
import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import cross_dataset
import data_loader as data
from console import check_shown, command, fail
from datasets.flags import (
    HelpFormatter,
    add_csv_flags,
    add_store_dir,
    check_csv_flags,
    number,
    with_negative_numbers,
)
from datasets.images import decode
from datasets.labels import DATASETS, check_folder
from datasets.places import images_in
from datasets.readers import CsvOptions, csv_options
from devices import is_out_of_memory
from errors import RunError, first_line
from evaluation import (
    crops_of_each,
    evaluation_batch,
    load_model,
    mean_of_crops,
    precision_of,
    score_crops,
)
from files import check_file_for, check_folder_for, make_folder, write_atomically
from heatmaps import write_heatmaps
from progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn


def score_images(
    model: "nn.Module",
    paths: str | Path | list[str | Path],
    *,
    test_crop: str = "grid",
    test_patch_num: int | None = None,
    batch_size: int | None = None,
    amp: str = "auto",
    show: bool = False,
    each: Callable[[str | Path, np.ndarray, np.ndarray], None] | None = None,
) -> "pd.DataFrame":
    """A table with a row for each path: path, score, w1..w4 (if the model has attention), error.

    paths: a list of files, or one file. Images are decoded, resized, cropped and normalised as the
    model's checkpoint says. All images get the same crops, so that a score depends on its image
    alone. test_crop: 'grid', 'center', or 'random' (drawn once). test_patch_num: crops per image,
    None for those of the training.
    amp: 'auto', 'bf16', 'fp16' or 'off', see evaluation.precision_of. show: print progress.
    each: called as each(path, scores (P,), plan (P, 4)) for every image that was scored.
    An unreadable file has no score (NaN), and its error says why. Raises RunError if
    test_patch_num does not fit test_crop.
    """
    import pandas as pd

    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    flags = model.config["flags"]
    device = next(model.parameters()).device
    per_image = crops_of_each(test_crop, test_patch_num, flags["test_patch_num"])
    plan = data.test_plan(
        np.zeros(1, int),
        crop=test_crop,
        per_image=per_image,
        resize=flags["resize"],
        patch_size=flags["patch_size"],
    )
    errors: dict[int, str] = {}
    batch_size = batch_size or evaluation_batch(device, (flags["patch_size"],) * 2)
    progress = Progress("scoring", len(paths) * per_image, "crops", batch_size)
    batches = crop_batches(paths, plan, flags["resize"], flags["patch_size"], batch_size, errors)
    scores, weights = score_crops(
        model,
        progress(batches) if show else batches,
        device=device,
        precision=precision_of(model, amp),
    )
    rows = [i for i in range(len(paths)) if i not in errors]
    names = pd.Series([str(p) for p in paths], dtype=object)  # also those that are not UTF-8
    table = pd.DataFrame({"path": names, "score": math.nan})
    table.loc[rows, "score"] = mean_of_crops(scores, per_image)
    if weights is not None:
        for stage, column in enumerate(mean_of_crops(weights, per_image).T, 1):
            table.loc[rows, f"w{stage}"] = column
    table["error"] = pd.Series([errors.get(i, "") for i in range(len(paths))], dtype=object)
    if each is not None:
        for row, crops in zip(rows, scores.cpu().double().view(-1, per_image).numpy()):
            each(paths[row], crops, plan)
    return table


def crop_batches(
    paths: list[str | Path],
    plan: np.ndarray,
    resize: tuple[int, int],
    size: int,
    batch_size: int,
    errors: dict[int, str],
) -> Iterator[dict[str, "torch.Tensor"]]:
    """Batches of the plan's crops (P, 4) of all images, in order; for data.to_network_input.

    Unreadable images are left out, and added to `errors` by their position in `paths`. Images are
    decoded on all cores, a few ahead of the network.
    """
    import torch

    def decoded(path) -> np.ndarray | str:
        try:
            return decode(Path(path), *resize)
        except Exception as error:  # Pillow raises many kinds
            return first_line(error)

    def as_batch(crops: list[np.ndarray]) -> dict[str, "torch.Tensor"]:
        stacked = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return {"crops": stacked, "flips": torch.zeros(len(crops), dtype=torch.bool)}

    crops = []
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        waiting, upcoming = deque(), iter(paths)
        for i in range(len(paths)):
            while len(waiting) < 2 * cores + 1 and (path := next(upcoming, None)) is not None:
                waiting.append(pool.submit(decoded, path))
            image = waiting.popleft().result()
            if isinstance(image, str):
                errors[i] = image
                continue
            for _, top, left, _ in plan:
                crops.append(image[top : top + size, left : left + size])
                if len(crops) == batch_size:
                    yield as_batch(crops)
                    crops = []
    if crops:
        yield as_batch(crops)


def find_files(given: list[Path]) -> tuple[list[Path], list[str]]:
    """The given files, and the images inside the given folders (recursive, sorted).

    Returns them, and a sentence for each folder of which something was left out. Raises RunError
    for what does not exist and for folders without images.
    """
    files, notes = [], []
    for path in given:
        if path.is_dir():
            inside, left_out = images_in(path)
            if not inside:
                raise RunError(f"{path}: no images in this folder ({left_out or 'it is empty'})")
            if left_out:
                notes.append(f"{path}: not scored: {left_out}")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise RunError(f"{path}: no such file or folder")
    return files, notes


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Scores for image files and folders, and tests of trained models on data sets.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag(
        "--model",
        choices=["hyperiqa"],
        help="the --checkpoint is koniq_pretrained.pkl, which HyperIQA's authors publish",
    )
    flag("images", nargs="*", type=Path, metavar="IMAGE_OR_FOLDER", help="images to score")
    flag(
        "--checkpoint",
        action="append",
        required=True,
        metavar="FILE",
        help="a checkpoint of train_resnet_improved.py; may be repeated for --test_on",
    )
    flag(
        "--test_on",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="test on data sets instead, each given by its name and its folder; NAME is one of "
        f"{', '.join(sorted(DATASETS))}",
    )
    flag(
        "--test_split",
        choices=["test", "all"],
        default="test",
        help="images used by --test_on: those of the test split, or all of a data set",
    )
    flag(
        "--skip_trained",
        action="store_true",
        help="leave out images to test that the checkpoint was trained or validated on; without "
        "it they are an error",
    )
    add_csv_flags(flag, "--test_on csv=DIR")
    flag("--output", type=Path, metavar="FILE", help="write the scores to a .csv or .json file")
    flag("--heatmap", type=Path, metavar="DIR", help="folder for a map of each image's crop scores")
    flag(
        "--test_crop",
        choices=["grid", "random", "center"],
        help="crops of an image (default: grid for images to score; those of the checkpoint's "
        "training for --test_on)",
    )
    flag(
        "--test_patch_num",
        type=number(int, 1, 1000),
        metavar="N",
        help="crops per image (default: as in the checkpoint's training)",
    )
    add_store_dir(flag)
    flag(
        "--device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="auto: CUDA if available",
    )
    flag(
        "--amp",
        choices=["auto", "bf16", "fp16", "off"],
        default="auto",
        help="precision; auto: as in the checkpoint's training",
    )
    args = parser.parse_args(with_negative_numbers(None))
    if bool(args.images) == bool(args.test_on):
        parser.error("give images or folders to score, or --test_on NAME=DIR")
    if args.images and len(args.checkpoint) > 1:
        parser.error("give one --checkpoint to score images; several are for --test_on")
    if args.output and args.output.suffix not in (".csv", ".json"):
        parser.error(f"--output {args.output}: ends in .csv or .json")
    args.test_on = [entry.partition("=") for entry in args.test_on]
    for name, equals, _ in args.test_on:
        if not equals or name not in DATASETS:
            parser.error(
                f"--test_on {name}: takes NAME=DIR, with NAME one of {', '.join(sorted(DATASETS))}"
            )
    of_table = csv_options(args)._replace(image_dir=None) != CsvOptions([], [])
    if of_table and "csv" not in [n for n, _, _ in args.test_on]:
        parser.error("--csv and the flags of its table are for --test_on csv=DIR")
    if args.image_dir and len(args.test_on) != 1:
        parser.error("--image_dir is for one --test_on NAME=DIR")
    if args.skip_trained and not args.test_on:
        parser.error("--skip_trained is for --test_on")
    check_csv_flags(parser, args)
    return args


def score(args: argparse.Namespace) -> int:
    """Score images and print or write the scores; 1 if an image or its map had an error."""
    files, notes = find_files(args.images)
    if args.heatmap:
        make_folder("--heatmap", args.heatmap)
    model = load_model(args.checkpoint[0], args.device, published=args.model)
    maps = []
    table = score_images(
        model,
        files,
        test_crop=args.test_crop or "grid",
        test_patch_num=args.test_patch_num,
        amp=args.amp,
        show=True,
        each=(lambda *found: maps.append(found)) if args.heatmap else None,
    )
    bad = table[table["error"] != ""]
    good = table[table["error"] == ""].drop(columns="error")
    if args.output:
        write_table(args.output, good)
    else:
        stages = [c for c in good if c.startswith("w")]
        for row in good.to_dict("records"):
            shares = "".join(f"  {w}={row[w]:.4f}" for w in stages)
            print(f"{row['path']}\t{row['score']:.4f}{shares}")
    for row in bad.itertuples():
        print(f"error: {row.path}: {row.error}", file=sys.stderr)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    failed = write_heatmaps(args.heatmap, maps, model.config["flags"])  # the scores are safe now
    if not args.output:
        check_shown()
    return 1 if len(bad) or failed else 0


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table to a .csv or .json file."""
    if path.suffix == ".csv":
        text = table.to_csv(index=False)
    else:
        text = json.dumps(table.to_dict("records"), indent=1) + "\n"
    write_atomically(path, text)


def test(args: argparse.Namespace) -> int:
    """Test each checkpoint on each data set; print the figures, write the scores to --output."""
    import pandas as pd

    check_folder_for("--store_dir", args.store_dir)
    for name, _, folder in args.test_on:
        check_folder(name, folder)
    rows, tables = [], []
    stems = [Path(checkpoint).stem for checkpoint in args.checkpoint]
    names = stems if len(set(stems)) == len(stems) else args.checkpoint
    for checkpoint, title in zip(args.checkpoint, names):
        model = load_model(checkpoint, args.device, published=args.model)
        for name, _, folder in args.test_on:
            found = cross_dataset.test_on(
                model,
                name,
                folder,
                split=args.test_split,
                store_dir=args.store_dir,
                test_crop=args.test_crop,
                test_patch_num=args.test_patch_num,
                amp=args.amp,
                own_csv=csv_options(args),
                skip_trained=args.skip_trained,
            )
            rows.append(cross_dataset.describe_test(title, model.config["flags"]["dataset"], found))
            found.insert(0, "checkpoint", str(checkpoint))
            tables.append(found)
    if args.output:
        write_table(args.output, pd.concat(tables, ignore_index=True))
    cross_dataset.print_tests(rows)
    if not args.output:
        check_shown()
    return 0


@command
def main() -> int:
    args = parse_args()
    if args.output:
        check_file_for("--output", args.output)
    try:
        return test(args) if args.test_on else score(args)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return fail(f"out of memory ({first_line(error)}): give --device cpu")


if __name__ == "__main__":
    sys.exit(main())
