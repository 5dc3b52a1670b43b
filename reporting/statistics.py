"""Every figure of the report."""

import math
from typing import TYPE_CHECKING

import numpy as np

import metrics
from experiment import (
    BASELINE,
    BOTH,
    BOUNDS,
    COLLAPSED,
    COMPARISONS,
    CONFIGURATIONS,
    FULL,
    HYPOTHESES,
    LOWERED,
    NEIGHBOURS,
    ONE_RUN,
    SELECTIONS,
    UNDECIDED,
)
from reporting.analysis import Analysis
from reporting.krasula import Votes
from reporting.predictions import Predictions, matched
from reporting.runs import (
    FinishedRun,
    chosen_epoch,
    count_splits,
    run_srcc,
    stage_use,
    test_rows,
    usable,
)
from reporting.scores import Combine, Scores, Truth, difference, difference_of_differences, relative
from reporting.votes import votes_of
from resampling import Interval

if TYPE_CHECKING:
    import pandas as pd


class Statistics:
    """Every figure of the report, for the selection of epochs that tables and verdict lead with.

    rows[model, seed]: the predictions of the N test images, sorted by image.
    scores[model], mos[model]: (S, N) for the S seeds of a configuration.
    each[model, seed]: the agreement of a run, by metric.
    sample: the scores of all models, and their intervals.
    pools[metric]: variance between seeds, or None if configurations have no two seeds in common.
    splits: 1 if all runs have the same test images, S if each seed has its own split.
    middle: how figures of several seeds become one: the mean, or the median over splits.
    images_alone: with one training run per configuration, the verdict of its test images.
    """

    def __init__(
        self,
        runs: list[FinishedRun],
        *,
        resamples: int,
        seed: int,
        predictions: dict[str, Predictions] | None = None,
        data_path: str | None = None,
    ):
        self.runs, self.options = runs, {"resamples": resamples, "seed": seed}
        self.seeds = sorted({r.seed for r in runs})
        self.models = [m for m in CONFIGURATIONS if any(r.model == m for r in runs)]
        self.of_model = {m: [r for r in runs if r.model == m] for m in self.models}
        self.backbone = runs[0].backbone
        self.selection = leading_selection(runs)

        self.rows: dict[tuple[str, int], pd.DataFrame] = {
            (r.model, r.seed): test_rows(r, self.selection) for r in runs
        }
        self.splits = count_splits(runs, self.rows)
        self.images = len(next(iter(self.rows.values())))
        self.middle = np.median if self.splits > 1 else np.mean
        self.scores = {m: self.columns(m, "score") for m in self.models}
        self.mos = {m: self.columns(m, "mos") for m in self.models}
        self.each = {
            (m, r.seed): metrics.agreement(*pair)
            for m in self.models
            for r, *pair in zip(self.of_model[m], self.scores[m], self.mos[m])
        }
        votes, self.no_votes = votes_of(runs, self.rows, data_path)
        self.published = matched(predictions or {}, self.rows, self.splits)  # name: scores (N,)
        self.sample = self.sampled(votes)
        self.pools = self.sample.pools

        self.configurations = {m: self.configuration(m) for m in self.models}
        self.comparisons = self.compare()
        self.analysis = self.analyse()
        self.interaction = self.interact()
        self.gain = self.relative_gain()
        self.verdict, self.images_alone = self.decide(), None
        if len(self.common_seeds(FULL, BASELINE)) == 1 and math.isfinite(self.gain.low):
            self.verdict, self.images_alone = ONE_RUN, self.verdict

    def sampled(self, votes: dict[int, Votes] | None) -> Scores:
        """The scores of all runs and published models, with what people said of the images."""
        runs, truths = {}, {}
        for (model, seed), rows in self.rows.items():
            runs[model, seed] = rows["score"].to_numpy()
            truths[seed] = Truth(rows["mos"].to_numpy(), votes and votes[seed])
        runs |= {(name, None): scores for name, scores in self.published.items()}
        truths[None] = truths[self.seeds[0]]
        counts = self.runs[0].config["images"]
        share = counts["test"] / counts["train"] if self.splits > 1 else None
        return Scores(runs, truths, test_share=share, **self.options)

    def columns(self, model: str, name: str) -> np.ndarray:
        """(S, N): a column of the predictions for each seed of a configuration."""
        return np.stack([self.rows[model, r.seed][name].to_numpy() for r in self.of_model[model]])

    def configuration(self, model: str) -> dict:
        """The figures of a configuration over its seeds, with intervals; and its costs."""
        runs, pairs = self.of_model[model], [*zip(self.scores[model], self.mos[model])]
        each = [self.each[model, r.seed] for r in runs]
        fits = [metrics.fitted_agreement(*pair) for pair in pairs]
        found = {
            name: float(self.middle([values[name] for values in each])) for name in metrics.METRICS
        }
        found["plcc_fitted"] = float(self.middle([fit.plcc for fit in fits]))
        found["rmse_fitted"] = float(self.middle([fit.rmse for fit in fits]))
        found["fit_problem"] = next((fit.reason for fit in fits if fit.reason), "")
        found["undefined"] = next(filter(None, (metrics.undefined(*pair) for pair in pairs)), "")
        for name in ("srcc", "plcc"):
            seen = self.sample.interval((model,), metric=name)
            low, high = np.clip([seen.low, seen.high], -1, 1).tolist()  # two seeds: can be wider
            found[f"{name}_interval"] = seen._replace(low=low, high=high)
            found[f"{name}_sd"] = spread([values[name] for values in each])
        found["seeds"] = [r.seed for r in runs]
        found["selections"] = {
            selection: [run_srcc(r, selection) for r in runs] for selection in SELECTIONS
        }
        found["attention"] = self.attention(model)
        return found | costs(runs)

    def attention(self, model: str) -> dict | None:
        """How the stage weights are used, averaged over seeds, and whether they have collapsed.

        None without attention. Static weights do not collapse: they never depend on the image.
        """
        runs = self.of_model[model]
        each = [stage_use(r, chosen_epoch(r, self.selection)) for r in runs]
        if None in each:
            return None
        found = {name: np.mean([use[name] for use in each], 0).tolist() for name in each[0]}
        static = CONFIGURATIONS[model].flags.get("attention") == "static"
        collapsed = [not static and has_collapsed(use) for use in (found, *each)]
        return found | {"collapsed": collapsed[0], "collapsed_seeds": sum(collapsed[1:])}

    def common_seeds(self, *models: str) -> list[int]:
        return [seed for seed in self.seeds if all((m, seed) in self.rows for m in models)]

    def interval(self, models: tuple[str, ...], combine: Combine) -> Interval:
        """The 95% interval of a combination of the SRCCs of models: see Scores.interval."""
        return self.sample.interval(models, combine)

    def pairs(self, *models: str) -> list[tuple[np.ndarray, ...]]:
        """Scores (N,) of each model and the MOS (N,), for each seed that all models have."""
        return [
            (
                *(self.rows[model, seed]["score"].to_numpy() for model in models),
                self.rows[models[0], seed]["mos"].to_numpy(),
            )
            for seed in self.common_seeds(*models)
        ]

    def compare(self) -> list[dict]:
        """The paired difference in SRCC of each comparison with runs of both its models."""
        return self.sample.compare(COMPARISONS)

    def analyse(self) -> Analysis:
        """Own and published models beside each other; the latter are compared with two of ours."""
        titles = {m: CONFIGURATIONS[m].title for m in self.models}
        titles |= {name: name for name in self.published}
        own = [m for m in (BASELINE, FULL) if m in self.models] or self.models[-1:]
        over = [
            (f"{'both,' if m == FULL else titles[m]} over {name}", m, name)
            for name in self.published
            for m in own
        ]
        return Analysis(self.sample, titles, self.comparisons, over, self.no_votes)

    def interact(self) -> dict | None:
        """Gain of the improvements on Swin minus their gain on ResNet-50; None without all runs."""
        for swin in NEIGHBOURS:
            models = (f"{swin}_ms_att", f"{swin}_ss_noatt", FULL, BASELINE)
            if self.common_seeds(*models):
                found = self.interval(models, difference_of_differences)
                return {"size": swin.removeprefix("smart_iqa_"), "difference": found}
        return None

    def relative_gain(self) -> Interval | None:
        """Gain of both improvements relative to the baseline's SRCC; None without both runs."""
        if not self.common_seeds(FULL, BASELINE):
            return None
        if not self.above_zero(BASELINE):
            return Interval(*[math.nan] * 4, "the SRCC of the baseline is not clearly above 0")
        return self.interval((FULL, BASELINE), relative)

    def resampled(self, models: tuple[str, str], combine: Combine) -> np.ndarray | None:
        """(B,): a combination of the SRCCs of two models in resamples of the images.

        Means over their common seeds; None without several seeds. With the same resamples and seed
        of the bootstrap, all backbones have the same resamples.
        """
        if len(self.common_seeds(*models)) < 2 or self.splits > 1:
            return None
        return combine(self.sample.resampled(models).mean(0))

    def above_zero(self, model: str) -> bool:
        """Whether the SRCC of a configuration is above 0 by its interval."""
        return self.configurations[model]["srcc_interval"].low > 0

    def change(self, model: str, baseline: str) -> tuple[float, float]:
        """Paired difference in SRCC to a baseline and relative gain, as `compare` defines them.

        NaN without common seeds; the gain also if the baseline's SRCC is not above 0.
        """
        if not self.sample.seeds_of(model, baseline):
            return math.nan, math.nan
        seen = self.sample.values((model, baseline))  # (S, 2)
        change = float(np.mean(difference(seen)))
        if not self.above_zero(baseline):
            return change, math.nan
        if self.splits == 1:
            seen = seen.mean(0, keepdims=True)
        return change, float(np.mean(relative(seen)))

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


def has_collapsed(use: dict) -> bool:
    """Whether attention keeps hardly one stage, or weights all images alike; see `stage_use`."""
    stages, spread = COLLAPSED
    return use["effective_stages"] < stages or use["stage_spread"] < spread


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
