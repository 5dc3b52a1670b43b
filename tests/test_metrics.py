"""Agreement of scores, on values computed by hand and by scipy."""

import numpy as np
import pytest
from scipy import stats

import metrics
from metrics import agreement, srcc


def test_known_values():
    values = agreement([1.0, 2.0, 3.0, 5.0], [10.0, 30.0, 20.0, 50.0])
    assert values["srcc"] == pytest.approx(0.8)
    assert values["krcc"] == pytest.approx(2 / 3)
    assert values["plcc"] == pytest.approx(np.corrcoef([1, 2, 3, 5], [10, 30, 20, 50])[0, 1])
    assert values["rmse"] == pytest.approx(np.sqrt((81 + 784 + 289 + 2025) / 4))


def test_srcc_is_that_of_agreement_and_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        predicted, mos = rng.integers(0, 15, 60).astype(np.float32), rng.normal(size=60)
        assert srcc(predicted, mos) == agreement(predicted, mos)["srcc"]
        assert srcc(predicted, mos) == stats.spearmanr(predicted.astype(float), mos).statistic


@pytest.mark.parametrize("predicted", [[3.0, 3.0, 3.0], [1.0, np.nan, 2.0], [1.0, np.inf, 2.0]])
def test_undefined_correlations_are_nan(predicted):
    assert np.isnan(agreement(predicted, [1.0, 2.0, 3.0])["srcc"])
    assert np.isnan(srcc(predicted, [1.0, 2.0, 3.0]))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_are_nan(n):
    assert np.isnan(agreement(np.ones(n), np.ones(n))["plcc"])
    assert np.isnan(srcc(np.ones(n), np.ones(n)))


@pytest.mark.parametrize("function", [agreement, srcc])
def test_lengths_that_differ_are_refused(function):
    with pytest.raises(ValueError, match="for labels"):
        function(np.ones(1), np.ones(4))  # would broadcast


def test_stage_weights_are_described_from_one_stage_to_all_equal():
    one, equal = np.eye(4)[[2, 2]], np.full((5, 4), 0.25)
    apart = np.eye(4)[[0, 1, 2, 3]]  # each image has another stage: one stage counts in each
    for weights, spread, stages in ((one, 0, 1), (equal, 0, 4), (apart, 3**0.5 / 4, 1)):
        found = metrics.describe_stage_weights(weights)
        assert found["stage_weights"] == pytest.approx(list(weights.mean(0)))
        assert found["stage_spread"] == pytest.approx(spread, abs=1e-6)
        assert found["effective_stages"] == pytest.approx(stages)


def test_the_logistic_straightens_a_curved_relation():
    mos = np.linspace(5, 95, 200)
    curved = np.exp(mos / 30)
    fit = metrics.fitted_agreement(curved, mos)
    assert fit.reason == "" and fit.plcc > metrics.agreement(curved, mos)["plcc"] + 0.01
    falling = metrics.fitted_agreement(-curved, mos)
    assert falling.plcc == pytest.approx(fit.plcc, abs=1e-3)  # the logistic may fall as well
    assert "same" in metrics.fitted_agreement(np.ones(200), mos).reason
    assert "fewer" in metrics.fitted_agreement(curved[:4], mos[:4]).reason
