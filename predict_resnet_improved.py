"""Scores for image files and folders, and tests of trained models on data sets.

    python3 predict_resnet_improved.py --checkpoint checkpoints/resnet_improved_ms_att_last.pth DIR
    python3 predict_resnet_improved.py --checkpoint FILE photo.jpg more/ --output scores.csv
    python3 predict_resnet_improved.py --checkpoint FILE DIR --sort --html photos.html
    python3 predict_resnet_improved.py --checkpoint A.pth --checkpoint B.pth --test_on biq2021=DIR

The first two print one line per image: path, score (0..100, higher is better) and, if the model has
attention, the stage weights w1..w4. The third begins with the lowest score, and writes a page of
thumbnails. The last tests checkpoints on data sets, without training: SRCC with its 95% interval,
PLCC, KRCC. A score depends on its image alone, not on the batch and not on other files. About 45
crops/s on two CPU cores, thousands on a GPU. In Python:

    from predict_resnet_improved import load_model, score_images
    model = load_model("checkpoints/resnet_improved_ms_att_last.pth")
    table = score_images(model, ["one.jpg", "two.jpg"])  # pandas: path, score, w1..w4, error
    table = score_images(model, image)  # of Pillow, or an array
"""

import argparse
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

import cross_dataset
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
from devices import DEVICES, cores, is_out_of_memory
from errors import RunError, first_line
from evaluation import (
    crops_for_use,
    evaluation_batch,
    load_model,
    mean_of_crops,
    precision_of,
    score_crops,
)
from files import check_file_for, check_folder_for, make_folder, write_atomically
from heatmaps import dense_plan, write_heatmaps
from progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from PIL import Image
    from torch import nn

    Picture = str | Path | Image.Image | np.ndarray


def score_images(
    model: "nn.Module",
    images: "Picture | list[Picture] | np.ndarray",
    *,
    test_crop: str | None = None,
    test_patch_num: int | None = None,
    test_flip: bool | None = None,
    plan: np.ndarray | None = None,
    batch_size: int | None = None,
    amp: str = "auto",
    show: bool = False,
    each: Callable[["Picture", np.ndarray, np.ndarray], None] | None = None,
) -> "pd.DataFrame":
    """A table with a row for each image: path, score, w1..w4 (if the model has attention), error.

    images: a list of files, of Pillow's images or of arrays (uint8, (H, W, 3) RGB or (H, W) grey),
    one of these, or an array of several (N, H, W, 3). The path of one that has none is its number
    in the list, 'image 0'. Images are decoded, resized, cropped and normalised as the
    model's checkpoint says. All images get the same crops, so that a score depends on its image
    alone. test_crop: 'grid', 'center', 'random' (drawn once) or 'full' (the complete resized
    image); None is 'full' for a model that was so evaluated in its training, and 'grid' for others.
    test_patch_num: crops per image, None for those of the training. test_flip: whether their mirror
    images are scored as well, None as in the training. plan: (P, 4) crops as of
    data_loader.test_plan, in the place of these three.
    amp: 'auto', 'bf16', 'fp16' or 'off', see evaluation.precision_of. show: print progress.
    each: called as each(image, scores (P,), plan (P, 4)) for every image that was scored.
    An unreadable file or image has no score (NaN), and its error says why. Raises RunError if
    test_patch_num does not fit test_crop.
    """
    import pandas as pd
    from PIL import Image

    is_array = isinstance(images, np.ndarray) and images.ndim in (2, 3)
    is_one = is_array or isinstance(images, (str, Path, Image.Image))
    paths = [images] if is_one else list(images)
    flags = model.config["flags"]
    device = next(model.parameters()).device
    size = (flags["patch_size"], flags["patch_size"])
    if plan is None:
        plan, size = crops_for_use(model, test_crop, test_patch_num, test_flip)
    per_image = len(plan)
    errors: dict[int, str] = {}
    batch_size = batch_size or evaluation_batch(device, size)
    progress = Progress("scoring", len(paths) * per_image, "crops", batch_size)
    batches = crop_batches(paths, plan, flags["resize"], size, batch_size, errors)
    scores, weights = score_crops(
        model,
        progress(batches) if show else batches,
        device=device,
        precision=precision_of(model, amp),
    )
    rows = [i for i in range(len(paths)) if i not in errors]
    names = [str(p) if isinstance(p, (str, Path)) else f"image {i}" for i, p in enumerate(paths)]
    names = pd.Series(names, dtype=object)  # also those that are not UTF-8
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
    paths: "list[Picture]",
    plan: np.ndarray,
    resize: tuple[int, int],
    size: tuple[int, int],
    batch_size: int,
    errors: dict[int, str],
) -> Iterator[dict[str, "torch.Tensor"]]:
    """Batches of the plan's crops (P, 4) of all images, in order; for data.to_network_input.

    resize: height and width of the images; size: of the crops. Unreadable images are left out, and
    added to `errors` by their position in `paths`. Images are decoded on all cores, a few ahead of
    the network.
    """
    import torch

    in_memory = Lock()  # Pillow reads an opened image only now, and the list may have one twice

    def decoded(image) -> np.ndarray | str:
        try:
            with nullcontext() if isinstance(image, (str, Path)) else in_memory:
                return decode(image, *resize)
        except Exception as error:  # Pillow raises many kinds
            return first_line(error)

    def as_batch(crops: list[np.ndarray], flips: list[bool]) -> dict[str, "torch.Tensor"]:
        stacked = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return {"crops": stacked, "flips": torch.tensor(flips)}

    (high, wide), crops, flips = size, [], []
    with ThreadPoolExecutor(cores()) as pool:
        waiting, upcoming = deque(), iter(paths)
        for i in range(len(paths)):
            for ahead in islice(upcoming, 2 * cores() + 1 - len(waiting)):
                waiting.append(pool.submit(decoded, ahead))
            image = waiting.popleft().result()
            if isinstance(image, str):
                errors[i] = image
                continue
            for _, top, left, flip in plan:
                crops.append(image[top : top + high, left : left + wide])
                flips.append(bool(flip))
                if len(crops) == batch_size:
                    yield as_batch(crops, flips)
                    crops, flips = [], []
    if crops:
        yield as_batch(crops, flips)


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


