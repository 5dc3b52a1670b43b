"""What the numbers mean: tables, intervals, figures and a verdict from the logs of an ablation.

    python3 report_resnet_ablation.py logs/resnet_ablation_20260102_030405
    python3 report_resnet_ablation.py LOG_DIR LOG_DIR... --output report

reads the records and the predictions of each run, recomputes every figure, and writes report.md,
report.html (one file, figures inside), table.tex, paragraph.tex, results.json and figures/ (PNG and
PDF) into the (first) folder. It needs no GPU and no torch; about half a minute.
"""

import argparse
import base64
import html
import itertools
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import data_loader as data
import metrics
from data_loader import DataError
from metrics import Interval

if TYPE_CHECKING:
    import pandas as pd

# Order, name in tables, colour (Okabe and Ito's, told apart by the colour-blind) and marker.
MODELS = {
    "resnet_improved_ss_noatt": ("baseline", "#000000", "o"),
    "resnet_improved_ms_noatt": ("+ multi-scale", "#0072B2", "s"),
    "resnet_improved_ms_att": ("+ attention", "#D55E00", "^"),
    "hyperiqa": ("HyperIQA", "#009E73", "D"),
    **{
        f"smart_iqa_{size}{kind}": (f"SMART-IQA {size}{title}", colour, marker)
        for size, colour in (("tiny", "#CC79A7"), ("small", "#E69F00"), ("base", "#56B4E9"))
        for kind, title, marker in (
            ("_ss_noatt", ", no fusion", "v"),
            ("_ms_noatt", ", fusion", "P"),
            ("_ms_att", "", "X"),
        )
    },
}
BASELINE, MULTISCALE, FULL = list(MODELS)[:3]
BOTH = "both improvements"
# What is compared: label, the model, and the one that it is compared with.
COMPARISONS = [
    ("multi-scale fusion", MULTISCALE, BASELINE),
    ("channel attention", FULL, MULTISCALE),
    (BOTH, FULL, BASELINE),
    ("both, over HyperIQA", FULL, "hyperiqa"),
    *(
        (label, model.format(size), other.format(size))
        for size in ("tiny", "small", "base")
        for label, model, other in (
            (f"backbone: Swin {size} for ResNet-50", "smart_iqa_{}_ms_att", FULL),
            (
                f"both improvements on Swin {size}",
                "smart_iqa_{}_ms_att",
                "smart_iqa_{}_ss_noatt",
            ),
            (f"fusion on Swin {size}", "smart_iqa_{}_ms_noatt", "smart_iqa_{}_ss_noatt"),
            (f"attention on Swin {size}", "smart_iqa_{}_ms_att", "smart_iqa_{}_ms_noatt"),
        )
    ),
]
# How the epoch of a run is chosen: name, the split whose SRCC chooses it.
SELECTIONS = {"best on test": "test", "chosen by val": "val", "last epoch": None}
BOUNDS = (0.003, 0.01)  # of the relative gain, between the hypotheses
HYPOTHESES = (
    "specific to the Transformer: on the CNN the improvements gain less than 0.3%",
    "limited: on the CNN the improvements gain 0.3% to 1%",
    "the improvements carry over to a CNN: they gain at least 1%",
)
LOWERED = "no gain on the CNN: the improvements lower its SRCC"
UNDECIDED = "not decided by these runs"
# KonIQ-10k, test SRCC: best on test, in the experiment's own setting; of the literature.
HYPERIQA, SMART_IQA = 0.8998, 0.9378
ANCHORS = [
    ("HyperIQA, ResNet-50, in the ablation's own setting", HYPERIQA),
    ("HyperIQA, ResNet-50, official split, as retrained by pyiqa", 0.9040),
    ("HyperIQA, ResNet-50, its paper: median of 10 random splits", 0.906),
    ("TOPIQ-NR, ResNet-50, official split", 0.9299),
    ("QCN, ResNet-50, random splits", 0.934),
    ("SMART-IQA, Swin-Base, best on test", SMART_IQA),
    ("the labels' own ceiling: split halves of the ratings", 0.972),
    ("the labels' own ceiling: attainable against the noisy MOS, about", 0.993),
]


class ReportError(RuntimeError):
    """There is nothing to report; the message says where, and what to do."""


# What the runs left -----------------------------------------------------------------------------


class Run(NamedTuple):
    name: str
    model: str
    seed: int
    config: dict
    epochs: list[dict]
    predictions: "pd.DataFrame"


