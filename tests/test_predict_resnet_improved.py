"""Scores for files and folders, and tests of checkpoints on data sets."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import predict_resnet_improved as predict
import train_resnet_improved as train
from conftest import ROOT, TINY, make_biq2021, make_koniq10k, photo
from train_resnet_improved import RunError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with KonIQ-10k's layout, and logs and checkpoints of a short run on it."""
    base = tmp_path_factory.mktemp("trained")
    (base / "koniq-10k").mkdir()
    make_koniq10k(base / "koniq-10k")
    flags = ["--data_path", base / "koniq-10k", "--store_dir", base / "store", "--log_dir", base]
    flags += ["--checkpoint_dir", base, "--run_name", "run", "--save_model"]
    train.run(train.parse_args([*TINY, *map(str, flags), "--use_multiscale", "--use_attention"]))
    return base


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained / "resnet_improved_ms_att_last.pth"


def run(capsys, *arguments, status=0):
    """Run the script in this process: its (stdout, stderr)."""
    sys.argv = ["predict", *map(str, arguments)]
    assert predict.main() == status
    return capsys.readouterr()


def test_the_score_of_an_image_depends_on_nothing_else(trained, checkpoint):
    paths = sorted((trained / "koniq-10k" / "1024x768").iterdir())
    model = predict.load_model(checkpoint, "cpu")
    options = {"test_patch_num": 4, "amp": "off"}
    together = predict.score_images(model, paths, **options, batch_size=7)
    turned = predict.score_images(model, paths[::-1], **options)
    alone = [predict.score_images(model, [p], **options)["score"][0] for p in paths]
    assert np.allclose(together["score"], alone, atol=2e-5)
    assert np.allclose(turned["score"][::-1], alone, atol=2e-5)
    shares = together[["w1", "w2", "w3", "w4"]].to_numpy()
    assert np.allclose(shares.sum(1), 1, atol=1e-4)


def test_crops_are_those_of_the_checkpoints_preprocessing(trained, checkpoint, monkeypatch):
    seen = []

    def look(_, batches, **__):
        seen.extend(batches)
        return torch.zeros(1), None

    monkeypatch.setattr(train, "score_crops", look)
    model = predict.load_model(checkpoint, "cpu")
    path = next((trained / "koniq-10k" / "1024x768").iterdir())
    predict.score_images(model, [path], test_crop="center")
    decoded = predict.data.decode(path, 48, 40)
    wanted = decoded[8:40, 4:36].transpose(2, 0, 1)
    assert (seen[0]["patches"][0].numpy() == wanted).all()


def test_files_and_folders_are_scored_and_bad_ones_named(trained, checkpoint, tmp_path, capsys):
    photo(tmp_path / "in" / "deep" / "a.png", 90)
    photo(tmp_path / "in" / "b.JPG", 90)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "notes.txt").write_text("left alone")
    photo(tmp_path / "one.bmp", 90)
    flags = ["--checkpoint", checkpoint, tmp_path / "in", tmp_path / "one.bmp"]
    said = run(capsys, *flags, "--test_patch_num", 4, status=1)
    lines = [line.split("\t") for line in said.out.splitlines()]
    names = [tmp_path / "in" / "b.JPG", tmp_path / "in" / "deep" / "a.png", tmp_path / "one.bmp"]
    assert [line[0] for line in lines] == list(map(str, names))
    assert all("w1=" in line[1] and "w4=" in line[1] for line in lines)
    assert said.err.startswith(f"error: {tmp_path / 'in' / 'broken.jpg'}: cannot identify")

    for suffix in ("csv", "json"):
        output = tmp_path / f"scores.{suffix}"
        run(capsys, *flags, "--test_patch_num", 4, "--output", output, status=1)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert list(table.columns) == ["path", "score", "w1", "w2", "w3", "w4"] and len(table) == 3
    assert [r["score"] for r in json.loads((tmp_path / "scores.json").read_text())] == list(
        table["score"]
    )
    assert [f"{s:.4f}" for s in table["score"]] == [line[1].split()[0] for line in lines]


def test_heatmaps_are_one_for_each_image(checkpoint, tmp_path, capsys):
    for folder in ("a", "b"):
        photo(tmp_path / folder / "same.png", 90)
    run(
        capsys, "--checkpoint", checkpoint, tmp_path / "a", tmp_path / "b",
        "--heatmap", tmp_path / "maps", "--test_patch_num", 4,
    )  # fmt: skip
    assert len(list((tmp_path / "maps").glob("*same.png.png"))) == 2


def test_a_test_gives_the_figures_of_the_training(trained, checkpoint, tmp_path, capsys):
    output = tmp_path / "tested.csv"
    said = run(
        capsys, "--checkpoint", checkpoint, "--test_on", f"koniq-10k={trained / 'koniq-10k'}",
        "--store_dir", trained / "store", "--amp", "off", "--output", output,
    )  # fmt: skip
    tested = pd.read_csv(output)
    recorded = pd.read_csv(trained / "run_predictions.csv")
    recorded = recorded[(recorded["epoch"] == 2) & (recorded["split"] == "test")]
    assert list(tested["image"]) == list(recorded["image"])
    assert np.allclose(tested["score"], recorded["score"], atol=2e-6)
    assert "trained on (rows), tested on (columns)" in said.out


