"""Random effects over backbones, against a published example and by simulation."""

import numpy as np
import pytest

from random_effects import over_backbones

# Colditz et al. (1994), 13 trials of the BCG vaccine, as in metafor's dat.bcg: people with and
# without tuberculosis, of the vaccinated and of the others.
VACCINATED = [(4, 119), (6, 300), (3, 228), (62, 13536), (33, 5036), (180, 1361), (8, 2537)]
VACCINATED += [(505, 87886), (29, 7470), (17, 1699), (186, 50448), (5, 2493), (27, 16886)]
OTHERS = [(11, 128), (29, 274), (11, 209), (248, 12619), (47, 5761), (372, 1079), (10, 619)]
OTHERS += [(499, 87892), (45, 7232), (65, 1600), (141, 27197), (3, 2338), (29, 17825)]


def test_a_published_example():
    (a, b), (c, d) = np.array(VACCINATED).T, np.array(OTHERS).T
    effects, variances = np.log(a / (a + b)) - np.log(c / (c + d)), 1 / a - 1 / (a + b)
    variances = variances + 1 / c - 1 / (c + d)
    found = over_backbones(effects, variances)
    # Viechtbauer, J. Statistical Software 36(3), 2010, by REML: estimate -0.7145, tau^2 0.3132,
    # I^2 92.22%. Paule and Mandel's tau^2 differs a little.
    assert found.mean.value == pytest.approx(-0.7145, abs=1e-3)
    assert found.tau**2 == pytest.approx(0.3132, abs=6e-3)
    assert found.i2 == pytest.approx(0.9222, abs=2e-3)
    # It is defined by this equation.
    weights = 1 / (variances + found.tau**2)
    assert weights @ (effects - found.mean.value) ** 2 == pytest.approx(12, rel=1e-4)
    assert found.mean.low == pytest.approx(-1.109, abs=1e-3) and found.mean.p < 0.01
    assert found.next.low < found.mean.low and found.next.high > found.mean.high


def test_fewer_than_three_backbones_say_nothing():
    assert over_backbones(np.array([0.1, 0.2]), np.array([0.01, 0.01])) is None


def test_equal_effects_are_no_more_certain_than_their_errors_allow():
    found = over_backbones(np.full(4, 0.02), np.full(4, 1e-4))
    assert found.tau == found.i2 == 0
    assert found.mean.high - 0.02 == pytest.approx(3.182 * 0.005, rel=1e-3)  # t with 3 degrees


def test_the_error_of_shared_images_does_not_shrink_with_the_number_of_backbones():
    def width(count, shared):
        mean = over_backbones(np.full(count, 0.02), np.full(count, 1e-4), shared=shared).mean
        return mean.high - mean.low

    assert width(100, 0.0) < 0.3 * width(10, 0.0)
    assert width(100, 9e-5) == pytest.approx(2 * 1.96 * (9e-5 + 1e-7) ** 0.5, rel=0.01)
    assert width(10, 1.0) < 0.1  # never more than the smallest variance


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_mean_and_next_backbone_are_covered(tau):
    rng, covered = np.random.default_rng(1), []
    for _ in range(400):
        variances = rng.uniform(1, 2, 6)
        effects = rng.normal(0, tau, 6) + rng.normal(0, np.sqrt(variances - 0.5))
        found = over_backbones(effects + rng.normal(0, 0.5**0.5), variances, shared=0.5)
        following = rng.normal(0, tau)
        covered.append((found.mean.low <= 0 <= found.mean.high,
                        found.next.low <= following <= found.next.high))  # fmt: skip
    assert (np.mean(covered, 0) > 0.92).all()
