"""Test a trained model on a data set: the one it was trained on, or another.

python3 predict_resnet_improved.py --checkpoint FILE --test_on biq2021=DIR
"""

import argparse
import sys
from typing import TYPE_CHECKING

import metrics
import resampling
from data_loader import open_data
from datasets.label_files import first_few
from datasets.labels import DATASETS, count_splits, label_fingerprint, load_labels
from datasets.readers import CsvOptions
from errors import DataError, RunError
from evaluation import (
    check_takes,
    choose_crops,
    described_crops,
    evaluate,
    evaluated_crops,
    evaluated_size,
    evaluation_batch,
    evaluation_plan,
    precision_of,
    predictions_frame,
)
from experiment import CROSS_ANCHORS, backbone_of, configuration_name
from progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


def test_on(
    model: "nn.Module",
    dataset: str,
    data_path: str,
    *,
    split: str = "test",
    store_dir: str = "pixel_store",
    test_crop: str | None = None,
    test_patch_num: int | None = None,
    test_flip: bool | None = None,
    amp: str = "auto",
    own_csv: CsvOptions | None = None,
    skip_trained: bool = False,
) -> "pd.DataFrame":
    """Scores of a data set's images: a table of dataset, image, split, mos, score (and w1..w4).

    Two more columns say how each was made: labels (the files, and the split) and crops. split:
    'test', or 'all' images. On the data set of its training a model is tested with the
    split, resize and crops of its training, so that the figures are the same. On another data set
    the default split and the resize of the literature are used. own_csv: the table of data set
    'csv'; not needed if it is the one of the training. skip_trained: leave out images that the
    model was trained or validated on, which are known by their content. Raises RunError if such
    images are, or may be, among the images to test, and DataError for everything that is wrong with
    the files.
    """
    device, options = next(model.parameters()).device, argparse.Namespace(**model.config["flags"])
    options.data_path, options.resize = data_path, tuple(options.resize)
    given = own_csv or CsvOptions()
    if dataset != "csv":
        given = CsvOptions(image_dir=given.image_dir)
    is_known = model.trained_on is not None
    table, source = labels_to_test(model.config, options, dataset, given, split, is_known=is_known)
    choose_crops(options, test_crop, test_patch_num, test_flip)
    if options.test_crop == "full":
        check_takes(model, evaluated_size(options))
    elif options.patch_size > min(options.resize):
        raise RunError(
            f"--test_on {dataset}: its images are resized to {options.resize[0]} x "
            f"{options.resize[1]}, smaller than the checkpoint's crops ({options.patch_size})"
        )
    options.store_dir, options.store_device, options.workers = store_dir, "cpu", 0
    # With the validation images the batches, and so the scores, are exactly those of training.
    table = table[table["split"].isin(("val", "test"))].reset_index(drop=True)
    opened = open_data(options, device, (table, source))
    if is_known:
        test = f"--test_on {dataset}={data_path}"
        table = without_trained(opened.table, model.trained_on, test, skip_trained=skip_trained)
        opened = opened._replace(table=table)
    elif skip_trained:
        print(
            f"note: --test_on {dataset}: --skip_trained leaves out nothing, as the checkpoint does "
            "not say which images it was trained on",
            file=sys.stderr,
        )

    plan = evaluation_plan(options, opened.table)
    size, per_image = evaluated_size(options), evaluated_crops(options)
    batch_size = evaluation_batch(device, size)
    progress = Progress(f"testing on {dataset}", len(plan), "crops", batch_size)
    scores, weights = evaluate(
        model,
        progress(opened.loader(plan, batch_size, size=size)),
        per_image,
        device=device,
        precision=precision_of(model, amp),
    )
    evaluated = opened.table.loc[plan[::per_image, 0]].reset_index(drop=True)
    found = predictions_frame(evaluated, scores, weights)
    found.insert(0, "dataset", dataset)
    found = found.assign(labels=source, crops=described_crops(vars(options)))
    return found[found["split"] == "test"].reset_index(drop=True)


def without_trained(
    table: "pd.DataFrame", trained_on: set[str], test: str, *, skip_trained: bool
) -> "pd.DataFrame":
    """The table without the test images whose content is in `trained_on`.

    Raises RunError if there are any, unless they are to be skipped, and if they are all. test: the
    flag, for messages.
    """
    is_test = table["split"] == "test"
    seen = is_test & table["content"].isin(trained_on)
    if not seen.any():
        return table
    found = (
        f"{seen.sum():,} of its {is_test.sum():,} test images, which the checkpoint was trained or "
        f"validated on ({first_few(table['image'][seen])})"
    )
    if not skip_trained:
        raise RunError(f"{test}: there are {found}; give --skip_trained to leave them out")
    if seen.sum() == is_test.sum():
        raise RunError(f"{test}: nothing is left to test without {found}")
    print(f"note: {test}: left out {found}", file=sys.stderr)
    return table[~seen].reset_index(drop=True)


