"""How large are the errors: outlier ratio, RMSE and RMSE* of ITU-T P.1401, and a paired test.

Scores are first mapped to the mean votes (to the MOS, where there are no votes) by VQEG's
four-parameter logistic. ITU-T P.1401 (01/2020), clauses 7.4, 7.5 and 7.7: the 95% interval of a
mean vote is c = q sd / sqrt(n), with q = 1.96, or Student's for fewer than 30 votes. An image is an
outlier if its error exceeds c; RMSE* counts only what exceeds it.

Two models are compared by the test of Pitman and of Morgan (Biometrika 31, 1939): the variances of
paired errors e1, e2 are equal if e1 + e2 and e1 - e2 are not correlated. The F test, which is
common in the literature, assumes that errors on the same images are independent (Zhu et al., On
hypothesis testing for comparing image quality assessment metrics, IEEE SPM 35(4), 2018).
"""

import math
from typing import NamedTuple

import numpy as np

import metrics
from reporting.krasula import Votes
from resampling import ByCounts

PARAMETERS = 4  # of the logistic: degrees of freedom that RMSE and RMSE* lose
MEASURES = ("outlier_ratio", "rmse", "rmse_star")


def errors_of(scores: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, metrics.Fit]:
    """target minus mapped scores (N,), NaN if the logistic can't be fitted; and the fit."""
    fit = metrics.fitted_agreement(scores, target)
    if fit.parameters is None:
        return np.full(len(target), math.nan), fit
    return target - metrics.logistic(scores, *fit.parameters), fit


def uncertainty(votes: Votes) -> np.ndarray:
    """Half of the 95% interval of each mean vote: (N,)."""
    from scipy import stats

    student = stats.t.ppf(0.975, np.maximum(votes.count - 1, 1))
    return np.where(votes.count >= 30, 1.96, student) * votes.error


def residuals_by_counts(errors: np.ndarray, votes: Votes | None) -> dict[str, ByCounts]:
    """Each measure, (B, K) in resamples of the images, of the errors (K, N); the fit stays.

    Without votes the RMSE alone.
    """
    size = np.abs(errors)

    def root(squares: np.ndarray) -> ByCounts:
        def statistic(counts: np.ndarray) -> np.ndarray:
            freedom = np.maximum(counts.sum(1, keepdims=True) - PARAMETERS, 1)
            return np.sqrt(counts @ squares.T / freedom)

        return statistic

    found = {"rmse": root(size**2)}
    if votes is None:
        return found
    allowed = uncertainty(votes)
    outside = np.where(np.isfinite(size), size > allowed, math.nan)
    found["rmse_star"] = root(np.maximum(size - allowed, 0) ** 2)
    found["outlier_ratio"] = lambda counts: counts @ outside.T / counts.sum(1, keepdims=True)
    return found


class PitmanMorgan(NamedTuple):
    ratio: float  # of the standard deviations, first to second: below 1 if the first errs less
    p: float  # two-sided


def pitman_morgan(errors: np.ndarray, others: np.ndarray) -> PitmanMorgan:
    """Test of equal variances of paired errors (N,), (N,); NaN if they do not vary."""
    from scipy import stats

    plus, minus = errors + others, errors - others
    if len(errors) < 3 or metrics.undefined(plus, minus):
        return PitmanMorgan(math.nan, math.nan)
    ratio = float(errors.std(ddof=1) / others.std(ddof=1))
    return PitmanMorgan(ratio, float(stats.pearsonr(plus, minus).pvalue))
