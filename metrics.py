"""What a score is worth: how well predictions agree with mean opinion scores, and how surely.

from metrics import agreement, difference, interval
agreement(predicted, mos)            # {'srcc': 0.90, 'plcc': 0.91, 'krcc': 0.73, 'rmse': 6.1}
interval(srcc_by_counts(predicted, mos), len(mos))                  # 95% over images
difference(predicted, baseline, mos)                                # paired, with p

Predictions and MOS are arrays (N,) over the same images in the same order. Intervals resample
images; with runs of several seeds they allow for seeds too; over several random splits they are
those of a t-test. Needs numpy and scipy alone.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

METRICS = ("srcc", "plcc", "krcc", "rmse")
RESAMPLES = 5000
LEVEL = 0.95
# A statistic of resampled images: from counts (B, N), how often each image was drawn, to (B,).
ByCounts = Callable[[np.ndarray], np.ndarray]


def agreement(predicted: np.ndarray, mos: np.ndarray) -> dict[str, float]:
    """SRCC, PLCC (of the raw scores), KRCC (tau-b) and RMSE of predictions (N,) against MOS (N,).

    A correlation is NaN where it is undefined: see `undefined`.
    Raises ValueError for arrays of different lengths.
    """
    from scipy import stats

    predicted, mos = np.asarray(predicted, np.float64), np.asarray(mos, np.float64)
    if predicted.shape != mos.shape or predicted.ndim != 1:
        raise ValueError(f"predictions of shape {predicted.shape} for labels of {mos.shape}")
    if not len(mos) or not np.isfinite(predicted).all():
        return dict.fromkeys(METRICS, float("nan"))

    values = {"rmse": float(np.sqrt(np.mean((predicted - mos) ** 2)))}
    if undefined(predicted, mos):
        return dict.fromkeys(METRICS, float("nan")) | values
    return {
        "srcc": float(stats.spearmanr(predicted, mos).statistic),
        "plcc": float(stats.pearsonr(predicted, mos).statistic),
        "krcc": float(stats.kendalltau(predicted, mos).statistic),
    } | values


def undefined(predicted: np.ndarray, mos: np.ndarray) -> str:
    """Why a correlation is undefined; empty where it is defined."""
    if len(mos) < 2:
        return "fewer than two images"
    if not np.isfinite(predicted).all():
        return "predictions that are not finite"
    if np.ptp(predicted) == 0:
        return "predictions that are all the same"
    return "labels that are all the same" if np.ptp(mos) == 0 else ""


def logistic(x: np.ndarray, high: float, low: float, middle: float, width: float) -> np.ndarray:
    """VQEG's four-parameter logistic (Final Report, FR-TV phase II, 2003), from scores to MOS."""
    from scipy.special import expit

    return low + (high - low) * expit((x - middle) / abs(width))


class Fit(NamedTuple):
    plcc: float  # after the logistic
    rmse: float
    parameters: tuple[float, ...] | None  # of `logistic`; None where it could not be fitted
    reason: str  # why not


def fitted_agreement(predicted: np.ndarray, mos: np.ndarray) -> Fit:
    """PLCC and RMSE after `logistic` has been fitted to the predictions by least squares."""
    from scipy import optimize

    reason = undefined(predicted, mos)
    if not reason and len(mos) < 5:
        reason = "fewer images than the logistic needs (5)"
    if reason:
        return Fit(math.nan, math.nan, None, reason)
    start = (mos.max(), mos.min(), np.median(predicted), predicted.std())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # of the covariance, unused
            parameters, _ = optimize.curve_fit(logistic, predicted, mos, start, maxfev=20_000)
    except RuntimeError as error:
        return Fit(math.nan, math.nan, None, f"the logistic could not be fitted ({error})")
    mapped = logistic(predicted, *parameters)
    values = agreement(mapped, mos)
    reason = "" if math.isfinite(values["plcc"]) else "the fitted logistic is flat"
    return Fit(values["plcc"], values["rmse"], tuple(map(float, parameters)), reason)


# Resampling -------------------------------------------------------------------------------------


