"""The votes of the test images: from the predictions, or for earlier logs from the label files."""

import numpy as np
import pandas as pd
import pytest

from report_runs import MODELS, NAMES, reported, write_three

COLUMNS = ("vote_mean", "mos_sd", "votes")


def write_labels(folder, logs):
    """KonIQ-10k's label files of the images in the logs, each with 100 votes and some of 1."""
    rows = pd.read_csv(logs / f"{NAMES[0]}_predictions.csv")
    rows = rows.drop_duplicates("image")
    folder.mkdir()
    table = pd.DataFrame({"image_name": rows["image"].str.rpartition("/")[2], "MOS": rows["mos"]})
    low = np.floor(rows["mos"] / 25).clip(0, 3).to_numpy().astype(int)
    share = (rows["mos"] / 25 - low).round(2).to_numpy()
    counts = np.zeros((len(rows), 5))
    counts[np.arange(len(rows)), low], counts[np.arange(len(rows)), low + 1] = 1 - share, share
    table[[f"c{grade}" for grade in range(1, 6)]] = 0.7 * counts + 0.06  # some for every grade
    table["c_total"] = 100
    table["set"] = rows["split"].map({"val": "validation", "test": "test"})
    new = table.iloc[:1].assign(image_name="new.jpg", set="training")
    pd.concat([table, new]).to_csv(folder / "koniq10k_distributions_sets.csv", index=False)
    return folder


def add_votes(logs):
    """The votes as runs write them now, into all predictions."""
    for path in logs.glob("*_predictions.csv"):
        table = pd.read_csv(path)
        table = table.assign(vote_mean=table["mos"] / 2 + 20, mos_sd=20.0, votes=90)
        table.to_csv(path, index=False)


def test_the_predictions_have_the_votes(tmp_path, capsys):
    logs = write_three(tmp_path / "logs", epochs=1)
    add_votes(logs)
    results, _, _ = reported(logs, capsys)
    assert results["no_votes"] == ""
    aucs = [results["measures"]["auc_ds"][m]["value"] for m in MODELS]
    assert aucs == sorted(aucs) and 0.6 < aucs[0] < aucs[2] < 1  # noises of 20, 12 and 6
    labels = [row["label"] for row in results["krasula_comparisons"]]
    assert labels == [row["label"] for row in results["comparisons"]]
    rows = pd.read_csv(logs / f"{NAMES[0]}_predictions.csv").query("split == 'test'")
    assert results["measures"]["rmse"][MODELS[0]]["value"] < rows["mos"].std() / 2  # of the votes
    text = (logs / "report.md").read_text()
    assert "AUC different/similar" in text and "outlier ratio" in text


def test_earlier_logs_are_reported_with_the_votes_of_the_label_files(tmp_path, capsys):
    logs = write_three(tmp_path / "logs", epochs=1)
    results, _, _ = reported(logs, capsys)
    assert "auc_ds" not in results["measures"] and "rmse" in results["measures"]
    assert "the label files can't be read" in results["no_votes"]
    assert "needs the votes. The predictions do not" in (logs / "report.md").read_text()
    folder = write_labels(tmp_path / "koniq-10k", logs)
    results, _, _ = reported(logs, capsys, "--data_path", folder)
    assert results["no_votes"] == "" and set(results["measures"]["auc_ds"]) == set(MODELS)
    labels = pd.read_csv(folder / "koniq10k_distributions_sets.csv")
    labels.assign(MOS=labels["MOS"] + 0.5).to_csv(
        folder / "koniq10k_distributions_sets.csv", index=False
    )
    results, _, _ = reported(logs, capsys, "--data_path", folder)
    assert "not those that the runs were trained with" in results["no_votes"]


@pytest.mark.parametrize("column, value", [("votes", 1), ("mos_sd", None)])
def test_a_test_image_without_votes_is_counted_not_left_out(tmp_path, capsys, column, value):
    logs = write_three(tmp_path / "logs", epochs=1)
    add_votes(logs)
    for path in logs.glob("*_predictions.csv"):
        table = pd.read_csv(path)
        table[column] = table[column].astype(float)
        table.loc[table.index[-3:], column] = value
        table.to_csv(path, index=False)
    results, _, _ = reported(logs, capsys)
    assert results["no_votes"] == "3 of the 200 test images have fewer than two known votes."
    assert "auc_ds" not in results["measures"] and "srcc_low" in results["measures"]


def test_the_thirds_are_those_of_the_mos(tmp_path, capsys):
    logs = write_three(tmp_path / "logs", epochs=1)
    results, _, _ = reported(logs, capsys)
    rows = pd.read_csv(logs / f"{NAMES[1]}_predictions.csv").query("split == 'test'")
    rows = rows.sort_values("mos")
    for name, part in zip(("low", "middle", "high"), np.array_split(np.arange(200), 3)):
        wanted = rows.iloc[part][["mos", "score"]].corr("spearman").iloc[0, 1]
        found = results["measures"][f"srcc_{name}"][MODELS[1]]
        assert found["value"] == pytest.approx(wanted, abs=0.02)  # 200 is no multiple of 3
        assert found["low"] < found["value"] < found["high"]
