"""KonIQ-10k: its label files, splits and image releases."""

import json

import numpy as np
import pandas as pd
import pytest

from conftest import write_koniq_csvs
from datasets.label_files import SPLITS
from datasets.labels import count_splits, read_labels
from errors import DataError


def splits(table) -> dict:
    return {s: set(table["image"][table["split"] == s]) for s in SPLITS}


@pytest.mark.parametrize(
    "split, counts", [("auto", (7046, 1000, 2010)), ("official", (7058, 1000, 2015))]
)
def test_real_koniq_counts_without_overlap(real_data, split, counts):
    table, _ = read_labels("koniq-10k", real_data / "koniq-10k", split=split)
    assert tuple(count_splits(table).values()) == counts
    assert not table["image"].duplicated().any()
    assert table["mos"].between(3, 89).all() and 55 < table["mos"].mean() < 62


def test_the_votes_are_those_of_the_distributions(real_data, tmp_path):
    folder = real_data / "koniq-10k"
    table, _ = read_labels("koniq-10k", folder, split="official", images=False)
    table = table.set_index("image")
    for name in ("koniq10k_scores_and_distributions.csv", "koniq10k_distributions_sets.csv"):
        texts = pd.read_csv(folder / name, index_col="image_name").loc[table.index]
        assert np.allclose(table["mos_sd"], 25 * texts["SD"], atol=1e-6)  # as the database has it
        assert (table["votes"] == texts["c_total"]).all()
    scores = pd.read_csv(folder / "koniq10k_scores_and_distributions.csv", index_col="image_name")
    assert np.allclose(table["vote_mean"], 25 * (scores.loc[table.index, "MOS"] - 1))
    (tmp_path / "koniq10k_distributions_sets.csv").write_bytes(
        (folder / "koniq10k_distributions_sets.csv").read_bytes()
    )
    alone, _ = read_labels("koniq-10k", tmp_path, images=False)
    assert np.allclose(alone.set_index("image")["mos_sd"], table["mos_sd"])


def test_the_official_split_contains_the_json_split(real_data):
    theirs = splits(read_labels("koniq-10k", real_data / "koniq-10k", split="official")[0])
    ours = splits(read_labels("koniq-10k", real_data / "koniq-10k", split="json")[0])
    assert ours["train"] < theirs["train"] and ours["test"] < theirs["test"]
    assert ours["val"] == theirs["val"]


def test_koniq_labels_are_the_zscores_whichever_file_holds_them(koniq10k):
    both, _ = read_labels("koniq-10k", koniq10k)
    (koniq10k / "koniq10k_scores_and_distributions.csv").unlink()
    sets_only, _ = read_labels("koniq-10k", koniq10k)
    assert both.equals(sets_only) and both["mos"].max() == pytest.approx(80)


def test_koniq_labels_from_the_split_lists_alone(koniq10k):
    with_csv, _ = read_labels("koniq-10k", koniq10k)
    for file in koniq10k.glob("*.csv"):
        file.unlink()
    table, source = read_labels("koniq-10k", koniq10k)
    assert count_splits(table) == {"train": 6, "val": 0, "test": 3}
    assert table["mos"].tolist() == with_csv["mos"][with_csv["split"] != "val"].tolist()
    assert "koniq_train.json" in source
    mixed, _ = read_labels("koniq-10k", koniq10k, split="random")  # their labels only
    assert dict(zip(mixed["image"], mixed["mos"])) == dict(zip(table["image"], table["mos"]))
    assert count_splits(mixed) == {"train": 7, "val": 0, "test": 2}


def test_scores_of_1_to_5_are_refused(koniq10k):
    (koniq10k / "koniq10k_scores_and_distributions.csv").unlink()
    path = koniq10k / "koniq10k_distributions_sets.csv"
    write_koniq_csvs(koniq10k, ["1000.jpg", "1001.jpg"], [3.1, 4.2], ["training", "test"])
    (koniq10k / "koniq10k_scores_and_distributions.csv").unlink()
    with pytest.raises(DataError, match=f"{path.name}: its MOS is on 1..5"):
        read_labels("koniq-10k", koniq10k)


def test_zscores_of_1_to_5_are_refused(koniq10k):
    write_koniq_csvs(koniq10k, ["1000.jpg", "1001.jpg"], [3.1, 4.2], ["training", "test"])
    (koniq10k / "koniq10k_distributions_sets.csv").unlink()
    with pytest.raises(DataError, match="its MOS_zscore is on 1"):
        read_labels("koniq-10k", koniq10k, split="random")


