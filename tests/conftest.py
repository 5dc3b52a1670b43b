"""Small data sets in the publishers' layouts, made for each test; real data where there is any."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once, on tiny images

import numpy as np
import pytest
from PIL import Image

from ablations import STAND_IN

# A job in the background is born deaf to Ctrl-C, one of nohup to SIGHUP, and so are its children:
# hear them again.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
REAL_DATA = ROOT.parent / "shared" / "data"
# What makes a training run short: one tiny batch, no pre-trained weights.
TINY = ["--backbone_weights", "none", "--resize", "48", "40", "--patch_size", "32"]
TINY += ["--batch_size", "4", "--epochs", "2", "--train_patch_num", "2", "--test_patch_num", "3"]
TINY += ["--amp", "off", "--device", "cpu"]
SMALL = "test_efficientnet"  # a backbone of timm's: a run's state is 12 MB, of a ResNet-50 300


def photo(path: Path, level: int, size: tuple[int, int] = (64, 48)) -> None:
    """A grey image with noise about `level`; the name gives the noise."""
    rng = np.random.default_rng(sum(path.name.encode()))
    pixels = rng.normal(level, 20, (size[1], size[0], 3)).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_biq2021(folder: Path, train: int = 12, test: int = 5) -> Path:
    """BIQ2021's layout with its traps: names with spaces, another case on disk, empty columns."""
    rows = {
        "Train": [(f"ss01 ({i}).jpg", i / train) for i in range(train)],
        "Test": [(f"ss03 ({i}).jpg", i / test) for i in range(test)],
    }
    for split, images in rows.items():
        wide = split == "Train"
        with open(folder / f"{split} (Images and MOS).csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Image Name", "MOS"] + ["", ""] * wide)
            writer.writerows([[name, mos] + ["", ""] * wide for name, mos in images])
        for name, mos in images:
            photo(folder / "Images" / name, 30 + int(190 * mos))
    (folder / "Images" / "ss01 (2).jpg").rename(folder / "Images" / "ss01 (2).JPG")
    return folder


def make_koniq10k(folder: Path, train: int = 6, val: int = 2, test: int = 3) -> Path:
    """KonIQ-10k's layout with both label files, both splits and the larger images."""
    names = [f"{1000 + i}.jpg" for i in range(train + val + test)]
    sets = ["training"] * train + ["validation"] * val + ["test"] * test
    mos = np.linspace(20, 80, len(names))
    for name, value in zip(names, mos):
        photo(folder / "1024x768" / name, int(value * 2))
    write_koniq_csvs(folder, names, mos, sets)
    for part, kind in (("train", "training"), ("test", "test")):
        entries = [
            {"image": f"koniq_{part}/{n}", "score": m}
            for n, m, s in zip(names, mos, sets)
            if s == kind
        ]
        (folder / f"koniq_{part}.json").write_text(json.dumps(entries))
    return folder


def write_koniq_csvs(folder: Path, names, mos, sets) -> None:
    lines = ["image_name,c1,MOS,SD,MOS_zscore"]
    lines += [f"{n},1,{1 + m / 25},0.5,{m}" for n, m in zip(names, mos)]
    (folder / "koniq10k_scores_and_distributions.csv").write_text("\n".join(lines) + "\n")
    lines = ["image_name,c1,MOS,SD,set"] + [
        f"{n},1,{m},0.5,{s}" for n, m, s in zip(names, mos, sets)
    ]
    (folder / "koniq10k_distributions_sets.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def biq2021(tmp_path):
    folder = tmp_path / "biq2021"
    folder.mkdir()
    return make_biq2021(folder)


@pytest.fixture
def koniq10k(tmp_path):
    folder = tmp_path / "koniq-10k"
    folder.mkdir()
    return make_koniq10k(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with KonIQ-10k's layout, and a checkpoint of a network that was trained on it."""
    from checkpoints import koniq10k_and_checkpoint

    base = tmp_path_factory.mktemp("trained")
    koniq10k_and_checkpoint(base)
    return base


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained / "resnet_improved_ms_att_last.pth"


@pytest.fixture
def real_data():
    if not REAL_DATA.is_dir():
        pytest.skip("the real labels and photographs are not on this machine")
    return REAL_DATA


@pytest.fixture
def run_script(tmp_path):
    """Run a script of the project as a user does, in an empty folder; returns the process."""
    work = tmp_path / "work"
    work.mkdir()

    def run(script: str, *arguments, timeout: int = 240, **environment):
        command = ["bash"] if script.endswith(".sh") else [sys.executable]
        return subprocess.run(
            [*command, str(ROOT / script), *map(str, arguments)],
            cwd=work,
            env=os.environ | {"PYTHON": sys.executable} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    run.folder = work
    return run


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "stand_in"
    path.write_text(STAND_IN.replace("PYTHON", sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture
def ablation(run_script, stand_in, tmp_path):
    """Run the script with the stand-in; returns the process, with `.folder` of its logs."""

    def run(*arguments, failing="none", hanging="none", forgetting="none", **environment):
        done = run_script(
            "run_resnet_ablation.sh",
            *arguments,
            PYTHON=str(stand_in),
            CALLS=str(tmp_path / "calls"),
            FAILING=failing,
            HANGING=hanging,
            FORGETTING=forgetting,
            **environment,
        )
        folders = sorted((run_script.folder / "logs").glob("resnet_ablation_*"))
        done.folder = folders[-1] if folders else None
        return done

    run.calls, run.folder = tmp_path / "calls", run_script.folder
    return run
