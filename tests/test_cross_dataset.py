"""Tests of checkpoints on data sets: the one of their training, others, and your own table."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cross_dataset
import predict_resnet_improved as predict
import train_resnet_improved as train
from checkpoints import predicted, write_checkpoint
from conftest import TINY, make_biq2021, make_koniq10k
from training.flags import parse_args


def test_a_test_gives_the_figures_of_the_training(tmp_path, capsys, koniq10k):
    flags = ["--data_path", koniq10k, "--store_dir", tmp_path / "store", "--log_dir", tmp_path]
    flags += ["--checkpoint_dir", tmp_path, "--run_name", "run", "--save_model"]
    flags += ["--use_multiscale", "--use_attention"]
    train.run(parse_args([*TINY, *map(str, flags)]))
    output = tmp_path / "tested.csv"
    said = predicted(
        capsys, "--checkpoint", tmp_path / "resnet_improved_ms_att_last.pth",
        "--test_on", f"koniq-10k={koniq10k}",
        "--store_dir", tmp_path / "store", "--amp", "off", "--output", output,
    )  # fmt: skip
    tested = pd.read_csv(output)
    recorded = pd.read_csv(tmp_path / "run_predictions.csv")
    recorded = recorded[(recorded["epoch"] == 2) & (recorded["split"] == "test")]
    assert list(tested["image"]) == list(recorded["image"])
    assert np.allclose(tested["score"], recorded["score"], atol=2e-6)
    assert "trained on (rows), tested on (columns)" in said.out
    origin = tested[["trained_on", "model", "backbone", "seed"]].drop_duplicates()
    assert origin.values.tolist() == [["koniq-10k", "resnet_improved_ms_att", "resnet50", 42]]
    (config, *_) = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    crops = "32 of 48 x 40 (H x W), random, 3 per image"
    assert set(tested["labels"]) == {config["label_source"]} and set(tested["crops"]) == {crops}
    assert said.out.endswith(f"koniq-10k\n  labels: {config['label_source']}\n  crops: {crops}\n")


def without_contents(checkpoint: Path, to: Path) -> Path:
    """A checkpoint as earlier versions wrote it, which does not say what it was trained on."""
    content = torch.load(checkpoint, weights_only=True)
    del content["trained_on"]
    torch.save(content, to)
    return to


def images_tested(console: str) -> int:
    return int(console.splitlines()[1].split()[-1])


def test_images_of_the_training_are_never_tested(trained, checkpoint, tmp_path, capsys):
    folder = tmp_path / "koniq-10k"
    shutil.copytree(trained / "koniq-10k", folder)
    arguments = ["--checkpoint", checkpoint, "--test_on", f"koniq-10k={folder}"]
    arguments += ["--store_dir", tmp_path / "store"]
    refusal = predicted(capsys, *arguments, "--test_split", "all", status=1).err
    assert "there are 8 of its 11 test images, which the checkpoint was trained or vali" in refusal
    assert "(1024x768/1000.jpg, 1024x768/1001.jpg, 1024x768/1002.jpg and 5 more)" in refusal
    said = predicted(capsys, *arguments, "--test_split", "all", "--skip_trained")
    assert "left out 8 of its 11 test images" in said.err and images_tested(said.out) == 3
    lists = {part: folder / f"koniq_{part}.json" for part in ("train", "test")}
    texts = {part: path.read_text() for part, path in lists.items()}
    lists["train"].write_text(texts["test"])
    lists["test"].write_text(texts["train"])
    assert "there are 6 of its 6 test images" in predicted(capsys, *arguments, status=1).err
    refusal = predicted(capsys, *arguments, "--skip_trained", status=1).err
    assert "nothing is left to test" in refusal


def test_images_of_the_training_are_known_under_other_names(
    trained, checkpoint, biq2021, tmp_path, capsys
):
    shutil.copy(trained / "koniq-10k/1024x768/1003.jpg", biq2021 / "Images" / "ss03 (1).jpg")
    arguments = ["--checkpoint", checkpoint, "--store_dir", tmp_path / "store", "--test_on"]
    for name, flags in (("biq2021", []), ("csv", BIQ_AS_CSV)):
        refusal = predicted(capsys, *arguments, f"{name}={biq2021}", *flags, status=1).err
        assert "1 of its 5 test images" in refusal and "(Images/ss03 (1).jpg)" in refusal
        said = predicted(capsys, *arguments, f"{name}={biq2021}", *flags, "--skip_trained")
        assert images_tested(said.out) == 4


def test_another_part_of_the_data_set_of_the_training_is_tested(checkpoint, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    make_koniq10k(tmp_path / "other", train=7, test=4)
    arguments = ["--store_dir", tmp_path / "store", "--test_on", f"koniq-10k={tmp_path / 'other'}"]
    said = predicted(capsys, "--checkpoint", checkpoint, *arguments)
    assert said.err == "" and images_tested(said.out) == 4


def test_a_checkpoint_that_does_not_say_is_tested_with_its_own_split(
    trained, checkpoint, tmp_path, capsys
):
    folder = tmp_path / "koniq-10k"
    shutil.copytree(trained / "koniq-10k", folder)
    checkpoint = without_contents(checkpoint, tmp_path / "early.pth")
    arguments = ["--checkpoint", checkpoint, "--test_on", f"koniq-10k={folder}"]
    arguments += ["--store_dir", tmp_path / "store"]
    said = predicted(capsys, *arguments, "--skip_trained")
    assert images_tested(said.out) == 3 and "--skip_trained leaves out nothing" in said.err
    refusal = predicted(capsys, *arguments, "--test_split", "all", status=1).err
    assert "as well; give --test_split test" in refusal
    (folder / "koniq_train.json").write_text((folder / "koniq_test.json").read_text())
    (folder / "koniq_test.json").write_text((trained / "koniq-10k/koniq_train.json").read_text())
    assert "its labels or their split are not those" in predicted(capsys, *arguments, status=1).err


def test_other_data_sets_are_tested_with_their_own_resize(trained, checkpoint, tmp_path, capsys):
    folder = tmp_path / "biq"
    folder.mkdir()
    make_biq2021(folder)
    arguments = ["--checkpoint", checkpoint, "--store_dir", tmp_path / "store", "--test_on"]
    said = predicted(capsys, *arguments, f"biq2021={folder}", "--test_split", "all")
    assert list((tmp_path / "store").glob("biq2021-512x512-*")) and " 17" in said.out
    said = predicted(capsys, *arguments, f"biq2021={folder}")
    assert "koniq-10k" in said.out.splitlines()[-5]  # of the table, before labels and crops


@pytest.mark.parametrize("crop, flip", [("center", None), ("grid", None), ("center", True)])
def test_a_test_takes_other_crops_than_the_training(trained, checkpoint, crop, flip):
    model = predict.load_model(checkpoint, "cpu")
    found = cross_dataset.test_on(
        model,
        "koniq-10k",
        str(trained / "koniq-10k"),
        store_dir=str(trained / "store"),
        test_crop=crop,
        test_flip=flip,
    )
    paths = [trained / "koniq-10k" / "1024x768" / Path(name).name for name in found["image"]]
    alone = predict.score_images(model, paths, test_crop=crop, test_flip=flip)
    assert np.allclose(found["score"], alone["score"], atol=2e-5)


# Your own table

BIQ_AS_CSV = ["--csv", "train=Train (Images and MOS).csv", "test=Test (Images and MOS).csv"]
BIQ_AS_CSV += ["--csv_columns", "image=Image Name", "score=MOS", "--score_range", "0", "1"]


def test_your_own_table_gives_the_figures_of_the_same_data_set(
    checkpoint, biq2021, tmp_path, capsys
):
    tables, figures = [], []
    for name, flags in (("biq2021", []), ("csv", BIQ_AS_CSV)):
        output = tmp_path / f"{name}.csv"
        said = predicted(
            capsys, "--checkpoint", checkpoint, "--test_on", f"{name}={biq2021}", *flags,
            "--store_dir", tmp_path / "store", "--output", output,
        )  # fmt: skip
        assert said.err == ""
        tables.append(pd.read_csv(output))
        figures.append(said.out.splitlines()[1].split()[2:])
    assert set(tables[1]["dataset"]) == {"csv"} and len(tables[1]) == 5
    assert tables[1][["image", "mos"]].equals(tables[0][["image", "mos"]])
    assert np.allclose(tables[1]["score"], tables[0]["score"], atol=2e-5)
    assert figures[1] == figures[0]


def test_all_images_of_your_own_table_are_tested_on_its_scale(
    checkpoint, biq2021, tmp_path, capsys
):
    rows = ["file;dmos", "ss01 (0).jpg;1", "ss01 (1).jpg;3", "ss03 (1).jpg;5"]
    (biq2021 / "mine.csv").write_text("\n".join(rows) + "\n")
    predicted(
        capsys, "--checkpoint", checkpoint, "--test_on", f"csv={biq2021}", "--test_split", "all",
        "--csv", "mine.csv", "--csv_columns", "image=file", "score=dmos", "--lower_is_better",
        "--score_range", "1", "5", "--store_dir", tmp_path / "store",
        "--output", tmp_path / "o.csv",
    )  # fmt: skip
    table = pd.read_csv(tmp_path / "o.csv")
    assert list(table["image"]) == [
        f"Images/{name}.jpg" for name in ("ss01 (0)", "ss01 (1)", "ss03 (1)")
    ]
    assert list(table["mos"]) == [100, 50, 0] and table["score"].between(0, 100).all()


def test_the_folder_of_the_images_is_chosen_by_its_flag(trained, checkpoint, tmp_path, capsys):
    folder = tmp_path / "koniq-10k"
    shutil.copytree(trained / "koniq-10k", folder)
    shutil.copytree(folder / "1024x768", folder / "512x384")
    arguments = ["--checkpoint", checkpoint, "--store_dir", tmp_path / "store"]
    arguments += ["--test_on", f"koniq-10k={folder}"]
    said = predicted(capsys, *arguments, status=1)
    assert "images are in each of 1024x768/, 512x384/: name the right one with" in said.err
    assert predicted(capsys, *arguments, "--image_dir", "1024x768").err == ""


def test_without_its_table_a_test_is_refused_in_one_sentence(checkpoint, biq2021, capsys):
    arguments = ["--checkpoint", checkpoint, "--test_on", f"csv={biq2021}"]
    said = predicted(capsys, *arguments, status=1)
    assert said.err == (
        f"error: --test_on csv={biq2021}: name the table in that folder with --csv FILE\n"
    )
    assert "nothing.csv" in predicted(capsys, *arguments, "--csv", "nothing.csv", status=1).err


def test_a_table_changes_nothing_for_other_data_sets(trained, checkpoint, biq2021, capsys):
    said = predicted(
        capsys, "--checkpoint", checkpoint, "--test_split", "all", *BIQ_AS_CSV,
        "--test_on", f"koniq-10k={trained / 'koniq-10k'}", f"csv={biq2021}", status=1,
    )  # fmt: skip
    assert "there are 8 of its 11 test images" in said.err


@pytest.fixture
def trained_on_a_table(biq2021, tmp_path):
    """A checkpoint of a network that was trained on BIQ2021, read as a table."""
    flags = ["--dataset", "csv", "--data_path", biq2021, *BIQ_AS_CSV, "--val_fraction", "0.1"]
    return write_checkpoint(tmp_path / "csv.pth", *flags)


def test_the_table_of_the_training_is_known(trained_on_a_table, biq2021, tmp_path, capsys):
    arguments = ["--checkpoint", trained_on_a_table, "--store_dir", tmp_path / "store"]
    arguments += ["--test_on", f"csv={biq2021}"]
    said = [predicted(capsys, *arguments, *flags) for flags in ([], BIQ_AS_CSV)]
    assert said[0] == said[1] and said[0].err == ""
    turned = [*BIQ_AS_CSV]
    turned[4], turned[5] = turned[5], turned[4]  # the same columns in another order
    for flags in ([], BIQ_AS_CSV, turned):
        refusal = predicted(capsys, *arguments, *flags, "--test_split", "all", status=1)
        assert "there are 12 of its 17 test images" in refusal.err


def test_a_checkpoint_that_does_not_say_is_tested_on_another_table_with_a_note(
    trained_on_a_table, tmp_path, capsys
):
    (tmp_path / "other").mkdir()
    make_biq2021(tmp_path / "other", train=3, test=4)
    early = without_contents(trained_on_a_table, tmp_path / "early.pth")
    arguments = ["--checkpoint", early, "--store_dir", tmp_path / "store"]
    arguments += ["--test_on", f"csv={tmp_path / 'other'}"]
    said = predicted(capsys, *arguments, *BIQ_AS_CSV, "--test_split", "all")
    assert said.err.startswith("note: the checkpoint was also trained on --dataset csv")
    assert said.out.splitlines()[1].split()[-1] == "7"
    assert "its labels or their split are not those" in predicted(capsys, *arguments, status=1).err


def test_images_smaller_than_the_crops_are_refused(biq2021, tmp_path, capsys):
    flags = ["--dataset", "biq2021", "--data_path", biq2021, "--resize", "640", "640"]
    large = write_checkpoint(tmp_path / "large.pth", *flags, "--patch_size", "600")
    arguments = ["--checkpoint", large, "--test_on", f"csv={biq2021}", *BIQ_AS_CSV]
    said = predicted(capsys, *arguments, status=1)
    assert "resized to 512 x 512, smaller than the checkpoint's crops (600)" in said.err
