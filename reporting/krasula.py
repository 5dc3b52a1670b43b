"""Krasula's analysis: can a model tell images apart that people tell apart?

Krasula et al., On the accuracy of objective image and video quality models: new methodology for
performance evaluation, QoMEX 2016; Hanhart et al., How to benchmark objective quality metrics from
paired comparison data, QoMEX 2016. Two images are different if their mean votes are, |z| > 2 with
z = (m1 - m2) / sqrt(e1^2 + e2^2) and e the standard error of a mean vote (the bound of Netflix's
VMAF, python/vmaf/core/perf_metric.py; Krasula's own example takes 1.645), and similar otherwise.
All pairs of images are used.

auc_ds  probability that a different pair has a larger difference of scores than a similar pair
auc_bw  area under the ROC curve by which the sign of a difference of scores is told, over the
        different pairs in both orders
c0      share of the different pairs in which the better image has the higher score

Intervals resample images, not pairs: pairs that share an image are not independent. In a resample
the measures are taken to first order, value + sum over images of (times drawn - 1) * share, where
the share of an image (Hajek's projection; Efron, The Jackknife, the Bootstrap and Other Resampling
Plans, 1982, ch. 6) is exact. docs/statistics.md compares that with complete resamples.
"""

import math
from typing import NamedTuple

import numpy as np

from metrics import undefined
from resampling import ByCounts

BOUND = 2.0  # of |z|: different, at about 95%
MEASURES = ("auc_ds", "auc_bw", "c0")


class Votes(NamedTuple):
    """The votes of N images, on 0..100: mean, standard deviation of a sample, number; each (N,)."""

    mean: np.ndarray
    sd: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """The standard error of the mean vote: (N,)."""
        return self.sd / np.sqrt(self.count)


class Pairs(NamedTuple):
    """All P = N (N - 1) / 2 pairs of images: rows and columns (P,), and which are different."""

    first: np.ndarray
    second: np.ndarray
    different: np.ndarray  # bool
    better: np.ndarray  # of the different ones: 1 if the first image is better, -1 if the second is

    def by_image(self, values: np.ndarray, images: int) -> np.ndarray:
        """Sums (N,) of the values (P,) over the pairs of each image."""
        return sum(np.bincount(side, values, images) for side in (self.first, self.second))


def pairs_of(votes: Votes) -> Pairs:
    first, second = (side.astype(np.int32) for side in np.triu_indices(len(votes.mean), 1))
    gap = votes.mean[first] - votes.mean[second]
    error = np.hypot(votes.error[first], votes.error[second])
    different = np.abs(gap) > BOUND * error  # also if all agree on both, and the error is 0
    return Pairs(first, second, different, np.sign(gap[different]))


def krasula_by_counts(scores: np.ndarray, votes: Votes) -> dict[str, ByCounts]:
    """Each measure, (B, K) in resamples of the images, of the scores (K, N)."""
    pairs = pairs_of(votes)
    found = [measures(s, pairs) for s in scores]
    return {
        name: first_order(
            np.array([each[name][0] for each in found]), np.stack([each[name][1] for each in found])
        )
        for name in MEASURES
    }


def first_order(values: np.ndarray, shares: np.ndarray) -> ByCounts:
    """values (K,), and shares (K, N) of each image in them, as a statistic of resampled images."""
    return lambda counts: values + (counts - 1) @ shares.T


def measures(scores: np.ndarray, pairs: Pairs) -> dict[str, tuple[float, np.ndarray]]:
    """Each measure of scores (N,), and the share of each image in it (N,).

    NaN if scores are undefined, or if there are no different or no similar pairs.
    """
    images, none = len(scores), (math.nan, np.full(len(scores), math.nan))
    if undefined(scores, np.arange(images)) or not pairs.different.any():
        return dict.fromkeys(MEASURES, none)
    gap = scores[pairs.first] - scores[pairs.second]  # (P,)
    found = {"auc_ds": none}
    if not pairs.different.all():
        value, pull = auc(np.abs(gap), pairs.different)
        found["auc_ds"] = value, pairs.by_image(pull, images)

    right = gap[pairs.different] * pairs.better  # > 0 if the better image has the higher score
    only = Pairs(pairs.first[pairs.different], pairs.second[pairs.different], *pairs[2:])
    ordered = np.sort(right)
    over = np.searchsorted(-ordered[::-1], right) + np.searchsorted(-ordered[::-1], right, "right")
    for name, each in (("auc_bw", over / (2 * len(right))), ("c0", (right > 0).astype(float))):
        value = float(each.mean())
        twice = 2 if name == "auc_bw" else 1  # a pair counts on both sides of a comparison
        found[name] = value, only.by_image(twice * (each - value) / len(right), images)
    return found


def auc(values: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """P(value of a positive > value of a negative), ties by half; and its derivative (P,).

    values, positive (bool): (P,), with both kinds. The derivative is that by the weight of each.
    """
    order = np.argsort(values)
    placed = values[order]
    start = np.flatnonzero(np.diff(placed, prepend=-math.inf) != 0)  # ties are one group
    size = np.diff(start, append=len(values))
    positives = np.add.reduceat(positive[order], start, dtype=float)
    negatives = size - positives
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    above = (np.cumsum(positives[::-1])[::-1] - positives / 2) / positives.sum()
    value = float(positives @ below / positives.sum())
    pull = np.empty(len(values))
    pull[order] = np.where(
        positive[order],
        np.repeat((below - value) / positives.sum(), size),
        np.repeat((above - value) / negatives.sum(), size),
    )
    return value, pull
