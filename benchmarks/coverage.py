"""Coverage of the intervals and false alarms of the tests of resampling.py, by simulation.

    python3 benchmarks/coverage.py
    python3 benchmarks/coverage.py --part seeds --simulations 200 --resamples 400

Images are drawn from a population whose SRCC is known.

--part images: one run of each of two predictions. The 95% intervals of an SRCC and of a paired
difference should cover the truth in 93% to 97% of the simulations; the paired tests between two
equally good predictions should find a difference (p < 0.05) in at most 6%. The permutation test is
a check of the bootstrap.

--part seeds: five configurations with 2, 3 and 5 seeds, whose variance between seeds is pooled as
in the report, or not ('own'); the same is wanted of the five paired differences of the report. The
variances between seeds are equal, or rise from 1 to 2, or are 2:1 between the two configurations
with attention and the other three. Columns:
- covered: the truth is in the interval, all five differences; 'highest': the difference of the two
  configurations that vary most;
- alarms: p < 0.05 for the three differences that are 0; 'any, Holm': one of them after correction;
- bound wrong: 'smaller than' (two one-sided tests) is not more than the difference, where that is
  0.01; should be at most 5%;
- SRCC: the SRCC of one configuration is covered;
- width: mean width of the intervals of differences, pooled divided by own;
- refused: not pooled, because the test of equal variances rejects.

--part backbones: random effects over 3 to 10 backbones, whose true effects have a standard
deviation tau relative to that of their own sampling error; another error of the same size is common
to all, as of shared test images. Wanted: 95% for the mean effect, and for the true effect of one
more backbone in the prediction interval.

With 1,000 simulations a share has a standard error of 0.7%. About an hour on two CPU cores (an
estimate); --part seeds with 500 simulations of 400 resamples takes a quarter of an hour on one.
"""

import argparse
import functools
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import resampling
from console import command
from random_effects import over_backbones
from reporting.statistics import difference
from rounds import output_file, write_json

# Five configurations in the order of experiment.py: baseline, + multi-scale, + attention, wide,
# static. Their SRCC, and the pairs that the report compares.
SRCC = np.array([0.85, 0.85, 0.86, 0.85, 0.86])
PAIRS = ((1, 0), (2, 1), (2, 0), (1, 3), (2, 4))
DIFFERENCES = np.array([SRCC[a] - SRCC[b] for a, b in PAIRS])
SEEDS = (2, 3, 5)
# Standard deviation of the SRCC between seeds: of what all configurations share, and of the rest.
# About 40% of the variance of a difference is then from seeds with 500 images, 60% with 2,015.
DEVIATION = 0.004
VARIANCES = {  # between seeds, relative to each other
    "equal": (1, 1, 1, 1, 1),
    "1 to 2": (1, 1.25, 2, 1.5, 1.75),
    "2:1": (1, 1, 2, 1, 2),
}
# Of the variance of the prediction errors: the same in all runs, in all runs of a configuration,
# and different in each run.
SHARED, OF_CONFIGURATION, OF_RUN = 0.8, 0.05, 0.15


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


def simulate_images(task: tuple) -> tuple[bool, bool, bool, bool]:
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


