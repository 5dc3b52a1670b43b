"""What is said of all models alike, of one's own and of published ones."""

import numpy as np

import metrics
import resampling
from reporting import krasula, thirds
from reporting.residuals import pitman_morgan
from reporting.scores import Scores, difference
from resampling import Interval

# Where the measures of krasula.py, residuals.py and thirds.py can lie.
RANGES = {
    **dict.fromkeys(krasula.MEASURES, (0, 1)),
    **{"outlier_ratio": (0, 1), "rmse": (0, np.inf), "rmse_star": (0, np.inf)},
    **{f"srcc_{third}": (-1, 1) for third in thirds.THIRDS},
}


class Analysis:
    """Figures of the models of `scores`, whose names in tables are `titles`.

    compared: comparisons that have been made (Scores.compare); over: (label, model, other) with
    published models. no_votes: why there is nothing that needs the votes; empty if there is.

    published[name]: SRCC, PLCC and so on of each model that was not trained here.
    published_comparisons: differences in SRCC with them.
    measures[name][model]: the Interval of each measure of RANGES that is known.
    krasula: for each comparison its label, model, other, and for each measure of krasula.py the
    Interval of the difference, and its p by Holm's correction as '<measure>_p_holm'.
    errors: for each comparison of two models Pitman and Morgan's ratio and p, each a list over
    seeds, and with one seed p_holm.
    """

    def __init__(
        self,
        scores: Scores,
        titles: dict[str, str],
        compared: list[dict],
        over: list[tuple[str, str, str]],
        no_votes: str,
    ):
        self.scores, self.titles, self.no_votes = scores, titles, no_votes
        self.models = list(titles)
        self.published = {m: self.agreement(m) for m in titles if not scores.is_trained(m)}
        self.published_comparisons = scores.compare(over)
        self.measures = {
            name: {m: self.interval(m, name) for m in titles}
            for name in RANGES
            if name in scores.seen
        }
        made = [*compared, *self.published_comparisons]
        pairs = [(c["label"], c["model"], c["other"]) for c in made]
        self.krasula = self.differences(pairs) if "auc_ds" in scores.seen else []
        self.errors = self.compare_errors(pairs)

    def agreement(self, name: str) -> dict:
        """The figures of a model that was not trained here."""
        scores, truth = self.scores.runs[name, None], self.scores.truths[None]
        fit = metrics.fitted_agreement(scores, truth.mos)
        found = metrics.agreement(scores, truth.mos)
        found |= {"plcc_fitted": fit.plcc, "rmse_fitted": fit.rmse, "fit_problem": fit.reason}
        found["undefined"] = metrics.undefined(scores, truth.mos)
        for metric in ("srcc", "plcc"):
            found[f"{metric}_interval"] = self.scores.interval((name,), metric=metric)
        return found

    def interval(self, model: str, measure: str) -> Interval:
        """Of one measure; with two seeds it could reach beyond what is possible."""
        found = self.scores.interval((model,), metric=measure)
        low, high = np.clip([found.low, found.high], *RANGES[measure]).tolist()
        return found._replace(low=low, high=high)

    def fitted(self, model: str) -> float:
        """PLCC of the scores that are mapped to the mean votes, averaged over seeds."""
        runs = [run for run in self.scores.runs if run[0] == model]
        return float(np.mean([self.scores.errors[run][1].plcc for run in runs]))

    def differences(self, pairs: list[tuple[str, str, str]]) -> list[dict]:
        found = []
        for label, model, other in pairs:
            each = {
                name: self.scores.interval((model, other), difference, metric=name)
                for name in krasula.MEASURES
            }
            found.append({"label": label, "model": model, "other": other, **each})
        for name in krasula.MEASURES:
            for row, p in zip(found, resampling.holm([row[name].p for row in found])):
                row[f"{name}_p_holm"] = p
        return found

    def compare_errors(self, pairs: list[tuple[str, str, str]]) -> list[dict]:
        found = []
        for label, model, other in pairs:
            tests = [
                pitman_morgan(
                    *(self.scores.errors[self.scores.run_of(m, seed)][0] for m in (model, other))
                )
                for seed in self.scores.seeds_of(model, other)
            ]
            ratios, ps = [t.ratio for t in tests], [t.p for t in tests]
            found.append({"label": label, "model": model, "other": other, "ratio": ratios, "p": ps})
        if all(len(row["p"]) == 1 for row in found):
            for row, p in zip(found, resampling.holm([row["p"][0] for row in found])):
                row["p_holm"] = p
        return found

    def figures(self) -> dict:
        """All of it, for results.json."""
        return {
            "published": self.published,
            "published_comparisons": self.published_comparisons,
            "no_votes": self.no_votes,
            "measures": self.measures,
            "krasula_comparisons": self.krasula,
            "pitman_morgan": self.errors,
        }
