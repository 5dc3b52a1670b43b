"""The same ablation by another recipe: does the answer depend on how the models are trained?

python3 report_resnet_ablation.py LOG_DIR --other_recipe OTHER_LOG_DIR
"""

import math
from typing import TYPE_CHECKING

import resampling
from errors import ReportError
from experiment import BASELINE, BOTH, COMPARISONS, FULL, RECIPE_FLAGS
from reporting.formats import at_most, bounds, decimal, digits_of, listed, p_value, percent
from reporting.parts import RECIPE, Section
from reporting.runs import FinishedRun, Runs, check_comparable, differences, test_rows
from reporting.scores import Combine, Scores, Truth, difference, difference_of_differences, relative
from reporting.statistics import Statistics, leading_selection
from resampling import Interval

if TYPE_CHECKING:
    import pandas as pd

Rows = dict[tuple[str, int], "pd.DataFrame"]  # test images by configuration and seed
HERE, THERE = "this recipe", "the other"


class OtherRecipe:
    """The runs of a report and those of another recipe, on the same test images.

    gains: the relative gain of both improvements by HERE and THERE. comparisons: one dictionary for
    each comparison in both: label; by HERE and THERE the difference in SRCC; change: that of THERE
    minus that of HERE, paired by images and seeds; p_holm. differing: the flags of the recipes, in
    the words of runs.differences. problems: of the other runs, as Runs has them.
    """

    def __init__(self, s: Statistics, others: Runs):
        models = {run.model for run in s.runs}
        runs = [run for run in others.finished if run.model in models]
        if not runs:
            raise ReportError("--other_recipe: it has none of the configurations of the report")
        self.problems = others.problems
        self.selections = {HERE: s.selection, THERE: leading_selection(runs)}
        others = rows_of(s, runs)
        self.differing = [
            flag
            for flag in differences(s.runs[0].config, runs[0].config, set())
            if not flag.startswith("--preset ")
        ]
        self.truth = Truth(next(iter(s.rows.values()))["mos"].to_numpy())
        self.options = s.options
        of_recipe = {HERE: s.rows, THERE: others}
        self.alone = {recipe: self.sample({recipe: rows}) for recipe, rows in of_recipe.items()}
        self.together = self.sample(of_recipe)
        self.seeds = self.common(FULL, BASELINE)
        self.gains = {
            recipe: self.interval(recipe, (FULL, BASELINE), relative) for recipe in (HERE, THERE)
        }
        self.comparisons = []
        for label, *pair in COMPARISONS:
            if not self.common(*pair):
                continue
            found = {recipe: self.interval(recipe, pair, difference) for recipe in (HERE, THERE)}
            models = [(recipe, model) for recipe in (THERE, HERE) for model in pair]
            found["change"] = self.together.interval(tuple(models), difference_of_differences)
            self.comparisons.append({"label": label, **found})
        ps = resampling.holm([c["change"].p for c in self.comparisons])
        for comparison, p in zip(self.comparisons, ps):
            comparison["p_holm"] = p

    def sample(self, of_recipe: dict[str, Rows]) -> Scores:
        """The scores of the runs of recipes: their models are (recipe, configuration)."""
        scores = {
            ((recipe, model), seed): part["score"].to_numpy()
            for recipe, rows in of_recipe.items()
            for (model, seed), part in rows.items()
        }
        return Scores(
            scores, dict.fromkeys({seed for _, seed in scores}, self.truth), **self.options
        )

    def common(self, *pair: str) -> list[int]:
        """The seeds that two models have in both recipes."""
        models = [(recipe, model) for recipe in (HERE, THERE) for model in pair]
        known = {*models} <= {*self.together.models}
        return self.together.seeds_of(*models) if known else []

    def interval(self, recipe: str, pair: tuple[str, str], combine: Combine) -> Interval:
        """As in the report of that recipe alone."""
        scores, models = self.alone[recipe], tuple((recipe, model) for model in pair)
        if not {*models} <= {*scores.models} or not scores.seeds_of(*models):
            return Interval(*[math.nan] * 4, "runs are missing")
        return scores.interval(models, combine)

    def figures(self) -> dict:
        """All of it, for results.json."""
        return {
            "recipes_differ_in": self.differing,
            "gains": self.gains,
            "comparisons": self.comparisons,
        }


