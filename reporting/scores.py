"""Scores of several models on the same test images: how well they agree, how sure that is."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import metrics
import resampling
from reporting.krasula import Votes, krasula_by_counts
from reporting.residuals import errors_of, residuals_by_counts
from reporting.thirds import thirds_by_counts
from resampling import ByCounts, Interval, SeedVariance

Combine = Callable[[np.ndarray], np.ndarray]  # of M models: (B, M) to (B,)
Run = tuple[str, int | None]  # a model and its seed; no seed of a model that was not trained here


def itself(values: np.ndarray) -> np.ndarray:
    """Of the measures (..., 1) of one model."""
    return values[..., 0]


def difference(values: np.ndarray) -> np.ndarray:
    """Of the measures (..., 2) of two models."""
    return values[..., 0] - values[..., 1]


def difference_of_differences(values: np.ndarray) -> np.ndarray:
    """Of the measures (..., 4) of four models: by how much the first pair differs more."""
    return values @ np.array([1, -1, -1, 1])


def relative(values: np.ndarray) -> np.ndarray:
    """The gain of the first of two models relative to the second."""
    return values[..., 0] / values[..., 1] - 1


class Truth(NamedTuple):
    """What people said of N test images: MOS (N,), and the votes if they are known."""

    mos: np.ndarray
    votes: Votes | None = None

    @property
    def target(self) -> np.ndarray:
        """What errors are measured from (N,): the mean votes, or the MOS without votes."""
        return self.mos if self.votes is None else self.votes.mean


class Pool(NamedTuple):
    """The variance between seeds over the models that have the same seeds."""

    models: list[str]
    variance: SeedVariance

    @property
    def holds(self) -> bool:
        """Whether equal variances are not rejected at 5%; two seeds can't tell."""
        return not self.variance.p_equal < 0.05


