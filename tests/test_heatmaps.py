"""Pictures of the scores of crops: one for each image, after the scores."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import heatmaps
import predict_resnet_improved as predict
from checkpoints import predicted
from conftest import photo


def test_heatmaps_are_one_for_each_image(checkpoint, tmp_path, capsys):
    for folder in ("a", "b"):
        photo(tmp_path / folder / "same.png", 90)
    predicted(
        capsys, "--checkpoint", checkpoint, tmp_path / "a", tmp_path / "b",
        "--heatmap", tmp_path / "maps", "--test_patch_num", 4,
    )  # fmt: skip
    assert len(list((tmp_path / "maps").glob("*same.png.png"))) == 2


def test_a_heatmap_shows_a_portrait_photograph_upright(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    flags = {"resize": (48, 40), "patch_size": 32}
    plan = heatmaps.dense_plan(flags["resize"], flags["patch_size"])
    maps = []
    for folder, image, options in (
        ("upright", pixels, {}),
        ("turned", np.rot90(pixels), {"exif": exif}),
    ):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "a.png", **options)
        heatmaps.write_heatmap(
            tmp_path / folder,
            tmp_path / folder / "a.png",
            50.0,
            np.array([20.0, 80.0, 50.0, 50.0]),
            plan,
            flags,
        )
        (written,) = (tmp_path / folder).glob("*a.png.png")
        maps.append(np.asarray(Image.open(written)))
    assert (maps[0] == maps[1]).all()


@pytest.mark.parametrize(
    "resize, size", [((512, 384), 224), ((256, 256), 160), ((48, 40), 32), ((224, 224), 224)]
)
def test_a_map_covers_the_image_half_a_crop_apart(resize, size):
    """Whatever the crops of the score are: of four in the corners, too."""
    plan = heatmaps.dense_plan(resize, size)
    covered = np.zeros(resize)
    for _, top, left, _ in plan:
        assert 0 <= top <= resize[0] - size and 0 <= left <= resize[1] - size
        covered[top : top + size, left : left + size] += 1
    assert covered.min() >= 1
    for corners in (plan[:, 1], plan[:, 2]):
        assert np.diff(np.unique(corners)).max(initial=0) <= size / 2
    assert len({tuple(row) for row in plan}) == len(plan)


def test_a_map_has_the_score_of_the_image_and_those_of_its_crops(checkpoint, tmp_path, monkeypatch):
    photo(tmp_path / "a.png", 90)
    shown = {}

    def look(folder, path, score, crop_scores, plan, flags):
        shown.update(path=path, score=score, crop_scores=crop_scores, plan=plan)

    monkeypatch.setattr(heatmaps, "write_heatmap", look)
    model = predict.load_model(checkpoint, "cpu")
    table = predict.score_images(model, [tmp_path / "a.png"], test_patch_num=4)
    assert predict.map_images(model, table, tmp_path, amp="off") == 0
    assert shown["score"] == table["score"][0] and shown["path"] == tmp_path / "a.png"
    for crop_score, crop in zip(shown["crop_scores"], shown["plan"]):
        alone = predict.score_images(model, tmp_path / "a.png", plan=crop[None], amp="off")
        assert abs(alone["score"][0] - crop_score) < 1e-4


def test_scores_come_first_and_each_map_fails_by_itself(checkpoint, tmp_path, capsys):
    folder = tmp_path / "in"
    deep = folder.joinpath(*["a long name of a folder " * 4] * 20)
    names = ["$x_1$.png", "$\\frac{$.png", "\u56fe.png", "a\nb.png", f"{'long' * 61}.png"]
    names += [os.fsdecode(b"caf\xe9.png"), "taken.png"]
    paths = [folder / name for name in names] + [deep / "deep.png"]
    for path in paths:
        photo(tmp_path / "one.png", 90)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "one.png", path)
    maps, output = tmp_path / "maps", tmp_path / "scores.csv"
    (maps / f"{heatmaps.map_name(folder / 'taken.png')}.png").mkdir(parents=True)
    flags = ["--checkpoint", checkpoint, folder, "--heatmap", maps, "--test_patch_num", 4]
    said = predicted(capsys, *flags, "--output", output, status=1)
    (line,) = said.err.splitlines()
    assert line.startswith(f"error: {folder / 'taken.png'}: its map can't be made (")
    assert len(pd.read_csv(output)) == len(paths) and "caf\\udce9.png" in output.read_text()
    written = [path for path in maps.iterdir() if path.is_file()]
    assert len(written) == len(paths) - 1
    output = tmp_path / "scores.json"
    predicted(capsys, *flags, "--output", output, status=1)
    assert {r["path"] for r in json.loads(output.read_text())} == set(map(str, paths))


def test_every_image_has_a_map_of_its_own():
    paths = ["/a_b/c.jpg", "/a/b_c.jpg", "/a+b/c.jpg", "/a/b/c.jpg", "/a/b+c.jpg", "/A/b/c.jpg"]
    paths += [f"/{letter}/{'x' * 250}.jpg" for letter in "ab"]
    names = [heatmaps.map_name(Path(path)) for path in paths]
    assert len(set(names)) == len(paths) and all(len(name) < 250 for name in names)
    assert names[3] == "a+b+c.jpg"
