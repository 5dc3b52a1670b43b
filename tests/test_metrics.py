import numpy as np
import pytest

from metrics import agreement


def test_known_values():
    values = agreement([1.0, 2.0, 3.0, 5.0], [10.0, 30.0, 20.0, 50.0])
    assert values["srcc"] == pytest.approx(0.8)
    assert values["krcc"] == pytest.approx(2 / 3)
    assert values["plcc"] == pytest.approx(np.corrcoef([1, 2, 3, 5], [10, 30, 20, 50])[0, 1])
    assert values["rmse"] == pytest.approx(np.sqrt((81 + 784 + 289 + 2025) / 4))


@pytest.mark.parametrize("predicted", [[3.0, 3.0, 3.0], [1.0, np.nan, 2.0], [1.0, np.inf, 2.0]])
def test_undefined_correlations_are_nan(predicted):
    assert np.isnan(agreement(predicted, [1.0, 2.0, 3.0])["srcc"])


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_are_nan(n):
    assert np.isnan(agreement(np.ones(n), np.ones(n))["plcc"])


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="for labels"):
        agreement(np.ones(1), np.ones(4))  # would broadcast
