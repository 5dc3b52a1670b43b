"""What a score is worth: how well predictions agree with mean opinion scores.

from metrics import agreement
agreement(predicted, mos)   # {'srcc': 0.90, 'plcc': 0.91, 'krcc': 0.73, 'rmse': 6.1}
"""

import numpy as np

METRICS = ("srcc", "plcc", "krcc", "rmse")


def agreement(predicted: np.ndarray, mos: np.ndarray) -> dict[str, float]:
    """SRCC, PLCC (of the raw scores), KRCC (tau-b) and RMSE of predictions (N,) against MOS (N,).

    A correlation is NaN where it is undefined: for fewer than two images, for predictions or
    labels that are all the same, and for predictions that are not finite.
    Raises ValueError for arrays of different lengths.
    """
    from scipy import stats

    predicted, mos = np.asarray(predicted, np.float64), np.asarray(mos, np.float64)
    if predicted.shape != mos.shape or predicted.ndim != 1:
        raise ValueError(f"predictions of shape {predicted.shape} for labels of {mos.shape}")
    if not len(mos) or not np.isfinite(predicted).all():
        return dict.fromkeys(METRICS, float("nan"))

    values = {"rmse": float(np.sqrt(np.mean((predicted - mos) ** 2)))}
    if np.ptp(predicted) == 0 or np.ptp(mos) == 0:
        return dict.fromkeys(METRICS, float("nan")) | values
    return {
        "srcc": float(stats.spearmanr(predicted, mos).statistic),
        "plcc": float(stats.pearsonr(predicted, mos).statistic),
        "krcc": float(stats.kendalltau(predicted, mos).statistic),
    } | values
