"""Every figure of the report."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

import metrics
import resampling
from experiment import (
    BASELINE,
    BOTH,
    BOUNDS,
    COMPARISONS,
    CONFIGURATIONS,
    FULL,
    HYPOTHESES,
    LOWERED,
    NEIGHBOURS,
    SELECTIONS,
    UNDECIDED,
)
from reporting.runs import FinishedRun, count_splits, run_srcc, test_rows, usable
from resampling import ByCounts, Interval

if TYPE_CHECKING:
    import pandas as pd


class Statistics:
    """Every figure of the report, for the selection of epochs that tables and verdict lead with.

    rows[model, seed]: the predictions of the N test images, sorted by image.
    scores[model], mos[model]: (S, N) for the S seeds of a configuration.
    splits: 1 if all runs have the same test images, S if each seed has its own split.
    middle: how figures of several seeds become one: the mean, or the median over splits.
    """

    def __init__(self, runs: list[FinishedRun], *, resamples: int, seed: int):
        self.runs, self.options = runs, {"resamples": resamples, "seed": seed}
        self.seeds = sorted({r.seed for r in runs})
        self.models = [m for m in CONFIGURATIONS if any(r.model == m for r in runs)]
        self.of_model = {m: [r for r in runs if r.model == m] for m in self.models}
        self.selection = leading_selection(runs)

        self.rows: dict[tuple[str, int], pd.DataFrame] = {
            (r.model, r.seed): test_rows(r, self.selection) for r in runs
        }
        self.splits = count_splits(runs, self.rows)
        self.images = len(next(iter(self.rows.values())))
        self.middle = np.median if self.splits > 1 else np.mean
        self.scores = {m: self.columns(m, "score") for m in self.models}
        self.mos = {m: self.columns(m, "mos") for m in self.models}

        self.configurations = {m: self.configuration(m) for m in self.models}
        self.comparisons = self.compare()
        self.interaction = self.interact()
        self.gain = self.relative_gain()
        self.verdict = self.decide()

    def columns(self, model: str, name: str) -> np.ndarray:
        """(S, N): a column of the predictions for each seed of a configuration."""
        return np.stack([self.rows[model, r.seed][name].to_numpy() for r in self.of_model[model]])

    def configuration(self, model: str) -> dict:
        """The figures of a configuration over its seeds, with intervals; and its costs."""
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
        for name, by_counts in (
            ("srcc", resampling.srcc_by_counts),
            ("plcc", resampling.plcc_by_counts),
        ):
            seen = self.interval([by_counts(*pair) for pair in pairs])
            low, high = np.clip([seen.low, seen.high], -1, 1).tolist()  # two seeds: can be wider
            found[f"{name}_interval"] = seen._replace(low=low, high=high)
            found[f"{name}_sd"] = spread([values[name] for values in each])
        found["seeds"] = [r.seed for r in runs]
        found["selections"] = {
            selection: [run_srcc(r, selection) for r in runs] for selection in SELECTIONS
        }
        return found | costs(runs)

    def interval(
        self, statistics: list[ByCounts], combine: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Interval:
        """The 95% interval of a statistic, given once per seed; `combine`: see `over_seeds`.

        Over images with one seed (BCa), over seeds and images with several, or over splits.
        """
        seen = np.concatenate([s(np.ones((1, self.images))) for s in statistics])  # (S,) or (S, K)
        if not np.isfinite(seen).all():
            return Interval(*[math.nan] * 4, "undefined scores")
        combine = combine or (lambda values: values)
        if len(statistics) == 1:
            return resampling.interval(
                lambda counts: combine(statistics[0](counts)), self.images, **self.options
            )
        if self.splits > 1:
            counts = self.runs[0].config["images"]
            return resampling.over_splits(combine(seen), counts["test"] / counts["train"])
        return resampling.over_seeds(statistics, combine, self.images, **self.options)

    def pairs(self, *models: str) -> list[tuple[np.ndarray, ...]]:
        """Scores (N,) of each model and the MOS (N,), for each seed that all models have."""
        seeds = [seed for seed in self.seeds if all((m, seed) in self.rows for m in models)]
        return [
            (
                *(self.rows[model, seed]["score"].to_numpy() for model in models),
                self.rows[models[0], seed]["mos"].to_numpy(),
            )
            for seed in seeds
        ]

    def compare(self) -> list[dict]:
        """The paired difference in SRCC of each comparison with runs of both its models."""
        found = []
        for label, model, other in COMPARISONS:
            pairs = self.pairs(model, other)
            if not pairs:
                continue
            statistics = [resampling.difference_by_counts(*pair) for pair in pairs]
            each = [metrics.srcc(a, mos) - metrics.srcc(b, mos) for a, b, mos in pairs]
            needed = resampling.seeds_needed(np.array(each)) if self.splits == 1 else None
            found.append(
                {
                    "label": label,
                    "model": model,
                    "other": other,
                    "difference": self.interval(statistics),
                    "each": each,
                    "p_permutation": self.permutation(pairs),
                    "correlation": float(np.mean([metrics.srcc(a, b) for a, b, _ in pairs])),
                    "seeds_needed": needed,
                }
            )
        for comparison, p in zip(found, resampling.holm([c["difference"].p for c in found])):
            comparison["p_holm"] = p
        return found

    def permutation(self, pairs: list[tuple[np.ndarray, ...]]) -> float:
        """p of the permutation test; NaN for undefined scores, and for different test images."""
        if self.splits > 1 or any(metrics.undefined(x, p[-1]) for p in pairs for x in p[:-1]):
            return math.nan
        a, b = (np.stack([p[i] for p in pairs]) for i in (0, 1))
        return resampling.permutation_p(a, b, pairs[0][-1], **self.options)

    def interact(self) -> dict | None:
        """Gain of the improvements on Swin minus their gain on ResNet-50; None without all runs."""
        for swin in NEIGHBOURS:
            statistics = []
            for *four, mos in self.pairs(f"{swin}_ms_att", f"{swin}_ss_noatt", FULL, BASELINE):
                each = resampling.srcc_by_counts(np.stack(four), mos)
                statistics.append(lambda counts, each=each: each(counts) @ [1, -1, -1, 1])
            if statistics:
                size = swin.removeprefix("smart_iqa_")
                return {"size": size, "difference": self.interval(statistics)}
        return None

    def relative_gain(self) -> Interval | None:
        """Gain of both improvements relative to the baseline's SRCC; None without both runs."""
        pairs = self.pairs(FULL, BASELINE)
        if not pairs:
            return None
        if not self.above_zero(BASELINE):
            return Interval(*[math.nan] * 4, "the SRCC of the baseline is not clearly above 0")
        statistics = [resampling.srcc_by_counts(np.stack(both), mos) for *both, mos in pairs]
        return self.interval(statistics, lambda both: both[..., 0] / both[..., 1] - 1)

    def above_zero(self, model: str) -> bool:
        """Whether the SRCC of a configuration is above 0 by its interval."""
        return self.configurations[model]["srcc_interval"].low > 0

    def change(self, model: str, baseline: str) -> tuple[float, float]:
        """Paired difference in SRCC to a baseline and relative gain, as `compare` defines them.

        NaN without common seeds; the gain also if the baseline's SRCC is not above 0.
        """
        pairs = self.pairs(model, baseline)
        if not pairs:
            return math.nan, math.nan
        seen = np.array([[metrics.srcc(x, mos) for x in both] for *both, mos in pairs])  # (S, 2)
        difference = float(np.mean(seen[:, 0] - seen[:, 1]))
        if not self.above_zero(baseline):
            return difference, math.nan
        if self.splits == 1:
            seen = seen.mean(0, keepdims=True)
        return difference, float(np.mean(seen[:, 0] / seen[:, 1] - 1))

    def decide(self) -> str:
        if self.gain is None:
            return f"{UNDECIDED}: the baseline and the full configuration are not both available"
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
        """SRCC of 'best on test' minus that of the leading selection, averaged over all runs."""
        gaps = [run_srcc(r, "best on test") - run_srcc(r, self.selection) for r in self.runs]
        return float(np.mean(gaps))


def leading_selection(runs: list[FinishedRun]) -> str:
    """'chosen by val' if all runs have validation images and any epoch has a validation SRCC."""
    images = all(run.config["images"]["val"] for run in runs)
    can_choose = any(usable(epoch, "val") for run in runs for epoch in run.epochs)
    return "chosen by val" if images and can_choose else "last epoch"


def costs(runs: list[FinishedRun]) -> dict:
    """Parameters, multiply-adds, median rates and peak memory of the runs of a configuration."""
    epochs = [epoch for run in runs for epoch in run.epochs]
    rates = ("patches_per_second", "test_patches_per_second")
    memory = [epoch["peak_memory_gb"] for epoch in epochs if "peak_memory_gb" in epoch]
    return {
        "parameters": runs[0].config["parameters"],
        "multiply_adds": runs[0].config.get("multiply_adds"),
        **{rate: float(np.median([epoch[rate] for epoch in epochs])) for rate in rates},
        "peak_memory_gb": max(memory, default=None),
    }


def spread(values: list[float]) -> float:
    """Standard deviation over seeds; NaN for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