def read_runs(folders: list[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs of all folders, and a sentence on each that is not, or doesn't add up."""
    runs, problems = [], []
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder}: no such folder")
        for log in sorted(folder.glob("*.log")):
            if not log.with_suffix(".jsonl").exists():
                problems.append(f"{log}: failed before it began, so it has no record")
        for path in sorted(folder.glob("*.jsonl")):
            run, found = read_run(path)
            problems += found
            if run:
                runs.append(run)
    return sorted(runs, key=lambda run: (list(MODELS).index(run.model), run.seed)), problems


def read_run(path: Path) -> tuple[Run | None, list[str]]:
    """A run by its record and its predictions; None, with the reason, where it can't be used."""
    import pandas as pd

    csv = path.with_name(f"{path.stem}_predictions.csv")
    try:
        config, *epochs = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        model, seed, wanted = config["model"], config["flags"]["seed"], config["flags"]["epochs"]
        predictions = pd.read_csv(csv) if epochs else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, [f"{path}: can't be read ({type(error).__name__}: {error}), left out"]
    if model not in MODELS:
        return None, [f"{path}: of a model that this report doesn't know ({model}), left out"]
    if len(epochs) < wanted:
        return None, [f"{path}: ended after {len(epochs)} of {wanted} epochs, left out"]
    missing = {"epoch", "split", "image", "mos", "score"} - set(predictions.columns)
    if missing:
        return None, [f"{csv}: has no column {', '.join(sorted(missing))}, left out"]
    run = Run(path.stem, model, seed, config, epochs, predictions)
    return run, [f"{csv}: {problem}" for problem in check_run(run)]


def check_run(run: Run) -> list[str]:
    """Where the record's figures are not those of the predictions, recomputed."""
    problems = []
    if run.config["images"]["val"] and not any(usable(e, "val") for e in run.epochs):
        problems.append("no epoch has a val SRCC to be chosen by, so the last one stands in")
    for record in run.epochs:
        rows = run.predictions[run.predictions["epoch"] == record["epoch"]]
        for split in ("val", "test"):
            part = rows[rows["split"] == split]
            if len(part) != run.config["images"][split]:
                problems.append(
                    f"epoch {record['epoch']} has {len(part)} {split} images instead of "
                    f"{run.config['images'][split]}"
                )
                continue
            if not len(part):
                continue
            values = metrics.agreement(part["score"].to_numpy(), part["mos"].to_numpy())
            for name in ("srcc", "plcc"):
                told = record.get(f"{split}_{name}")
                told = math.nan if told is None else told
                if not np.isclose(values[name], told, atol=1e-6, equal_nan=True):
                    problems.append(
                        f"epoch {record['epoch']}: {split} {name.upper()} is {values[name]:.6f} "
                        f"by the predictions and {told:.6f} by the record"
                    )
    return problems


def differences(run: Run, other: Run, ignored: set[str]) -> list[str]:
    """'--lr 0.1 and 0.2' for each flag, for the data and the precision in which two runs differ."""
    old, new = (
        {
            f"--{k}": Path(v).name if k == "backbone_weights" else v
            for k, v in r.config["flags"].items()
            if k not in ignored
        }
        | {"data": r.config["data_fingerprint"], "precision": r.config["precision"]}
        for r in (run, other)
    )
    if new.get("--split") == "random" and run.seed != other.seed:
        if new["--split_seed"] != old["--split_seed"]:
            del new["data"]
        del new["--split_seed"]
    return [f"{k} {old[k]} and {new[k]}" for k in old if k in new and old[k] != new[k]]


def backbone(run: Run) -> str:
    """'tiny', 'small' or 'base' of Swin, or 'resnet'."""
    return run.model.split("_")[2] if run.model.startswith("smart_iqa") else "resnet"


def check_comparable(runs: list[Run]) -> None:
    """Raise ReportError where runs differ in more than the model, the seed and a random split.

    Runs with the same backbone have begun from the same weights: a file by its name, which is the
    same on another machine.
    """
    free = {"use_multiscale", "use_attention", "model", "seed", "run_name", "log_dir", "resume"}
    free |= {"checkpoint_dir", "store_dir", "store_device", "data_path", "workers", "device"}
    free |= {"save_model", "save_minutes", "compile"}
    for run in runs[1:]:
        own = run.config["flags"].get("model")
        alike = next(r for r in runs if r.config["flags"].get("model") == own)
        relative = next(r for r in runs if backbone(r) == backbone(run))
        # Each model has a dropout rate of its own.
        for other, ignored in (
            (runs[0], free | {"dropout_rate", "backbone_weights"}),
            (relative, free | {"dropout_rate"}),
            (alike, free),
        ):
            if differing := differences(other, run, ignored):
                raise ReportError(
                    f"{other.name} and {run.name} can't be compared: {'; '.join(differing)}"
                )
    for (model, seed), group in itertools.groupby(runs, key=lambda r: (r.model, r.seed)):
        group = list(group)
        if len(group) > 1:
            raise ReportError(
                f"{model} with seed {seed} is there {len(group)} times: "
                f"{', '.join(r.name for r in group)}"
            )


def chosen_epoch(run: Run, selection: str) -> int | None:
    """The epoch that a selection takes; None where it has no images to choose by.

    The last one where the SRCC of all epochs is undefined.
    """
    split = SELECTIONS[selection]
    if split and not run.config["images"][split]:
        return None
    ranked = [e for e in run.epochs if split and usable(e, split)]
    best = max(ranked, key=lambda e: e[f"{split}_srcc"]) if ranked else run.epochs[-1]
    return best["epoch"]


def usable(record: dict, split: str) -> bool:
    """Whether an epoch's SRCC is defined."""
    return record.get(f"{split}_srcc") is not None


def test_rows(run: Run, selection: str) -> "pd.DataFrame | None":
    """The test images' predictions (sorted by image) of the epoch that a selection takes."""
    epoch = chosen_epoch(run, selection)
    if epoch is None:
        return None
    rows = run.predictions[
        (run.predictions["epoch"] == epoch) & (run.predictions["split"] == "test")
    ]
    return rows.sort_values("image", ignore_index=True)


# What they say ----------------------------------------------------------------------------------


class Statistics:
    """Every figure of the report, for the selection that the verdict is taken from.

    scores[model]: predictions (S, N) of S seeds for N test images, and mos[model] (S, N) of them.
    splits: 1 where all runs have the same test images, S where each seed has a split of its own.
    """

    def __init__(self, runs: list[Run], *, resamples: int, seed: int):
        self.runs, self.options = runs, {"resamples": resamples, "seed": seed}
        self.seeds = sorted({r.seed for r in runs})
        self.models = [m for m in MODELS if any(r.model == m for r in runs)]
        self.of_model = {m: [r for r in runs if r.model == m] for m in self.models}
        can_validate = all(chosen_epoch(r, "chosen by val") for r in runs)
        self.selection = "chosen by val" if can_validate else "last epoch"

        self.rows = rows = {r.name: test_rows(r, self.selection) for r in runs}
        self.splits = count_splits(runs, rows)
        self.images = len(rows[runs[0].name])
        self.middle = np.median if self.splits > 1 else np.mean
        self.scores, self.mos = (
            {
                m: np.stack([rows[r.name][column].to_numpy() for r in self.of_model[m]])
                for m in self.models
            }
            for column in ("score", "mos")
        )
        self.configurations = {m: self.configuration(m) for m in self.models}
        self.comparisons = self.compare()
        self.interaction = self.interact()
        self.gain = self.relative_gain()
        self.verdict = self.decide()

    def configuration(self, model: str) -> dict:
        """Mean figures of a configuration over its seeds (median over splits), and intervals."""
        runs, pairs = self.of_model[model], [*zip(self.scores[model], self.mos[model])]
        each = [metrics.agreement(*pair) for pair in pairs]
        fits = [metrics.fitted_agreement(*pair) for pair in pairs]
        found = {
            name: float(self.middle([values[name] for values in each])) for name in metrics.METRICS
        }
        found["plcc_fitted"] = float(self.middle([fit.plcc for fit in fits]))
        found["rmse_fitted"] = float(self.middle([fit.rmse for fit in fits]))
        found["fit_problem"] = next((fit.reason for fit in fits if fit.reason), "")
        found["undefined"] = next(filter(None, (metrics.undefined(*pair) for pair in pairs)), "")
        for name, by_counts in (("srcc", metrics.srcc_by_counts), ("plcc", metrics.plcc_by_counts)):
            statistics = [by_counts(*pair) for pair in pairs]
            seen = self.interval(statistics)  # few seeds can make it wider than a correlation goes
            low, high = np.clip([seen.low, seen.high], -1, 1).tolist()
            found[f"{name}_interval"] = seen._replace(low=low, high=high)
            found[f"{name}_sd"] = spread([values[name] for values in each])
        found["seeds"] = [r.seed for r in runs]
        found["selections"] = {
            selection: [run_srcc(r, selection) for r in runs] for selection in SELECTIONS
        }
        found["parameters"] = runs[0].config["parameters"]
        found["multiply_adds"] = runs[0].config.get("multiply_adds")
        records = [e for r in runs for e in r.epochs]
        found["patches_per_second"] = float(np.median([e["patches_per_second"] for e in records]))
        found["test_patches_per_second"] = float(
            np.median([e["test_patches_per_second"] for e in records])
        )
        memory = [e["peak_memory_gb"] for e in records if "peak_memory_gb" in e]
        found["peak_memory_gb"] = max(memory, default=None)
        return found

    def interval(self, statistics: list, combine=None) -> Interval:
        """Over images alone with one seed (BCa), over seeds and images, or over splits."""
        seen = np.concatenate([s(np.ones((1, self.images))) for s in statistics])  # (S,) or (S, K)
        if not np.isfinite(seen).all():
            return Interval(*[math.nan] * 4, "undefined scores")
        combine = combine or (lambda values: values)
        if len(statistics) == 1:
            return metrics.interval(
                lambda counts: combine(statistics[0](counts)), self.images, **self.options
            )
        if self.splits > 1:
            counts = self.runs[0].config["images"]
            return metrics.over_splits(combine(seen), counts["test"] / counts["train"])
        return metrics.over_seeds(statistics, combine, self.images, **self.options)

    def pairs(self, *models: str) -> list[tuple[np.ndarray, ...]]:
        """The models' scores (N,) of each seed that all have been trained with, and the MOS."""
        runs = [{r.seed: r for r in self.of_model[m]} for m in models]
        shared = [seed for seed in runs[0] if all(seed in of for of in runs)]
        return [
            (
                *(self.rows[of[seed].name]["score"].to_numpy() for of in runs),
                self.rows[runs[0][seed].name]["mos"].to_numpy(),
            )
            for seed in shared
        ]

    def compare(self) -> list[dict]:
        """Each comparison whose two models are there: the paired difference of SRCC."""
        found = []
        for label, model, other in COMPARISONS:
            if model not in self.models or other not in self.models:
                continue
            pairs = self.pairs(model, other)
            if not pairs:
                continue
            seen = self.interval([metrics.difference_by_counts(*pair) for pair in pairs])
            each = [srcc(a, mos) - srcc(b, mos) for a, b, mos in pairs]
            found.append(
                {
                    "label": label,
                    "model": model,
                    "other": other,
                    "difference": seen,
                    "each": each,
                    "p_permutation": self.permutation(pairs),
                    "correlation": float(np.mean([srcc(a, b) for a, b, _ in pairs])),
                    "seeds_needed": None
                    if self.splits > 1
                    else metrics.seeds_needed(np.array(each)),
                }
            )
        for comparison, p in zip(found, metrics.holm([c["difference"].p for c in found])):
            comparison["p_holm"] = p
        return found

    def permutation(self, pairs) -> float:
        """NaN for undefined scores, and over several splits, whose images are not the same."""
        if self.splits > 1 or any(metrics.undefined(x, p[-1]) for p in pairs for x in p[:-1]):
            return math.nan
        a, b = (np.stack([p[i] for p in pairs]) for i in (0, 1))
        return metrics.permutation_p(a, b, pairs[0][-1], **self.options)

    def interact(self) -> dict | None:
        """What the improvements gain on Swin less what they gain on ResNet-50, if all are there."""
        for size in ("tiny", "small", "base"):
            models = [f"smart_iqa_{size}_ms_att", f"smart_iqa_{size}_ss_noatt", FULL, BASELINE]
            if not set(models) <= set(self.models):
                continue
            statistics = []
            for *of, mos in self.pairs(*models):
                four = metrics.srcc_by_counts(np.stack(of), mos)
                statistics.append(lambda c, four=four: four(c) @ [1, -1, -1, 1])
            if statistics:
                return {"size": size, "difference": self.interval(statistics)}
        return None

    def relative_gain(self) -> Interval | None:
        """(SRCC - SRCC of the baseline) / SRCC of the baseline, of both improvements."""
        if not {FULL, BASELINE} <= set(self.models) or not self.pairs(FULL, BASELINE):
            return None
        if not self.configurations[BASELINE]["srcc_interval"].low > 0:
            return Interval(*[math.nan] * 4, "the SRCC of the baseline is not surely above 0")
        pairs = self.pairs(FULL, BASELINE)
        statistics = [metrics.srcc_by_counts(np.stack(both), mos) for *both, mos in pairs]
        return self.interval(statistics, lambda both: both[..., 0] / both[..., 1] - 1)

    def decide(self) -> str:
        if self.gain is None:
            return f"{UNDECIDED}: the baseline and the full configuration are not both there"
        if not math.isfinite(self.gain.low + self.gain.high):
            return f"{UNDECIDED}: the gain has no interval ({self.gain.reason})"
        low, high = (int(np.searchsorted(BOUNDS, x, side="right")) for x in self.gain[1:3])
        if low != high or (low > 0 and not self.significant()):
            return UNDECIDED
        return LOWERED if self.gain.high < 0 and self.significant() else HYPOTHESES[low]

    def significant(self) -> bool:
        """Whether both improvements differ from the baseline at 5%, after Holm's correction."""
        return any(c["p_holm"] < 0.05 for c in self.comparisons if c["label"] == BOTH)

    def optimism(self) -> float:
        """How much the best epoch on test is above the verdict's choice, mean over all runs."""
        gaps = [run_srcc(r, "best on test") - run_srcc(r, self.selection) for r in self.runs]
        return float(np.mean(gaps))


def count_splits(runs: list[Run], rows: dict[str, "pd.DataFrame"]) -> int:
    """1 where all runs have the same test images, or as many splits as seeds; else ReportError."""
    of_seed = {}
    for run in runs:
        images = list(rows[run.name]["image"])
        if of_seed.setdefault(run.seed, images) != images:
            raise ReportError("runs with the same seed were tested on different images")
    splits = len({tuple(images) for images in of_seed.values()})
    if splits not in (1, len(of_seed)) or len({len(images) for images in of_seed.values()}) > 1:
        raise ReportError(
            "the runs were tested on different images, and not each seed on a random split of its "
            "own and the same size"
        )
    return splits


def srcc(predicted: np.ndarray, mos: np.ndarray) -> float:
    return float(metrics.srcc_by_counts(predicted, mos)(np.ones((1, len(mos))))[0])


def run_srcc(run: Run, selection: str) -> float:
    """Test SRCC of the epoch that a selection takes; NaN where there is none."""
    rows = test_rows(run, selection)
    if rows is None:
        return math.nan
    return metrics.agreement(rows["score"].to_numpy(), rows["mos"].to_numpy())["srcc"]


def spread(values: list[float]) -> float:
    """Standard deviation over seeds; NaN with one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


# Figures ----------------------------------------------------------------------------------------


def draw_figures(s: Statistics, folder: Path, data_path: str | None) -> list[tuple[str, str]]:
    """All figures as PNG and PDF; (file stem, caption) of each, or ('', why there is none)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(
        {
            "font.size": 8,
            "axes.titlesize": 8,
            "legend.fontsize": 7,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "savefig.dpi": 300,
            "pdf.fonttype": 42,
        }
    )
    captions = []
    for draw in (
        draw_curves,
        draw_scatter,
        draw_forest,
        draw_stage_weights,
        draw_costs,
        draw_contact_sheet,
    ):
        figure, caption = draw(s, data_path) if draw is draw_contact_sheet else draw(s)
        if figure is None:
            captions.append(("", caption))
            continue
        stem = draw.__name__.removeprefix("draw_")
        for suffix in ("png", "pdf"):
            with data.replacing(folder / f"{stem}.{suffix}") as file:
                figure.savefig(file, format=suffix)
        plt.close(figure)
        captions.append((stem, caption))
    return captions


COLUMN = 3.5  # inches: a journal's column; a page is twice that


def draw_curves(s: Statistics):
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(COLUMN, 3.6))
    for model in s.models:
        title, colour, marker = MODELS[model]
        runs = s.of_model[model]
        epochs = [e["epoch"] for e in runs[0].epochs]
        style = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1}
        for axes, name in ((top, "test_srcc"), (bottom, "loss")):
            each = np.array([[e[name] for e in r.epochs] for r in runs], float)  # None is NaN
            axes.plot(epochs, each.mean(0), label=title, **style)
            if len(runs) > 1:
                axes.fill_between(
                    epochs, each.min(0), each.max(0), color=colour, alpha=0.15, linewidth=0
                )
    top.set_ylabel("SRCC, test images")
    bottom.set_ylabel("training loss (L1, MOS)")
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(epochs) == 1:
        bottom.set(xticks=epochs, xlim=(0.5, 1.5))
    top.legend(frameon=False)
    several = " Means over seeds; bands reach from the lowest to the highest seed."
    many = max(map(len, s.of_model.values())) > 1
    return figure, f"Test SRCC and training loss by epoch.{several if many else ''}"


