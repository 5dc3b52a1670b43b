"""SRCC by third of quality: is a model good on bad, on middling and on good photographs?

The test images are cut into three parts of equal size by their MOS. Within a third the MOS vary
less, so the SRCC is lower than over all images: compare models within a third, not thirds.
"""

import numpy as np

from resampling import ByCounts, srcc_by_counts

THIRDS = ("low", "middle", "high")
FEWEST = 30  # test images: ten in each third


def thirds_of(mos: np.ndarray) -> np.ndarray:
    """0, 1 or 2 for each image (N,): the third of its MOS, lowest first."""
    return np.argsort(np.argsort(mos, kind="stable"), kind="stable") * 3 // len(mos)


def thirds_by_counts(scores: np.ndarray, mos: np.ndarray) -> dict[str, ByCounts]:
    """'srcc_low' and so on: the SRCC within each third, (B, K) in resamples, of scores (K, N).

    Empty with fewer than FEWEST images.
    """
    if len(mos) < FEWEST:
        return {}
    third = thirds_of(mos)

    def within(inside: np.ndarray) -> ByCounts:
        statistic = srcc_by_counts(scores[:, inside], mos[inside])
        return lambda counts: statistic(counts[:, inside])

    return {f"srcc_{name}": within(np.flatnonzero(third == i)) for i, name in enumerate(THIRDS)}
