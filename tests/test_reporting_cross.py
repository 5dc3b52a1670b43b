"""Trained on (rows), tested on (columns): from what --test_on has written."""

import numpy as np
import pandas as pd
import pytest

import metrics
from report_runs import MODELS, reported, write_three
from reporting.cross_data_sets import CrossDataSets, Trained, sections


def tests_of(dataset, images=150, seeds=(42,), noises=(20, 14, 8), trained_on="koniq-10k"):
    """A file of --test_on: the three configurations with their seeds, on one data set."""
    rng = np.random.default_rng(len(dataset))
    mos, frames = rng.uniform(10, 90, images), []
    for model, noise in zip(MODELS, noises):
        for seed in seeds:
            frame = pd.DataFrame({"image": [f"{dataset}_{i:03}.png" for i in range(images)]})
            frame = frame.assign(mos=mos, score=mos + rng.normal(0, noise, images), split="test")
            frame = frame.assign(checkpoint=f"{model}_{seed}.pth", dataset=dataset, model=model)
            frame = frame.assign(trained_on=trained_on, backbone="resnet50", seed=seed)
            frames.append(frame.assign(labels=f"{dataset}.csv; its split", crops="center"))
    return pd.concat(frames, ignore_index=True)


tests_of.__test__ = False  # no test


def test_rows_columns_and_differences(tmp_path, capsys):
    logs = write_three(tmp_path / "logs", epochs=1)
    tables = [tests_of("spaq"), tests_of("bid", 80), tests_of("spaq", trained_on="biq2021")]
    pd.concat(tables[:2]).to_csv(tmp_path / "one.csv", index=False)
    tables[2].to_csv(tmp_path / "two.csv", index=False)
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    results, _, _ = reported(logs, capsys, "--cross_data_sets", *files)
    found = results["cross_data_sets"]
    assert len(found["cells"]) == 9
    part = tables[0][tables[0]["model"] == MODELS[2]]
    (cell,) = [
        c
        for c in found["cells"]
        if (c["trained_on"], c["model"], c["tested_on"]) == ("koniq-10k", MODELS[2], "spaq")
    ]
    srcc = metrics.srcc(part["score"].to_numpy(), part["mos"].to_numpy())
    assert cell["srcc"]["value"] == pytest.approx(srcc) and cell["seeds"] == 1
    assert cell["srcc"]["low"] < srcc < cell["srcc"]["high"]
    assert len(found["comparisons"]) == 9  # three comparisons, three times
    assert all(c["p_holm"] >= c["difference"]["p"] for c in found["comparisons"])
    text = (logs / "report.md").read_text()
    assert "|  | spaq | bid |" in text and "| baseline, biq2021 | 0." in text
    (row,) = [x for x in text.splitlines() if x.startswith("| + attention, biq2021 |")]
    assert row.endswith("| - |")  # not tested on bid
    assert "| HyperIQA, as published, koniq-10k | 0.788 | - |" in text
    assert "Tests on bid: labels: bid.csv; its split. Crops: center." in text


def test_seeds_are_averaged_and_widen_the_interval():
    table = tests_of("spaq", seeds=(1, 2, 3))
    c = CrossDataSets([table], resamples=400, seed=0)
    row = Trained("koniq-10k", MODELS[0], "resnet50")
    each = [
        metrics.srcc(part["score"].to_numpy(), part["mos"].to_numpy())
        for _, part in table[table["model"] == MODELS[0]].groupby("seed")
    ]
    assert c.cells[row, "spaq"].value == pytest.approx(np.mean(each))
    assert all(len(x["each"]) == 3 for x in c.comparisons)


def test_other_images_are_not_compared():
    """With --skip_trained, what is trained on other data can have other images left to test."""
    other = tests_of("spaq", trained_on="biq2021").query("image != 'spaq_000.png'")
    c = CrossDataSets([tests_of("spaq"), other], resamples=400, seed=0)
    assert len(c.cells) == 6 and len(c.comparisons) == 6


def test_other_crops_are_not_compared():
    table = tests_of("spaq")
    table.loc[table["model"] == MODELS[1], "crops"] = "full"
    c = CrossDataSets([table], resamples=400, seed=0)
    assert len(c.cells) == 3 and [x["label"] for x in c.comparisons] == ["both improvements"]
    rows = [Trained("koniq-10k", model, "resnet50") for model in MODELS]
    both = {"tested_on": "spaq", "labels": "spaq.csv; its split"}
    assert c.figures()["tests"] == [
        both | {"crops": "center", "rows": [rows[0]._asdict(), rows[2]._asdict()]},
        both | {"crops": "full", "rows": [rows[1]._asdict()]},
    ]
    _, *notes = sections(c)[0].notes
    assert notes[1] == (
        "Tests on spaq (+ multi-scale, koniq-10k): labels: spaq.csv; its split. Crops: full."
    )


def test_what_cannot_be_a_table_is_one_sentence(tmp_path, capsys):
    logs = write_three(tmp_path / "logs", epochs=1)
    twice = tests_of("bid", 40)
    twice = pd.concat([twice, twice.assign(checkpoint="best.pth")])
    other = tests_of("bid", 40, seeds=(1, 2)).query("seed == 1 or image != 'bid_000.png'")
    flipped = tests_of("bid", 40, seeds=(1, 2))
    flipped.loc[flipped["seed"] == 2, "crops"] = "full"
    crops = (
        "the seeds of baseline, koniq-10k were tested on different crops of bid (center; and full)"
    )
    for table, message in (
        (flipped, crops),
        (tests_of("bid", 40).drop(columns="trained_on"), "has no column trained_on; it takes what"),
        (tests_of("bid", 40).assign(model="other"), "other is not a row of CONFIGURATIONS"),
        (twice, "baseline, koniq-10k, seed 42, was tested twice on bid"),
        (other, "the seeds of baseline, koniq-10k were tested on different images of bid"),
    ):
        table.to_csv(tmp_path / "tests.csv", index=False)
        err = reported(logs, capsys, "--cross_data_sets", tmp_path / "tests.csv", status=1)[2]
        assert err.startswith("error: --cross_data_sets") and message in err