def labels_to_test(
    config: dict,
    options: argparse.Namespace,
    dataset: str,
    given: CsvOptions,
    split: str,
    *,
    is_known: bool,
) -> tuple["pd.DataFrame", str]:
    """The label table to test on, and its source; split 'all' makes all images test images.

    options: the flags of the training, with the data_path of the test; for another data set they
    are changed to its defaults. given: the table of data set csv, empty for that of the training.
    is_known: the checkpoint says which images it was trained on; without that, a data set of its
    training is only tested with the labels and the split of its training.
    """
    is_same_set = dataset == options.dataset
    if is_same_set and config.get("split_unknown"):
        raise RunError(
            f"--test_on {dataset}: the published checkpoint was trained on a random 80% of it, and "
            "it is not known which: most test images are among them; test on another data set"
        )
    if dataset == "csv" and not (given.csv or is_same_set):
        raise RunError(
            f"--test_on csv={options.data_path}: name the table in that folder with --csv FILE"
        )

    changed = given._asdict() if given.csv or not is_same_set else {}
    if given.image_dir is not None:
        changed["image_dir"] = given.image_dir
    if is_same_set:  # a given table may be that of the training, however its flags are written
        own = argparse.Namespace(**vars(options) | changed)
        try:
            table, source = load_labels(own)
            known = has_labels_of_training(config, table)
        except DataError:  # the split of the training may not fit another table
            if not (given.csv or is_known):
                raise
            known = False
        if known:
            if split == "all" and is_known:
                return table.assign(split="test"), source
            if split == "all":
                raise RunError(
                    f"--test_on {dataset}: the checkpoint was trained on it, and --test_split all "
                    "takes its training images as well; give --test_split test"
                )
            return table, source
        if not (given.csv or is_known):
            raise RunError(
                f"--test_on {dataset}={options.data_path}: its labels or their split are not those "
                f"that the checkpoint was trained with ({config['label_source']}), so that "
                "training images may be among the images to test: give the same label and split "
                "files"
            )

    if is_same_set and not is_known:
        print(
            f"note: the checkpoint was also trained on --dataset {dataset} "
            f"({config['label_source']}): make sure that none of its training images are tested "
            "here",
            file=sys.stderr,
        )
    options.dataset, options.resize = dataset, DATASETS[dataset].resize
    options.split, options.split_seed, options.val_fraction = "auto", 0, None
    vars(options).update(changed)
    table, source = load_labels(options)
    return (table.assign(split="test") if split == "all" else table), source


def has_labels_of_training(config: dict, table: "pd.DataFrame") -> bool:
    """Whether a label table is the one of a checkpoint's training: images, scores and splits."""
    if config.get("label_fingerprint") is None:  # not recorded in early checkpoints
        return count_splits(table) == config["images"]
    return label_fingerprint(table) == config["label_fingerprint"]


def origin(config: dict) -> dict:
    """What a checkpoint is, as columns of --output: trained_on, model, backbone, seed.

    The report finds a test's row by them. A published checkpoint has no seed.
    """
    flags = config["flags"]
    return {
        "trained_on": flags["dataset"],
        "model": configuration_name(flags),
        "backbone": backbone_of(flags),
        "seed": None if config.get("split_unknown") else flags.get("seed"),
    }


def describe_test(name: str, trained_on: str, found: "pd.DataFrame") -> dict:
    """The figures of one test, as a row for print_tests; `found` is the table of test_on."""
    scores, mos = found["score"].to_numpy(), found["mos"].to_numpy()
    values = metrics.agreement(scores, mos)
    fit = metrics.fitted_agreement(scores, mos)
    around = resampling.interval(resampling.srcc_by_counts(scores, mos), len(mos))
    return {
        "checkpoint": name,
        "trained_on": trained_on,
        "tested_on": found["dataset"].iloc[0],
        "labels": found["labels"].iloc[0],
        "crops": found["crops"].iloc[0],
        "images": len(found),
        "srcc": values["srcc"],
        "srcc_low": around.low,
        "srcc_high": around.high,
        "plcc": values["plcc"],
        "plcc_fitted": fit.plcc,
        "krcc": values["krcc"],
    }


def print_tests(rows: list[dict]) -> None:
    """One line per test, then the SRCC by training data set (rows) and test data set (columns)."""
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
    print()
    ways: dict[tuple[str, ...], list[str]] = {}
    for r in rows:
        ways.setdefault((r["tested_on"], r["labels"], r["crops"]), []).append(r["checkpoint"])
    for (name, labels, crops), tested in ways.items():
        of = "" if len(ways) == len(sets) else f" ({', '.join(tested)})"
        print(f"{name}{of}\n  labels: {labels}\n  crops: {crops}")