def rows_of(s: Statistics, runs: list[FinishedRun]) -> Rows:
    """The test images of each run of the other recipe, by configuration and seed.

    Raises ReportError if the runs can't be compared among themselves, or differ from those of the
    report in more than the recipe.
    """
    check_comparable(runs)
    for other in {run.model: run for run in runs}.values():
        run = next(r for r in s.runs if r.model == other.model)
        if found := differences(run.config, other.config, RECIPE_FLAGS):
            raise ReportError(
                f"--other_recipe: {other.name} differs from {run.name} in more than the recipe: "
                f"{'; '.join(found)}"
            )
    if not differences(s.runs[0].config, runs[0].config, {"preset"}):
        raise ReportError("--other_recipe: those runs have the same recipe; give other ones")
    rows = {(run.model, run.seed): test_rows(run, leading_selection(runs)) for run in runs}
    wanted = next(iter(s.rows.values()))[["image", "mos"]]
    if s.splits > 1 or not all(part[["image", "mos"]].equals(wanted) for part in rows.values()):
        raise ReportError(
            "--other_recipe: all runs of both recipes must have the same test images and MOS"
        )
    return rows


# The words ---------------------------------------------------------------------------------------


def in_a_sentence(o: OtherRecipe) -> str:
    """Whether the answer depends on the recipe, as far as the runs tell."""
    both = next((c for c in o.comparisons if c["label"] == BOTH), None)
    if both is None:
        return "Another recipe: no seed has both models by both recipes, so nothing is said."
    if not math.isfinite(both["change"].low + both["change"].high):
        return f"Another recipe: the change has no interval ({both['change'].reason})."
    gains = " and ".join(
        f"{percent(gain.value)} (95% interval {percent(gain.low)} to {percent(gain.high)}) by "
        f"{recipe}"
        for recipe, gain in o.gains.items()
    )
    said = f"Another recipe: both improvements change the SRCC of the baseline by {gains}; "
    if len(o.seeds) == 1:
        return f"{said}with one seed that does not tell whether the answer depends on the recipe."
    change = both["change"]
    size = f"{decimal(change.value, sign=True)} SRCC, 95% interval {bounds(change, sign=True)}"
    if both["p_holm"] < 0.05:
        return f"{said}the answer depends on the recipe ({size})."
    return (
        f"{said}it is not found that the answer depends on the recipe ({size}; with 95% confidence "
        f"the difference is smaller than {at_most(change.within)})."
    )


def section(o: OtherRecipe) -> Section:
    digits = digits_of([c[recipe] for c in o.comparisons for recipe in (HERE, THERE)]) + 1
    rows = [
        [
            c["label"],
            *(
                f"{decimal(c[name].value, digits, True)} {bounds(c[name], digits, True)}"
                for name in (HERE, THERE, "change")
            ),
            p_value(c["change"].p),
            p_value(c["p_holm"]),
            at_most(c["change"].within, digits) if c["p_holm"] >= 0.05 else "-",
        ]
        for c in o.comparisons
    ]
    here, there = o.selections[HERE], o.selections[THERE]
    epochs = here if here == there else f"{HERE}: {here}; {THERE}: {there}"
    notes = [
        f"Differences in SRCC with 95% intervals, on the same test images ({epochs}). Change: the "
        "difference by the other recipe minus that by this one, over the seeds that both have, "
        f"paired by images and seeds. Holm: corrected for the {len(rows)} rows. "
        "Smaller than: where no change is found, with 95% confidence (two one-sided tests).",
        f"The recipes differ in (this and the other): {listed(o.differing)}.",
        *(f"Of the other recipe: {problem}." for problem in o.problems),
    ]
    header = ["", HERE, THERE, "change", "p", "p (Holm)", "smaller than"]
    return Section(
        "The same differences by another recipe",
        header,
        rows,
        [in_a_sentence(o)],
        question=RECIPE,
        notes=notes,
    )