def ranks_by_counts(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mid-ranks (B, N) that values (N,) have in resamples where value i occurs counts[b, i] times.

    The values are sorted once for all resamples, which makes thousands of them cheap.
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
    """Pearson's r (B,) of x and y ((N,) or (B, N)), where item i counts counts[b, i] times."""
    n = counts.sum(1, keepdims=True)
    x = x - (counts * x).sum(1, keepdims=True) / n
    y = y - (counts * y).sum(1, keepdims=True) / n
    weighted = counts * x
    norm = np.sqrt((weighted * x).sum(1) * (counts * y * y).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weighted * y).sum(1) / norm


def srcc_by_counts(predicted: np.ndarray, mos: np.ndarray) -> ByCounts:
    """SRCC of resampled images: (B,) for predictions (N,), and (B, K) for (K, N).

    NaN for predictions whose correlation is undefined (see `undefined`): NaN would rank last.
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
    """SRCC of a less that of b, on the same resampled images."""
    both = srcc_by_counts(np.stack([a, b]), mos)
    return lambda counts: np.subtract(*both(counts).T)


def plcc_by_counts(predicted: np.ndarray, mos: np.ndarray) -> ByCounts:
    """PLCC (of the raw scores) of resampled images."""
    return lambda counts: correlation_by_counts(predicted, mos, counts)


class Interval(NamedTuple):
    value: float
    low: float
    high: float
    p: float  # two-sided, that the value is 0
    reason: str = ""  # why it is NaN


def interval(
    statistic: ByCounts, images: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """A statistic with its 95% interval over images: BCa bootstrap (Efron 1987, by scipy).

    p is twice the smaller part of the resamples on one side of 0 (at least 1 of resamples + 1);
    BCa shifts the interval and not p, so that the two can disagree where p is close to 0.05.
    """
    from scipy import stats

    def of_draws(draws: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = draws.reshape(-1, draws.shape[-1])
        flat = rows + images * np.arange(len(rows))[:, None]
        counts = np.bincount(flat.ravel(), minlength=images * len(rows))
        return statistic(counts.reshape(-1, images).astype(float)).reshape(draws.shape[:-1])

    value = float(statistic(np.ones((1, images)))[0])
    if images < 3 or not math.isfinite(value):
        return Interval(value, math.nan, math.nan, math.nan, "too few images, or undefined")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate interval is NaN, and is said below
        result = stats.bootstrap(
            (np.arange(images),),
            of_draws,
            n_resamples=resamples,
            batch=250,
            vectorized=True,
            confidence_level=LEVEL,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = map(float, result.confidence_interval)
    reason = "" if math.isfinite(low + high) else "the resamples don't vary, or are undefined"
    return Interval(value, low, high, p_value(result.bootstrap_distribution), reason)


def p_value(resampled: np.ndarray) -> float:
    """Two-sided p that a statistic is 0, from its resamples; NaN where one of them is NaN."""
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
    """SRCC of `predicted` less that of `baseline`, paired: both on the same resampled images."""
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
    """Two-sided p that two predictions are exchangeable: their ranks are swapped image by image.

    predicted, baseline: (N,), or (S, N) of S seeds, all of which swap an image together; what is
    compared is the difference in SRCC, the mean over seeds.
    """
    from scipy import stats

    rng, images = np.random.default_rng(seed), len(mos)
    a, b = (stats.rankdata(np.atleast_2d(x), axis=1) for x in (predicted, baseline))  # (S, N)
    target = stats.rankdata(mos)
    target -= target.mean()

    def parts(ranks: np.ndarray) -> np.ndarray:
        """What r of ranks (N,) is made of, image by image: (N, 3)."""
        return np.stack([ranks, ranks**2, ranks * target], 1)

    def correlation(total: np.ndarray) -> np.ndarray:
        """r (B,) from the sums (B, 3) of those parts."""
        ranks, squares, products = total.T
        return products / np.sqrt((squares - ranks**2 / images) * (target @ target))

    def gap(swap: np.ndarray) -> np.ndarray:
        """Mean over seeds (B,) of the difference, where swap (B, N) says which images swap."""
        found = np.zeros(len(swap))
        for one, other in zip(map(parts, a), map(parts, b)):
            moved = swap @ (other - one)
            found += correlation(one.sum(0) + moved) - correlation(other.sum(0) - moved)
        return found / len(a)

    observed = abs(gap(np.zeros((1, images)))[0]) - 1e-12  # the same again, but for rounding
    larger = 0
    for start in range(0, resamples, 250):
        swap = rng.integers(0, 2, (min(250, resamples - start), images)).astype(float)
        larger += (np.abs(gap(swap)) >= observed).sum()
    return float(larger + 1) / (resamples + 1)


def over_seeds(
    statistics: list[ByCounts],
    combine: Callable[[np.ndarray], np.ndarray],
    images: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A statistic of several seeds with its 95% interval: seeds are resampled, and images.

    statistics: one for each seed, each (B,) or (B, K); `combine` makes (B,) of their mean over
    seeds, (B,) or (B, K). A resample draws images, on which the mean over all seeds is taken, and
    adds how far seeds are from that mean on the images as they are, each weighted by a normal
    deviate (a multiplier bootstrap: S draws of S seeds would take few values, and vary too little).
    A seed's own noise on these images is in both, and would count twice (Owen, Annals of Applied
    Statistics 1, 2007): it is taken out of the first. The percentile interval is stretched as by
    Cochran and Cox (Experimental Designs, 2nd ed., 1957): from the normal's quantile to its mean
    with that of Student's t with S - 1 degrees of freedom, weighted by the variance that images and
    seeds make. p is that of the interval which ends at 0. benchmarks/coverage.py shows how well it
    holds.
    """
    from scipy import optimize, stats

    rng, count = np.random.default_rng(seed), len(statistics)
    seen = np.stack([s(np.ones((1, images)))[0] for s in statistics])  # (S,) or (S, K)
    mean = seen.mean(0)
    drawn = []
    for start in range(0, resamples, 250):
        size = min(250, resamples - start)
        counts = rng.multinomial(images, np.full(images, 1 / images), size).astype(float)
        drawn.append(np.stack([s(counts) for s in statistics]))
    drawn = np.concatenate(drawn, 1)  # (S, B) or (S, B, K)
    weights = rng.standard_normal((resamples, count)) / math.sqrt(count * (count - 1))
    shift = weights @ (seen - mean)  # (B,) or (B, K)

    value = float(combine(mean[None])[0])
    by_image, by_seed = combine(drawn.mean(0)) - value, combine(mean + shift) - value
    own = [combine(mean + d - drawn.mean(0)) for d in drawn]  # (B,) each
    if not np.isfinite([by_image, by_seed, *own]).all():
        return Interval(value, math.nan, math.nan, math.nan, "undefined in some resamples")
    if by_image.var() > 0:
        counted_twice = np.mean(np.var(own, 1)) / (count - 1) / by_image.var()
        by_image *= math.sqrt(max(0.0, 1 - counted_twice))
    both = by_image + by_seed
    if np.ptp(both) == 0:
        return Interval(value, math.nan, math.nan, math.nan, "the resamples don't vary")
    share = min(1.0, by_seed.var() / both.var())

    def end(tail: float, below: bool) -> float:
        """Where the interval that leaves out `tail` ends, on either side."""
        normal, student = stats.norm.isf(tail), stats.t.isf(tail, count - 1)
        reach = np.quantile(both, tail if below else 1 - tail)
        return value + float((1 - share + share * student / normal) * reach)

    low, high = (end((1 - LEVEL) / 2, below) for below in (True, False))
    least, most = 1 / (resamples + 1), 0.5 - 1e-6

    def clear(tail: float) -> float:
        """How far that interval stays clear of 0."""
        return end(tail, True) if value >= 0 else -end(tail, False)

    if clear(least) > 0:
        tail = least
    else:
        tail = float(optimize.brentq(clear, least, most)) if clear(most) > 0 else 0.5
    return Interval(value, low, high, 2 * tail)


def over_splits(values: np.ndarray, test_share: float) -> Interval:
    """The mean of a statistic (S,) over S random splits, with its 95% interval and p.

    By the corrected resampled t-test (Nadeau and Bengio, Machine Learning 52, 2003, eq. 9): the
    splits share images, so the variance of the mean is (1 / S + test_share) times theirs.
    test_share: test images over training images.
    """
    from scipy import stats

    value, count = float(np.mean(values)), len(values)
    if count < 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return Interval(value, math.nan, math.nan, math.nan, "undefined, or the same in all splits")
    error = float(np.std(values, ddof=1)) * math.sqrt(1 / count + test_share)
    reach = error * float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
    p = 2 * float(stats.t.sf(abs(value) / error, count - 1))
    return Interval(value, value - reach, value + reach, p)


def holm(p: list[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given; NaN stays NaN and doesn't count."""
    known = sorted((x, i) for i, x in enumerate(p) if math.isfinite(x))
    adjusted, highest = [math.nan] * len(p), 0.0
    for position, (x, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - position) * x))
        adjusted[i] = highest
    return adjusted


def seeds_needed(differences: np.ndarray) -> int | None:
    """Seeds at which a paired t-test finds the mean difference seen, at 5%, with 80% power.

    On these images alone: what other images would change is not in the standard deviation seen.
    By the noncentral t distribution; None where the deviation is unknown (one seed, or undefined
    differences), where there is no difference, or where more than 10,000 would be needed.
    """
    from scipy import stats

    if len(differences) < 2 or not np.isfinite(differences).all() or np.mean(differences) == 0:
        return None
    effect = abs(np.mean(differences)) / max(np.std(differences, ddof=1), 1e-12)

    def power(n: int) -> float:
        critical = stats.t.ppf(0.975, n - 1)
        value = stats.nct.sf(critical, n - 1, effect * math.sqrt(n))
        return 1.0 if math.isnan(value) else value  # so far out that it can't be computed

    low, high = 2, 2
    while power(high) < 0.8:
        low, high = high, 2 * high
        if high > 10_000:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= 0.8 else (middle + 1, high)
    return high
