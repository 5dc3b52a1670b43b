"""Outlier ratio, RMSE and RMSE*, and the paired test of errors."""

import numpy as np
import pytest
from scipy import stats

from reporting.krasula import Votes
from reporting.residuals import errors_of, pitman_morgan, residuals_by_counts, uncertainty


def test_the_measures_are_those_of_the_recommendation():
    rng = np.random.default_rng(0)
    votes = Votes(rng.uniform(20, 80, 50), rng.uniform(5, 20, 50), rng.integers(10, 60, 50) * 1.0)
    errors = rng.normal(0, 5, 50)
    allowed = []
    for sd, n in zip(votes.sd, votes.count):
        allowed.append((1.96 if n >= 30 else stats.t.ppf(0.975, n - 1)) * sd / np.sqrt(n))
    assert uncertainty(votes) == pytest.approx(allowed)
    over = np.maximum(np.abs(errors) - allowed, 0)
    wanted = {
        "outlier_ratio": np.mean(np.abs(errors) > allowed),
        "rmse": np.sqrt(np.sum(errors**2) / 46),
        "rmse_star": np.sqrt(np.sum(over**2) / 46),
    }
    found = residuals_by_counts(errors[None], votes)
    ones = np.ones((1, 50))
    assert {name: of(ones).item() for name, of in found.items()} == pytest.approx(wanted)
    counts = rng.multinomial(50, np.full(50, 0.02), 3).astype(float)
    drawn = np.abs(np.repeat(errors, counts[1].astype(int)))
    assert found["rmse"](counts)[1, 0] == pytest.approx(np.sqrt(np.sum(drawn**2) / 46))
    assert list(residuals_by_counts(errors[None], None)) == ["rmse"]


def test_errors_are_those_after_the_logistic():
    mos = np.linspace(10, 90, 80)
    scores = np.log(mos / (100 - mos))  # another scale, and not straight
    errors, fit = errors_of(scores, mos)
    assert np.abs(errors).max() < 0.5 and fit.plcc > 0.999
    flat, fit = errors_of(np.ones(80), mos)
    assert np.isnan(flat).all() and fit.reason == "predictions that are all the same"


def test_pitman_and_morgans_test_is_students_t_of_sums_and_differences():
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 3, 40)
    first, second = shared + rng.normal(0, 1, 40), shared + rng.normal(0, 2, 40)
    found = pitman_morgan(first, second)
    ratio = np.var(first, ddof=1) / np.var(second, ddof=1)
    r = np.corrcoef(first, second)[0, 1]
    t = (ratio - 1) / 2 * np.sqrt(38 / (ratio * (1 - r**2)))  # Pitman's own form of it
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 38))
    assert found.ratio == pytest.approx(np.sqrt(ratio)) and found.ratio < 1


def test_paired_errors_are_told_apart_where_the_f_test_cannot():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, 300)
    first, second = shared + rng.normal(0, 0.5, 300), shared + rng.normal(0, 2, 300)
    ratio = np.var(second) / np.var(first)
    assert 2 * stats.f.sf(ratio, 299, 299) > 0.05 > 0.001 > pitman_morgan(first, second).p
    assert np.isnan(pitman_morgan(first, first).p)


def test_equal_errors_give_false_alarms_as_often_as_announced():
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 2, (1000, 60))
    pairs = [shared + rng.normal(0, 1, (1000, 60)) for _ in range(2)]
    found = np.array([pitman_morgan(a, b).p for a, b in zip(*pairs)])
    assert np.mean(found < 0.05) == pytest.approx(0.05, abs=0.02)