def draw_scatter(s: Statistics):
    import matplotlib.pyplot as plt

    columns = 2 if len(s.models) > 1 else 1
    rows = -(-len(s.models) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(COLUMN, 0.4 + COLUMN / columns * rows),
    )
    everything = np.concatenate([x[m][0] for x in (s.mos, s.scores) for m in s.models])
    ends = np.nanmin(everything) - 2, np.nanmax(everything) + 2
    for axes, model in itertools.zip_longest(panels.flat, s.models):
        if model is None:
            axes.set_visible(False)
            panels[-2, -1].tick_params(labelbottom=True)
            continue
        title, colour, _ = MODELS[model]
        scores, mos = s.scores[model][0], s.mos[model][0]
        axes.plot(scores, mos, ".", color=colour, markersize=2, alpha=0.35, rasterized=True)
        fit = metrics.fitted_agreement(scores, mos)
        if fit.parameters:
            x = np.linspace(scores.min(), scores.max(), 200)
            axes.plot(x, metrics.logistic(x, *fit.parameters), color="black", linewidth=1)
        axes.plot(ends, ends, color="0.6", linewidth=0.5, linestyle="--", zorder=0)
        axes.set(xlim=ends, ylim=ends, title=title)
        axes.set(xticks=axes.get_yticks(), xlim=ends)
        axes.set_aspect("equal")
    figure.supxlabel("predicted score", fontsize=8)
    figure.supylabel("MOS", fontsize=8)
    seed = s.of_model[s.models[0]][0].seed
    return figure, (
        f"MOS against predicted score of the {s.images:,} test images ({s.selection}, seed "
        f"{seed}); line: VQEG's four-parameter logistic, if it could be fitted; dashed: equality."
    )


