"""Agreement of predictions with mean opinion scores (MOS).

    from metrics import agreement, srcc
    agreement(predicted, mos)            # {'srcc': 0.90, 'plcc': 0.91, 'krcc': 0.73, 'rmse': 6.1}
    srcc(predicted, mos)                 # 0.90

Predictions and MOS are arrays (N,) of the same images in the same order. Needs numpy and scipy
only. resampling.py computes confidence intervals and tests.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np

METRICS = ("srcc", "plcc", "krcc", "rmse")


def srcc(predicted: np.ndarray, mos: np.ndarray) -> float:
    """Spearman's rank correlation of predictions (N,) with MOS (N,).

    NaN if it is undefined: see `undefined`. Raises ValueError for arrays of different lengths.
    """
    from scipy import stats

    predicted, mos = as_pair(predicted, mos)
    if undefined(predicted, mos):
        return math.nan
    return float(stats.spearmanr(predicted, mos).statistic)


def agreement(predicted: np.ndarray, mos: np.ndarray) -> dict[str, float]:
    """SRCC, PLCC (of the raw scores), KRCC (tau-b) and RMSE of predictions (N,) and MOS (N,).

    A correlation is NaN if it is undefined: see `undefined`.
    Raises ValueError for arrays of different lengths.
    """
    from scipy import stats

    predicted, mos = as_pair(predicted, mos)
    if not len(mos) or not np.isfinite(predicted).all():
        return dict.fromkeys(METRICS, math.nan)

    values = {"rmse": float(np.sqrt(np.mean((predicted - mos) ** 2)))}
    if undefined(predicted, mos):
        return dict.fromkeys(METRICS, math.nan) | values
    return {
        "srcc": srcc(predicted, mos),
        "plcc": float(stats.pearsonr(predicted, mos).statistic),
        "krcc": float(stats.kendalltau(predicted, mos).statistic),
    } | values


def describe_stage_weights(weights: np.ndarray) -> dict[str, float | list[float]]:
    """How the stage weights (N, 4) of N images are distributed.

    stage_weights: their means; stage_spread: their standard deviation over images, the mean of four
    stages; effective_stages: exp of their mean entropy, from 1 (one stage counts) to 4 (all equal).
    """
    entropy = -(weights * np.log(np.maximum(weights, 1e-12))).sum(1)  # (N,)
    return {
        "stage_weights": weights.mean(0).tolist(),
        "stage_spread": float(weights.std(0).mean()),
        "effective_stages": float(np.exp(entropy.mean())),
    }


def as_pair(predicted: np.ndarray, mos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (N,); ValueError if their shapes differ, instead of broadcasting."""
    predicted, mos = np.asarray(predicted, np.float64), np.asarray(mos, np.float64)
    if predicted.shape != mos.shape or predicted.ndim != 1:
        raise ValueError(f"predictions of shape {predicted.shape} for labels of {mos.shape}")
    return predicted, mos


def undefined(predicted: np.ndarray, mos: np.ndarray) -> str:
    """The reason why a correlation is undefined; empty if it is defined."""
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
    parameters: tuple[float, ...] | None  # of `logistic`; None if it could not be fitted
    reason: str  # why it could not be fitted


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