class Scores:
    """Scores of models on the same N test images, with what people said of them.

    runs[model, seed]: scores (N,). truths[seed]: the same for all seeds, unless each has its own
    split of the images; then test_share is the number of test images divided by that of training
    images. seen[measure][run]: a measure on all images; see `measures_of` for their names.
    drawn[measure][run]: (B,) in resamples of the images, the same for all runs and measures.
    left_out[measure][run]: (N,) without one image each.
    """

    def __init__(
        self,
        runs: dict[Run, np.ndarray],
        truths: dict[int | None, Truth],
        *,
        resamples: int,
        seed: int,
        test_share: float | None = None,
    ):
        self.runs, self.truths, self.test_share = runs, truths, test_share
        self.options = {"resamples": resamples, "seed": seed}
        self.models = list(dict.fromkeys(model for model, _ in runs))
        self.images = len(next(iter(runs.values())))
        self.errors = {
            run: errors_of(scores, truths[run[1]].target) for run, scores in runs.items()
        }
        groups = [[run] for run in runs] if test_share else [list(runs)]
        self.groups = [(group, self.measures_of(group)) for group in groups]
        self.seen = self.collect(lambda statistic: statistic(np.ones((1, self.images))))
        self.pools: dict[str, Pool | None] = {name: self.pool(name) for name in self.seen}

    def measures_of(self, group: list[Run]) -> dict[str, ByCounts]:
        """srcc, plcc and srcc_low, _middle, _high against the MOS; with votes also those of
        krasula.py and residuals.py: each (B, K) for the K runs of a group on the same images.
        """
        scores, truth = np.stack([self.runs[run] for run in group]), self.truths[group[0][1]]
        found = {
            "srcc": resampling.srcc_by_counts(scores, truth.mos),
            "plcc": resampling.plcc_by_counts(scores, truth.mos),
        }
        found |= thirds_by_counts(scores, truth.mos)
        found |= residuals_by_counts(np.stack([self.errors[run][0] for run in group]), truth.votes)
        return found if truth.votes is None else found | krasula_by_counts(scores, truth.votes)

    def collect(self, of: Callable[[ByCounts], np.ndarray]) -> dict[str, dict[Run, np.ndarray]]:
        """By measure and run what `of` gives for a group's statistics of all measures at once.

        of: takes a statistic of (B, K), for all measures of a group behind each other.
        """
        found: dict[str, dict[Run, np.ndarray]] = {}
        for group, measures in self.groups:
            statistics = list(measures.values())

            def behind_each_other(counts: np.ndarray, statistics=statistics) -> np.ndarray:
                return np.concatenate([statistic(counts) for statistic in statistics], 1)

            columns = of(behind_each_other).T  # (measures * K, B)
            for (name, run), column in zip(itertools.product(measures, group), columns):
                found.setdefault(name, {})[run] = column
        return found

    @functools.cached_property
    def drawn(self) -> dict[str, dict[Run, np.ndarray]]:
        return self.collect(
            lambda statistic: resampling.resample_images(statistic, self.images, **self.options)
        )

    @functools.cached_property
    def left_out(self) -> dict[str, dict[Run, np.ndarray]]:
        return self.collect(lambda statistic: resampling.leave_one_out(statistic, self.images))

    def is_trained(self, model: str) -> bool:
        return (model, None) not in self.runs

    def seeds_of(self, *models: str) -> list[int | None]:
        """The seeds that all these models have; [None] if none of them was trained here."""
        trained = [m for m in models if self.is_trained(m)]
        if not trained:
            return [None]
        seeds = dict.fromkeys(seed for model, seed in self.runs if model == trained[0])
        return sorted(s for s in seeds if all((m, s) in self.runs for m in trained))

    def run_of(self, model: str, seed: int | None) -> Run:
        return model, seed if self.is_trained(model) else None

    def values(self, models: tuple[str, ...], metric: str = "srcc") -> np.ndarray:
        """(S, M): a measure of each common seed and model on all images."""
        seen = self.seen[metric]
        rows = [[seen[self.run_of(m, s)][0] for m in models] for s in self.seeds_of(*models)]
        return np.array(rows).reshape(-1, len(models))

    def resampled(self, models: tuple[str, ...], metric: str = "srcc") -> np.ndarray:
        """(S, B, M): the same in the resamples of the images."""
        drawn, seeds = self.drawn[metric], self.seeds_of(*models)
        return np.array([np.stack([drawn[self.run_of(m, s)] for m in models], 1) for s in seeds])

    def interval(
        self, models: tuple[str, ...], combine: Combine = itself, *, metric: str = "srcc"
    ) -> Interval:
        """The 95% interval of a combination of a measure of models, with its p.

        Over images with one common seed (BCa), over seeds and images with several, or over splits.
        """
        values = self.values(models, metric)
        if not np.isfinite(values).all():
            return Interval(*[math.nan] * 4, "undefined scores")
        if len(values) == 1:
            value = float(combine(values)[0])
            if self.images < 3 or not math.isfinite(value):
                return Interval(value, *[math.nan] * 3, "too few images, or undefined")
            (seed,) = self.seeds_of(*models)
            runs = [self.run_of(m, seed) for m in models]
            drawn, left_out = (
                combine(np.stack([each[metric][run] for run in runs], 1))
                for each in (self.drawn, self.left_out)
            )
            return resampling.bca(value, drawn, left_out)
        if self.test_share:
            return resampling.over_splits(combine(values), self.test_share)
        pool = self.pools[metric]
        trained = np.array([self.is_trained(m) for m in models])
        in_pool = all(m in pool.models for m in models if self.is_trained(m)) if pool else False
        return resampling.over_seeds(
            values,
            self.resampled(models, metric),
            combine,
            variance=pool.variance if in_pool and pool.holds else None,
            trained=trained,
            seed=self.options["seed"],
        )

    def compare(self, comparisons: list[tuple[str, str, str]]) -> list[dict]:
        """The paired difference in SRCC of each comparison: (label, model, the other model).

        Those whose models have no seed in common are left out. p_holm: corrected for the number.
        """
        found = []
        for label, model, other in comparisons:
            if not {model, other} <= set(self.models) or not self.seeds_of(model, other):
                continue
            each = difference(self.values((model, other)))
            pairs = [
                [self.runs[self.run_of(m, seed)] for m in (model, other)]
                for seed in self.seeds_of(model, other)
            ]
            needed = None if self.test_share else resampling.seeds_needed(each)
            found.append(
                {
                    "label": label,
                    "model": model,
                    "other": other,
                    "difference": self.interval((model, other), difference),
                    "each": each.tolist(),
                    "correlation": float(np.mean([metrics.srcc(*pair) for pair in pairs])),
                    "seeds_needed": needed,
                }
            )
        for comparison, p in zip(found, resampling.holm([c["difference"].p for c in found])):
            comparison["p_holm"] = p
        return found

    def pool(self, metric: str) -> Pool | None:
        """The seed variance of complete blocks: models that have the same seeds, and these seeds.

        Of all such blocks, one with most degrees of freedom; None if there is none.
        """
        if self.test_share:
            return None
        seen = self.seen[metric]
        seeds_of = {
            m: {s for model, s in self.runs if model == m and math.isfinite(seen[m, s][0])}
            for m in self.models
            if self.is_trained(m)
        }
        ranked = sorted(seeds_of, key=lambda m: -len(seeds_of[m]))
        blocks = []
        for count in range(2, len(ranked) + 1):
            models = ranked[:count]
            seeds = sorted(set.intersection(*(seeds_of[m] for m in models)))
            if len(seeds) > 1:
                blocks.append(((len(seeds) - 1) * (count - 1), models, seeds))
        if not blocks:
            return None
        _, models, seeds = max(blocks, key=lambda block: block[0])
        values = np.array([[seen[m, s][0] for m in models] for s in seeds])
        return Pool(models, resampling.seed_variance(values))
