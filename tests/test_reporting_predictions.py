"""Published models beside one's own: files of predictions, matched by name, or refused."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

import metrics
import report_resnet_ablation as report
from report_runs import MODELS, NAMES, reported, write_run, write_three
from reporting.predictions import match_names


@pytest.fixture
def logs(tmp_path):
    return write_three(tmp_path / "logs", (20, 12, 9), epochs=1)


def test_images_of(folder) -> pd.DataFrame:
    """The test images of the runs: image, mos."""
    rows = pd.read_csv(folder / f"{NAMES[0]}_predictions.csv")
    return rows[rows["split"] == "test"][["image", "mos"]].reset_index(drop=True)


test_images_of.__test__ = False  # no test


def write_predictions(path, images, noise, seed=0, change=lambda table: table):
    """Scores of 0..1 for the images, by file names alone and in another order."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"image": images["image"].str.rpartition("/")[2]})
    table["score"] = (images["mos"] + rng.normal(0, noise, len(images))) / 100
    change(table.sample(frac=1, random_state=1)).to_csv(path, index=False)
    return path


def test_a_published_model_is_in_table_forest_and_tests(logs, tmp_path, capsys):
    images = test_images_of(logs)
    path = write_predictions(tmp_path / "other.csv", images, 14)
    results, out, _ = reported(logs, capsys, "--predictions", f"OTHER={path}", draw=True)
    given = pd.read_csv(path).set_index("image")["score"]
    wanted = given.loc[images["image"].str.rpartition("/")[2]].to_numpy()
    srcc = metrics.srcc(wanted, images["mos"].to_numpy())
    found = results["published"]["OTHER"]
    assert found["srcc"] == pytest.approx(srcc)
    assert found["srcc_interval"]["low"] < srcc < found["srcc_interval"]["high"]
    base, full = (results["configurations"][m]["srcc"] for m in (MODELS[0], MODELS[2]))
    rows = {c["label"]: c for c in results["published_comparisons"]}
    assert list(rows) == ["baseline over OTHER", "both, over OTHER"]
    assert rows["baseline over OTHER"]["difference"]["value"] == pytest.approx(base - srcc)
    ours = rows["both, over OTHER"]["difference"]
    assert ours["value"] == pytest.approx(full - srcc) and 0 < ours["low"] < ours["high"]
    (line,) = [x.split() for x in out.splitlines() if x.startswith("OTHER ")]
    assert line[1] == f"{srcc:.4f}" and line[3] == f"{srcc - base:+.4f}"
    text = (logs / "report.md").read_text()
    assert "| both, over OTHER |" in text and "Below the line: differences to publ" in text
    assert {row["label"] for row in results["pitman_morgan"]} >= set(rows)


def test_seeds_of_ones_own_widen_a_difference_to_a_published_model(tmp_path, capsys):
    logs = tmp_path / "logs"
    for seed in (1, 2, 3):
        for name, model, noise in zip(NAMES, MODELS, (12, 12, 12)):
            noise += 6 * (seed - 2)  # one seed of each is much better than another
            write_run(logs, f"{name}_seed{seed}", model, noise, seed=seed, epochs=1)
    images = pd.read_csv(logs / f"{NAMES[0]}_seed1_predictions.csv")
    images = images[images["split"] == "test"]
    path = write_predictions(tmp_path / "other.csv", images, 12)
    several = reported(logs, capsys, "--predictions", f"OTHER={path}")[0]
    for seed in (1, 3):
        for file in logs.glob(f"*_seed{seed}*"):
            file.unlink()
    single = reported(logs, capsys, "--predictions", f"OTHER={path}")[0]
    wide, narrow = (
        x["published_comparisons"][1]["difference"]["high"]
        - x["published_comparisons"][1]["difference"]["low"]
        for x in (several, single)
    )
    assert wide > 2 * narrow and len(several["published_comparisons"][1]["each"]) == 3
    assert len(several["pitman_morgan"][-1]["p"]) == 3
    assert several["published"]["OTHER"] == single["published"]["OTHER"]  # it has no seeds


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.iloc[3:], "lacks 3 of the 200 test images: Images/test_"),
        (lambda t: pd.concat([t, t.assign(image="x_" + t["image"])]), "has 200 images that are no"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "has two scores for test_"),
        (lambda t: t.assign(score="good"), "200 scores are not numbers: 'good'"),
        (lambda t: t.rename(columns={"score": "mos"}), "has no column score"),
    ],
)
def test_a_file_for_other_images_is_refused_with_one_sentence(
    logs, tmp_path, capsys, change, message
):
    path = write_predictions(tmp_path / "other.csv", test_images_of(logs), 14, change=change)
    _, out, err = reported(logs, capsys, "--predictions", f"OTHER={path}", status=1)
    assert err.startswith(f"error: --predictions OTHER: {path}: ") and message in err
    assert err.count("\n") == 1 and out == "" and not (logs / "report.md").exists()


