"""Finished runs in the log folders: do they add up, and can they be compared?"""

import itertools
import json
import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import metrics
from errors import ReportError, first_line
from experiment import (
    CONFIGURATIONS,
    FREE_FLAGS,
    LATER_RECIPE,
    MODELS,
    NEIGHBOURS,
    RESNET50,
    SELECTIONS,
    ablation,
    backbone_of,
)

if TYPE_CHECKING:
    import pandas as pd

# Of the predictions, and their types: names are strings, also 0001, 1e5 and NA.
COLUMNS = {"epoch": int, "split": str, "image": str, "mos": float, "score": float}
COMPARED = {"data": "data_fingerprint", "precision": "precision"}  # of two runs, besides flags
NUMBERS = ("mos", "score", "w1", "w2", "w3", "w4", "vote_mean", "mos_sd", "votes")  # or empty


class FinishedRun(NamedTuple):
    name: str  # with its folder if there are several
    model: str  # its key in CONFIGURATIONS
    seed: int
    config: dict
    epochs: list[dict]
    predictions: "pd.DataFrame"

    @property
    def backbone(self) -> str:
        return backbone_of(self.config["flags"])


class UnusableRun(NamedTuple):
    """A run with a log or a record that is not used."""

    name: str
    log: Path  # its record if it has no log
    reason: str  # a sentence that names the file
    model: str | None = None  # None if neither its record nor its name tells
    seed: int | None = None
    backbone: str = RESNET50

    @property
    def title(self) -> str:
        return CONFIGURATIONS[self.model].title if self.model in CONFIGURATIONS else self.name


class Runs(NamedTuple):
    finished: list[FinishedRun]
    failed: list[UnusableRun]  # without a complete record and predictions
    unknown: list[UnusableRun]  # of a configuration that experiment.py does not have
    wrong: list[str]  # a sentence for everything in the finished runs that does not add up
    folders: list[Path]

    def by_backbone(self) -> dict[str, "Runs"]:
        """The runs of each backbone; unknown ones and what does not add up are with the first."""
        names = dict.fromkeys(run.backbone for run in (*self.finished, *self.failed))
        first = next(iter(names), RESNET50)
        return {
            name: Runs(
                [run for run in self.finished if run.backbone == name],
                [run for run in self.failed if run.backbone == name],
                self.unknown if name == first else [],
                self.wrong if name == first else [],
                self.folders,
            )
            for name in names
        }

    @property
    def problems(self) -> list[str]:
        return [run.reason for run in (*self.failed, *self.unknown)] + self.wrong


def read_runs(folders: list[Path]) -> Runs:
    """All runs in the folders, in the order of CONFIGURATIONS; ReportError for a missing folder."""
    runs = Runs([], [], [], [], folders)
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder}: no such folder")
        prefix = f"{folder.name}/" if len(folders) > 1 else ""
        records = sorted(folder.glob("*.jsonl"))
        found = [read_run(path, prefix + path.stem) for path in records]
        for log in sorted(folder.glob("*.log")):
            # A SLURM log is named after its job, not after its run.
            if log.with_suffix(".jsonl") not in records and not log.stem.startswith("slurm_"):
                reason = f"{log}: failed before training started; there is no record"
                found.append(UnusableRun(prefix + log.stem, log, reason))
        backbones = {run.backbone for run in found}
        networks = [
            CONFIGURATIONS[run.model].flags["model"]
            for run in found
            if run.model in CONFIGURATIONS
            and CONFIGURATIONS[run.model].run == split_name(run.name, backbones)[0]
        ]
        for run in found:
            if isinstance(run, FinishedRun):
                runs.finished.append(run)
                runs.wrong.extend(f"{run.name}_predictions.csv: {p}" for p in check_run(run))
            elif run.model is None:
                runs.failed.append(with_configuration(run, networks, backbones))
            else:
                (runs.failed if run.model in CONFIGURATIONS else runs.unknown).append(run)
    order = list(CONFIGURATIONS)
    backbones = [*dict.fromkeys(run.backbone for run in runs.finished)]
    runs.finished.sort(
        key=lambda run: (backbones.index(run.backbone), order.index(run.model), run.seed)
    )
    return runs