def draw_forest(s: Statistics):
    import matplotlib.pyplot as plt

    if not s.comparisons:
        return None, "No two configurations to compare, so no forest plot."
    figure, axes = plt.subplots(figsize=(COLUMN, 0.8 + 0.36 * len(s.comparisons)))
    for y, comparison in enumerate(reversed(s.comparisons)):
        value, low, high, *_ = comparison["difference"]
        colour = MODELS[comparison["model"]][1]
        if math.isfinite(low + high):
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5)
        axes.plot(value, y, "o", color=colour, markersize=4)
        if len(comparison["each"]) > 1:
            each = comparison["each"]
            axes.plot(each, [y - 0.22] * len(each), "|", color="0.4", markersize=5)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    labels = [c["label"] for c in reversed(s.comparisons)]
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="difference in SRCC")
    axes.set_ylim(-0.6, len(labels) - 0.4)
    return figure, (
        f"Paired differences in test SRCC ({s.selection}) with 95% intervals"
        + ("; ticks: single seeds." if len(s.comparisons[0]["each"]) > 1 else ", one seed.")
    )


def draw_stage_weights(s: Statistics):
    import matplotlib.pyplot as plt

    models = [m for m in s.models if "w1" in s.rows[s.of_model[m][0].name].columns]
    if not models or s.images < 10:
        return None, "No run with attention on ten images or more, so no figure of stage weights."
    model = FULL if FULL in models else models[0]
    tables = [s.rows[r.name] for r in s.of_model[model]]
    if s.splits > 1:
        tables = tables[:1]
    weights = np.mean([t[["w1", "w2", "w3", "w4"]].to_numpy() for t in tables], 0)  # (N, 4)
    quintile = np.argsort(np.argsort(tables[0]["mos"].to_numpy())) * 5 // s.images
    figure, axes = plt.subplots(figsize=(COLUMN, 2.5))
    style = zip(("#0072B2", "#009E73", "#E69F00", "#D55E00"), "os^D")
    for stage, (colour, marker) in enumerate(style):
        parts = [weights[quintile == q, stage] for q in range(5)]
        middle = [np.median(p) for p in parts]
        x = np.arange(1, 6) + 0.08 * (stage - 1.5)
        around = [
            [m - np.quantile(p, 0.25) for m, p in zip(middle, parts)],
            [np.quantile(p, 0.75) - m for m, p in zip(middle, parts)],
        ]
        axes.errorbar(
            x, middle, around, color=colour, marker=marker, markersize=4, linewidth=1,
            capsize=2, label=f"w{stage + 1}",
        )  # fmt: skip
    axes.axhline(0.25, color="0.6", linewidth=0.5, linestyle="--", zorder=0)
    axes.set(xlabel="quintile of MOS (5: best)", ylabel="stage weight", xticks=range(1, 6))
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure, (
        f"Stage weights of {MODELS[model][0].lstrip('+ ')} over all {s.images:,} test images "
        f"{'of the first split ' * (s.splits > 1)}by quintile of MOS: medians and quartiles; "
        "dashed: equal weights."
    )