def draw_runs(
    rng: np.random.Generator, images: int, variances: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """MOS (N,) and predictions (S, K, N), S as many as the most seeds, of known SRCC."""
    seeds, configurations = max(SEEDS), len(variances)
    relative = np.sqrt(np.array(variances) / np.mean(variances))
    srcc = SRCC + DEVIATION * rng.normal(size=(seeds, 1))
    srcc = srcc + DEVIATION * relative * rng.normal(size=(seeds, configurations))
    r = 2 * np.sin(np.pi / 6 * srcc)[..., None]  # the inverse of spearman_of
    mos = rng.normal(size=images)
    errors = math.sqrt(SHARED) * rng.normal(size=images)
    errors = errors + math.sqrt(OF_CONFIGURATION) * rng.normal(size=(configurations, images))
    errors = errors + math.sqrt(OF_RUN) * rng.normal(size=(seeds, configurations, images))
    return mos, r * mos + np.sqrt(1 - r * r) * errors


def simulate_seeds(task: tuple) -> np.ndarray:
    """One draw of runs, of which the first 2, 3 or all seeds are used: (len(SEEDS), figures).

    Figures: those of `interval_figures`, pooled and not, and whether pooling was refused.
    """
    images, name, resamples, seed = task
    rng = np.random.default_rng([images, [*VARIANCES].index(name), seed])
    mos, predictions = draw_runs(rng, images, VARIANCES[name])
    shape = predictions.shape[:2]
    statistic = resampling.srcc_by_counts(predictions.reshape(-1, images), mos)
    seen = statistic(np.ones((1, images))).reshape(shape)
    drawn = resampling.resample_images(statistic, images, resamples=resamples, seed=seed)
    drawn = drawn.reshape(resamples, *shape).swapaxes(0, 1)  # (S, B, K)
    rows = []
    for count in SEEDS:
        variance = resampling.seed_variance(seen[:count])
        refused = variance.p_equal < 0.05
        figures = functools.partial(interval_figures, seen[:count], drawn[:count], seed=seed)
        rows.append([*figures(None if refused else variance), *figures(None), refused])
    return np.array(rows, float)


def interval_figures(
    seen: np.ndarray, drawn: np.ndarray, variance: resampling.SeedVariance | None, *, seed: int
) -> list[float]:
    """Of the SRCC (S, K) of runs and their resamples (S, B, K).

    Five differences covered, alarms (share of three), any alarm after Holm's correction, wrong
    bounds (share of two), SRCC covered (share of K), mean width of the differences' intervals.
    """
    options = {"variance": variance, "seed": seed}
    pairs = [
        resampling.over_seeds(seen[:, pair], drawn[:, :, pair], difference, **options)
        for pair in map(list, PAIRS)
    ]
    alone = [
        resampling.over_seeds(seen[:, k], drawn[:, :, k], lambda x: x, **options)
        for k in range(len(SRCC))
    ]
    none = DIFFERENCES == 0
    holm = np.array(resampling.holm([x.p for x in pairs]))
    return [
        *(x.low <= truth <= x.high for x, truth in zip(pairs, DIFFERENCES)),
        np.mean(np.array([x.p for x in pairs])[none] < 0.05),
        (holm[none] < 0.05).any(),
        np.mean(np.array([x.within for x in pairs])[~none] <= DIFFERENCES[~none]),
        np.mean([x.low <= truth <= x.high for x, truth in zip(alone, SRCC)]),
        np.mean([x.high - x.low for x in pairs]),
    ]


def of_images(pool: ProcessPoolExecutor, args: argparse.Namespace) -> list[dict]:
    """Print and return the table of one run per prediction."""
    shares = ("SRCC covered", "difference covered", "bootstrap alarms", "permutation alarms")
    print(f"{'images':>8}{'SRCC':>8}" + "".join(f"{t:>20}" for t in shares))
    rows = []
    for images in args.images:
        for r in (0.7, 0.92):
            tasks = [(images, r, args.resamples, seed) for seed in range(args.simulations)]
            found = np.mean(list(pool.map(simulate_images, tasks, chunksize=4)), 0)
            rows.append(dict(zip(("images", "SRCC", *shares), (images, spearman_of(r), *found))))
            cells = "".join(f"{share:>20.1%}" for share in found)
            print(f"{images:>8}{spearman_of(r):>8.3f}{cells}", flush=True)
    return rows


def of_seeds(pool: ProcessPoolExecutor, args: argparse.Namespace) -> list[dict]:
    """Print and return the table of several seeds, with standard errors of the shares."""
    titles = ("covered", "highest", "alarms", "any, Holm", "bound wrong", "SRCC")
    print(
        f"{'':<23}{'pooled':^78}{'own':^26}\n{'images':>7}{'variances':>10}{'seeds':>6}"
        + "".join(f"{title:>13}" for title in (*titles, titles[0], titles[2]))
        + f"{'width':>8}{'refused':>9}"
    )
    rows = []
    for images in args.images:
        for name in VARIANCES:
            tasks = [(images, name, args.resamples, seed) for seed in range(args.simulations)]
            every = np.array(list(pool.map(simulate_seeds, tasks, chunksize=4)))
            for position, seeds in enumerate(SEEDS):
                pooled, own, refused = np.split(every[:, position], [10, 20], 1)
                shares = {f"pooled, {title}": x for title, x in zip(titles, figures_of(pooled))}
                shares |= {f"own, {title}": x for title, x in zip(titles, figures_of(own))}
                shown = [*(f"pooled, {title}" for title in titles), "own, covered", "own, alarms"]
                # The error is over simulations: the differences of one have images in common.
                cells = [
                    f"{100 * x.mean():.1f}+-{100 * x.std() / math.sqrt(len(x)):.1f}"
                    for x in map(shares.get, shown)
                ]
                width = pooled[:, -1].mean() / own[:, -1].mean()
                print(
                    f"{images:>7}{name:>10}{seeds:>6}"
                    + "".join(f"{cell:>13}" for cell in cells)
                    + f"{width:>8.2f}{refused.mean():>9.1%}",
                    flush=True,
                )
                means = {title: float(x.mean()) for title, x in shares.items()}
                means |= {"width": float(width), "refused": float(refused.mean())}
                rows.append({"images": images, "variances": name, "seeds": seeds, **means})
    return rows


def simulate_backbones(task: tuple) -> tuple[bool, bool]:
    """The mean effect, 0, and the effect of one more backbone are covered."""
    count, tau, seed = task
    rng = np.random.default_rng([count, int(100 * tau), seed])
    own = rng.uniform(
        0.5, 1.5, count
    )  # variances of the sampling errors; that of the shared one: 1
    effects = rng.normal(0, tau, count) + rng.normal(0, np.sqrt(own)) + rng.normal()
    found = over_backbones(effects, own + 1, shared=1.0)
    following = rng.normal(0, tau)
    return found.mean.low <= 0 <= found.mean.high, found.next.low <= following <= found.next.high


def of_backbones(pool: ProcessPoolExecutor, args: argparse.Namespace) -> list[dict]:
    """Print and return the table of random effects over backbones."""
    shares = ("mean covered", "next covered")
    print(f"{'backbones':>10}{'tau':>6}" + "".join(f"{t:>16}" for t in shares))
    rows = []
    for count in (3, 4, 6, 10):
        for tau in (0.0, 0.5, 1.0, 2.0):
            tasks = [(count, tau, seed) for seed in range(args.simulations)]
            found = np.mean(list(pool.map(simulate_backbones, tasks, chunksize=50)), 0)
            rows.append(dict(zip(("backbones", "tau", *shares), (count, tau, *map(float, found)))))
            print(f"{count:>10}{tau:>6}" + "".join(f"{x:>16.1%}" for x in found), flush=True)
    return rows


def figures_of(found: np.ndarray) -> list[np.ndarray]:
    """The columns of the table, each (simulations,), from `interval_figures` of simulations."""
    return [found[:, :5].mean(1), found[:, 4], *found[:, 5:9].T]


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["images", "seeds", "backbones"], help="default: all")
    parser.add_argument("--simulations", type=int, default=1000, help="per setting (default: 1000)")
    parser.add_argument("--resamples", type=int, default=1000, help="default: 1000")
    parser.add_argument("--images", type=int, nargs="+", default=[500, 2015])
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write the figures to FILE too"
    )
    args = parser.parse_args()
    tables = {"images": of_images, "seeds": of_seeds, "backbones": of_backbones}
    found = {}
    with ProcessPoolExecutor(args.workers) as pool:
        for part in [args.part] if args.part else tables:
            found[part] = tables[part](pool, args)
            print()
    write_json(args.json, found)


if __name__ == "__main__":
    sys.exit(main())
