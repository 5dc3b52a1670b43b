"""The table for the console and the table for a paper; both lead with the verdict's selection."""

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

from experiment import (
    BASELINE,
    CONFIGURATIONS,
    FREE_FLAGS,
    FULL,
    HYPERIQA,
    MULTISCALE,
    NEIGHBOURS,
    SELECTIONS,
    SMART_IQA,
    STATIC,
    WIDE,
)
from reporting.formats import (
    collapses,
    data_set,
    decimal,
    is_published,
    of_seeds,
    on_backbone,
    with_spread,
)
from reporting.runs import FinishedRun, Runs, chosen_epoch, usable
from reporting.statistics import Statistics
from resampling import Interval

WIDTH = 100  # of the lines around the table, characters


@dataclass
class Row:
    title: str
    cells: list[str]
    failed: str = ""  # the logs of failed runs, which take the place of the cells


@dataclass
class ResultTable:
    """table.txt: one row per configuration."""

    head: list[str]
    header: list[Row]  # two lines
    rows: list[Row]
    notes: list[str]

    @property
    def title_width(self) -> int:
        return max(len(row.title) for row in (*self.header, *self.rows))

    @property
    def widths(self) -> list[int]:
        """Characters of each column of figures, with a gap of two before it."""
        filled = [row.cells for row in (*self.header, *self.rows) if row.cells]
        return [2 + max(map(len, column)) for column in zip(*filled)]


def result_table(s: Statistics | None, runs: Runs) -> ResultTable:
    """The table of finished and failed runs; s is None if no run has finished."""
    failed = failed_logs(runs)
    models = [m for m in CONFIGURATIONS if m in failed or (s and m in s.models)]
    titles = {m: CONFIGURATIONS[m].title for m in models}
    titles |= {name: name for name in failed if name not in CONFIGURATIONS}
    logs = {name: ", ".join(map(str, paths)) for name, paths in failed.items()}
    if s is None:
        rows = [Row(title, [], logs[name]) for name, title in titles.items()]
        return ResultTable([f"{ablation_title(models)}, no finished run"], [], rows, [])

    baseline = models[0] if is_baseline(models[0]) and models[0] not in failed else None
    others = [selection for selection in SELECTIONS if selection != s.selection]
    header = [
        Row("", [s.selection, s.selection, "to the", "relative", *others]),
        Row("configuration", ["SRCC", "PLCC", "baseline", "in %", *["SRCC"] * len(others)]),
    ]
    reasons: list[str] = []
    rows = []
    for name, title in titles.items():
        if name in failed:
            rows.append(Row(title, [], logs[name]))
            continue
        cells = [srcc_cell(s, name, s.selection, reasons), plcc_cell(s, name)]
        cells += change_cells(s, name, baseline, reasons)
        cells += [srcc_cell(s, name, selection, reasons) for selection in others]
        rows.append(Row(title + of_seeds(s, len(s.of_model[name])), cells))
    rows += [published_row(s, name, baseline, len(others)) for name in s.published]
    if baseline is None:
        reasons.append("No differences: there is no finished baseline.")
    notes = [*dict.fromkeys(reasons), *table_notes(s, runs)]
    return ResultTable(table_head(s, models), header, rows, [wrapped(note) for note in notes])


def failed_logs(runs: Runs) -> dict[str, list[Path]]:
    """The logs of failed runs, by configuration, or by the run's name if that is unknown.

    A run that failed is left out if another folder has the finished run.
    """
    finished = {(run.model, run.seed) for run in runs.finished}
    finished |= {(run.model, None) for run in runs.finished}
    logs = {}
    for run in runs.failed:
        if (run.model, run.seed) not in finished:
            logs.setdefault(run.model or run.name, []).append(run.log)
    return logs


def is_baseline(model: str) -> bool:
    """Whether a row is the one without fusion of its network, and no control."""
    flags = CONFIGURATIONS[model].flags
    return flags.get("use_multiscale") is False and "wide" not in flags


def srcc_cell(s: Statistics, model: str, selection: str, reasons: list[str]) -> str:
    """'0.9012+-0.0021'; '-' without images to select by, 'undefined' without an SRCC."""
    split, title = SELECTIONS[selection], CONFIGURATIONS[model].title
    if any(chosen_epoch(run, selection) is None for run in s.of_model[model]):
        reasons.append(f"'-' under '{selection}': there are no validation images.")
        return "-"
    values = s.configurations[model]["selections"][selection]
    if split and not all(has_choice(run, split) for run in s.of_model[model]):
        no_choice = (
            f"No epoch of '{title}' has an SRCC on the {split} images (fewer than two images, or "
            "all scores or all labels the same)"
        )
        if selection != s.selection:
            reasons.append(f"{no_choice}, so '{selection}' is undefined.")
            return "undefined"
        reasons.append(f"{no_choice}; its last epoch is used.")
    if not all(map(math.isfinite, values)):
        reason = s.configurations[model]["undefined"] or "of the scores in the selected epoch"
        reasons.append(f"The SRCC of '{title}' is undefined: {reason}.")
        return "undefined"
    return with_spread(s, values, "+-")


def has_choice(run: FinishedRun, split: str) -> bool:
    return any(usable(epoch, split) for epoch in run.epochs)


def plcc_cell(s: Statistics, model: str) -> str:
    found = s.configurations[model]
    if not math.isfinite(found["plcc"]):
        return "undefined"  # as the SRCC is, which says why
    deviation = found["plcc_sd"]
    return decimal(found["plcc"]) + (f"+-{deviation:.4f}" if math.isfinite(deviation) else "")


