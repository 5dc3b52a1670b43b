"""The report's figures and its verdict."""

import numpy as np
import pandas as pd
import pytest

import metrics
import resampling
from experiment import BOTH, ONE_RUN
from report_runs import (
    CONTROLS,
    MODELS,
    NAMES,
    change_record,
    reported,
    write_five,
    write_run,
    write_three,
)
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
    assert results["verdict_of_the_images_alone"] == "not decided by these runs"
    assert results["verdict"] == ONE_RUN and "nothing is claimed" in out
    paragraph = (tmp_path / "paragraph.tex").read_text()
    assert paragraph.count("which is not significant") == 3
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


def test_one_run_of_each_configuration_decides_nothing(logs, capsys):
    results, out, _ = reported(logs, capsys)
    assert results["verdict"] == ONE_RUN and f"single seed: {ONE_RUN}; " in out
    alone = results["verdict_of_the_images_alone"]
    assert "carry over" in alone and f"The test images alone would say: {alone}." in out
    assert f"single seed: {ONE_RUN}." in " ".join((logs / "paragraph.tex").read_text().split())


def test_two_runs_of_each_configuration_can_decide(tmp_path, capsys):
    for seed in (1, 2):
        write_three(tmp_path, (30, 12, 6), suffix=f"_seed{seed}", seed=seed)
    results, out, _ = reported(tmp_path, capsys)
    assert "carry over" in results["verdict"] and "carry over" in out
    assert results["verdict_of_the_images_alone"] is None and "No effect is found" not in out


def statistics_of(*folders) -> Statistics:
    return Statistics(read_runs(list(folders)).finished, resamples=400, seed=0)


def test_controls_have_their_own_comparisons(tmp_path, capsys):
    write_five(tmp_path)
    results, _, _ = reported(tmp_path, capsys)
    of = {c["label"]: c for c in results["comparisons"]}
    assert [*of][3:] == ["fusion over capacity", "image-dependence"]
    srcc = {m: f["srcc"] for m, f in results["configurations"].items()}
    wide, static = CONTROLS.values()
    for label, other, model in (("fusion over capacity", wide, 1), ("image-dependence", static, 2)):
        found = of[label]["difference"]
        assert found["value"] == pytest.approx(srcc[MODELS[model]] - srcc[other])
        assert found["low"] < found["value"] < found["high"]
    ps = [c["difference"]["p"] for c in of.values()]
    assert [c["p_holm"] for c in of.values()] == pytest.approx(resampling.holm(ps))


def test_the_variance_between_seeds_is_pooled_over_configurations(tmp_path):
    for seed in (1, 2, 3):
        write_five(tmp_path, suffix=f"_seed{seed}", seed=seed)
    s = statistics_of(tmp_path)
    pool = s.pools["srcc"]
    assert pool.models == s.models and pool.variance.df == 8
    values = np.array([s.configurations[m]["selections"][s.selection] for m in s.models]).T
    assert pool.variance == pytest.approx(resampling.seed_variance(values)) and pool.holds
    s.pools["srcc"] = None
    own = next(c for c in s.compare() if c["label"] == BOTH)["difference"]
    pooled = next(c for c in s.comparisons if c["label"] == BOTH)["difference"]
    assert pooled.value == own.value and pooled != own


def test_one_configuration_that_varies_much_more_prevents_pooling(tmp_path, capsys):
    for seed in range(5):
        noises = (20, 12, 5 + 12 * seed, 15, 8)
        write_five(tmp_path, noises, suffix=f"_seed{seed}", seed=seed, epochs=1)
    s = statistics_of(tmp_path)
    assert s.pools["srcc"].variance.p_equal < 0.05 and not s.pools["srcc"].holds
    fusion = s.comparisons[0]["difference"]
    s.pools["srcc"] = None
    assert s.compare()[0]["difference"] == fusion
    reported(tmp_path, capsys)
    text = (tmp_path / "report.md").read_text()
    assert "is not pooled, because the configurations differ in it" in text