def draw_costs(s: Statistics):
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(COLUMN, 2.3))
    for model in s.models:
        title, colour, marker = MODELS[model]
        found = s.configurations[model]
        value, low, high, *_ = found["srcc_interval"]
        bars = [[value - low], [high - value]] if math.isfinite(low + high) else None
        for axes, x in zip(panels, (found["parameters"] / 1e6, found["patches_per_second"])):
            axes.errorbar(
                [x], [value], bars, color=colour, marker=marker, markersize=5, capsize=2,
                linewidth=1, label=title, linestyle="",
            )  # fmt: skip
            axes.margins(x=0.25)
    panels[0].set(xlabel="parameters (M)", ylabel="SRCC, test images")
    panels[1].set(xlabel="training patches/s")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=min(3, len(s.models)),
        frameon=False,
        columnspacing=1,
    )
    device = s.runs[0].config["device_name"]
    return figure, f"Test SRCC with 95% intervals against parameters and speed (on {device})."


def draw_contact_sheet(s: Statistics, data_path: str | None):
    import matplotlib.pyplot as plt
    from PIL import Image

    if s.splits > 1:
        return None, "No contact sheet: each seed has test images of its own."
    if not {FULL, BASELINE} <= set(s.models) or s.images < 20:
        return None, "No contact sheet: it needs baseline, full configuration and 20 test images."
    base, full = (s.scores[m].mean(0) for m in (BASELINE, FULL))
    mos, images = s.mos[FULL][0], list(s.rows[s.of_model[FULL][0].name]["image"])
    gain = np.abs(base - mos) - np.abs(full - mos)
    order = np.argsort(-gain, kind="stable")
    chosen = [*order[:10], *order[::-1][:10]]
    folder = Path(data_path or s.runs[0].config["flags"]["data_path"])
    absent = [images[i] for i in chosen if not (folder / images[i]).is_file()]
    if absent:
        return None, (
            f"No contact sheet: {len(absent)} of its 20 photographs are not under {folder} "
            f"({absent[0]}, ...); give --data_path."
        )
    figure, panels = plt.subplots(4, 5, figsize=(2 * COLUMN, 6.6))
    for position, (axes, i) in enumerate(zip(panels.flat, chosen)):
        with Image.open(folder / images[i]) as image:
            image.draft("RGB", (600, 600))
            image = image.convert("RGB")
            image.thumbnail((360, 360))
            axes.imshow(np.asarray(image))
        axes.set_title(
            f"MOS {mos[i]:.0f}: {base[i]:.0f} $\\rightarrow$ {full[i]:.0f}", fontsize=8, pad=2
        )
        axes.set(xticks=[], yticks=[])
        for side in axes.spines.values():
            side.set(visible=True, linewidth=1.5, color="#0072B2" if position < 10 else "#D55E00")
    panels[0, 0].set_ylabel("gained most", color="#0072B2")
    panels[1, 0].set_ylabel("gained most", color="#0072B2")
    panels[2, 0].set_ylabel("lost most", color="#D55E00")
    panels[3, 0].set_ylabel("lost most", color="#D55E00")
    return figure, (
        "The ten test images whose error shrank most from the baseline to both improvements "
        "(blue), and the ten whose error grew most (orange). MOS: baseline's score, full score."
    )


# Words ------------------------------------------------------------------------------------------


def is_published(config: dict) -> bool:
    """Whether the images are those of a split that the literature uses, by their counts."""
    known = data.DATASETS.get(config["flags"]["dataset"])
    return known is not None and tuple(config["images"].values()) in known.published


def data_set(s: Statistics) -> str:
    config = s.runs[0].config
    if config.get("demo"):
        return "the demo's drawn scenes (not KonIQ-10k)"
    other = "" if is_published(config) else " (not the counts of a published split)"
    return config["flags"]["dataset"] + other


def number(x: float | None, digits: int = 4, sign: bool = False) -> str:
    if x is None or not math.isfinite(x):
        return "-"
    return f"{round(x, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # no -0.0000


def bounds(x: Interval, digits: int = 4, sign: bool = False) -> str:
    """'[0.8712, 0.9012]'."""
    if not math.isfinite(x.low + x.high):
        return f"undefined ({x.reason})"
    return f"[{number(x.low, digits, sign)}, {number(x.high, digits, sign)}]"


def percent(x: float, sign: bool = True) -> str:
    return "-" if not math.isfinite(x) else f"{number(100 * x, 2, sign)}%"


def p_text(p: float) -> str:
    return "-" if not math.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def with_spread(s: Statistics, values: list[float]) -> str:
    sd = spread(values)
    return number(float(s.middle(values))) + (f" +- {sd:.4f}" if math.isfinite(sd) else "")


