"""The synthetic data set of the demo."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import demo_dataset as demo
from datasets.labels import count_splits, find_images, read_labels

FEW = {"training": 10, "validation": 3, "test": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "koniq-10k"
    assert demo.make_demo(folder, counts=FEW)
    return folder


def test_it_goes_through_koniqs_reader(folder):
    table, source = read_labels("koniq-10k", folder)
    assert count_splits(table) == {"train": 10, "val": 3, "test": 5}
    assert "koniq_train.json" in source
    assert find_images(table, folder)["image"].str.startswith("512x384/").all()
    official, _ = read_labels("koniq-10k", folder, split="official")
    assert official.equals(table)


def test_columns_are_koniqs_own(folder, real_data):
    for name in ("koniq10k_scores_and_distributions.csv", "koniq10k_distributions_sets.csv"):
        ours = pd.read_csv(folder / name)
        theirs = pd.read_csv(real_data / "koniq-10k" / name)
        assert set(ours.columns) == set(theirs.columns)
        assert ours["MOS"].max() <= (5 if "scores" in name else 100)


def test_more_distortion_means_a_lower_score(folder):
    distortions = pd.read_csv(folder / "demo_damage.csv")
    scores = pd.read_csv(folder / "koniq10k_scores_and_distributions.csv")
    assert distortions["amount"].corr(scores["MOS_zscore"], method="spearman") < -0.95
    assert set(distortions["damage"]) == set(demo.DISTORTIONS)


@pytest.mark.parametrize("name", demo.DISTORTIONS)
def test_each_distortion_grows_with_its_amount(name):
    scene = demo.draw_scene(np.random.default_rng(0))
    errors = []
    for amount in (0.1, 0.5, 0.9):
        distorted = demo.DISTORTIONS[name](scene, amount, np.random.default_rng(1))
        assert distorted.size == scene.size == (512, 384) and distorted.mode == "RGB"
        difference = np.asarray(distorted, float) - np.asarray(scene, float)
        errors.append(np.sqrt((difference**2).mean()))
    assert errors[0] < errors[1] < errors[2]


def test_scenes_have_a_spectrum_like_natural_images():
    slopes = []
    for seed in range(4):
        grey = np.asarray(demo.draw_scene(np.random.default_rng(seed)).convert("L"), float)
        window = np.outer(np.hanning(384), np.hanning(512))
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window)) ** 2
        radius = np.hypot(np.fft.fftfreq(384)[:, None], np.fft.fftfreq(512))
        bands = np.geomspace(0.01, 0.3, 12)
        means = [power[(radius >= a) & (radius < b)].mean() for a, b in pairwise(bands)]
        slopes.append(np.polyfit(np.log(bands[:-1]), np.log(means), 1)[0])
    assert -3.2 < np.mean(slopes) < -1.6  # natural images: power falls as about f^-2


def test_it_is_the_same_every_time_and_made_once(folder, tmp_path):
    assert not demo.make_demo(folder, counts=FEW)
    assert demo.make_demo(tmp_path / "again", counts=FEW)
    for file in sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_folder_of_another_version_is_generated_again(folder, tmp_path):
    demo.make_demo(tmp_path / "d", counts=FEW)
    made = json.loads((tmp_path / "d" / "demo.json").read_text())
    (tmp_path / "d" / "demo.json").write_text(json.dumps(made | {"version": 0}))
    assert demo.make_demo(tmp_path / "d", counts=FEW)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        demo.make_demo(tmp_path, counts=FEW)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_no_two_scenes_are_alike(folder):
    table, _ = read_labels("koniq-10k", folder)
    images = [Image.open(folder / name).resize((8, 8)).tobytes() for name in table["image"]]
    assert len(set(images)) == len(images)