def read_run(path: Path, name: str) -> FinishedRun | UnusableRun:
    """A run by its record `path` and the predictions beside it."""
    import pandas as pd

    log, csv = path.with_suffix(".log"), path.with_name(f"{path.stem}_predictions.csv")
    unusable = UnusableRun(name, log if log.exists() else path, "")
    try:
        config, *epochs = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        model, seed, wanted = config["model"], config["flags"]["seed"], config["flags"]["epochs"]
        config.setdefault("label_source", config.get("labels"))  # its name in older records
    except (OSError, ValueError, KeyError, TypeError) as error:
        return unusable._replace(reason=unreadable(path, error))
    backbone = backbone_of(config["flags"])
    unusable = unusable._replace(model=model, seed=seed, backbone=backbone)
    if model not in CONFIGURATIONS:
        return unusable._replace(
            reason=f"{path}: its configuration {model} is not a row of CONFIGURATIONS in "
            "experiment.py; left out (add the row and make the report again)"
        )
    if len(epochs) < wanted:
        reason = f"{path}: ended after {len(epochs)} of {wanted} epochs; left out"
        return unusable._replace(reason=reason)
    try:
        predictions = pd.read_csv(
            csv, dtype=COLUMNS, keep_default_na=False, na_values=dict.fromkeys(NUMBERS, "")
        )
    except (OSError, ValueError) as error:
        return unusable._replace(reason=unreadable(csv, error))
    missing = set(COLUMNS) - set(predictions.columns)
    if missing:
        reason = f"{csv}: has no column {', '.join(sorted(missing))}; left out"
        return unusable._replace(reason=reason)
    return FinishedRun(name, model, seed, config, epochs, predictions)