def of_seeds(s: Statistics, count: int) -> str:
    """' (2 of 3 seeds)' where some are missing."""
    return f" ({count} of {len(s.seeds)} seeds)" if count < len(s.seeds) else ""


def blocks(s: Statistics, problems: list[str], figures: list[tuple[str, str]]) -> list[tuple]:
    """The report as ('heading', text), ('text', text), ('table', header, rows), ('figure', ...)."""
    config = s.runs[0].config
    flags = config["flags"]
    seeds = s.seeds
    title = "Do multi-scale fusion and channel attention help a ResNet-50?"
    if not {BASELINE, MULTISCALE, FULL} & set(s.models):
        title = title.replace("a ResNet-50", MODELS[s.models[0]][0].partition(",")[0])
        if s.models == ["hyperiqa"]:
            title = "How well does HyperIQA do?"
    out = [("heading", title)]
    out.append(("text", verdict_text(s)))
    if problems:
        out.append(("heading", "What doesn't add up"))
        out += [("text", problem) for problem in problems]

    out.append(("heading", "Configurations"))
    rows = []
    for model in s.models:
        f = s.configurations[model]
        rows.append(
            [
                MODELS[model][0] + of_seeds(s, len(f["seeds"])),
                with_spread(s, f["selections"][s.selection]),
                bounds(f["srcc_interval"]),
                number(f["plcc"]),
                bounds(f["plcc_interval"]),
                number(f["plcc_fitted"]),
                number(f["krcc"]),
                number(f["rmse_fitted"], 2),
            ]
        )
    header = ["", "SRCC", "95%", "PLCC raw", "95%", "PLCC fitted", "KRCC", "RMSE fitted"]
    out.append(("table", header, rows))
    several = len(seeds) > 1
    how = (
        f"means over seeds {', '.join(map(str, seeds))}, +- their standard deviation; intervals "
        "resample seeds and images, and allow for the number of seeds"
        + ("; two tell little of how seeds vary, which makes them wide" if len(seeds) == 2 else "")
        if several
        else f"one seed ({seeds[0]}): the variance between seeds is unknown, and the intervals are "
        "over images alone"
    )
    if s.splits > 1:
        how = (
            f"medians over {s.splits} random splits (seeds {', '.join(map(str, seeds))}), +- their "
            "standard deviation; intervals are those of the mean over splits, by the corrected "
            "resampled t-test, which allows for the images that splits share"
        )
    out.append(
        (
            "text",
            f"{s.images:,} test images; the epoch is the one {selection_words(s.selection)}; "
            f"{how}. Fitted: after VQEG's four-parameter logistic.",
        )
    )
    for model in s.models:
        f = s.configurations[model]
        for name, reason in (("correlations", f["undefined"]), ("the fit", f["fit_problem"])):
            if reason:
                out.append(("text", f"{MODELS[model][0]}: {name} undefined: {reason}."))

    out.append(("heading", "Three ways to choose the epoch"))
    rows = [
        [MODELS[m][0], *(with_spread(s, s.configurations[m]["selections"][x]) for x in SELECTIONS)]
        for m in s.models
    ]
    out.append(("table", ["SRCC", *SELECTIONS], rows))
    out.append(
        (
            "text",
            "Best on test is the habit of the literature: there the test images choose the epoch."
            + (
                f" Here it is {number(s.optimism(), 4, True)} above {s.selection}, on average over "
                "all runs: that much of it is optimism of the choice."
                if math.isfinite(s.optimism())
                else ""
            ),
        )
    )

    if s.comparisons:
        out.append(("heading", "Paired differences in SRCC"))
        rows = [
            [
                c["label"] + of_seeds(s, len(c["each"])),
                number(c["difference"].value, 4, True),
                bounds(c["difference"], 4, True),
                p_text(c["difference"].p),
                p_text(c["p_holm"]),
                p_text(c["p_permutation"]),
                number(c["correlation"], 3),
                str(c["seeds_needed"] or "-") if len(c["each"]) > 1 else "unknown",
            ]
            for c in s.comparisons
        ]
        header = ["", "difference", "95%", "p", "p (Holm)", "p (permutation)", "SRCC of the two"]
        out.append(("table", [*header, "seeds for 80% power"], rows))
        out.append(
            (
                "text",
                "Both models of a row are judged by the same images and the same crops. p: "
                f"{'corrected resampled t-test' if s.splits > 1 else 'bootstrap'}; Holm: corrected "
                f"over the {len(s.comparisons)} rows; permutation: a check that swaps the two "
                f"models' ranks image by image{', which needs the same images' * (s.splits > 1)}. "
                "Seeds for 80% power: by the spread between seeds on these images alone; what "
                "other images would change takes more images, not more seeds."
                + (
                    " The intervals of one seed are bias-corrected (BCa) and p is not: where p is "
                    "close to 0.05 they can disagree."
                    if any(len(c["each"]) == 1 for c in s.comparisons)
                    else ""
                ),
            )
        )
    if s.interaction:
        d = s.interaction["difference"]
        out.append(
            (
                "text",
                f"Interaction: on Swin {s.interaction['size']} the improvements gain "
                f"{number(abs(d.value))} SRCC {'less' if d.value < 0 else 'more'} than on "
                f"ResNet-50 (95% of the difference {bounds(d, 4, True)}).",
            )
        )

    out.append(("heading", "Beside the literature"))
    if flags["dataset"] == "koniq-10k" and is_published(config):
        out.append(("table", ["KonIQ-10k, SRCC", ""], [[a, number(b)] for a, b in ANCHORS]))
        if s.gain is not None:
            out.append(("text", closure_text(s)))
        if BASELINE in s.models:
            best = float(s.middle(s.configurations[BASELINE]["selections"]["best on test"]))
            out.append(
                (
                    "text",
                    "By the habit of the literature (best on test) our baseline has "
                    f"{number(best)}, {number(best - HYPERIQA, 4, True)} to HyperIQA in this "
                    "setting.",
                )
            )
    else:
        out.append(
            (
                "text",
                f"These runs are on {data_set(s)}: the figures of KonIQ-10k (HyperIQA {HYPERIQA}, "
                f"SMART-IQA {SMART_IQA}) don't compare with theirs.",
            )
        )

    out.append(("heading", "Costs"))
    rows = [
        [
            MODELS[m][0],
            f"{f['parameters'] / 1e6:.2f} M",
            "-" if f["multiply_adds"] is None else f"{f['multiply_adds'] / 1e9:.2f} G",
            f"{f['patches_per_second']:.1f}",
            f"{f['test_patches_per_second']:.1f}",
            "-" if f["peak_memory_gb"] is None else f"{f['peak_memory_gb']:.2f} GB",
        ]
        for m, f in s.configurations.items()
    ]
    header = ["", "parameters", "multiply-adds", "training patches/s", "test patches/s", "memory"]
    out.append(("table", header, rows))
    out.append(
        (
            "text",
            f"Multiply-adds of one {flags['patch_size']} x {flags['patch_size']} patch, by torch's "
            "counter (convolutions and matrix products); rates are medians over the epochs; memory "
            f"is the highest. On {config['device']} ({config['device_name']}), precision "
            f"{config['precision']}.",
        )
    )

    out.append(("heading", "Figures"))
    for stem, caption in figures:
        out.append(("figure", stem, caption) if stem else ("text", caption))

    out.append(("heading", "What it stands on"))
    rows = [
        [
            r.name,
            MODELS[r.model][0],
            str(r.seed),
            r.config["data_fingerprint"],
            " then ".join(commits(r.config)),
            r.config["versions"]["torch"],
            str(r.config["started"])[:19],
        ]
        for r in s.runs
    ]
    out.append(("table", ["run", "model", "seed", "data", "commit", "torch", "begun"], rows))
    counts = ", ".join(f"{n:,} {split}" for split, n in config["images"].items())
    out.append(
        (
            "text",
            f"Data: {data_set(s)}, {counts} images; {config['labels']}"
            + (f", and as many random splits as seeds: {s.splits}." if s.splits > 1 else ".")
            + f" Bootstrap: {s.options['resamples']:,} resamples, seed {s.options['seed']}; BCa "
            "with one seed, percentiles over seeds and images, widened by Student's t, with "
            "several; none over several splits.",
        )
    )
    return out


