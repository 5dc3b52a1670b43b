"""Krasula's analysis: by all pairs of images one after another, and by published models."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from datasets.labels import read_labels
from reporting.krasula import MEASURES, Votes, krasula_by_counts, measures, pairs_of
from reporting.scores import Scores, Truth, difference
from reporting.votes import as_votes


def some_votes(images: int, seed: int = 0) -> Votes:
    rng = np.random.default_rng(seed)
    count = rng.integers(8, 40, images).astype(float)
    return Votes(rng.uniform(20, 80, images), rng.uniform(10, 25, images), count)


def by_hand(scores, votes: Votes, chosen) -> dict[str, float]:
    """The measures of the chosen images, which may come several times, from a loop over pairs."""
    sizes, signs = {True: [], False: []}, []
    for place, i in enumerate(chosen):
        for j in chosen[place + 1 :]:
            if i == j:
                continue  # the same photograph, drawn twice
            gap = votes.mean[i] - votes.mean[j]
            z = gap / np.sqrt(votes.sd[i] ** 2 / votes.count[i] + votes.sd[j] ** 2 / votes.count[j])
            sizes[abs(z) > 2].append(abs(scores[i] - scores[j]))
            if abs(z) > 2:
                signs.append((scores[i] - scores[j]) * np.sign(gap))
    different, similar = np.array(sizes[True]), np.array(sizes[False])
    over = (different[:, None] > similar) + 0.5 * (different[:, None] == similar)
    better, worse = np.array(signs), -np.array(signs)
    right = (better[:, None] > worse) + 0.5 * (better[:, None] == worse)
    return {"auc_ds": over.mean(), "auc_bw": right.mean(), "c0": (better > 0).mean()}


@pytest.mark.parametrize("ties", [False, True])
def test_the_measures_are_those_of_all_pairs(ties):
    votes = some_votes(25)
    scores = votes.mean + np.random.default_rng(1).normal(0, 15, 25)
    scores = np.rint(scores / 10) if ties else scores
    found = measures(scores, pairs_of(votes))
    wanted = by_hand(scores, votes, np.arange(25))
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(wanted)


def test_the_share_of_an_image_is_the_change_when_it_counts_a_little_more():
    """Twice as much weight of an image changes a measure by its share, to first order."""
    votes = some_votes(40)
    scores = np.rint(votes.mean + np.random.default_rng(2).normal(0, 15, 40))
    found = measures(scores, pairs_of(votes))
    copies = 60  # of every image; one more of image 7 is a sixtieth of its weight
    for name in MEASURES:
        assert found[name][1].sum() == pytest.approx(0, abs=1e-9)
    pairs = pairs_of(votes)
    weight = np.ones(40)
    weight[7] += 1 / copies
    both = weight[pairs.first] * weight[pairs.second]
    gap = np.abs(scores[pairs.first] - scores[pairs.second])
    d, s = pairs.different, ~pairs.different
    over = (gap[d][:, None] > gap[s]) + 0.5 * (gap[d][:, None] == gap[s])
    value = both[d] @ over @ both[s] / both[d].sum() / both[s].sum()
    step = (value - found["auc_ds"][0]) * copies
    assert step == pytest.approx(found["auc_ds"][1][7], rel=0.03)


def test_the_first_order_varies_as_complete_resamples_do():
    votes, rng = some_votes(80), np.random.default_rng(3)
    scores = votes.mean + rng.normal(0, 15, 80)
    counts = rng.multinomial(80, np.full(80, 1 / 80), 60).astype(float)
    complete = [by_hand(scores, votes, np.repeat(np.arange(80), c.astype(int))) for c in counts]
    for name, statistic in krasula_by_counts(scores[None], votes).items():
        first, each = statistic(counts)[:, 0], np.array([row[name] for row in complete])
        assert np.corrcoef(first, each)[0, 1] > 0.95
        assert first.std() / each.std() == pytest.approx(1, abs=0.15)


def test_scores_all_the_same_and_votes_all_alike_are_undefined():
    votes = some_votes(20)
    assert np.isnan([value for value, _ in measures(np.ones(20), pairs_of(votes)).values()]).all()
    alike = votes._replace(mean=np.full(20, 50.0))
    assert np.isnan(measures(np.arange(20.0), pairs_of(alike))["auc_ds"][0])
    apart = votes._replace(mean=np.arange(20.0), sd=np.full(20, 1e-6))  # no similar pair
    found = measures(np.arange(20.0), pairs_of(apart))
    assert np.isnan(found["auc_ds"][0]) and found["c0"][0] == found["auc_bw"][0] == 1


# Published models on KonIQ-10k's official test images, from an independent computation: SRCC and
# its interval, PLCC raw and after the fit, AUC different/similar, better/worse, C0; RMSE and RMSE*
# on 1..5, outlier ratio.
REFERENCE = {
    "tres": (0.9349, 0.927, 0.941, 0.946, 0.946, 0.845, 0.989, 0.947, 0.179, 0.109, 0.50),
    "topiq_nr": (0.9298, 0.922, 0.937, 0.944, 0.943, 0.841, 0.988, 0.944, 0.184, 0.114, 0.52),
    "maniqa": (0.9042, 0.893, 0.914, 0.929, 0.935, 0.812, 0.982, 0.927, 0.196, 0.122, 0.58),
    "hyperiqa": (0.9018, 0.891, 0.912, 0.922, 0.920, 0.809, 0.979, 0.923, 0.216, 0.145, 0.58),
    "musiq": (0.8654, None, None, 0.896, 0.898, 0.769, 0.965, 0.897, 0.243, 0.168, 0.63),
}


@pytest.fixture(scope="module")
def published(request):
    from conftest import REAL_DATA

    folder = REAL_DATA / "koniq-10k"
    if not (folder / "predictions").is_dir():
        pytest.skip("the published models' predictions are not on this machine")
    table, _ = read_labels("koniq-10k", folder, split="official", images=False)
    table = table[table["split"] == "test"].reset_index(drop=True)
    votes, reason = as_votes(table)
    assert reason == "" and len(table) == 2015
    runs = {}
    for name in REFERENCE:
        given = pd.read_csv(folder / "predictions" / f"{name}.csv", index_col="image")["score"]
        runs[name, None] = given.loc[table["image"]].to_numpy()
    truth = Truth(table["mos"].to_numpy(), votes)
    return Scores(runs, {None: truth}, resamples=1000, seed=0)


@pytest.mark.parametrize("name", REFERENCE)
def test_published_models_have_their_known_figures(published, name):
    srcc, low, high, plcc, fitted, *aucs, rmse, star, outliers = REFERENCE[name]

    def value(measure: str) -> float:
        return published.seen[measure][name, None][0]

    assert value("srcc") == pytest.approx(srcc, abs=0.0001)
    if low is not None:
        around = published.interval((name,))
        assert (around.low, around.high) == pytest.approx((low, high), abs=0.002)
    assert value("plcc") == pytest.approx(plcc, abs=0.001)
    assert published.errors[name, None][1].plcc == pytest.approx(fitted, abs=0.001)
    assert [value(m) for m in MEASURES] == pytest.approx(aucs, abs=0.001)
    assert value("rmse") / 25 == pytest.approx(rmse, abs=0.001)
    assert value("rmse_star") / 25 == pytest.approx(star, abs=0.001)
    assert value("outlier_ratio") == pytest.approx(outliers, abs=0.0051)


def test_published_models_have_their_known_differences(published):
    better = published.interval(("topiq_nr", "hyperiqa"), difference)
    assert better[:3] == pytest.approx((0.0279, 0.0216, 0.0350), abs=0.002)
    alike = published.interval(("maniqa", "hyperiqa"), difference)
    assert alike[:3] == pytest.approx((0.0023, -0.0068, 0.0126), abs=0.002)
    assert alike.p == pytest.approx(0.65, abs=0.06)


@pytest.mark.slow
def test_all_pairs_of_2015_images_need_less_than_a_gigabyte():
    votes = some_votes(2015)
    scores = votes.mean + np.random.default_rng(4).normal(0, 10, (3, 2015))
    tracemalloc.start()
    krasula_by_counts(scores, votes)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 0.5e9
