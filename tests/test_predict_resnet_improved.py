"""Scores for files and folders, and the flags of prediction."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import predict_resnet_improved as predict
from checkpoints import predicted
from conftest import ROOT, photo
from data_loader import MEAN, STD
from devices import choose_precision
from errors import RunError
from evaluation import crops_of_each


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


def test_scores_are_sorted_and_shown_on_a_page(trained, checkpoint, tmp_path, capsys):
    folder = trained / "koniq-10k" / "1024x768"
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    flags = ["--checkpoint", checkpoint, folder, tmp_path / "broken.jpg", "--test_patch_num", 1]
    predicted(capsys, *flags, "--output", tmp_path / "scores.csv", status=1)
    table = pd.read_csv(tmp_path / "scores.csv").sort_values("score")
    said = predicted(capsys, *flags, "--sort", "--html", tmp_path / "page.html", status=1)
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert len(lines) == 11 and [path for path, _ in lines] == list(table["path"])
    scores = [float(line.split()[0]) for _, line in lines]
    assert scores == pytest.approx(list(table["score"]), abs=1e-3)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure ") == 11 and "broken.jpg: cannot identify" in page
    assert "resnet_improved_ms_att_last.pth (resnet_improved_ms_att, resnet50), trained" in page


def test_mirror_images_are_scored_as_well(trained, checkpoint, tmp_path, capsys):
    path = sorted((trained / "koniq-10k" / "1024x768").iterdir())[0]
    image, both = predict.decode(path, 48, 40), [tmp_path / "a.png", tmp_path / "b.png"]
    for name, pixels in zip(both, (image, image[:, ::-1])):
        Image.fromarray(pixels).save(name)
    flags = ["--checkpoint", checkpoint, "--test_crop", "full", "--amp", "off", *both]
    found = {}
    for flip in ("--no-test_flip", "--test_flip"):
        predicted(capsys, *flags, flip, "--output", tmp_path / "scores.csv")
        found[flip] = pd.read_csv(tmp_path / "scores.csv")["score"].to_numpy()
    one, mirrored = found["--no-test_flip"]
    assert abs(one - mirrored) > 1e-3  # the two differ
    assert found["--test_flip"] == pytest.approx([(one + mirrored) / 2] * 2, abs=1e-4)


def test_complete_images_are_scored_in_one_pass(trained, checkpoint, monkeypatch):
    seen = []

    def look(_, batches, **__):
        seen.extend(batches)
        return torch.zeros(2), None

    monkeypatch.setattr(predict, "score_crops", look)
    paths = sorted((trained / "koniq-10k" / "1024x768").iterdir())[:2]
    model = predict.load_model(checkpoint, "cpu")
    model.config["flags"] |= {"test_crop": "full", "test_flip": False}  # the default from now on
    predict.score_images(model, paths)
    assert seen[0]["crops"].shape == (2, 3, 48, 40) and not seen[0]["flips"].any()
    decoded = predict.decode(paths[1], 48, 40).transpose(2, 0, 1)
    assert (seen[0]["crops"][1].numpy() == decoded).all()

    model.config["flags"]["test_flip"] = True  # as its training evaluated
    predict.score_images(model, paths[0])
    assert seen[1]["flips"].tolist() == [False, True]
    predict.score_images(model, paths, test_flip=False)
    assert seen[2]["flips"].tolist() == [False, False]
    model.backbone.input_size = 32
    model.config["flags"]["test_crop"] = "random"
    with pytest.raises(RunError, match="takes images of 32 x 32 only"):
        predict.score_images(model, paths, test_crop="full")


def test_crops_are_those_of_the_checkpoints_preprocessing(trained, checkpoint, monkeypatch):
    seen = []

    def look(_, batches, **__):
        seen.extend(batches)
        return torch.zeros(1), None

    monkeypatch.setattr(predict, "score_crops", look)
    model = predict.load_model(checkpoint, "cpu")
    path = next((trained / "koniq-10k" / "1024x768").iterdir())
    predict.score_images(model, [path], test_crop="center")
    decoded = predict.decode(path, 48, 40)
    wanted = decoded[8:40, 4:36].transpose(2, 0, 1)
    assert (seen[0]["crops"][0].numpy() == wanted).all()


def test_files_and_folders_are_scored_and_bad_ones_named(trained, checkpoint, tmp_path, capsys):
    photo(tmp_path / "in" / "deep" / "a.png", 90)
    photo(tmp_path / "in" / "b.JPG", 90)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "notes.txt").write_text("left alone")
    photo(tmp_path / "one.bmp", 90)
    flags = ["--checkpoint", checkpoint, tmp_path / "in", tmp_path / "one.bmp"]
    said = predicted(capsys, *flags, "--test_patch_num", 4, status=1)
    lines = [line.split("\t") for line in said.out.splitlines()]
    names = [tmp_path / "in" / "b.JPG", tmp_path / "in" / "deep" / "a.png", tmp_path / "one.bmp"]
    assert [line[0] for line in lines] == list(map(str, names))
    assert all("w1=" in line[1] and "w4=" in line[1] for line in lines)
    assert said.err.startswith(f"error: {tmp_path / 'in' / 'broken.jpg'}: cannot identify")

    for suffix in ("csv", "json"):
        output = tmp_path / f"scores.{suffix}"
        predicted(capsys, *flags, "--test_patch_num", 4, "--output", output, status=1)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert list(table.columns) == ["path", "score", "w1", "w2", "w3", "w4"] and len(table) == 3
    assert [r["score"] for r in json.loads((tmp_path / "scores.json").read_text())] == list(
        table["score"]
    )
    assert [f"{s:.4f}" for s in table["score"]] == [line[1].split()[0] for line in lines]


def test_one_path_is_scored_as_a_list_of_one(checkpoint, tmp_path):
    photo(tmp_path / "a.png", 90)
    model = predict.load_model(checkpoint, "cpu")
    alone = predict.score_images(model, str(tmp_path / "a.png"), test_patch_num=4)
    assert alone.equals(predict.score_images(model, [tmp_path / "a.png"], test_patch_num=4))


def test_images_in_memory_are_scored_as_their_files(trained, checkpoint, tmp_path):
    paths = sorted((trained / "koniq-10k" / "1024x768").iterdir())[:2]
    grey, exif = Image.open(paths[0]).convert("L"), Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    grey.resize((90, 60)).save(tmp_path / "turned.png", exif=exif)
    grey.convert("RGBA").save(tmp_path / "clear.png")
    levels = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
    Image.fromarray(levels).save(tmp_path / "deep.png")
    paths += [tmp_path / name for name in ("turned.png", "clear.png", "deep.png")]
    model = predict.load_model(checkpoint, "cpu")
    files = predict.score_images(model, paths, test_patch_num=1)

    def same(images, rows=slice(None)) -> None:
        table = predict.score_images(model, images, test_patch_num=1)
        assert list(table["path"]) == [f"image {i}" for i in range(len(table))]
        wanted = files.iloc[rows].reset_index(drop=True)
        columns = ["score", "w1", "w4"]
        assert np.allclose(table[columns], wanted[columns], atol=2e-5)  # of batches of other sizes
        assert list(table["error"]) == list(wanted["error"])

    same([Image.open(path) for path in paths])
    opened = Image.open(paths[0])
    same([opened, opened], [0, 0])
    same([np.asarray(Image.open(path)) for path in paths[:2]], slice(0, 2))
    same(np.stack([np.asarray(Image.open(path)) for path in paths[:2]]), slice(0, 2))
    same(np.asarray(opened), slice(0, 1))
    same(opened, slice(0, 1))
    by_series = predict.score_images(model, pd.Series(map(str, paths)), test_patch_num=1)
    assert by_series.equals(files)


def test_what_is_no_image_in_memory_is_said(checkpoint):
    model = predict.load_model(checkpoint, "cpu")
    wrong = [np.zeros((64, 64, 3)), np.zeros((3, 64, 64), np.uint8), torch.zeros(3, 64, 64), None]
    table = predict.score_images(model, wrong, test_patch_num=1)
    assert table["score"].isna().all()
    for error, said in zip(
        table["error"], ["an array of float64", "an array of uint8", "a Tensor", "a NoneType"]
    ):
        assert error.startswith(said) and "give" in error


def test_the_model_is_a_loss_whose_gradient_reaches_the_image(checkpoint):
    """As docs/prediction.md shows it: gradients, and steps along them that raise the score."""
    model = predict.load_model(checkpoint, "cpu").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def quality(images):  # RGB in 0..1, (B, 3, H, W)
        return model((images - mean) / std)[0]  # (B,)

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    scores = quality(images)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert gradient.shape == images.shape and gradient.isfinite().all()
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    # The gradient is that of the score: by a small step along it the score grows by its norm.
    norms = gradient.flatten(1).norm(dim=1)
    step = 1e-2 * gradient / norms[:, None, None, None]
    with torch.no_grad():
        grown = (quality(images + step) - quality(images - step)) / 2e-2
    torch.testing.assert_close(grown, norms, rtol=0.1, atol=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_folder_scan_takes_what_can_be_read_and_says_what_it_leaves_out(
    checkpoint, tmp_path, capsys
):
    folder = tmp_path / "in"
    photo(folder / "a.png", 90)
    for name in ("a.jfif", "a.jpe", "a.avif", "a.jp2", "a.pgm", "a.tga", "a.webp", "A.TIF"):
        Image.open(folder / "a.png").convert("L").save(folder / name)
    photo(tmp_path / "elsewhere" / "linked.png", 90)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    for name in ("._a.png", "@eaDir/a.png", ".ipynb_checkpoints/a-checkpoint.png"):
        photo(folder / name, 90)
    (folder / "notes.txt").write_text("text")
    (folder / "b.heic").write_text("no kind that Pillow reads by itself")
    said = predicted(capsys, "--checkpoint", checkpoint, folder, "--test_patch_num", 1)
    scored = [Path(line.split("\t")[0]).name for line in said.out.splitlines()]
    assert scored == [
        "A.TIF", "a.avif", "a.jfif", "a.jp2", "a.jpe", "a.pgm", "a.png", "a.tga", "a.webp",
        "linked.png",
    ]  # fmt: skip
    assert "3 hidden (._a.png, .ipynb_checkpoints, @eaDir)" in said.err
    assert "1 linked here twice (again)" in said.err
    assert "2 of kinds that Pillow does not read (.heic, .txt)" in said.err
    said = predicted(capsys, "--checkpoint", checkpoint, folder / "@eaDir", "--test_patch_num", 1)
    assert said.err == "" and len(said.out.splitlines()) == 1  # a folder that is given is taken


def test_outputs_are_checked_before_any_work(tmp_path, capsys):
    photo(tmp_path / "a.png", 90)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    flags = ["--checkpoint", tmp_path / "none.pth"]  # which would be the next error
    for arguments, message in (
        (["--output", tmp_path / "none" / "a.csv"], f"none/a.csv: no folder {tmp_path}/none; make"),
        (["--output", tmp_path / "folder.csv"], "folder.csv: is a folder"),
        (["--output", tmp_path / "file" / "a.csv"], "a.csv: no folder"),
        (["--heatmap", tmp_path / "file"], "--heatmap"),
        (["--html", tmp_path / "none" / "a.html"], f"a.html: no folder {tmp_path}/none; make"),
    ):
        said = predicted(capsys, *flags, tmp_path / "a.png", *arguments, status=1)
        assert message in said.err and len(said.err.splitlines()) == 1
    for arguments, message in (
        ([f"biq2021={tmp_path}", "--store_dir", tmp_path / "file" / "s"], "--store_dir"),
        ([f"biq2021={tmp_path / 'none'}"], "none: no such folder"),
    ):
        said = predicted(capsys, *flags, "--test_on", *arguments, status=1)
        assert message in said.err and len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give images or folders to score"),
        (["x.jpg", "--test_on", "biq2021=y"], "give images or folders to score"),
        (["--test_on", "nothing=y"], "takes NAME=DIR"),
        (["--test_on", "biq2021"], "takes NAME=DIR"),
        (["x.jpg", "--output", "x.txt"], "ends in .csv or .json"),
        (["x.jpg", "--html", "x.txt"], "ends in .html"),
        (["--test_on", "biq2021=y", "--sort"], "are for images to score"),
        (["x.jpg", "--checkpoint", "b.pth"], "several are for --test_on"),
        (["x.jpg", "--csv", "scores.csv"], "are for --test_on csv=DIR"),
        (["x.jpg", "--image_dir", "a"], "--image_dir is for one --test_on"),
        (["--test_on", "bid=x", "live=y", "--image_dir", "a"], "is for one --test_on"),
        (["--test_on", "biq2021=y", "--lower_is_better"], "are for --test_on csv=DIR"),
        (
            ["--test_on", "csv=y", "--score_range", "1", "0"],
            "--score_range: LOW must be below HIGH",
        ),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments, message, capsys):
    sys.argv = ["predict", "--checkpoint", "a.pth", *arguments]
    with pytest.raises(SystemExit):
        predict.main()
    assert message in capsys.readouterr().err


def test_crops_fit_what_is_asked_for():
    assert crops_of_each("random", None, 20) == 20
    assert crops_of_each("grid", None, 20) == 16  # the preset of SMART-IQA has 20
    assert crops_of_each("grid", 9, 20) == 9
    assert crops_of_each("center", None, 25) == 1
    with pytest.raises(RunError, match="takes a square number"):
        crops_of_each("grid", 20, 25)


def test_the_precision_is_that_of_the_training(checkpoint):
    model = predict.load_model(checkpoint, "cpu")
    assert predict.precision_of(model, "auto") == "off"  # as the run's --amp said
    assert predict.precision_of(model, "bf16") == "bf16"
    model.config["device"] = "cuda"
    here = choose_precision("auto", torch.device("cpu"))
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
        said = predicted(capsys, *arguments, status=1)
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
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import predict_resnet_improved as p\n"
    code += "sys.argv[1:] = ['--help']\n"
    code += "try: p.main()\nfinally: print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].split() == ["False", "False"]
    for flag in ("--checkpoint", "--test_on", "--csv", "--heatmap", "--store_dir"):
        assert flag in done.stdout