def commits(config: dict) -> list[str]:
    """The commits that a run was trained with, in turn: several where another one resumed it."""
    before = [part["before"].get("git_commit") for part in config.get("resumed", [])]
    return [c for c in dict.fromkeys([*before, config["git_commit"]]) if c]


def selection_words(selection: str) -> str:
    return {
        "chosen by val": "that the validation images choose",
        "last epoch": "that is last",
        "best on test": "that the test images choose",
    }[selection]


def by_one_seed(s: Statistics) -> str:
    """What stands before a verdict that rests on one seed; nothing where there are more."""
    return ", by one seed alone" if len(s.pairs(FULL, BASELINE)) == 1 else ""


def verdict_text(s: Statistics) -> str:
    if s.gain is None or not math.isfinite(s.gain.value):
        return f"Verdict on {data_set(s)}: {s.verdict}."
    gain = s.gain
    text = (
        f"Verdict on {data_set(s)}{by_one_seed(s)}: {s.verdict}. Multi-scale fusion and "
        f"channel attention change the SRCC of the baseline by {percent(gain.value)}"
    )
    if math.isfinite(gain.low + gain.high):
        text += f" (95% {percent(gain.low)} to {percent(gain.high)})"
    text += f", {s.selection}."
    if by_one_seed(s):
        text += " One seed: what another seed would change is unknown, and not in the interval."
    if s.verdict == UNDECIDED:  # and no other reason
        crossed = any(gain.low < bound <= gain.high for bound in BOUNDS)
        reason = (
            "The interval reaches over a boundary (0.3% or 1%)"
            if crossed
            else "After Holm's correction the difference is not significant (5%)"
        )
        text += f" {reason}, so nothing is claimed."
    return text


def closure_text(s: Statistics) -> str:
    step = SMART_IQA - HYPERIQA
    difference = next(c["difference"] for c in s.comparisons if c["label"] == BOTH)
    return (
        f"From HyperIQA (ResNet-50, {HYPERIQA}) to SMART-IQA (Swin-Base, {SMART_IQA}) it is "
        f"{step:.4f}. On the same backbone the improvements close "
        f"{percent(difference.value / step, False)} of that distance (95% "
        f"{percent(difference.low / step, False)} to {percent(difference.high / step, False)})."
    )


def markdown(content: list[tuple]) -> str:
    lines = []
    for kind, *parts in content:
        if kind == "heading":
            lines += [f"{'##' if lines else '#'} {parts[0]}", ""]
        elif kind == "text":
            lines += [parts[0], ""]
        elif kind == "table":
            cells = [[c.replace("|", "\\|") for c in row] for row in (parts[0], *parts[1])]
            cells.insert(1, ["---"] * len(parts[0]))
            lines += [f"| {' | '.join(row)} |" for row in cells] + [""]
        else:
            lines += [f"![{parts[0]}](figures/{parts[0]}.png)", "", f"*{parts[1]}*", ""]
    return "\n".join(lines)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0 }