def test_other_images_are_left_out_if_that_is_said(logs, tmp_path, capsys):
    images = test_images_of(logs)
    plain = write_predictions(tmp_path / "plain.csv", images, 14)
    more = pd.concat([pd.read_csv(plain), pd.DataFrame({"image": ["new.jpg"], "score": [1.0]})])
    more.to_csv(tmp_path / "more.csv", index=False)
    arguments = ["--predictions", f"A={plain}", f"B={tmp_path / 'more.csv'}", "--skip_others"]
    results, _, err = reported(logs, capsys, *arguments)
    assert results["published"]["A"] == results["published"]["B"]
    assert "note: --predictions B: left out 1 image" in err


def test_names_are_matched_by_path_or_by_file_name_alone():
    wanted = ["jp2k/img1.bmp", "jpeg/img1.bmp", "jpeg/img2.bmp"]
    assert match_names(wanted, ["jpeg\\img1.bmp", "img2.bmp", "JP2K/img1.bmp"]) == [1, None, 0]
    assert match_names(wanted[1:], ["img2.bmp", "elsewhere/IMG1.bmp"]) == [1, 0]


def test_splits_of_their_own_have_no_common_test_images(tmp_path, capsys):
    logs = tmp_path / "logs"
    for seed in (1, 2):
        write_three(logs, suffix=f"_seed{seed}", seed=seed, split="random", split_seed=seed)
    path = write_predictions(tmp_path / "other.csv", test_images_of_split(logs), 9)
    err = reported(logs, capsys, "--predictions", f"OTHER={path}", status=1)[2]
    assert "each seed of these runs has its own random split" in err


def test_images_of_split(logs):
    rows = pd.read_csv(logs / f"{NAMES[0]}_seed1_predictions.csv")
    return rows[(rows["epoch"] == 2) & (rows["split"] == "test")]


test_images_of_split.__test__ = False  # no test


def alone(capsys, *arguments, status=0):
    """The report on predictions alone, in this process: its stdout and stderr."""
    sys.argv = ["report", "--resamples", "400", *map(str, arguments)]
    assert report.main() == status
    return capsys.readouterr()


def test_predictions_alone_have_tables_and_a_page(tmp_path, capsys, koniq_labels):
    folder, table = koniq_labels
    rng = np.random.default_rng(6)
    paths = []
    for name, noise in (("bad", 15), ("good", 4)):
        path = tmp_path / f"{name}.csv"
        scores = table["mos"] + rng.normal(0, noise, len(table))
        table[["image"]].assign(score=scores).to_csv(path, index=False)
        paths.append(f"{name}={path}")
    out = tmp_path / "out"
    said = alone(capsys, "--predictions", *paths, "--data_path", folder, "--output", out).out
    assert said.startswith("2 published models on 60 images of koniq-10k (--split auto, ")
    results = json.loads((out / "results.json").read_text())
    assert list(results["published"]) == ["good", "bad"] and results["no_votes"] == ""
    (row,) = results["published_comparisons"]
    assert row["label"] == "good over bad" and row["difference"]["low"] > 0
    assert results["krasula_comparisons"][0]["auc_ds"]["low"] > 0
    assert 0.5 < results["measures"]["auc_ds"]["bad"]["value"] < 1
    figures = {p.name for p in (out / "figures").iterdir()}
    assert figures == {f"{s}.{k}" for s in ("forest", "models", "thirds") for k in ("png", "pdf")}
    text = (out / "report.md").read_text()
    for heading in ("Different or similar", "Size of the errors", "SRCC by third", "Provenance"):
        assert f"## {heading}" in text
    assert (out / "report.html").read_text().count("<svg role=") == 4 and " nan" not in text


@pytest.fixture
def koniq_labels(tmp_path):
    """KonIQ-10k's label files with votes and no image, and the test images' mos."""
    folder = tmp_path / "koniq-10k"
    folder.mkdir()
    rng = np.random.default_rng(7)
    votes = np.stack([rng.multinomial(100, rng.dirichlet(np.ones(5))) for _ in range(120)])
    table = pd.DataFrame({"image_name": [f"{i:04}.jpg" for i in range(120)]})
    table[[f"c{g}" for g in range(1, 6)]] = votes / 100
    table["c_total"] = 100
    table["MOS"] = votes @ np.arange(5) / 4
    table["set"] = np.repeat(["training", "test"], 60)
    table.to_csv(folder / "koniq10k_distributions_sets.csv", index=False)
    tested = table[table["set"] == "test"][["image_name", "MOS"]].set_axis(["image", "mos"], axis=1)
    return folder, tested.reset_index(drop=True)


def test_a_report_on_nothing_is_refused(capsys):
    for arguments in ([], ["--predictions", "a=b.csv"], ["--cross_data_sets", "x.csv"]):
        sys.argv = ["report", *arguments]
        with pytest.raises(SystemExit):
            report.main()
        assert "report" in capsys.readouterr().err
    err = alone(capsys, "--predictions", "a", "--data_path", "nowhere", status=1).err
    assert err == "error: --predictions a: takes NAME=FILE\n"