def add_use_flags(flag: Callable[..., argparse.Action], crops: str) -> None:
    """How a checkpoint is used on images; flag: add_argument; crops: the default of --test_crop."""
    flag(
        "--model",
        choices=["hyperiqa"],
        help="the --checkpoint is koniq_pretrained.pkl, which HyperIQA's authors publish",
    )
    flag(
        "--test_crop",
        choices=["grid", "random", "center", "full"],
        help=f"crops of an image; full: the complete resized image (default: {crops})",
    )
    flag(
        "--test_patch_num",
        type=number(int, 1, 1000),
        metavar="N",
        help="crops per image (default: as in the checkpoint's training)",
    )
    flag(
        "--test_flip",
        action=argparse.BooleanOptionalAction,
        help="score the mirror image of each crop as well (default: as in the training)",
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Scores for image files and folders, and tests of trained models on data sets.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
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
    flag("--sort", action="store_true", help="the image with the lowest score first")
    flag(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page of thumbnails, worst first, with a threshold and names to copy",
    )
    flag(
        "--heatmap",
        type=Path,
        metavar="DIR",
        help="folder for a map of each image: scores of crops that cover it, half a crop apart",
    )
    add_use_flags(
        flag,
        "grid for images to score, full if the training evaluated so; those of the training for "
        "--test_on",
    )
    add_store_dir(flag)
    flag(
        "--device",
        choices=DEVICES,
        default="auto",
        help="auto: CUDA if available; mps: Apple's GPU (untested)",
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
    if args.html and args.html.suffix != ".html":
        parser.error(f"--html {args.html}: ends in .html")
    if args.test_on and (args.sort or args.html or args.heatmap):
        parser.error("--sort, --html and --heatmap are for images to score, not for --test_on")
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
    """Score images and print or write the scores; 1 if an image or a picture had an error."""
    files, notes = find_files(args.images)
    if args.heatmap:
        make_folder("--heatmap", args.heatmap)
    model = load_model(args.checkpoint[0], args.device, published=args.model)
    table = score_images(
        model,
        files,
        test_crop=args.test_crop,
        test_patch_num=args.test_patch_num,
        test_flip=args.test_flip,
        amp=args.amp,
        show=True,
    )
    if args.sort:
        table = table.sort_values("score", kind="stable", ignore_index=True)
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
    failed = 0  # of the pictures; the scores are safe now
    if args.html:
        from reporting.photos import write_photo_page

        failed += write_photo_page(args.html, table, about(args.checkpoint[0], model))
    if args.heatmap:
        failed += map_images(model, good, args.heatmap, amp=args.amp)
    if not args.output:
        check_shown()
    return 1 if len(bad) or failed else 0


def about(checkpoint: str, model: "nn.Module") -> str:
    """A sentence for a page: what has given the scores."""
    flags = model.config["flags"]
    return (
        f"Scored by {Path(checkpoint).name} ({model.config['model']}, {flags['backbone']}), "
        f"trained on {flags['dataset']}."
    )


def map_images(model: "nn.Module", scored: "pd.DataFrame", folder: Path, *, amp: str) -> int:
    """Write the heat map of each image of a table with path and score; the number that failed."""
    flags, maps = model.config["flags"], []
    plan = dense_plan(flags["resize"], flags["patch_size"])
    scores = dict(zip(scored["path"], scored["score"]))
    found = score_images(
        model,
        list(scores),
        plan=plan,
        amp=amp,
        show=True,
        each=lambda path, crop_scores, _: maps.append((path, scores[path], crop_scores)),
    )
    lost = found[found["error"] != ""]
    for row in lost.itertuples():
        print(f"error: {row.path}: its map can't be made ({row.error})", file=sys.stderr)
    return len(lost) + write_heatmaps(folder, maps, plan, flags)


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
                test_flip=args.test_flip,
                amp=args.amp,
                own_csv=csv_options(args),
                skip_trained=args.skip_trained,
            )
            rows.append(cross_dataset.describe_test(title, model.config["flags"]["dataset"], found))
            found = found.assign(**cross_dataset.origin(model.config))
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
    for name, path in (("--output", args.output), ("--html", args.html)):
        if path:
            check_file_for(name, path)
    try:
        return test(args) if args.test_on else score(args)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return fail(f"out of memory ({first_line(error)}): give --device cpu")


if __name__ == "__main__":
    sys.exit(main())