def test_images_of_the_training_are_never_tested(trained, checkpoint, tmp_path, capsys):
    folder = tmp_path / "koniq-10k"
    shutil.copytree(trained / "koniq-10k", folder)
    arguments = ["--checkpoint", checkpoint, "--test_on", f"koniq-10k={folder}"]
    assert (
        "as well; give --test_split test"
        in run(capsys, *arguments, "--test_split", "all", status=1).err
    )
    lists = {part: folder / f"koniq_{part}.json" for part in ("train", "test")}
    texts = {part: path.read_text() for part, path in lists.items()}
    lists["train"].write_text(texts["test"])
    lists["test"].write_text(texts["train"])
    assert "its labels or their split are not those" in run(capsys, *arguments, status=1).err


def test_other_data_sets_are_tested_with_their_own_resize(trained, checkpoint, tmp_path, capsys):
    folder = tmp_path / "biq"
    folder.mkdir()
    make_biq2021(folder)
    arguments = ["--checkpoint", checkpoint, "--store_dir", tmp_path / "store", "--test_on"]
    said = run(capsys, *arguments, f"biq2021={folder}", "--test_split", "all")
    assert (tmp_path / "store").glob("biq2021-512x512-*") and " 17" in said.out
    said = run(capsys, *arguments, f"biq2021={folder}")
    assert "koniq-10k" in said.out.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give images or folders to score"),
        (["x.jpg", "--test_on", "biq2021=y"], "give images or folders to score"),
        (["--test_on", "nothing=y"], "takes NAME=DIR"),
        (["--test_on", "biq2021"], "takes NAME=DIR"),
        (["x.jpg", "--output", "x.txt"], "ends in .csv or .json"),
        (["x.jpg", "--checkpoint", "b.pth"], "several are for --test_on"),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments, message, capsys):
    sys.argv = ["predict", "--checkpoint", "a.pth", *arguments]
    with pytest.raises(SystemExit):
        predict.main()
    assert message in capsys.readouterr().err


def test_crops_fit_what_is_asked_for():
    assert predict.crops_of_each("random", None, 20) == 20
    assert predict.crops_of_each("grid", None, 20) == 16  # the preset of SMART-IQA has 20
    assert predict.crops_of_each("grid", 9, 20) == 9
    assert predict.crops_of_each("center", None, 25) == 1
    with pytest.raises(RunError, match="takes a square number"):
        predict.crops_of_each("grid", 20, 25)


@pytest.mark.parametrize("crop", ["center", "grid"])
def test_a_test_takes_other_crops_than_the_training(trained, checkpoint, crop):
    model = predict.load_model(checkpoint, "cpu")
    found = predict.test_on(
        model,
        "koniq-10k",
        str(trained / "koniq-10k"),
        store_dir=str(trained / "store"),
        test_crop=crop,
    )
    paths = [trained / "koniq-10k" / "1024x768" / Path(name).name for name in found["image"]]
    alone = predict.score_images(model, paths, test_crop=crop)
    assert np.allclose(found["score"], alone["score"], atol=2e-5)


def test_the_precision_is_that_of_the_training(checkpoint):
    model = predict.load_model(checkpoint, "cpu")
    assert predict.precision_of(model, "auto") == "off"  # as the run's --amp said
    assert predict.precision_of(model, "bf16") == "bf16"
    model.config["device"] = "cuda"
    here = train.choose_precision("auto", torch.device("cpu"))
    assert predict.precision_of(model, "auto") == here


def test_what_cannot_be_scored_is_said(checkpoint, tmp_path, capsys):
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    photo(tmp_path / "a.png", 90)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--checkpoint", tmp_path / "other.pth", tmp_path / "a.png"], "not a checkpoint of this"),
        (["--checkpoint", tmp_path / "none.pth", tmp_path / "a.png"], "none.pth"),
        (["--checkpoint", checkpoint, tmp_path / "none.png"], "no such file or folder"),
        (["--checkpoint", checkpoint, tmp_path / "empty"], "no images in this folder"),
        (
            ["--checkpoint", checkpoint, tmp_path / "a.png", "--test_patch_num", 5],
            "a square number",
        ),
    ):
        said = run(capsys, *arguments, status=1)
        assert said.err.startswith("error: ") and message in said.err


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / "marker"

    class Malicious:
        def __reduce__(self):
            return subprocess.call, (["touch", str(marker)],)

    torch.save({"model": Malicious(), "config": {}, "epochs": []}, tmp_path / "bad.pth")
    with pytest.raises(RunError, match="damaged, or not a file of tensors"):
        predict.load_model(tmp_path / "bad.pth")
    assert not marker.exists()


def test_help_comes_without_torch():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import predict_resnet_improved\n"
    code += "print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