def test_missing_seeds_leave_the_complete_ones_to_be_pooled(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_three(tmp_path, suffix=f"_seed{seed}", seed=seed)
    write_run(tmp_path, "exp7_wide_seed1", CONTROLS["exp7_wide"], 15, seed=1)
    pool = statistics_of(tmp_path).pools["srcc"]
    assert pool.models == list(MODELS) and pool.variance.df == 4
    for name in NAMES[:2]:
        (tmp_path / f"{name}_seed3.jsonl").unlink()
    pool = statistics_of(tmp_path).pools["srcc"]
    assert set(pool.models) == set(MODELS) and pool.variance.df == 2
    (tmp_path / f"{NAMES[0]}_seed2.jsonl").unlink()
    reported(tmp_path, capsys)
    text = (tmp_path / "report.md").read_text()
    assert "pooled over 2 configurations and 2 seeds" in text
    assert "Seeds are missing for baseline, control: wide" in text
    (tmp_path / f"{NAMES[1]}_seed2.jsonl").unlink()
    reported(tmp_path, capsys)
    text = (tmp_path / "report.md").read_text()
    assert "is not pooled: no configurations share two seeds" in text


def test_seeds_whose_scores_are_undefined_are_not_pooled(tmp_path):
    for seed in (1, 2, 3):
        write_three(tmp_path, suffix=f"_seed{seed}", seed=seed)
    csv = tmp_path / f"{NAMES[1]}_seed3_predictions.csv"
    pd.read_csv(csv).assign(score=50.0).to_csv(csv, index=False)
    s = statistics_of(tmp_path)
    assert s.pools["srcc"].variance.df == 2  # two configurations with 3 seeds, or 3 with 2
    assert [np.isfinite(c["difference"].low) for c in s.comparisons] == [False, False, True]


@pytest.mark.parametrize(
    "stages, collapsed",
    [
        ((4, 3, 2, 1), False),
        ((1000, 1, 1, 1), True),  # one stage left
        ((4e4, 3e4, 2e4, 1e4), True),  # all images alike
    ],
)
def test_attention_has_collapsed_onto_one_stage_or_onto_equal_weights(tmp_path, stages, collapsed):
    write_five(tmp_path, stages=stages)
    found = statistics_of(tmp_path).configurations
    use, static = found[MODELS[2]]["attention"], found[CONTROLS["exp8_static"]]["attention"]
    assert use["collapsed"] is collapsed and use["collapsed_seeds"] == collapsed
    assert static["stage_spread"] < 1e-9 and not static["collapsed"]
    assert found[MODELS[0]]["attention"] is None
    assert use["stage_weights"] == pytest.approx(np.array(stages) / sum(stages), abs=0.05)


def test_the_attention_is_that_of_the_selected_epoch_averaged_over_seeds(tmp_path):
    for seed, stages in ((1, (4, 3, 2, 1)), (2, (1000, 1, 1, 1))):
        write_three(tmp_path, suffix=f"_seed{seed}", seed=seed, stages=stages, epochs=3)
    s = statistics_of(tmp_path)
    use = s.configurations[MODELS[2]]["attention"]
    each = []
    for seed in (1, 2):
        rows = pd.read_csv(tmp_path / f"{NAMES[2]}_seed{seed}_predictions.csv")
        weights = rows[rows["epoch"] == 3][["w1", "w2", "w3", "w4"]].to_numpy()
        entropy = -(weights * np.log(np.maximum(weights, 1e-12))).sum(1)
        each.append((np.exp(entropy.mean()), weights.std(0).mean()))
    found = use["effective_stages"], use["stage_spread"]
    assert found == pytest.approx(np.mean(each, 0)) and not use["collapsed"]
    assert use["collapsed_seeds"] == 1


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
    assert "Medians over 4 random splits (seeds 1, 2, 3, 4)" in text
    assert "No contact sheet: each seed has its own test images" in text
    assert "Medians over 4 random splits" in (tmp_path / "table.tex").read_text()
    assert "Medians are over 4 random splits" in (tmp_path / "paragraph.tex").read_text()


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
    assert both["difference"]["value"] is None and both["p_holm"] is None
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
