"""Intervals and tests, against scipy and on populations with known answers."""

import numpy as np
import pytest
from scipy import stats

import resampling


def over_seeds(statistics, images, **options):
    """`over_seeds` of one statistic per seed."""
    seen = np.array([s(np.ones((1, images)))[0] for s in statistics])
    drawn = np.array([resampling.resample_images(s, images) for s in statistics])
    return resampling.over_seeds(seen, drawn, lambda x: x, **options)


def interval_of_scipy(predicted, mos, level):
    """scipy's own BCa interval of the SRCC."""
    return stats.bootstrap(
        (predicted, mos),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        confidence_level=level,
        n_resamples=999,
        rng=np.random.default_rng(3),
    ).confidence_interval


def resampled_by_hand(values, counts):
    return np.repeat(values, counts.astype(int))


def test_statistics_of_counts_are_those_of_the_images_drawn():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 15, 60).astype(float), rng.normal(size=60)
    counts = rng.multinomial(60, np.full(60, 1 / 60), 5).astype(float)
    srcc = resampling.srcc_by_counts(x, y)(counts)
    plcc = resampling.plcc_by_counts(x, y)(counts)
    for c, of_ranks, of_values in zip(counts, srcc, plcc):
        drawn = resampled_by_hand(x, c), resampled_by_hand(y, c)
        assert of_ranks == pytest.approx(stats.spearmanr(*drawn).statistic)
        assert of_values == pytest.approx(stats.pearsonr(*drawn).statistic)


def test_the_interval_is_scipys_of_the_same_statistic():
    rng = np.random.default_rng(1)
    mos = rng.normal(size=80)
    predicted = mos + rng.normal(size=80)
    found = resampling.interval(
        resampling.srcc_by_counts(predicted, mos), 80, resamples=999, seed=3
    )
    plain = interval_of_scipy(predicted, mos, 0.95)
    assert (found.low, found.high) == pytest.approx(tuple(plain), abs=0.02)
    assert found.value == pytest.approx(stats.spearmanr(predicted, mos).statistic)


def test_paired_differences_see_what_single_intervals_hide():
    rng = np.random.default_rng(2)
    mos = rng.normal(size=500)
    shared = mos + rng.normal(0, 1, 500)
    better, worse = (shared + rng.normal(0, sd, 500) for sd in (0.1, 0.5))
    found = resampling.difference(better, worse, mos)
    assert found.low > 0 and found.p < 0.01
    assert resampling.permutation_p(better, worse, mos) < 0.01
    alone = [resampling.interval(resampling.srcc_by_counts(s, mos), 500) for s in (better, worse)]
    assert alone[0].low < alone[1].high  # these overlap
    same = resampling.difference(better, better, mos)
    assert same.value == 0 and same.reason  # nothing varies, and that is said


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(3)
    mos = rng.normal(size=300)
    alike = [resampling.srcc_by_counts(mos + rng.normal(0, 0.5, 300), mos) for _ in range(3)]
    apart = [resampling.srcc_by_counts(mos + rng.normal(0, s, 300), mos) for s in (0.2, 0.6, 1.2)]
    narrow, wide = (over_seeds(s, 300) for s in (alike, apart))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    ones = np.ones((1, 300))
    assert narrow.value == pytest.approx(np.mean([s(ones) for s in alike]))


def test_two_seeds_that_differ_decide_nothing():
    """Student's t of 0.03 and 0.07 is 2.5 with one degree of freedom: p = 0.24."""
    mos = np.random.default_rng(5).normal(size=300)
    mos -= mos.mean()

    def found(*values):
        statistics = [lambda counts, v=v: v + 0.01 * (counts @ mos) / 300 for v in values]
        return over_seeds(statistics, 300)

    apart, alike, many = found(0.03, 0.07), found(0.049, 0.051), found(*[0.03, 0.07] * 5)
    assert apart.low < 0 < apart.high and apart.p > 0.05
    assert alike.low > 0 and alike.p < 0.05 and many.low > 0 and many.p < 0.05
    assert found(0.05, -0.05).p > 0.9 and found(0.0002, -0.0002).p > 0.9
    assert found(-0.03, -0.07).p == pytest.approx(apart.p, abs=0.02)
    assert found(-0.049, -0.051).p < 0.05


def test_two_configurations_have_the_seed_variance_of_a_paired_t_test():
    values = np.random.default_rng(9).normal(size=(6, 2))
    found = resampling.seed_variance(values)
    variance, df = found.of_combination(np.array([1.0, -1.0]))
    assert variance == pytest.approx(np.var(values[:, 0] - values[:, 1], ddof=1)) and df == 5


def test_the_seed_variance_is_that_of_a_two_way_analysis_of_variance():
    rng = np.random.default_rng(10)
    values = rng.normal(size=(4, 1)) + rng.normal(size=(4, 3)) + np.arange(3)
    seed, configuration = (x.ravel() for x in np.indices(values.shape))
    design = np.c_[seed[:, None] == np.arange(4), configuration[:, None] == np.arange(1, 3)]
    _, left, rank, _ = np.linalg.lstsq(design.astype(float), values.ravel(), rcond=None)
    found = resampling.seed_variance(values)
    assert found.df == 12 - rank == 6 and found.residual == pytest.approx(left[0] / 6)
    variance, df = found.of_combination(np.array([1.0]))  # of one configuration alone
    assert variance == pytest.approx(values.var(0, ddof=1).mean()) and 3 < df < 9
    shared = resampling.seed_variance(np.repeat(rng.normal(size=(4, 1)), 3, 1))
    assert shared.residual == pytest.approx(0) and shared.of_combination(np.ones(1))[1] == 3


