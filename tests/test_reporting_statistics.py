"""The report's figures and its verdict."""

import numpy as np
import pandas as pd
import pytest

import metrics
import resampling
from experiment import BOTH
from report_runs import MODELS, NAMES, change_record, reported, write_run, write_three
from reporting.runs import read_runs
from reporting.statistics import Statistics
from training.flags import parse_args


@pytest.fixture
def logs(tmp_path):
    return write_three(tmp_path / "logs")


def test_figures_are_those_of_the_predictions(logs, capsys):
    results, _, _ = reported(logs, capsys)
    rows = pd.read_csv(logs / "exp3_multiscale_attention_predictions.csv")
    rows = rows[(rows["epoch"] == 2) & (rows["split"] == "test")]
    wanted = metrics.agreement(rows["score"].to_numpy(), rows["mos"].to_numpy())
    found = results["configurations"][MODELS[2]]
    assert all(found[name] == pytest.approx(wanted[name]) for name in wanted)
    both = next(c for c in results["comparisons"] if c["label"] == "both improvements")
    base = results["configurations"][MODELS[0]]["srcc"]
    assert both["difference"]["value"] == pytest.approx(wanted["srcc"] - base)
    assert results["relative_gain"]["value"] == pytest.approx(wanted["srcc"] / base - 1)
    ps = [c["difference"]["p"] for c in results["comparisons"]]
    assert [c["p_holm"] for c in results["comparisons"]] == pytest.approx(resampling.holm(ps))
    tex = (logs / "table.tex").read_text()
    assert tex.count(r"\\") == 4 and r"\toprule" in tex


def test_no_difference_is_not_decided(tmp_path, capsys):
    for name, model in zip(NAMES, MODELS):
        write_run(tmp_path, name, model, 12)
    results, out, _ = reported(tmp_path, capsys)
    assert results["verdict"] == "not decided by these runs" and "nothing is claimed" in out
    paragraph = (tmp_path / "paragraph.tex").read_text()
    assert paragraph.count("do not distinguish from none") == 3
    assert "carry over" not in paragraph


@pytest.mark.parametrize(
    "gain, p, verdict",
    [
        ((0.02, 0.011, 0.03), 0.01, "carry over"),
        ((0.02, 0.011, 0.03), 0.06, "not decided"),  # after Holm's correction
        ((0.006, 0.004, 0.009), 0.01, "limited"),
        ((0.0, -0.01, 0.002), 0.8, "specific to the Transformer"),
        ((-0.02, -0.03, -0.01), 0.01, "the improvements lower its SRCC"),
        ((-0.02, -0.03, -0.01), 0.06, "specific to the Transformer"),
        ((0.006, 0.002, 0.009), 0.01, "not decided"),
        ((0.02, 0.009, 0.03), 0.01, "not decided"),
        ((0.02, float("nan"), 0.03), 0.01, "not decided"),
    ],
)
def test_the_verdict_needs_the_whole_interval_on_one_side(gain, p, verdict):
    statistics = Statistics.__new__(Statistics)
    statistics.gain = resampling.Interval(*gain, p=0.5, reason="a reason")
    statistics.comparisons = [{"label": BOTH, "p_holm": p}]
    assert verdict in statistics.decide()


def test_several_seeds_give_spread_and_the_seeds_needed(tmp_path, capsys):
    for seed in (1, 2, 3):
        for name, model, noise in zip(NAMES, MODELS, (14, 12, 11)):
            write_run(tmp_path, f"{name}_seed{seed}", model, noise, seed=seed)
    results, _, _ = reported(tmp_path, capsys, draw=True)
    found = results["configurations"][MODELS[0]]
    each = found["selections"]["chosen by val"]
    assert len(each) == 3 and found["srcc_sd"] == pytest.approx(np.std(each, ddof=1))
    assert found["srcc"] == pytest.approx(np.mean(each))
    assert len(results["comparisons"][0]["each"]) == 3
    assert results["comparisons"][2]["seeds_needed"] >= 2
    assert "resample seeds and images" in (tmp_path / "report.md").read_text()


def test_two_seeds_far_apart_give_no_correlation_above_1(tmp_path, capsys):
    for seed, noise in ((1, 3), (2, 12)):
        write_run(tmp_path, f"{NAMES[0]}_seed{seed}", MODELS[0], noise, seed=seed)
    results, _, _ = reported(tmp_path, capsys)
    found = results["configurations"][MODELS[0]]
    assert found["srcc_interval"]["high"] == 1.0 and found["srcc_interval"]["low"] < 0.5
    text = (tmp_path / "report.md").read_text()
    assert "two seeds say little about the variance between seeds" in text


def test_random_splits_give_medians_and_the_corrected_t_test(tmp_path, capsys):
    from scipy import stats

    for seed in (1, 2, 3, 4):
        for name, model, noise in zip(NAMES, MODELS, (20, 12, 6 + seed)):
            write_run(
                tmp_path, f"{name}_seed{seed}", model, noise, seed=seed, split="random",
                split_seed=seed,
            )  # fmt: skip
    results, out, _ = reported(tmp_path, capsys, draw=True)
    assert results["splits"] == 4 and "carry over to a CNN" in out
    found = results["configurations"][MODELS[2]]
    each = found["selections"]["chosen by val"]
    assert found["srcc"] == pytest.approx(np.median(each)) and len(set(each)) == 4
    reach = stats.t.ppf(0.975, 3) * np.std(each, ddof=1) * (1 / 4 + 1 / 4) ** 0.5
    assert found["srcc_interval"]["value"] == pytest.approx(np.mean(each))
    assert found["srcc_interval"]["high"] == pytest.approx(np.mean(each) + reach)
    text = (tmp_path / "report.md").read_text()
    assert "medians over 4 random splits (seeds 1, 2, 3, 4)" in text
    assert "No contact sheet: each seed has its own test images" in text
    assert "Medians over 4 random splits" in (tmp_path / "table.tex").read_text()
    assert "median SRCC over 4 random splits" in (tmp_path / "paragraph.tex").read_text()


