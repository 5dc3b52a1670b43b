"""How good is this image: scores for files and folders, and tests on any data set.

    python3 predict_resnet_improved.py --checkpoint checkpoints/resnet_improved_ms_att_last.pth DIR
    python3 predict_resnet_improved.py --checkpoint FILE photo.jpg more/ --output scores.csv
    python3 predict_resnet_improved.py --checkpoint A.pth --checkpoint B.pth --test_on biq2021=DIR

The first two print a line an image: path, score (0..100, higher is better) and, with attention, the
stage weights w1..w4. The third tests checkpoints on data sets, without training: SRCC with its 95%
interval, PLCC, KRCC. About 45 crops/s on two CPU cores, thousands on a GPU. From Python:

    from predict_resnet_improved import load_model, score_images
    model = load_model("checkpoints/resnet_improved_ms_att_last.pth")
    table = score_images(model, ["one.jpg", "two.jpg"])  # a pandas table: path, score, w1..w4
"""

import argparse
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import data_loader as data
import metrics
import train_resnet_improved as train
from data_loader import DataError
from train_resnet_improved import RunError

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".mpo"}
# Published SRCC of HyperIQA (ResNet-50) trained on KonIQ-10k, as SMART-IQA's authors report it.
CROSS_ANCHORS = {"spaq": 0.788, "kadid-10k": 0.468, "agiqa-3k": 0.640}


def load_model(
    checkpoint: str | Path, device: str = "auto", *, published: str | None = None
) -> "nn.Module":
    """The network of a checkpoint, in eval mode on the device; `model.config` is its configuration.

    published: 'hyperiqa' for the file that HyperIQA's authors publish (koniq_pretrained.pkl), with
    their preprocessing. Loads with `weights_only`. Raises RunError for a file that is neither.
    """
    if published:
        from models_hyperiqa import WeightsError, load_hyperiqa

        try:
            model = load_hyperiqa(checkpoint)
        except WeightsError as error:
            raise RunError(str(error)) from error
        flags = vars(train.parse_args(["--preset", "hyperiqa_paper"]))
        device = train.choose_device(device)
        model.config = {
            "model": published,
            "flags": flags,
            "device": device.type,
            "precision": "off",  # as its authors trained
            "split_unknown": True,
        }
        return model.to(device)
    state = train.load_checkpoint(Path(checkpoint))
    flags = state["config"]["flags"] | {"backbone_weights": "none"}
    model = train.build_model(argparse.Namespace(**flags), initial_score=50.0)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise RunError(
            f"{checkpoint}: its weights are not those of {state['config']['model']}"
        ) from error
    import torch

    model.config = state["config"]
    return model.eval().to(train.choose_device(device), memory_format=torch.channels_last)


def crops_of_each(test_crop: str, given: int | None, trained: int) -> int:
    """Crops of each image: what is given, else what the model was trained with, as far as it fits.

    A centre crop is one; a grid takes the largest square that is no more than those of training.
    Raises RunError where no grid has as many as are given.
    """
    if test_crop == "center":
        return 1
    if test_crop == "grid":
        patches = given or math.isqrt(trained) ** 2
        if math.isqrt(patches) ** 2 != patches:
            raise RunError(f"--test_patch_num {patches}: --test_crop grid takes a square number")
        return patches
    return given or trained


def precision_of(model: "nn.Module", amp: str) -> str:
    """What `--amp` names; 'auto': the precision of its training, on a device of that kind."""
    device, config = next(model.parameters()).device, model.config
    if amp == "auto" and config.get("device") == device.type:
        return config.get("precision") or train.choose_precision(amp, device)
    return train.choose_precision(amp, device)


