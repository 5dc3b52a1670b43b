"""Confidence intervals and tests of an agreement, by resampling images, seeds or splits.

    from resampling import difference, interval, srcc_by_counts
    interval(srcc_by_counts(predicted, mos), len(mos))                  # 95% over images
    difference(predicted, baseline, mos)                                # paired, with p

With one seed, intervals resample images (`interval`); with several seeds, they account for seeds
as well (`over_seeds`), whose variance can be pooled over configurations (`SeedVariance`); with
several random splits, they are those of a t-test (`over_splits`). benchmarks/coverage.py measures
their coverage.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from metrics import undefined

RESAMPLES = 5000

LEVEL = 0.95
ONE_SIDED = 0.90  # the interval whose ends are one-sided bounds at 95%

# A statistic of resampled images: maps counts (B, N), how often each image was drawn, to (B,).
ByCounts = Callable[[np.ndarray], np.ndarray]


def ranks_by_counts(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mid-ranks (B, N) of values (N,) in B resamples; value i occurs counts[b, i] times in b.

    The values are sorted once for all resamples, so thousands of resamples are cheap.
    """
    order = np.argsort(values, kind="stable")
    groups = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)  # ties are one group
    totals = counts[:, order]  # (B, groups)
    if len(groups) < len(values):
        totals = np.add.reduceat(totals, groups, axis=1)
    ranks = np.cumsum(totals, 1) - (totals - 1) / 2
    group_of = np.empty(len(values), int)
    group_of[order] = np.repeat(np.arange(len(groups)), np.diff(groups, append=len(values)))
    return ranks[:, group_of]


def correlation_by_counts(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's r (B,) of x and y ((N,) or (B, N)); item i has the weight counts[b, i]."""
    n = counts.sum(1, keepdims=True)
    x = x - (counts * x).sum(1, keepdims=True) / n
    y = y - (counts * y).sum(1, keepdims=True) / n
    weighted = counts * x
    norm = np.sqrt((weighted * x).sum(1) * (counts * y * y).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weighted * y).sum(1) / norm


def srcc_by_counts(predicted: np.ndarray, mos: np.ndarray) -> ByCounts:
    """SRCC of resampled images: (B,) for predictions (N,), and (B, K) for (K, N).

    NaN for predictions whose correlation is undefined (see `undefined`): ranking would otherwise
    put NaN last.
    """

    def statistic(counts: np.ndarray) -> np.ndarray:
        wanted = ranks_by_counts(mos, counts)
        found = [
            np.full(len(counts), math.nan)
            if undefined(p, mos)
            else correlation_by_counts(ranks_by_counts(p, counts), wanted, counts)
            for p in np.atleast_2d(predicted)
        ]
        return np.stack(found, -1) if np.ndim(predicted) == 2 else found[0]

    return statistic


def difference_by_counts(a: np.ndarray, b: np.ndarray, mos: np.ndarray) -> ByCounts:
    """SRCC of a minus SRCC of b, on the same resampled images."""
    both = srcc_by_counts(np.stack([a, b]), mos)
    return lambda counts: np.subtract(*both(counts).T)


def plcc_by_counts(predicted: np.ndarray, mos: np.ndarray) -> ByCounts:
    """PLCC (of the raw scores) of resampled images: (B,) for (N,), and (B, K) for (K, N)."""

    def statistic(counts: np.ndarray) -> np.ndarray:
        found = [
            np.full(len(counts), math.nan)
            if undefined(p, mos)
            else correlation_by_counts(p, mos, counts)
            for p in np.atleast_2d(predicted)
        ]
        return np.stack(found, -1) if np.ndim(predicted) == 2 else found[0]

    return statistic


class Interval(NamedTuple):
    value: float
    low: float
    high: float
    p: float  # two-sided, of the hypothesis that the value is 0
    reason: str = ""  # why the interval is NaN
    # By two one-sided tests |value| is smaller than this with 95% confidence: the larger absolute
    # end of the 90% interval (Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987).
    within: float = math.nan
    error: float = math.nan  # standard error


def interval(
    statistic: ByCounts, images: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """A statistic with its 95% interval over images: see `bca`."""
    value = float(statistic(np.ones((1, images)))[0])
    if images < 3 or not math.isfinite(value):
        return Interval(value, math.nan, math.nan, math.nan, "too few images, or undefined")
    drawn = resample_images(statistic, images, resamples=resamples, seed=seed)
    return bca(value, drawn, leave_one_out(statistic, images))


def bca(value: float, drawn: np.ndarray, left_out: np.ndarray) -> Interval:
    """The bias-corrected and accelerated interval (Efron, J. American Statistical Ass. 82, 1987).

    drawn (B,): the statistic in resamples of the images; left_out (N,): without one image each.
    p: see `p_value`. BCa corrects the interval but not p, so they can disagree for p near 0.05.
    """
    from scipy import stats

    p, pull = p_value(drawn), left_out.mean() - left_out
    below = (np.mean(drawn < value) + np.mean(drawn <= value)) / 2
    if not (np.isfinite(drawn).all() and np.ptp(drawn) > 0 and 0 < below < 1 and pull.any()):
        reason = "the resamples do not vary, or are undefined"
        return Interval(value, math.nan, math.nan, p, reason)
    bias = stats.norm.ppf(below)
    acceleration = np.sum(pull**3) / (6 * np.sum(pull**2) ** 1.5)

    def ends(level: float) -> list[float]:
        z = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
        share = stats.norm.cdf(bias + z / (1 - acceleration * z))
        return np.quantile(drawn, share).tolist()

    within = max(map(abs, ends(ONE_SIDED)))
    return Interval(value, *ends(LEVEL), p, within=within, error=float(drawn.std(ddof=1)))


def p_value(resampled: np.ndarray) -> float:
    """Two-sided p of the hypothesis that a statistic is 0, from its resamples (B,).

    Twice the smaller share of resamples on one side of 0, at least 1 / (B + 1); NaN if any is NaN.
    """
    if not np.isfinite(resampled).all():
        return math.nan
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(resampled) + 1)))