def test_a_pooled_interval_has_students_t_with_the_pooled_degrees_of_freedom():
    rng = np.random.default_rng(11)
    seen = 0.8 + rng.normal(0, 0.01, (2, 5))
    drawn = np.repeat(seen[:, None], 20_000, 1)  # without any error from images
    variance = resampling.seed_variance(seen)

    def difference(values):
        return values[..., 0] - values[..., 1]

    found = resampling.over_seeds(seen[:, :2], drawn[..., :2], difference, variance=variance)
    error = np.sqrt(2 * variance.residual / 2)
    assert found.high - found.value == pytest.approx(stats.t.isf(0.025, 4) * error, rel=0.05)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / error, 4), abs=0.03)
    own = resampling.over_seeds(seen[:, :2], drawn[..., :2], difference)
    error = abs(np.diff(difference(seen[:, :2]))[0]) / 2
    assert own.high - own.value == pytest.approx(stats.t.isf(0.025, 1) * error, rel=0.05)
    gain = resampling.over_seeds(
        seen[:, :2], drawn[..., :2], lambda v: v[..., 0] / v[..., 1] - 1, variance=variance
    )
    assert gain.high - gain.low == pytest.approx((found.high - found.low) / 0.8, rel=0.05)


def test_unequal_variances_are_found_as_often_as_promised():
    rng = np.random.default_rng(12)

    def rejected(seeds, deviations):
        values = rng.normal(size=(400, seeds, 5)) * deviations
        return np.mean([resampling.seed_variance(v).p_equal < 0.05 for v in values])

    for seeds in (3, 4, 5):
        assert 0.02 < rejected(seeds, np.ones(5)) < 0.08
    assert rejected(5, np.array([1, 1, 10, 1, 1])) > 0.6
    assert np.isnan(resampling.seed_variance(rng.normal(size=(2, 5))).p_equal)


def test_an_effect_is_smaller_than_the_ends_of_its_90_percent_interval():
    rng = np.random.default_rng(13)
    mos = rng.normal(size=80)
    predicted = mos + rng.normal(size=80)
    plain = interval_of_scipy(predicted, mos, 0.9)
    found = resampling.interval(
        resampling.srcc_by_counts(predicted, mos), 80, resamples=999, seed=3
    )
    assert found.within == pytest.approx(plain.high, abs=0.02)
    values = np.array([-0.03, -0.01, -0.02, 0.0])
    splits = resampling.over_splits(values, 0)
    ends = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
    assert splits.within == pytest.approx(max(map(abs, ends)))
    seen = rng.normal(0, 0.01, 10)
    seeds = resampling.over_seeds(seen, np.repeat(seen[:, None], 20_000, 1), lambda x: x)
    ends = stats.t.interval(0.9, 9, seen.mean(), stats.sem(seen))
    assert seeds.within == pytest.approx(max(map(abs, ends)), rel=0.05)


def test_holm_corrects_in_order():
    assert resampling.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = resampling.holm([0.02, float("nan"), 0.5])
    assert adjusted[0] == pytest.approx(0.04) and np.isnan(adjusted[1])


def test_seeds_needed_have_the_power_that_is_promised():
    rng = np.random.default_rng(4)
    needed = resampling.seeds_needed(np.array([0.8, 0.0, 1.6]))  # mean 0.8, deviation 0.8
    runs = rng.normal(0.8, 0.8, (4000, needed))
    found = stats.ttest_1samp(runs, 0, axis=1).pvalue < 0.05
    assert 0.8 <= found.mean() < 0.95
    assert resampling.seeds_needed(np.array([0.1])) is None
    assert resampling.seeds_needed(np.array([0.1, -0.1])) is None
    assert resampling.seeds_needed(np.array([np.nan, 0.1, 0.2])) is None


def test_what_is_undefined_has_neither_a_value_nor_a_p():
    rng = np.random.default_rng(6)
    mos = rng.normal(size=50)
    broken = np.where(np.arange(50) == 7, np.nan, mos)
    found = resampling.difference(mos + rng.normal(size=50), broken, mos)
    assert np.isnan([found.value, found.low, found.high, found.p]).all() and found.reason
    lone = np.r_[np.zeros(9), 1.0]  # constant wherever the last image is not drawn
    found = resampling.interval(resampling.srcc_by_counts(lone, mos[:10]), 10)
    assert np.isfinite(found.value) and np.isnan([found.low, found.p]).all() and found.reason


def test_permutations_of_several_seeds_test_the_mean_over_seeds():
    """The mean of two seeds' scores can rank better than either, and is not what is compared."""
    rng = np.random.default_rng(8)
    mos = rng.normal(size=400)
    noise = rng.normal(0, 2, 400)
    split = np.stack([mos + noise, mos - noise])  # each is noisy, their mean is perfect
    plain = np.stack([mos + rng.normal(0, 1, 400)] * 2)
    means = [np.mean([stats.spearmanr(p, mos).statistic for p in x]) for x in (split, plain)]
    assert means[0] < means[1] - 0.15
    assert resampling.permutation_p(split, plain, mos, resamples=999) < 0.01
    one, other = mos + rng.normal(0, 1, 400), mos + rng.normal(0, 1, 400)
    twice = resampling.permutation_p(np.stack([one, other]), np.stack([other, one]), mos)
    assert twice == 1.0  # no difference at all in the mean
    assert resampling.permutation_p(one, other, mos) == resampling.permutation_p(
        np.stack([one, one]), np.stack([other, other]), mos
    )