def score_images(
    model: "nn.Module",
    paths: list[str | Path],
    *,
    test_crop: str = "grid",
    test_patch_num: int | None = None,
    batch_size: int | None = None,
    amp: str = "auto",
    show: bool = False,
    each=None,
) -> "pd.DataFrame":
    """A table with a row a path: path, score, w1..w4 where there is attention, and error.

    Images are decoded, resized, cropped and normalised as the model's checkpoint says. The crops
    are the same for every image, so that its score depends on nothing but the image: 'grid',
    'center', or 'random' (drawn once). An unreadable file has no score (NaN), and its error says
    why. `show`: a progress bar; `each(path, scores (P,), plan (P, 4))` is called for every image
    that was scored, with its crops.
    """
    import pandas as pd

    flags = model.config["flags"]
    device = next(model.parameters()).device
    patches = crops_of_each(test_crop, test_patch_num, flags["test_patch_num"])
    plan = data.test_plan(
        np.zeros(1, int),
        crop=test_crop,
        patches=patches,
        resize=flags["resize"],
        patch_size=flags["patch_size"],
    )
    errors: dict[int, str] = {}
    batch_size = batch_size or train.evaluation_batch(device, flags["patch_size"])
    progress = data.Progress("scoring", len(paths) * patches, "crops", batch_size)
    scores, weights = train.score_crops(
        model,
        crop_batches(paths, plan, flags["resize"], flags["patch_size"], batch_size, errors),
        device=device,
        precision=precision_of(model, amp),
        watch=progress if show else iter,
    )
    rows = [i for i in range(len(paths)) if i not in errors]
    scores = scores.cpu().double().view(len(rows), patches)
    table = pd.DataFrame({"path": [str(p) for p in paths], "score": math.nan})
    table.loc[rows, "score"] = scores.mean(1).numpy().round(6)
    if weights is not None:
        weights = weights.cpu().double().view(len(rows), patches, -1).mean(1).numpy().round(6)
        for stage in range(weights.shape[1]):
            table.loc[rows, f"w{stage + 1}"] = weights[:, stage]
    table["error"] = [errors.get(i, "") for i in range(len(paths))]
    if each is not None:
        for row, crops in zip(rows, scores.numpy()):
            each(paths[row], crops, plan)
    return table


def crop_batches(
    paths: list, plan: np.ndarray, resize, size: int, batch_size: int, errors: dict[int, str]
) -> Iterator[dict[str, "torch.Tensor"]]:
    """Batches of the plan's crops of all images in their order; unreadable ones go to `errors`.

    Images are decoded on all cores, a few ahead of the network.
    """
    import torch

    def decoded(path) -> np.ndarray | str:
        try:
            return data.decode(Path(path), *resize)
        except Exception as error:  # Pillow raises many kinds
            return str(error).splitlines()[0] if str(error) else type(error).__name__

    def as_batch(crops: list[np.ndarray]) -> dict[str, "torch.Tensor"]:
        patches = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return {"patches": patches, "flips": torch.zeros(len(crops), dtype=torch.bool)}

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