def test_without_validation_the_last_epoch_counts(tmp_path, capsys):
    for name, model, noise in zip(NAMES, MODELS, (20, 12, 6)):
        write_run(tmp_path, name, model, noise, vals=0)
    assert reported(tmp_path, capsys)[0]["selection"] == "last epoch"


def test_a_collapsed_run_changes_nothing_for_the_others(tmp_path, capsys):
    for name, model, noise in zip(NAMES, MODELS, (20, 12, 6)):
        write_run(tmp_path, name, model, noise)

    def collapse(config, epochs):
        for epoch in epochs:
            epoch |= dict.fromkeys(("val_srcc", "val_plcc", "test_srcc", "test_plcc"))

    change_record(tmp_path, NAMES[1], collapse)
    csv = tmp_path / f"{NAMES[1]}_predictions.csv"
    pd.read_csv(csv).assign(score=50.0).to_csv(csv, index=False)
    results, out, err = reported(tmp_path, capsys, draw=True)
    assert results["selection"] == "chosen by val" and "carry over to a CNN" in out
    assert f"{NAMES[1]}_predictions.csv: no epoch has a validation SRCC to choose by" in err
    assert [c["p_holm"] is None for c in results["comparisons"]] == [True, True, False]
    text = (tmp_path / "report.md").read_text()
    assert "undefined: predictions that are all the same" in text and "Here it is -" not in text


def test_scores_that_are_not_finite_have_no_figures(tmp_path, capsys):
    for name, model, noise in zip(NAMES, MODELS, (20, 12, 6)):
        write_run(tmp_path, name, model, noise, epochs=1)
    csv = tmp_path / f"{NAMES[2]}_predictions.csv"
    rows = pd.read_csv(csv)
    rows.loc[rows[rows["split"] == "test"].index[3], "score"] = np.nan
    rows.to_csv(csv, index=False)
    results, out, _ = reported(tmp_path, capsys, draw=True)
    both = next(c for c in results["comparisons"] if c["label"] == BOTH)
    assert both["difference"]["value"] is None and both["p_permutation"] is None
    assert "not decided by these runs" in out


def test_a_baseline_that_knows_nothing_has_no_relative_gain(tmp_path, capsys):
    for name, model in zip(NAMES, MODELS):
        write_run(tmp_path, name, model, 5000)
    results, out, _ = reported(tmp_path, capsys)
    assert "not decided by these runs: the gain has no interval" in out
    assert "not clearly above 0" in out and results["relative_gain"]["value"] is None


def test_neighbours_are_compared_by_backbone_and_interaction(tmp_path, capsys):
    logs = tmp_path / "logs"
    for name, model, noise, *flags in (
        *zip(NAMES, MODELS, (20, 12, 6), ["--use_multiscale"] * 3),
        ("n1", "hyperiqa", 18, "--model", "hyperiqa"),
        ("n2", "smart_iqa_tiny_ms_att", 5, "--model", "smart_iqa_tiny"),
        ("n3", "smart_iqa_tiny_ss_noatt", 7, "--model", "smart_iqa_tiny", "--no-use_multiscale"),
    ):
        told = vars(parse_args([*flags, "--epochs", "2", "--data_path", "nowhere"]))
        write_run(logs, name, model, noise, **told)
    results, _, _ = reported(logs, capsys, draw=True)
    labels = [c["label"] for c in results["comparisons"]]
    assert labels[3:] == [
        "both, over HyperIQA",
        "backbone: Swin tiny for ResNet-50",
        "both improvements on Swin tiny",
    ]
    of = {c["label"]: c["difference"]["value"] for c in results["comparisons"]}
    assert results["interaction"]["difference"]["value"] == pytest.approx(
        of["both improvements on Swin tiny"] - of["both improvements"]
    )
    write_run(logs, "n3", "smart_iqa_tiny_ss_noatt", 7, **told | {"dropout_rate": 0.1})
    assert (
        "n3 and n2 can't be compared: --dropout_rate 0.1 and 0.4"
        in reported(logs, capsys, status=1)[2]
    )


def test_changes_to_the_baseline_are_those_of_the_comparisons_and_the_verdict(tmp_path):
    for seed in (1, 2, 3):
        write_three(tmp_path / "seeds", (14, 12, 11), suffix=f"_seed{seed}", seed=seed)
        options = {"split": "random", "split_seed": seed}
        write_three(tmp_path / "splits", (14, 12, 11), suffix=f"_seed{seed}", seed=seed, **options)
    for folder in ("seeds", "splits"):
        s = Statistics(read_runs([tmp_path / folder]).finished, resamples=400, seed=0)
        difference, gain = s.change(MODELS[2], MODELS[0])
        both = next(c for c in s.comparisons if c["label"] == BOTH)
        assert difference == pytest.approx(both["difference"].value, abs=1e-12)
        assert gain == pytest.approx(s.gain.value, abs=1e-12)


def test_without_any_validation_srcc_the_last_epoch_leads(tmp_path):
    write_three(tmp_path, vals=1)
    s = Statistics(read_runs([tmp_path]).finished, resamples=400, seed=0)
    assert s.selection == "last epoch"
