"""The model cards beside the checkpoints of a run."""

import json
import re

import pandas as pd
import pytest
import torch

import resampling
import train_resnet_improved as train
from conftest import SMALL, TINY, make_koniq10k
from published import sha256
from training.flags import parse_args
from training.run_files import RunFiles

NAME = f"{SMALL}_ms_noatt"
FLAGS = [*TINY, "--backbone", SMALL, "--use_multiscale", "--save_model"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three epochs; and the cards as they were after each epoch."""
    base = tmp_path_factory.mktemp("finished")
    make_koniq10k(base, train=6, val=4, test=12)
    where = ["--data_path", base, "--store_dir", base / "store", "--log_dir", base / "out"]
    where += ["--checkpoint_dir", base / "out", "--run_name", "run", "--epochs", 3]
    seen, write = [], train.Run.write_cards

    def noted(self, **options):
        write(self, **options)
        seen.append((base / "out" / f"{NAME}_last_model_card.md").read_text())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Run, "write_cards", noted)
        train.run(parse_args([*map(str, [*FLAGS, *where])]))
    return base / "out", seen


def test_each_checkpoint_has_a_card_with_the_figures_of_its_epoch(finished):
    out, _ = finished
    config, *epochs = map(json.loads, (out / "run.jsonl").read_text().splitlines())
    frame = pd.read_csv(out / "run_predictions.csv")
    for kind in ("best", "last"):
        checkpoint = out / f"{NAME}_{kind}.pth"
        card = (out / f"{NAME}_{kind}_model_card.md").read_text()
        record = torch.load(checkpoint, weights_only=True)["epochs"][-1]
        assert f"- epoch {record['epoch']} of 3: " in card
        assert ("chosen by the SRCC on the test images themselves" in card) == (kind == "best")
        assert f"SHA-256 of the file: {sha256(checkpoint)}" in card
        assert f"`{config['data_fingerprint']}`" in card
        rows = frame[(frame["epoch"] == record["epoch"]) & (frame["split"] == "test")]
        around = resampling.interval(
            resampling.srcc_by_counts(rows["score"].to_numpy(), rows["mos"].to_numpy()), len(rows)
        )
        row = re.search(r"^\| test \| 12 \| (.*)$", card, re.MULTILINE)[1]
        assert row.startswith(
            f"{record['test_srcc']:.4f} ({around.low:.4f} to {around.high:.4f}) | "
            f"{record['test_plcc']:.4f} ("
        )
        assert row.endswith(f"| {record['test_krcc']:.4f} | {record['test_rmse']:.2f} |")
    assert len(epochs) == 3


@pytest.mark.parametrize("title", ["Data", "Figures", "Recipe", "Use", "Limits", "Licence"])
def test_a_card_says_what_others_need(finished, title):
    out, _ = finished
    assert f"\n## {title}\n" in (out / f"{NAME}_last_model_card.md").read_text()


def test_a_card_of_a_run_in_progress_says_so(finished):
    _, seen = finished
    assert len(seen) == 4  # of three epochs, and at the end
    for epoch, card in enumerate(seen[:3], 1):
        assert f"- epoch {epoch} of 3: " in card and "it has not ended yet" in card
        assert (
            "Intervals are written when the run ends." in card
            and " to " not in card.split("| test |")[1].split("\n")[0]
        )
    assert "it has not ended yet" not in seen[3]


def test_the_card_of_another_run_goes_with_its_checkpoint(tmp_path):
    files = RunFiles(tmp_path, tmp_path, NAME, "run")
    for path in (files.best, files.best.with_name(f"{NAME}_best_model_card.md")):
        path.write_text(path.suffix)
    files.make_way()
    kept, card = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert kept.name.startswith(f"{NAME}_best.2") and kept.suffix == ".pth"
    assert card.name == f"{kept.stem}_model_card.md" and card.read_text() == ".md"