def find_files(given: list[Path]) -> list[Path]:
    """The files among the arguments, and the images in its folders, recursively and in order."""
    files = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise RunError(f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise RunError(f"{path}: no such file or folder")
    return files


def write_heatmap(folder: Path, path: Path, scores: np.ndarray, plan: np.ndarray, flags: dict):
    """FOLDER/NAME.png: the image, and beside it the mean score of the crops that cover each place.

    NAME is the image's path with _ for /, so that no two images share one.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    (height, width), size = flags["resize"], flags["patch_size"]
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for score, (_, top, left, _) in zip(scores, plan):
        total[top : top + size, left : left + size] += score
        count[top : top + size, left : left + size] += 1
    with np.errstate(invalid="ignore"):
        means = total / count  # NaN where no crop is
    image = data.decode(path, height, width)
    with Image.open(path) as original:
        wide, high = original.size
    shape = {"extent": (0, wide, high, 0)}
    figure, panels = plt.subplots(
        1, 2, figsize=(8, 4 * min(2.0, high / wide) + 0.5), layout="constrained"
    )
    panels[0].imshow(image, **shape)
    panels[0].set_title(f"{path.name}: {scores.mean():.1f}", fontsize=9)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    panels[1].imshow(grey, cmap="gray", vmin=0, vmax=255, **shape)
    drawn = panels[1].imshow(means, cmap="viridis", alpha=0.6, **shape)
    figure.colorbar(drawn, ax=panels[1], label="score of the crops that cover a place", shrink=0.8)
    for axes in panels:
        axes.set_axis_off()
    name = str(path.resolve().relative_to(path.resolve().anchor)).replace(os.sep, "_")
    with data.replacing(folder / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


# Tests on data sets -----------------------------------------------------------------------------


def test_on(
    model: "nn.Module",
    dataset: str,
    data_path: str,
    *,
    split: str = "test",
    store_dir: str = "pixel_store",
    test_crop: str | None = None,
    test_patch_num: int | None = None,
    amp: str = "auto",
) -> "pd.DataFrame":
    """Scores of a data set's images: a table of dataset, image, split, mos, score (and w1..w4).

    split: 'test', or 'all' images. On the data set that the model was trained on, split, resize and
    crops are those of its training, so that its figures come out again. Another one is read as it
    is by default, with the resize that the literature uses for it. RunError where images of its
    training are among those to test, or may be.
    """
    config, device = model.config, next(model.parameters()).device
    options = argparse.Namespace(**config["flags"])
    trained_on_it = dataset == options.dataset
    if trained_on_it and config.get("split_unknown"):
        raise RunError(
            f"--test_on {dataset}: the published checkpoint was trained on a random 80% of it, and "
            "it isn't known which: most of any test images are among them; test on another data set"
        )
    if trained_on_it and split == "all":
        raise RunError(
            f"--test_on {dataset}: the checkpoint was trained on it, and --test_split all takes "
            "its training images as well; give --test_split test"
        )
    if not trained_on_it:
        plain = train.parse_args(["--dataset", dataset])
        for name in ("dataset", "resize", "split", "split_seed", "val_fraction"):
            setattr(options, name, getattr(plain, name))
    options.data_path, options.resize = data_path, tuple(options.resize)
    options.test_crop = test_crop or options.test_crop
    options.test_patch_num = crops_of_each(
        options.test_crop, test_patch_num, options.test_patch_num
    )
    table, _ = train.load_data(options)
    if trained_on_it:
        check_same_split(config, table, data_path)
    if split == "all":
        table["split"] = "test"
    table = table[table["split"].isin(("val", "test"))].reset_index(drop=True)
    store, table = data.open_store(
        table, data_path, resize=options.resize, store_dir=store_dir, name=dataset
    )
    plan = train.judged_plan(options, table)
    batch_size = train.evaluation_batch(device, options.patch_size)
    batches = data.Batches(
        store,
        table["row"].to_numpy(),
        plan,
        patch_size=options.patch_size,
        batch_size=batch_size,
    )
    scores, weights = train.evaluate(
        model,
        data.make_loader(batches, workers=0, pin=device.type == "cuda"),
        options.test_patch_num,
        device=device,
        precision=precision_of(model, amp),
        watch=data.Progress(f"testing on {dataset}", len(plan), "patches", batch_size),
    )
    judged = table.loc[plan[:: options.test_patch_num, 0]].reset_index(drop=True)
    found = train.predictions_frame(0, judged, scores, weights).drop(columns="epoch")
    found.insert(0, "dataset", dataset)
    return found[found["split"] == "test"].reset_index(drop=True)


def check_same_split(config: dict, table: "pd.DataFrame", data_path: str) -> None:
    """RunError where a data set's labels or split are not those of a checkpoint's training."""
    now, then = data.label_fingerprint(table), config.get("label_fingerprint")
    if then is None:  # a checkpoint of before it was recorded
        now, then = data.count_splits(table), config["images"]
    if now != then:
        raise RunError(
            f"--test_on {config['flags']['dataset']}={data_path}: its labels or their split are "
            f"not those that the checkpoint was trained with ({config['labels']}), so that images "
            "of its training may be among those to test: give the same label and split files"
        )


def describe_test(name: str, trained_on: str, found: "pd.DataFrame") -> dict:
    """The figures of one test, as a row."""
    scores, mos = found["score"].to_numpy(), found["mos"].to_numpy()
    values = metrics.agreement(scores, mos)
    fit = metrics.fitted_agreement(scores, mos)
    around = metrics.interval(metrics.srcc_by_counts(scores, mos), len(mos))
    return {
        "checkpoint": name,
        "trained_on": trained_on,
        "tested_on": found["dataset"].iloc[0],
        "images": len(found),
        "srcc": values["srcc"],
        "srcc_low": around.low,
        "srcc_high": around.high,
        "plcc": values["plcc"],
        "plcc_fitted": fit.plcc,
        "krcc": values["krcc"],
    }


def print_tests(rows: list[dict]) -> None:
    """A line a test, then the table of the literature: trained on (rows), tested on (columns)."""
    titles = ("PLCC", "fitted", "KRCC", "images")
    wide = max(len(r["checkpoint"]) for r in rows) + 2
    header = f"{'checkpoint':<{wide}}{'tested on':<12}{'SRCC':>9}{'95%':>16}"
    print(header + "".join(f"{t:>9}" for t in titles))
    for r in rows:
        interval = f"{r['srcc_low']:.3f} to {r['srcc_high']:.3f}"
        print(
            f"{r['checkpoint']:<{wide}}{r['tested_on']:<12}{r['srcc']:>9.4f}{interval:>16}"
            f"{r['plcc']:>9.4f}"
            f"{r['plcc_fitted']:>9.4f}{r['krcc']:>9.4f}{r['images']:>9,}"
        )
    sets = list(dict.fromkeys(r["tested_on"] for r in rows))
    print(f"\nSRCC, trained on (rows), tested on (columns)\n{'':<{wide + 12}}", end="")
    print("".join(f"{name:>12}" for name in sets))
    for name in dict.fromkeys(r["checkpoint"] for r in rows):
        own = {r["tested_on"]: r for r in rows if r["checkpoint"] == name}
        trained_on = next(iter(own.values()))["trained_on"]
        cells = "".join(f"{own[x]['srcc']:>12.4f}" if x in own else f"{'-':>12}" for x in sets)
        print(f"{name:<{wide}}{trained_on:<12}{cells}")
    if set(sets) & set(CROSS_ANCHORS):
        cells = "".join(f"{CROSS_ANCHORS.get(x, '-'):>12}" for x in sets)
        print(f"{'HyperIQA, published':<{wide}}{'koniq-10k':<12}{cells}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=train.HelpFormatter, allow_abbrev=False
    )
    flag = parser.add_argument
    flag(
        "--model",
        choices=["hyperiqa"],
        help="the checkpoint is the one that HyperIQA's authors publish, koniq_pretrained.pkl",
    )
    flag("images", nargs="*", type=Path, metavar="IMAGE_OR_FOLDER", help="what to score")
    flag(
        "--checkpoint",
        action="append",
        required=True,
        metavar="FILE",
        help="of train_resnet_improved.py; for --test_on it may be given several times",
    )
    flag(
        "--test_on",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help=f"test on data sets instead; NAME is one of {', '.join(sorted(data.DATASETS))}",
    )
    flag("--test_split", choices=["test", "all"], default="test", help="of --test_on: which images")
    flag("--output", type=Path, metavar="FILE", help="write the scores there: .csv or .json")
    flag("--heatmap", type=Path, metavar="DIR", help="a picture of each image's crop scores")
    flag(
        "--test_crop",
        choices=["grid", "random", "center"],
        help="default: grid for images; for --test_on that of the checkpoint's training",
    )
    flag(
        "--test_patch_num",
        type=data.number(int, 1, 1000),
        metavar="N",
        help="crops an image (default: the checkpoint's)",
    )
    flag("--store_dir", default="pixel_store", metavar="DIR", help="of --test_on: decoded images")
    flag("--device", choices=["auto", "cuda", "cpu"], default="auto", help="auto: CUDA if there")
    flag("--amp", choices=["auto", "bf16", "fp16", "off"], default="auto", help="precision")
    args = parser.parse_args()
    if bool(args.images) == bool(args.test_on):
        parser.error("give images or folders to score, or --test_on NAME=DIR")
    if args.images and len(args.checkpoint) > 1:
        parser.error("images are scored by one --checkpoint; several are for --test_on")
    if args.output and args.output.suffix not in (".csv", ".json"):
        parser.error(f"--output {args.output}: ends in .csv or .json")
    args.test_on = [entry.partition("=") for entry in args.test_on]
    for name, equals, _ in args.test_on:
        if not equals or name not in data.DATASETS:
            parser.error(
                f"--test_on {name}: takes NAME=DIR, with NAME one of "
                f"{', '.join(sorted(data.DATASETS))}"
            )
    return args


def score(args: argparse.Namespace) -> int:
    """Score images; 1 when one could not be read."""
    files = find_files(args.images)
    model = load_model(args.checkpoint[0], args.device, published=args.model)
    each = None
    if args.heatmap:
        train.make_folder("--heatmap", str(args.heatmap))

        def each(path, scores, plan):
            write_heatmap(args.heatmap, Path(path), scores, plan, model.config["flags"])

    table = score_images(
        model,
        files,
        test_crop=args.test_crop or "grid",
        test_patch_num=args.test_patch_num,
        amp=args.amp,
        show=True,
        each=each,
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
    return 1 if len(bad) else 0


def write_table(path: Path, table: "pd.DataFrame") -> None:
    if path.suffix == ".csv":
        text = table.to_csv(index=False)
    else:
        text = json.dumps(table.to_dict("records"), indent=1) + "\n"
    data.write_atomically(path, text)


def test(args: argparse.Namespace) -> int:
    """Test each checkpoint on each data set."""
    import pandas as pd

    rows, tables = [], []
    stems = [Path(checkpoint).stem for checkpoint in args.checkpoint]
    names = stems if len(set(stems)) == len(stems) else args.checkpoint
    for checkpoint, title in zip(args.checkpoint, names):
        model = load_model(checkpoint, args.device, published=args.model)
        for name, _, folder in args.test_on:
            found = test_on(
                model,
                name,
                folder,
                split=args.test_split,
                store_dir=args.store_dir,
                test_crop=args.test_crop,
                test_patch_num=args.test_patch_num,
                amp=args.amp,
            )
            rows.append(describe_test(title, model.config["flags"]["dataset"], found))
            found.insert(0, "checkpoint", str(checkpoint))
            tables.append(found)
    print_tests(rows)
    if args.output:
        write_table(args.output, pd.concat(tables, ignore_index=True))
    return 0


def main() -> int:
    args = parse_args()
    try:
        return test(args) if args.test_on else score(args)
    except (DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not train.is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        print(f"error: out of memory ({reason}): give --device cpu", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