def difference(
    predicted: np.ndarray,
    baseline: np.ndarray,
    mos: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """SRCC of `predicted` minus SRCC of `baseline`, paired: on the same resampled images."""
    statistic = difference_by_counts(predicted, baseline, mos)
    return interval(statistic, len(mos), resamples=resamples, seed=seed)


def permutation_p(
    predicted: np.ndarray,
    baseline: np.ndarray,
    mos: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> float:
    """Two-sided p of a permutation test that swaps the ranks of two predictions image by image.

    predicted, baseline: (N,), or (S, N) of S seeds; an image is swapped in all seeds at once. The
    test statistic is the difference in SRCC, averaged over seeds.
    """
    from scipy import stats

    rng, images = np.random.default_rng(seed), len(mos)
    a, b = (stats.rankdata(np.atleast_2d(x), axis=1) for x in (predicted, baseline))  # (S, N)
    target = stats.rankdata(mos)
    target -= target.mean()

    def parts(ranks: np.ndarray) -> np.ndarray:
        """The terms (N, 3) of each image, whose sums give r of ranks (N,)."""
        return np.stack([ranks, ranks**2, ranks * target], 1)

    def correlation(total: np.ndarray) -> np.ndarray:
        """r (B,) from the sums (B, 3) of those terms."""
        ranks, squares, products = total.T
        return products / np.sqrt((squares - ranks**2 / images) * (target @ target))

    def gap(swap: np.ndarray) -> np.ndarray:
        """Difference (B,) averaged over seeds, with the images of swap (B, N) swapped."""
        found = np.zeros(len(swap))
        for one, other in zip(map(parts, a), map(parts, b)):
            moved = swap @ (other - one)
            found += correlation(one.sum(0) + moved) - correlation(other.sum(0) - moved)
        return found / len(a)

    observed = abs(gap(np.zeros((1, images)))[0]) - 1e-12  # equal values differ by rounding
    larger = 0
    for start in range(0, resamples, 250):
        swap = rng.integers(0, 2, (min(250, resamples - start), images)).astype(float)
        larger += (np.abs(gap(swap)) >= observed).sum()
    return float(larger + 1) / (resamples + 1)


class SeedVariance(NamedTuple):
    """Variance between the training runs of K configurations with the same S seeds, pooled.

    Two-way analysis of variance (configuration fixed, seed as block, one run per cell: Cochran and
    Cox, Experimental Designs, 2nd ed., 1957, ch. 4). It assumes that all configurations vary
    equally between seeds, and that any two of them are equally correlated.
    """

    residual: float  # mean square of what neither the configuration nor the seed explains
    block: float  # mean square between seeds: what all configurations share, K times, and residual
    seeds: int
    configurations: int
    p_equal: float  # of the test that all configurations vary equally; NaN with two seeds

    @property
    def df(self) -> int:
        """Degrees of freedom of `residual`: those of differences between configurations."""
        return (self.seeds - 1) * (self.configurations - 1)

    def of_combination(self, weights: np.ndarray) -> tuple[float, float]:
        """Variance of one seed's weighted sum of configurations, and its degrees of freedom.

        weights (M,), of M of the configurations. If they sum to 0, seeds as blocks cancel. If not,
        the degrees of freedom are Satterthwaite's.
        """
        shared = float(weights.sum()) ** 2 / self.configurations
        parts = [(float(weights @ weights) - shared) * self.residual, shared * self.block]
        variance = sum(parts)
        certainty = parts[0] ** 2 / self.df + parts[1] ** 2 / (self.seeds - 1)
        return variance, variance**2 / certainty if certainty > 0 else float(self.df)


def brown_forsythe(residuals: np.ndarray) -> np.ndarray:
    """Brown and Forsythe's statistic (J. American Statistical Association 69, 1974), from scipy.

    residuals: (S, K), or (S, K, B) for B statistics. Large if the variances of the K differ.
    """
    from scipy import stats

    return stats.levene(*residuals.swapaxes(0, 1), center="median", axis=0).statistic


def residuals_of(values: np.ndarray) -> np.ndarray:
    """values (S, K) or (S, K, B) without the means of seeds and of configurations."""
    centred = values - values.mean(0, keepdims=True)
    return centred - centred.mean(1, keepdims=True)


@functools.cache
def null_of_brown_forsythe(seeds: int, configurations: int) -> np.ndarray:
    """The statistic (B,) for residuals of normal values with equal variances.

    The F distribution does not fit so few values: with 3 seeds it never rejects, not even at a
    ratio of 100:1.
    """
    values = np.random.default_rng(0).standard_normal((seeds, configurations, 4999))
    return brown_forsythe(residuals_of(values))


def seed_variance(values: np.ndarray) -> SeedVariance:
    """The pooled variance of a statistic (S, K) of S seeds and K configurations, 2 or more each."""
    seeds, configurations = values.shape
    residuals, p = residuals_of(values), math.nan
    if seeds > 2 and np.ptp(residuals) > 0:  # two values are equally far from their median
        null = null_of_brown_forsythe(seeds, configurations)
        p = float(1 + (null >= brown_forsythe(residuals)).sum()) / (len(null) + 1)
    return SeedVariance(
        float((residuals**2).sum()) / ((seeds - 1) * (configurations - 1)),
        configurations * float(values.mean(1).var(ddof=1)),
        seeds,
        configurations,
        p,
    )


def leave_one_out(statistic: ByCounts, images: int) -> np.ndarray:
    """A statistic without one image each: (N,), or (N, K)."""
    everyone = np.arange(images)
    batches = np.array_split(everyone, -(-images // 250))
    return np.concatenate([statistic((everyone != out[:, None]).astype(float)) for out in batches])


def resample_images(
    statistic: ByCounts, images: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """A statistic in all resamples of images: (B,), or (B, K)."""
    rng, chance = np.random.default_rng(seed), np.full(images, 1 / images)
    sizes = [min(250, resamples - start) for start in range(0, resamples, 250)]
    return np.concatenate(
        [statistic(rng.multinomial(images, chance, n).astype(float)) for n in sizes]
    )


def over_seeds(
    seen: np.ndarray,
    drawn: np.ndarray,
    combine: Callable[[np.ndarray], np.ndarray],
    *,
    variance: SeedVariance | None = None,
    trained: np.ndarray | None = None,
    seed: int = 0,
) -> Interval:
    """A statistic of several seeds with its 95% interval over seeds and images.

    seen: the statistic of each seed on all images, (S,) or (S, M) for M configurations. drawn: the
    same in resamples of images, (S, B) or (S, B, M). combine: maps means over seeds, (B,) or
    (B, M), to (B,). variance: between seeds, pooled; without it that of these seeds alone, with
    S - 1 degrees of freedom. trained: bool (M,), which of the configurations have seeds (all, if
    not given); the others are the same in every seed.

    1. Bootstrap images on the seed-averaged statistic.
    2. Add a normal deviate with the seed variance of the combination (linearized) over S. (S draws
       from S seeds would take few values.)
    3. The noise of a seed on these images is in both terms; remove it from the first, or it would
       count twice (Owen, Annals of Applied Statistics 1, 2007).
    4. Widen the percentile interval for few seeds (Cochran and Cox, Experimental Designs, 2nd ed.,
       1957): its normal quantile becomes the mean of the normal quantile and that of Student's t
       with the degrees of freedom of the seed variance, weighted by the variances from images and
       from seeds.

    p belongs to the interval that ends at 0.
    """
    from scipy import optimize, stats

    count, resamples = drawn.shape[:2]
    mean = seen.mean(0)
    value = float(combine(mean[None])[0])
    by_image = combine(drawn.mean(0)) - value
    own = [combine(mean + d - drawn.mean(0)) for d in drawn]  # (B,) each
    step = 1e-4 * np.eye(mean.size).reshape(-1, *mean.shape)  # (M, M), or (1,)
    gradient = (combine(mean + step) - combine(mean - step)) / 2e-4  # (M,)
    if not (np.isfinite([by_image, *own]).all() and np.isfinite(gradient).all()):
        return Interval(value, math.nan, math.nan, math.nan, "undefined in some resamples")
    if variance is None:
        deviations = (seen - mean).reshape(count, -1) @ gradient
        by_seed, df = float(deviations @ deviations) / (count - 1), count - 1
    else:
        by_seed, df = variance.of_combination(gradient if trained is None else gradient[trained])
    by_seed /= count
    if by_image.var() > 0:
        counted_twice = np.mean(np.var(own, 1)) / (count - 1) / by_image.var()
        by_image *= math.sqrt(max(0.0, 1 - counted_twice))
    noise = np.random.default_rng([seed, 1]).standard_normal(resamples)
    both = np.sort(by_image + math.sqrt(by_seed) * noise)
    if both[0] == both[-1]:
        return Interval(value, math.nan, math.nan, math.nan, "the resamples do not vary")
    share = by_seed / (by_seed + by_image.var())

    def end(tail: float, below: bool) -> float:
        """The lower or upper end of the interval that excludes `tail` on each side."""
        normal, student = stats.norm.isf(tail), stats.t.isf(tail, df)
        reach = np.quantile(both, tail if below else 1 - tail)
        return value + float((1 - share + share * student / normal) * reach)

    low, high = (end((1 - LEVEL) / 2, below) for below in (True, False))
    within = max(abs(end((1 - ONE_SIDED) / 2, below)) for below in (True, False))
    least, most = 1 / (resamples + 1), 0.5 - 1e-6

    def clear(tail: float) -> float:
        """Distance of that interval from 0; negative if it contains 0."""
        return end(tail, True) if value >= 0 else -end(tail, False)

    if clear(least) > 0:
        tail = least
    else:
        tail = float(optimize.brentq(clear, least, most)) if clear(most) > 0 else 0.5
    error = math.sqrt(by_seed + by_image.var())
    return Interval(value, low, high, 2 * tail, within=within, error=error)


def over_splits(values: np.ndarray, test_share: float) -> Interval:
    """The mean of a statistic (S,) over S random splits, with its 95% interval and p.

    Corrected resampled t-test (Nadeau and Bengio, Machine Learning 52, 2003, eq. 9): splits share
    images, so the variance of the mean is (1 / S + test_share) times the variance over splits.
    test_share: number of test images divided by number of training images.
    """
    from scipy import stats

    value, count = float(np.mean(values)), len(values)
    if count < 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return Interval(value, math.nan, math.nan, math.nan, "undefined, or the same in all splits")
    error = float(np.std(values, ddof=1)) * math.sqrt(1 / count + test_share)
    reach, one_sided = error * stats.t.ppf([(1 + LEVEL) / 2, (1 + ONE_SIDED) / 2], count - 1)
    p = 2 * float(stats.t.sf(abs(value) / error, count - 1))
    return Interval(
        value, value - float(reach), value + float(reach), p, within=abs(value) + float(one_sided)
    )


def holm(p: list[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; NaN stays NaN and is not counted."""
    from statsmodels.stats.multitest import multipletests

    adjusted = np.array(p, float)
    known = np.isfinite(adjusted)
    if known.any():
        adjusted[known] = multipletests(adjusted[known], method="holm")[1]
    return adjusted.tolist()


def seeds_needed(differences: np.ndarray) -> int | None:
    """Seeds needed to detect the observed mean difference (paired t-test, p < .05, 80% power).

    From seed variance alone: the error of a finite test set does not shrink with seeds. By the
    noncentral t distribution. None if the deviation is unknown (one seed, or undefined
    differences), if the difference is 0, or if more than 10,000 seeds would be needed.
    """
    from scipy import stats

    if len(differences) < 2 or not np.isfinite(differences).all() or np.mean(differences) == 0:
        return None
    effect = abs(np.mean(differences)) / max(np.std(differences, ddof=1), 1e-12)

    def power(n: int) -> float:
        critical = stats.t.ppf(0.975, n - 1)
        value = stats.nct.sf(critical, n - 1, effect * math.sqrt(n))
        return 1.0 if math.isnan(value) else value  # scipy gives NaN for very large effects

    low, high = 2, 2
    while power(high) < 0.8:
        low, high = high, 2 * high
        if high > 10_000:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= 0.8 else (middle + 1, high)
    return high