def test_split_lists_on_1_to_5_are_no_labels(koniq10k):
    for file in koniq10k.glob("*.csv"):
        file.unlink()
    for name in ("koniq_train.json", "koniq_test.json"):
        edit_json(koniq10k / name, lambda e: [{**x, "score": 3.0} for x in e])
    with pytest.raises(DataError, match=r"on 1\.\.5; a label CSV is needed"):
        read_labels("koniq-10k", koniq10k)


def test_label_files_that_contradict_are_refused(koniq10k):
    path = koniq10k / "koniq10k_distributions_sets.csv"
    path.write_text(path.read_text().replace("1003.jpg,1,38.0,", "1003.jpg,1,39.0,"))
    with pytest.raises(DataError, match=r"1 labels differ between .*: 1003\.jpg"):
        read_labels("koniq-10k", koniq10k)


def test_without_a_split_the_error_says_where_both_come_from(koniq10k):
    for name in ("koniq_train.json", "koniq_test.json", "koniq10k_distributions_sets.csv"):
        (koniq10k / name).unlink()
    with pytest.raises(DataError) as error:
        read_labels("koniq-10k", koniq10k)
    for text in (
        "koniq_train.json",
        "koniq10k_distributions_sets.csv",
        "subpic/koniq",
        "Perceptual-IQA-CS3324",
    ):
        assert text in str(error.value)
    assert "--split random" in str(error.value)


def test_one_split_list_without_the_other_is_refused(koniq10k):
    (koniq10k / "koniq_test.json").unlink()
    with pytest.raises(DataError, match=r"koniq_test\.json: no such file"):
        read_labels("koniq-10k", koniq10k)


def edit_json(path, change):
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(change(entries)))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda e: [*e, {"image": "koniq_test/1000.jpg", "score": 20.0}],
            "1 images in both train and test",
        ),
        (lambda e: [*e, {"image": "koniq_test/1006.jpg"}], "1 images in both test and val"),
        (
            lambda e: [*e, {"image": "koniq_test/nobody.jpg"}],
            "1 images of the test split have no label: nobody.jpg",
        ),
        (lambda e: [{**e[0], "score": 99.0}, *e[1:]], "scores differ from the labels"),
        (lambda e: [*e, e[0]], "twice"),
        (lambda e: {"images": e}, "is not a list of objects"),
        (lambda e: [], "is not a list of objects"),
    ],
)
def test_split_lists_that_contradict_are_refused(koniq10k, change, message):
    edit_json(koniq10k / "koniq_test.json", change)
    with pytest.raises(DataError, match=message):
        read_labels("koniq-10k", koniq10k)


@pytest.mark.parametrize("keys", [{"id": 7}, {"score": 3.2}])
def test_other_folders_and_keys_in_the_split_lists(koniq10k, keys):
    def rewrite(entries):
        return [{"image": "koniq/" + e["image"].split("/")[1], **keys} for e in entries]

    before, _ = read_labels("koniq-10k", koniq10k)
    for name in ("koniq_train.json", "koniq_test.json"):
        edit_json(koniq10k / name, rewrite)
    assert read_labels("koniq-10k", koniq10k)[0].equals(before)


def test_a_split_image_without_a_label_is_never_dropped(koniq10k):
    path = koniq10k / "koniq10k_scores_and_distributions.csv"
    path.write_text("".join(x for x in path.open() if not x.startswith(("1000.", "1007."))))
    (koniq10k / "koniq_train.json").unlink()
    (koniq10k / "koniq_test.json").unlink()
    with pytest.raises(DataError, match=r"1 images of the \w+ split have no label: 100"):
        read_labels("koniq-10k", koniq10k)


def test_the_fuller_image_release_is_taken(koniq10k):
    assert read_labels("koniq-10k", koniq10k)[0]["image"].str.startswith("1024x768/").all()
    (koniq10k / "1024x768").rename(koniq10k / "512x384")
    for name in (
        "1000.jpg",
        *(f"Thumbs{i}.db" for i in range(20)),
    ):  # others than images don't count
        (koniq10k / "1024x768").mkdir(exist_ok=True)
        (koniq10k / "1024x768" / name).touch()
    table, source = read_labels("koniq-10k", koniq10k)
    assert table["image"].str.startswith("512x384/").all() and "images in 512x384/" in source