table { display: block; overflow-x: auto }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #ccc }
th:first-child, td:first-child { text-align: left }
figure { margin: 1.5rem 0 } img { max-width: 100%; width: 34rem } img.wide { width: 100% }
figcaption { font-size: 0.85rem; color: #444 }
"""


def webpage(content: list[tuple], figures: Path) -> str:
    """The report as one HTML file."""
    title = html.escape(content[0][1])
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>"
    ]
    level = 1
    for kind, *block in content:
        if kind == "heading":
            parts.append(f"<h{level}>{html.escape(block[0])}</h{level}>")
            level = 2
        elif kind == "text":
            parts.append(f"<p>{html.escape(block[0])}</p>")
        elif kind == "table":
            header = "".join(f"<th>{html.escape(c)}</th>" for c in block[0])
            rows = "".join(
                "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
                for row in block[1]
            )
            parts.append(f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>")
        else:
            image = base64.b64encode((figures / f"{block[0]}.png").read_bytes()).decode()
            wide = ' class="wide"' if block[0] == "contact_sheet" else ""
            parts.append(
                f'<figure><img{wide} alt="{block[0]}" src="data:image/png;base64,{image}">'
                f"<figcaption>{html.escape(block[1])}</figcaption></figure>"
            )
    return "\n".join([*parts, "</body></html>", ""])


def latex(text: str) -> str:
    escapes = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "~": "\\textasciitilde{}",
        "\\": "\\textbackslash{}",
    }
    return "".join(escapes.get(c, c) for c in text)


def digits_for(s: Statistics) -> int:
    """Digits that the intervals support: one more than the first that they leave open."""
    widths = [f["srcc_interval"].high - f["srcc_interval"].low for f in s.configurations.values()]
    widths = [w for w in widths if math.isfinite(w) and w > 0]
    return min(4, max(2, 1 - math.floor(math.log10(min(widths))))) if widths else 4


def table_tex(s: Statistics) -> str:
    """The table for a paper (booktabs)."""
    digits = digits_for(s)
    rows = []
    for model in s.models:
        f = s.configurations[model]
        to_base = next(
            (
                c["difference"]
                for c in s.comparisons
                if (c["model"], c["other"]) == (model, BASELINE)
            ),
            None,
        )
        change = "--"
        if to_base is not None:
            ends = ", ".join(number(x, digits + 1, True) for x in to_base[1:3])
            change = f"${number(to_base.value, digits + 1, True)}$ $[{ends}]$"
        cells = [latex(MODELS[model][0]) + of_seeds(s, len(f["seeds"]))]
        for name in ("srcc", "plcc"):
            ends = ", ".join(number(x, digits) for x in f[f"{name}_interval"][1:3])
            cells.append(f"{number(f[name], digits)} [{ends}]")
        rows.append(" & ".join([*cells, change, f"{f['parameters'] / 1e6:.2f}"]) + r" \\")
    seeds = s.seeds
    brackets = r"Brackets: 95\% bootstrap intervals over images; one seed."
    if s.splits > 1:
        brackets = (
            f"Medians over {s.splits} random splits; $\\Delta$: means over splits; brackets: "
            r"95\% intervals of the mean over splits (corrected resampled $t$-test)."
        )
    elif len(seeds) > 1:
        brackets = r"Brackets: 95\% bootstrap intervals over seeds and images."
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\caption{Ablation on " + latex(data_set(s)) + f" ({s.images} test "
            f"images, {latex(s.selection)}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}). "
            + brackets + "}",
            r"\begin{tabular}{lcccr}",
            r"\toprule",
            r" & SRCC & PLCC & $\Delta$SRCC to the baseline & Parameters (M) \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )  # fmt: skip


def paragraph_tex(s: Statistics) -> str:
    """The paragraph for a paper: what was measured, and no more than the intervals allow."""
    digits = digits_for(s)
    sentences = []
    for model in s.models:
        found = s.configurations[model]
        ends = ", ".join(number(x, digits) for x in found["srcc_interval"][1:3])
        sentences.append(
            f"{MODELS[model][0].removeprefix('+ ')}{of_seeds(s, len(found['seeds']))} "
            f"{number(found['srcc'], digits)} "
            f"(95% interval {'of the mean ' if s.splits > 1 else ''}{ends})"
        )
    seeds = s.seeds
    text = (
        f"On the {s.images} test images of {data_set(s)} the "
        f"{f'median SRCC over {s.splits} random splits' if s.splits > 1 else 'SRCC'} is "
        f"{'; '.join(sentences)}"
        f" ({s.selection}; {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))})."
    )
    for c in s.comparisons:
        d, significant = c["difference"], c["p_holm"] < 0.05
        if not math.isfinite(d.low + d.high):
            continue
        text += (
            f" For {c['label']}{of_seeds(s, len(c['each']))} the "
            f"{'mean ' * (s.splits > 1)}paired difference is {number(d.value, digits + 1, True)} "
            f"({number(d.low, digits + 1, True)} to {number(d.high, digits + 1, True)}, "
            f"Holm-corrected p {'' if c['p_holm'] < 0.001 else '= '}{p_text(c['p_holm'])})"
            + ("." if significant else ", which these runs do not distinguish from none.")
        )
    if s.gain is not None and math.isfinite(s.gain.low + s.gain.high):
        text += (
            f" The {'mean ' * (s.splits > 1)}relative gain of both improvements is "
            f"{percent(s.gain.value)} "
            f"({percent(s.gain.low)} to {percent(s.gain.high)})"
            f"{by_one_seed(s)}: {s.verdict}."
        )
    if min((len(c["each"]) for c in s.comparisons), default=len(seeds)) == 1:
        text += " With one seed the variance between training runs is not part of the intervals."
    return latex(text) + "\n"


def results_json(s: Statistics, problems: list[str]) -> str:
    def plain(value):
        if isinstance(value, Interval):
            return plain(value._asdict())
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    content = {
        "dataset": s.runs[0].config["flags"]["dataset"],
        "data_fingerprint": s.runs[0].config["data_fingerprint"],
        "test_images": s.images,
        "splits": s.splits,
        "selection": s.selection,
        "verdict": s.verdict,
        "relative_gain": s.gain,
        "optimism_of_best_on_test": s.optimism(),
        "configurations": s.configurations,
        "comparisons": s.comparisons,
        "interaction": s.interaction,
        "problems": problems,
        "bootstrap": s.options,
        "runs": [{"name": r.name, **r.config} for r in s.runs],
    }
    return json.dumps(plain(content), indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="LOG_DIR", help="of an ablation")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the first LOG_DIR")
    parser.add_argument("--data_path", metavar="DIR", help="photographs, if they have been moved")
    parser.add_argument("--resamples", type=int, default=metrics.RESAMPLES, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap")
    args = parser.parse_args()
    if args.resamples < 400:  # with 100 no p could be significant after Holm's correction
        parser.error("--resamples: at least 400")
    try:
        runs, problems = read_runs(args.folders)
        if not runs:
            raise ReportError(
                f"{', '.join(map(str, args.folders))}: no finished run to report"
                + "".join(f"\n  {p}" for p in problems)
            )
        check_comparable(runs)
        statistics = Statistics(runs, resamples=args.resamples, seed=args.seed)
        output = args.output or args.folders[0]
        figures = draw_figures(statistics, output / "figures", args.data_path)
        content = blocks(statistics, problems, figures)
        for name, text in (
            ("report.md", markdown(content)),
            ("report.html", webpage(content, output / "figures")),
            ("table.tex", table_tex(statistics)),
            ("paragraph.tex", paragraph_tex(statistics)),
            ("results.json", results_json(statistics, problems)),
        ):
            data.write_atomically(output / name, text)
    except (ReportError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or output}: {error.strerror or error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)
    print(verdict_text(statistics))
    print(f"The report is in {output}: report.md, report.html, table.tex, paragraph.tex, figures/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
