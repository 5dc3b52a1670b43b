"""The same ablation by another recipe: changes of differences by hand, sentences, refusals."""

import numpy as np
import pandas as pd
import pytest

import metrics
from report_runs import MODELS, NAMES, change_record, reported, write_run, write_three

SEEDS = (1, 2, 3)
STRONG = {"loss": "l1+nin", "epochs": 1, "lr": 2e-4}


def two_ablations(tmp_path, there=(20, 12, 6), seeds=SEEDS, **flags):
    """Folders of the three configurations by two recipes; there: noise by the other one."""
    for seed in seeds:
        suffix = f"_seed{seed}"
        here = write_three(tmp_path / "here", suffix=suffix, seed=seed, epochs=1)
        write_three(tmp_path / "there", there, suffix=suffix, seed=seed, **STRONG | flags)
    return here, tmp_path / "there"


def srcc_of(folder, name, seed):
    table = pd.read_csv(folder / f"{name}_seed{seed}_predictions.csv").query("split == 'test'")
    return metrics.srcc(table["score"].to_numpy(), table["mos"].to_numpy())


def test_the_change_of_each_difference_is_that_by_hand(tmp_path, capsys):
    here, there = two_ablations(tmp_path, (12, 12, 12))
    results, out, _ = reported(here, capsys, "--other_recipe", there)
    found = results["other_recipe"]
    gained = {
        folder: np.mean(
            [srcc_of(folder, NAMES[2], s) - srcc_of(folder, NAMES[0], s) for s in SEEDS]
        )
        for folder in (here, there)
    }
    (both,) = [c for c in found["comparisons"] if c["label"].startswith("both")]
    assert both["this recipe"]["value"] == pytest.approx(gained[here])
    assert both["the other"]["value"] == pytest.approx(gained[there])
    assert both["change"]["value"] == pytest.approx(gained[there] - gained[here])
    assert both["change"]["low"] < both["change"]["value"] < both["change"]["high"] < 0
    assert all(c["p_holm"] >= c["change"]["p"] for c in found["comparisons"])
    assert "the answer depends on the recipe (-0." in out  # of noises 20 and 6, and 12 and 12
    text = (here / "report.md").read_text()
    assert "## The same differences by another recipe" in text
    assert "--lr 0.0001 and 0.0002" in text and "--loss l1 and l1+nin" in text
    assert "Does it depend on the recipe?" in (here / "report.html").read_text()


def test_recipes_with_the_same_gain_are_not_found_to_matter(tmp_path, capsys):
    here, there = two_ablations(tmp_path)
    _, out, _ = reported(here, capsys, "--other_recipe", there)
    assert "it is not found that the answer depends on the recipe (+0.0000 SRCC" in out
    assert "the difference is smaller than 0." in out


def test_one_seed_does_not_tell(tmp_path, capsys):
    here, there = two_ablations(tmp_path, (18, 12, 7), seeds=(1,))
    _, out, _ = reported(here, capsys, "--other_recipe", there)
    assert "with one seed that does not tell whether the answer depends on the recipe" in out


def test_runs_that_are_not_comparable_are_refused(tmp_path, capsys):
    here, there = two_ablations(tmp_path, seeds=(1,))

    def refused(*flags):
        return reported(here, capsys, "--other_recipe", *flags, status=1)[2]

    assert "those runs have the same recipe" in refused(here)
    change_record(there, f"{NAMES[1]}_seed1", lambda config, _: config["flags"].update(lr=0.5))
    assert "can't be compared: --lr" in refused(there)
    (tmp_path / "none").mkdir()
    assert "no finished run in these folders" in refused(tmp_path / "none")
    (tmp_path / "2").mkdir()
    here, other = two_ablations(tmp_path / "2", seeds=(1,), split_seed=3)
    err = reported(here, capsys, "--other_recipe", other, status=1)[2]
    assert "differs from exp1_baseline_seed1 in more than the recipe: --split_seed 0 and 3" in err


def test_problems_of_the_other_runs_are_said_and_other_networks_left_out(tmp_path, capsys):
    here, there = two_ablations(tmp_path, vals=0)
    write_run(there, "exp4_hyperiqa_seed1", "hyperiqa", 9, seed=1, vals=0, **STRONG)
    path = there / f"{NAMES[1]}_seed3.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))  # no epoch
    results, _, err = reported(here, capsys, "--other_recipe", there)
    assert f"note: {path}" in err
    assert len(results["other_recipe"]["comparisons"]) == 3
    text = " ".join((here / "report.md").read_text().split())
    assert "test images (this recipe: chosen by val; the other: last epoch). Change: " in text
    assert "over the seeds that both have" in text and f"Of the other recipe: {path}" in text


def test_missing_rows_are_left_out(tmp_path, capsys):
    here, there = two_ablations(tmp_path)
    for path in there.glob(f"{NAMES[1]}*"):
        path.unlink()
    results = reported(here, capsys, "--other_recipe", there)[0]
    assert len(results["other_recipe"]["comparisons"]) == 1
    for path in there.glob(f"{NAMES[2]}*"):
        path.unlink()
    _, out, _ = reported(here, capsys, "--other_recipe", there)
    assert "no seed has both models by both recipes" in out
    assert MODELS[0] in {run["model"] for run in reported(here, capsys)[0]["runs"]}