def change_cells(
    s: Statistics, model: str, baseline: str | None, reasons: list[str]
) -> tuple[str, str]:
    """Paired difference to the baseline, and relative gain in %."""
    if baseline is None or model == baseline:
        return "-", "-"
    if not s.pairs(model, baseline):
        title = CONFIGURATIONS[model].title
        reasons.append(f"No difference for '{title}': it has no seed in common with the baseline.")
        return "-", "-"
    difference, gain = s.change(model, baseline)
    if not math.isfinite(difference):
        return "undefined", "undefined"  # as one of the SRCCs is, which says why
    if not math.isfinite(gain):
        reasons.append(
            "The relative gain is undefined: the SRCC of the baseline is not clearly above 0."
        )
        return decimal(difference, 4, True), "undefined"
    return decimal(difference, 4, True), decimal(100 * gain, 2, True)


def published_row(s: Statistics, name: str, baseline: str | None, others: int) -> Row:
    """A model of --predictions: no epoch was selected here, so other selections are '-'."""
    found = s.analysis.published[name]
    change, gain = s.change(name, baseline) if baseline else (math.nan, math.nan)
    cells = [decimal(found["srcc"]), decimal(found["plcc"]), decimal(change, 4, True)]
    return Row(name, [*cells, decimal(100 * gain, 2, True), *["-"] * others])


def ablation_title(models: list[str]) -> str:
    networks = {CONFIGURATIONS[m].flags["model"] for m in models}
    if networks == {"hyperiqa"}:
        return "HyperIQA"
    if networks and networks <= {"hyperiqa", *NEIGHBOURS}:
        return "SMART-IQA ablation"
    return "ResNet-50 ablation"


def table_head(s: Statistics, models: list[str], by_row: tuple[str, ...] = ()) -> list[str]:
    """The experiment, the data and the flags that all runs share, but those that rows tell."""
    config = s.runs[0].config
    counts = ", ".join(f"{count:,} {split}" for split, count in config["images"].items())
    said_elsewhere = FREE_FLAGS.union(
        {"dataset", "seed", *by_row}, *(CONFIGURATIONS[m].flags for m in models)
    )
    flags = []
    for name, value in config["flags"].items():
        shared = all(run.config["flags"].get(name) == value for run in s.runs)
        unset = value is None or value is False or value == []
        if name in said_elsewhere or unset or not shared:
            continue
        values = value if isinstance(value, list) else [value]
        values = [Path(v).name if name == "backbone_weights" else v for v in values]
        flags.append(f"--{name}" if value is True else " ".join(map(str, [f"--{name}", *values])))
    title, seeds = on_backbone(s, ablation_title(models)), " ".join(map(str, s.seeds))
    return [
        f"{title}, {len(s.seeds)} seed(s): {seeds}",
        f"data: {data_set(s)}; {counts} images",
        wrapped(f"flags: {' '.join(flags)}", indent="       "),
        f"precision: {config['precision']} on {config['device']} ({config['device_name']})",
    ]


def weights_of(s: Statistics) -> str:
    """The initial weights of the backbone; of a file, its name."""
    return Path(s.runs[0].config["flags"].get("backbone_weights") or "unknown").name


def table_notes(s: Statistics, runs: Runs) -> list[str]:
    """What the figures are, and what they must not be taken for."""
    chosen = {
        "chosen by val": "the epoch with the highest validation SRCC",
        "last epoch": "the last epoch, as there is no validation SRCC to choose by",
    }[s.selection]
    notes = [f"SRCC, PLCC, differences and verdict: {s.selection} ({chosen})."]
    if s.splits > 1:
        notes.append(
            "Each seed has its own random split: medians over the splits, +- the standard "
            "deviation; differences and gains are means over the splits."
        )
    elif len(s.seeds) > 1:
        notes.append(
            "Means over the seeds, +- the standard deviation; differences are paired over the "
            "seeds."
        )
    notes.append(
        "'best on test' selects the epoch by the test images, as is common in the literature, so "
        "it is optimistic."
    )
    notes.append(
        "Published SRCC on KonIQ-10k, best on test: HyperIQA (ResNet-50, this setting) "
        f"{HYPERIQA}, SMART-IQA (Swin-Base) {SMART_IQA}."
    )
    config = s.runs[0].config
    if config.get("demo"):
        notes.append(
            "DEMO: synthetic scenes with known distortions; these figures are not KonIQ-10k "
            "figures."
        )
    elif config["flags"]["dataset"] != "koniq-10k" or not is_published(config):
        notes.append(f"These runs are on {data_set(s)}: do not compare them with those figures.")
    if s.published:
        notes.append(f"Scores of --predictions, as they were given: {', '.join(s.published)}.")
    notes += collapses(s)
    for run in runs.unknown:
        notes.append(f"Not in this table: {run.name} ({run.model} is not in experiment.py).")
    if runs.wrong:
        notes.append(f"{len(runs.wrong)} figure(s) do not add up: see Problems in report.md.")
    return notes


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


# Configurations in a sentence; others have the title of their row.
PROSE = {
    BASELINE: "the baseline",
    MULTISCALE: "multi-scale fusion",
    FULL: "multi-scale fusion with channel attention",
    WIDE: "the control with a wider stage 4",
    STATIC: "the control with static weights",
}


def paper_rows(s: Statistics) -> list[dict]:
    """The rows of table.tex: the figures of each configuration and its change to the baseline."""
    to_baseline: dict[str, Interval] = {
        c["model"]: c["difference"] for c in s.comparisons if c["other"] == BASELINE
    }
    return [
        {
            "title": CONFIGURATIONS[model].title + of_seeds(s, len(f["seeds"])),
            "name": PROSE.get(model, CONFIGURATIONS[model].title) + of_seeds(s, len(f["seeds"])),
            "change": to_baseline.get(model),
            **f,
        }
        for model, f in s.configurations.items()
    ]
