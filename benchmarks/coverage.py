"""Coverage of the intervals and false alarms of the tests of resampling.py, by simulation.

    python3 benchmarks/coverage.py
    python3 benchmarks/coverage.py --simulations 2000 --json coverage.json

Images are drawn from a population whose SRCC is known. With 500 and with 2,010 images,
- the 95% intervals of an SRCC and of a paired difference should cover the truth in 93% to 97% of
  the simulations;
- the paired tests between two equally good predictions should find a difference (p < 0.05) in at
  most 6%.
Then 2, 3 and 5 seeds, with seed variance as a small or as the larger part of the variance: with few
seeds the interval may be too wide, but not too narrow.
With 1,000 simulations these shares have a standard error of 0.7%. About 30 minutes on two CPU
cores.
"""

import argparse
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import resampling
from rounds import write_json


def spearman_of(r: float) -> float:
    """SRCC of a bivariate normal population with Pearson's r (Pearson 1907)."""
    return 6 / math.pi * math.asin(r / 2)


def draw(rng: np.random.Generator, images: int, r: float, other: float, shared: float):
    """MOS (N,), and two predictions (N,) with Pearson's r and `other`; `shared`: r of their errors.

    All are normal in the population; MOS is then mapped to 0..100 monotonically, which changes no
    rank.
    """
    mos = rng.normal(size=images)
    errors = rng.multivariate_normal([0, 0], [[1, shared], [shared, 1]], images).T
    a, b = (c * mos + math.sqrt(1 - c * c) * e for c, e in zip((r, other), errors))
    return 100 / (1 + np.exp(-mos)), a, b


def simulate_seeds(task: tuple) -> tuple[bool, bool]:
    """Two equally good configurations of several seeds: difference 0 covered, false alarm.

    Each seed has its own noise, and `luck`: the relative deviation of its noise level.
    """
    images, r, luck, seeds, resamples, seed = task
    rng = np.random.default_rng([images, int(1000 * r), int(1000 * luck), seeds, seed])
    mos = rng.normal(size=images)
    shared = 0.9 * rng.normal(size=images)
    pairs = []
    for _ in range(seeds):
        own = rng.normal(size=(2, images)) * math.sqrt(1 - 0.9**2)
        scale = 1 + luck * rng.standard_normal((2, 1))
        pairs.append(r * mos + math.sqrt(1 - r * r) * scale * (shared + own))
    ranked = 100 / (1 + np.exp(-mos))
    statistics = [resampling.difference_by_counts(a, b, ranked) for a, b in pairs]
    found = resampling.over_seeds(statistics, lambda x: x, images, resamples=resamples, seed=seed)
    return found.low <= 0 <= found.high, found.p < 0.05


def simulate(task: tuple) -> tuple[bool, bool, bool, bool]:
    """One draw: SRCC covered, difference covered, bootstrap and permutation false alarms."""
    images, r, resamples, seed = task
    rng = np.random.default_rng([images, int(1000 * r), seed])
    mos, a, b = draw(rng, images, r, r - 0.02, 0.8)
    one = resampling.interval(
        resampling.srcc_by_counts(a, mos), images, resamples=resamples, seed=seed
    )
    two = resampling.difference(a, b, mos, resamples=resamples, seed=seed)
    mos, a, b = draw(rng, images, r, r, 0.8)
    none = resampling.difference(a, b, mos, resamples=resamples, seed=seed)
    swapped = resampling.permutation_p(a, b, mos, resamples=resamples // 2, seed=seed)
    truth, gap = spearman_of(r), spearman_of(r) - spearman_of(r - 0.02)
    return (
        one.low <= truth <= one.high,
        two.low <= gap <= two.high,
        none.p < 0.05,
        swapped < 0.05,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1000, help="per setting (default: 1000)")
    parser.add_argument("--resamples", type=int, default=1000, help="default: 1000")
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2010])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    args = parser.parse_args()

    shares = ("SRCC covered", "difference covered", "bootstrap alarms", "permutation alarms")
    print(f"{'images':>8}{'SRCC':>8}" + "".join(f"{t:>20}" for t in shares))
    one, several = [], []
    with ProcessPoolExecutor() as pool:
        for images in args.images:
            for r in (0.7, 0.92):
                tasks = [(images, r, args.resamples, seed) for seed in range(args.simulations)]
                found = np.mean(list(pool.map(simulate, tasks, chunksize=4)), 0)
                one.append(dict(zip(("images", "SRCC", *shares), (images, spearman_of(r), *found))))
                cells = "".join(f"{share:>20.1%}" for share in found)
                print(f"{images:>8}{spearman_of(r):>8.3f}{cells}", flush=True)
        titles = ("images", "seeds", "luck")
        print("\n" + "".join(f"{t:>8}" for t in titles) + "".join(f"{t:>20}" for t in shares[1:3]))
        for luck in (0.01, 0.05):
            for seeds in (2, 3, 5):
                images, settings = args.images[0], (0.92, luck, seeds, args.resamples)
                tasks = [(images, *settings, seed) for seed in range(args.simulations)]
                found = np.mean(list(pool.map(simulate_seeds, tasks, chunksize=4)), 0)
                several.append(dict(zip((*titles, *shares[1:3]), (images, seeds, luck, *found))))
                cells = "".join(f"{share:>20.1%}" for share in found)
                print(f"{images:>8}{seeds:>8}{luck:>8.0%}{cells}", flush=True)
    write_json(args.json, {"one seed": one, "several seeds": several})


if __name__ == "__main__":
    main()
