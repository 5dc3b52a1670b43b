"""Does an effect carry over to further backbones? Random effects over the backbones tested.

    from random_effects import over_backbones
    over_backbones(np.array([0.012, 0.020, 0.007]), np.array([4e-5, 6e-5, 5e-5]))

The backbones are taken as a sample of all that one might use: their true effects are normal about a
mean, with the standard deviation tau. Needs numpy, scipy and statsmodels.
"""

import math
from typing import NamedTuple

import numpy as np

from resampling import LEVEL, Interval

FEWEST = 3  # backbones from which generality is assessed
LEAST = 1e-12  # the smallest one-sided p


class OverBackbones(NamedTuple):
    mean: Interval  # of the effect over backbones
    next: Interval  # prediction interval: the effect on one more backbone
    tau: float  # standard deviation of the true effects between backbones
    i2: float  # share of the variance of the observed effects that is between backbones
    count: int


def over_backbones(
    effects: np.ndarray, variances: np.ndarray, *, shared: float = 0.0
) -> OverBackbones | None:
    """The mean effect with its 95% interval, and the 95% prediction interval of the next backbone.

    effects, variances (K,): of each backbone, and of its sampling error. shared: the part of each
    variance that all backbones have in common, because they are tested on the same images: it does
    not shrink with the number of backbones. None for fewer than FEWEST.

    Paule and Mandel's tau (J. Research of the National Bureau of Standards 87, 1982) from
    statsmodels. The mean's standard error is Hartung and Knapp's (Statistics in Medicine 20, 2001),
    but never below that without their correction, which for few backbones can be too small by
    chance (Roever et al., BMC Medical Research Methodology 15, 2015). The quantile is that of
    Student's t with K - 1 degrees of freedom for what varies between backbones, and the normal one
    for `shared`, weighted by their variances as in resampling.over_seeds. The prediction interval
    adds tau^2 to the variance of the mean, with K - 2 degrees of freedom (Higgins et al., J. Royal
    Statistical Society A 172, 2009).
    """
    from scipy import optimize, stats
    from statsmodels.stats.meta_analysis import combine_effects

    count = len(effects)
    if count < FEWEST:
        return None
    shared = min(max(shared, 0.0), 0.95 * float(np.min(variances)))
    with np.errstate(divide="ignore"):  # of its own I^2, if all effects are equal
        found = combine_effects(effects, variances - shared, method_re="iterated")
    tau2, mean = max(0.0, float(found.tau2)), float(found.mean_effect_re)
    weights = 1 / (variances - shared + tau2)
    scale = float(weights @ (effects - mean) ** 2) / (count - 1)
    of_mean = max(1.0, scale) / float(weights.sum()) + shared

    def interval(variance: float, df: int) -> Interval:
        error, certain = math.sqrt(variance), shared / variance

        def beyond(tail: float) -> float:
            """Distance from 0 of the interval that excludes `tail` on each side."""
            normal, student = stats.norm.isf(tail), stats.t.isf(tail, df)
            return abs(mean) - error * (certain * normal + (1 - certain) * student)

        reach = abs(mean) - beyond((1 - LEVEL) / 2)
        tail = LEAST if beyond(LEAST) > 0 else float(optimize.brentq(beyond, LEAST, 0.5))
        return Interval(mean, mean - reach, mean + reach, 2 * tail)

    precision = 1 / (variances - shared)
    spread = precision.sum() - (precision**2).sum() / precision.sum()
    i2 = tau2 / (tau2 + (count - 1) / float(spread))  # Higgins and Thompson's typical variance
    mean_effect, next_one = interval(of_mean, count - 1), interval(of_mean + tau2, count - 2)
    return OverBackbones(mean_effect, next_one, math.sqrt(tau2), i2, count)