def unreadable(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read ({type(error).__name__}: {first_line(error)}); left out"


def saved_arguments(folders: list[Path]) -> list[str] | None:
    """Working folder and arguments of the run_resnet_ablation.sh that made one of the folders."""
    saved = next((f / "arguments" for f in folders if (f / "arguments").is_file()), None)
    if saved is None:
        return None
    return saved.read_text(encoding="utf-8", errors="surrogateescape").split("\0")[:-1]


def continued(folders: list[Path], *flags: str) -> str:
    """The command that continues an ablation, or makes it larger; empty without its arguments."""
    folder = next((f for f in folders if (f / "arguments").is_file()), None)
    if folder is None:
        return ""
    return shlex.join(["bash", "run_resnet_ablation.sh", "--resume", str(folder), *flags])


def further_seeds(folders: list[Path], seeds: list[int], count: int = 2) -> str:
    """The command that trains the same configurations with further seeds; empty as `continued`."""
    more = [max(seeds) + i for i in range(1, count + 1)]
    return continued(folders, "--seeds", ",".join(map(str, [*seeds, *more])))


def split_name(name: str, backbones: Iterable[str] = ()) -> tuple[str, str, int | None]:
    """The parts of the name of a run in an ablation, with its folder or without.

    ('exp2_multiscale', 'resnet18', 3) for folder/exp2_multiscale_resnet18_seed3, if resnet18 is one
    of the backbones.
    """
    found = re.fullmatch(r"(.*?)(?:_seed(\d+))?", Path(name).name)
    seed = int(found[2]) if found[2] else None
    for backbone in sorted(backbones, key=len, reverse=True):
        if found[1].endswith(f"_{backbone}"):
            return found[1].removesuffix(f"_{backbone}"), backbone, seed
    return found[1], RESNET50, seed


def with_configuration(
    run: UnusableRun, networks: list[str], backbones: Iterable[str]
) -> UnusableRun:
    """The run with its configuration, backbone and seed, as far as its name tells them.

    networks: `--model` of other runs in the folder, because each has a run exp2_multiscale.
    backbones: those of other runs in the folder.
    """
    stem, backbone, seed = split_name(run.name, backbones)
    for network in (*networks, MODELS[0]):
        for neighbours in (None, *NEIGHBOURS):
            row = ablation(network, neighbours, controls=True).get(stem)
            if row is not None:
                model = next(name for name, other in CONFIGURATIONS.items() if other is row)
                return run._replace(model=model, seed=seed, backbone=backbone)
    return run


def check_run(run: FinishedRun) -> list[str]:
    """Differences between the record's figures and those recomputed from the predictions."""
    problems = []
    for record in run.epochs:
        use = stage_use(run, record["epoch"]) if "effective_stages" in record else None
        for name in ("stage_spread", "effective_stages") if use else ():
            if not np.isclose(use[name], record[name], atol=1e-4):
                problems.append(
                    f"epoch {record['epoch']}: {name} is {use[name]:.4f} by the predictions and "
                    f"{record[name]:.4f} by the record"
                )
    if run.config["images"]["val"] and not any(usable(e, "val") for e in run.epochs):
        problems.append("no epoch has a validation SRCC to choose by; the last epoch is used")
    for record in run.epochs:
        epoch = record["epoch"]
        rows = run.predictions[run.predictions["epoch"] == epoch]
        for split in ("val", "test"):
            part, count = rows[rows["split"] == split], run.config["images"][split]
            if len(part) != count:
                problems.append(f"epoch {epoch} has {len(part)} {split} images instead of {count}")
                continue
            if not len(part):
                continue
            values = metrics.agreement(part["score"].to_numpy(), part["mos"].to_numpy())
            for name in ("srcc", "plcc"):
                recorded = record.get(f"{split}_{name}")
                recorded = math.nan if recorded is None else recorded
                if not np.isclose(values[name], recorded, atol=1e-6, equal_nan=True):
                    problems.append(
                        f"epoch {epoch}: {split} {name.upper()} is {values[name]:.6f} by the "
                        f"predictions and {recorded:.6f} by the record"
                    )
    return problems


def differences(config: dict, other: dict, ignored: set[str]) -> list[str]:
    """'--lr 0.1 and 0.2' for each flag, for the data and the precision in which two runs differ.

    config, other: of their records. Runs with --init must have started from checkpoints that do not
    differ in these either, and so must those.
    """
    starts = config.get("init"), other.get("init")
    every = ignored.union(FREE_FLAGS, {"seed"})
    rows = (CONFIGURATIONS.get(c["model"]) for c in (config, other))
    every = every.union(*(row.flags for row in rows if row))
    old, new = (
        {
            f"--{k}": Path(v).name if k == "backbone_weights" else v
            for k, v in (LATER_RECIPE | c["flags"]).items()
            if k not in every
        }
        | {k: c[name] for k, name in COMPARED.items() if name in c}
        | {"--init": f"a checkpoint of {start['epochs']} epochs" if start else "none"}
        for c, start in zip((config, other), starts)
    )
    if new.get("--split") == "random" and config["flags"]["seed"] != other["flags"]["seed"]:
        if new["--split_seed"] != old["--split_seed"]:
            new.pop("data", None)
        del new["--split_seed"]
    found = [f"{k} {old[k]} and {new[k]}" for k in old if k in new and old[k] != new[k]]
    if all(starts):
        of_starts = differences(*(start["config"] for start in starts), ignored)
        found += [f"in the training of --init: {difference}" for difference in of_starts]
    return found


def check_comparable(runs: list[FinishedRun]) -> None:
    """Raise ReportError if runs differ in more than the configuration, the seed and a random split.

    Runs with the same backbone must have started from the same weights. A file of weights is
    compared by its name, which is the same on another machine.
    """

    def network(run: FinishedRun) -> str:
        return CONFIGURATIONS[run.model].flags["model"]

    def backbone(run: FinishedRun) -> str:
        return network(run) if network(run) in NEIGHBOURS else run.backbone

    # Each network has its own dropout rate and its own attention.
    own = {"dropout_rate", "attention", "backbone"}
    for run in runs[1:]:
        same = [r for r in runs if backbone(r) == backbone(run)]
        same_network = next(r for r in same if network(r) == network(run))
        for other, ignored in (
            (runs[0], own | {"backbone_weights"}),
            (same[0], own),
            (same_network, set()),
        ):
            if differing := differences(other.config, run.config, ignored):
                raise ReportError(
                    f"{other.name} and {run.name} can't be compared: {'; '.join(differing)}"
                )
    same_run = itertools.groupby(runs, key=lambda r: (r.backbone, r.model, r.seed))
    for (backbone_name, model, seed), group in same_run:
        names = [run.name for run in group]
        if len(names) > 1:
            on = "" if backbone_name == RESNET50 else f" on {backbone_name}"
            raise ReportError(
                f"{model}{on} with seed {seed} was found {len(names)} times: {', '.join(names)}; "
                "leave one of them"
            )


def chosen_epoch(run: FinishedRun, selection: str) -> int | None:
    """The epoch of a selection; None if the run has no images to select by.

    The last epoch if the SRCC of all epochs is undefined.
    """
    split = SELECTIONS[selection]
    if split and not run.config["images"][split]:
        return None
    ranked = [e for e in run.epochs if split and usable(e, split)]
    best = max(ranked, key=lambda e: e[f"{split}_srcc"]) if ranked else run.epochs[-1]
    return best["epoch"]


def usable(record: dict, split: str) -> bool:
    """Whether the SRCC of an epoch on a split is defined."""
    return record.get(f"{split}_srcc") is not None


def test_rows(run: FinishedRun, selection: str) -> "pd.DataFrame | None":
    """Predictions of the test images, sorted by image, in the epoch of a selection."""
    epoch = chosen_epoch(run, selection)
    if epoch is None:
        return None
    rows = run.predictions[
        (run.predictions["epoch"] == epoch) & (run.predictions["split"] == "test")
    ]
    return rows.sort_values("image", ignore_index=True)


def run_srcc(run: FinishedRun, selection: str) -> float:
    """Test SRCC in the epoch of a selection; NaN if there is no such epoch."""
    rows = test_rows(run, selection)
    if rows is None:
        return math.nan
    return metrics.srcc(rows["score"].to_numpy(), rows["mos"].to_numpy())


def stage_use(run: FinishedRun, epoch: int) -> dict[str, float | list[float]] | None:
    """How the stage weights of an epoch's images are distributed; None without attention."""
    if "w1" not in run.predictions.columns:
        return None
    rows = run.predictions[run.predictions["epoch"] == epoch]
    return metrics.describe_stage_weights(rows[["w1", "w2", "w3", "w4"]].to_numpy())


def count_splits(runs: list[FinishedRun], rows: dict[tuple[str, int], "pd.DataFrame"]) -> int:
    """1 if all runs have the same test images, or the number of seeds if each has its own split.

    rows: the test images of each run, by configuration and seed. Raises ReportError for anything
    in between.
    """
    of_seed = {}
    for run in runs:
        images = list(rows[run.model, run.seed]["image"])
        if of_seed.setdefault(run.seed, images) != images:
            raise ReportError("runs with the same seed were tested on different images")
    splits = len({tuple(images) for images in of_seed.values()})
    if splits not in (1, len(of_seed)) or len({len(images) for images in of_seed.values()}) > 1:
        raise ReportError(
            "the runs were tested on different images, but the seeds do not each have a separate "
            "random split of the same size"
        )
    return splits
