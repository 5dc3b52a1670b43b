"""The report, on logs with known figures and with the real ones of short runs."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import data_loader as data
import metrics
import report_resnet_ablation as report
import train_resnet_improved as train
from conftest import ROOT, photo

MODELS = ("resnet_improved_ss_noatt", "resnet_improved_ms_noatt", "resnet_improved_ms_att")
NAMES = ("exp1_baseline", "exp2_multiscale", "exp3_multiscale_attention")


def write_run(folder, name, model, noise, /, *, seed=42, epochs=2, tests=200, vals=50, **flags):
    """A run's record and predictions: scores are MOS with noise of `noise` points."""
    flags = {"split": "auto", "split_seed": 0} | flags
    rng = np.random.default_rng(7 + flags["split_seed"])
    mos = {"test": rng.uniform(10, 90, tests).round(2), "val": rng.uniform(10, 90, vals).round(2)}
    own = np.random.default_rng([seed, MODELS.index(model) if model in MODELS else 9])
    frames, records = [], []
    for epoch in range(1, epochs + 1):
        record = {"type": "epoch", "epoch": epoch, "loss": 10 / epoch, "patches_per_second": 100.0}
        record |= {"test_patches_per_second": 300.0, "peak_memory_gb": 2.5}
        for split in ("val", "test"):
            if not len(mos[split]):
                continue
            score = mos[split] + own.normal(0, noise + 5 * (epochs - epoch), len(mos[split]))
            rows = {"epoch": epoch, "split": split, "mos": mos[split], "score": score.round(6)}
            first = 1000 * flags["split_seed"]  # each split has images of its own
            rows["image"] = [f"Images/{split}_{first + i:03}.jpg" for i in range(len(score))]
            if model.endswith("_att"):
                weights = own.dirichlet([4, 3, 2, 1], len(score)).round(6)
                rows |= {f"w{i + 1}": weights[:, i] for i in range(4)}
            frames.append(pd.DataFrame(rows))
            values = metrics.agreement(frames[-1]["score"].to_numpy(), mos[split])
            record |= {f"{split}_{k}": None if v != v else v for k, v in values.items()}
        records.append(record)
    config = {
        "type": "config",
        "model": model,
        "parameters": 25_000_000 + 1_000_000 * len(name),
        "multiply_adds": 4_000_000_000,
        "flags": {"seed": seed, "epochs": epochs, "dataset": "koniq-10k", "data_path": "nowhere"}
        | {"patch_size": 224, "lr": 1e-4}
        | flags,
        "labels": "labels_of_a_test",
        "images": {"train": 4 * tests, "val": vals, "test": tests},
        "data_fingerprint": f"0123456789a{flags['split_seed']}",
        "device": "cpu",
        "device_name": "a machine",
        "precision": "off",
        "git_commit": "abc",
        "versions": {"torch": "2"},
        "started": "2026-01-02T03:04:05",
    }
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(line) for line in (config, *records)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.log").write_text("a log\n")
    columns = ["epoch", "split", "image", "mos", "score"]
    columns += [c for c in frames[0].columns if c.startswith("w")]
    pd.concat(frames)[columns].to_csv(folder / f"{name}_predictions.csv", index=False)


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / "logs"
    for name, model, noise in zip(NAMES, MODELS, (20, 12, 6)):
        write_run(folder, name, model, noise)
    return folder


def reported(folder, capsys, *arguments, status=0):
    """Run the report in this process: (results.json or None, stdout, stderr)."""
    sys.argv = ["report", str(folder), "--resamples", "400", *map(str, arguments)]
    assert report.main() == status
    said = capsys.readouterr()
    path = folder / "results.json"
    return (json.loads(path.read_text()) if path.exists() else None), said.out, said.err


def test_a_clear_gain_carries_over_and_every_file_is_there(logs, capsys):
    results, out, _ = reported(logs, capsys)
    assert "the improvements carry over to a CNN" in out and results["selection"] == "chosen by val"
    wanted = ["report.md", "report.html", "table.tex", "paragraph.tex", "results.json"]
    assert all((logs / name).is_file() for name in wanted)
    figures = {p.name for p in (logs / "figures").iterdir()}
    stems = ("curves", "scatter", "forest", "stage_weights", "costs")
    assert figures == {f"{s}.{kind}" for s in stems for kind in ("png", "pdf")}
    for stem in stems:
        with Image.open(logs / "figures" / f"{stem}.png") as image:
            assert image.width <= 3.5 * 300 + 1  # a journal's column
    page = (logs / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5 and "http" not in page.split("</style>")[1]
    text = (logs / "report.md").read_text()
    assert "No contact sheet: 20 of its 20 photographs are not under nowhere" in text
    assert "variance between seeds is unknown" in text


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
    assert [c["p_holm"] for c in results["comparisons"]] == pytest.approx(metrics.holm(ps))
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
    statistics = report.Statistics.__new__(report.Statistics)
    statistics.gain = metrics.Interval(*gain, p=0.5, reason="a reason")
    statistics.comparisons = [{"label": report.BOTH, "p_holm": p}]
    assert verdict in statistics.decide()


def test_several_seeds_give_spread_and_the_seeds_needed(tmp_path, capsys):
    for seed in (1, 2, 3):
        for name, model, noise in zip(NAMES, MODELS, (14, 12, 11)):
            write_run(tmp_path, f"{name}_seed{seed}", model, noise, seed=seed)
    results, _, _ = reported(tmp_path, capsys)
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
    assert "two tell little of how seeds vary" in (tmp_path / "report.md").read_text()


def test_random_splits_give_medians_and_the_corrected_t_test(tmp_path, capsys):
    from scipy import stats

    for seed in (1, 2, 3, 4):
        for name, model, noise in zip(NAMES, MODELS, (20, 12, 6 + seed)):
            write_run(
                tmp_path, f"{name}_seed{seed}", model, noise, seed=seed, split="random",
                split_seed=seed,
            )  # fmt: skip
    results, out, _ = reported(tmp_path, capsys)
    assert results["splits"] == 4 and "carry over to a CNN" in out
    found = results["configurations"][MODELS[2]]
    each = found["selections"]["chosen by val"]
    assert found["srcc"] == pytest.approx(np.median(each)) and len(set(each)) == 4
    reach = stats.t.ppf(0.975, 3) * np.std(each, ddof=1) * (1 / 4 + 1 / 4) ** 0.5
    assert found["srcc_interval"]["value"] == pytest.approx(np.mean(each))
    assert found["srcc_interval"]["high"] == pytest.approx(np.mean(each) + reach)
    text = (tmp_path / "report.md").read_text()
    assert "medians over 4 random splits (seeds 1, 2, 3, 4)" in text
    assert "No contact sheet: each seed has test images of its own" in text
    assert "Medians over 4 random splits" in (tmp_path / "table.tex").read_text()
    assert "median SRCC over 4 random splits" in (tmp_path / "paragraph.tex").read_text()


def test_splits_that_do_not_pair_are_refused(tmp_path, capsys):
    for name, model, split in zip(NAMES, MODELS, (1, 2)):
        write_run(tmp_path, name, model, 9, split="random", split_seed=split)
    assert "can't be compared: --split_seed 1 and 2" in reported(tmp_path, capsys, status=1)[2]
    for seed, split in ((1, 1), (2, 1), (3, 2)):
        write_run(
            tmp_path / "other", f"s{seed}", MODELS[0], 9, seed=seed, split="random",
            split_seed=split,
        )  # fmt: skip
    told = reported(tmp_path / "other", capsys, status=1)[2]
    assert "not each seed on a random split of its own" in told


def test_without_validation_the_last_epoch_counts(tmp_path, capsys):
    for name, model, noise in zip(NAMES, MODELS, (20, 12, 6)):
        write_run(tmp_path, name, model, noise, vals=0)
    assert reported(tmp_path, capsys)[0]["selection"] == "last epoch"


def test_failed_runs_and_lone_ones_still_give_a_report(logs, capsys):
    record = (logs / "exp2_multiscale.jsonl").read_text().splitlines()
    (logs / "exp2_multiscale.jsonl").write_text("\n".join(record[:2]) + "\n")
    (logs / "exp3_multiscale_attention.jsonl").unlink()
    results, out, err = reported(logs, capsys)
    assert "exp2_multiscale.jsonl: ended after 1 of 2 epochs, left out" in err
    assert "exp3_multiscale_attention.log: failed before it began" in err
    assert "not both there" in out and list(results["configurations"]) == [MODELS[0]]
    assert "ended after 1 of 2 epochs" in (logs / "report.md").read_text()


def test_figures_that_do_not_add_up_are_named(logs, capsys):
    lines = (logs / "exp1_baseline.jsonl").read_text().splitlines()
    record = json.loads(lines[2])
    lines[2] = json.dumps(record | {"test_srcc": record["test_srcc"] + 0.01})
    (logs / "exp1_baseline.jsonl").write_text("\n".join(lines) + "\n")
    results, _, err = reported(logs, capsys)
    assert re.search(r"epoch 2: test SRCC is 0\.\d+ by the predictions and 0\.\d+ by the rec", err)
    assert len(results["problems"]) == 1


def test_undefined_scores_are_said(tmp_path, capsys):
    for name, model, noise in zip(NAMES[:2], MODELS, (20, 12)):
        write_run(tmp_path, name, model, noise, epochs=1)
    csv = tmp_path / "exp2_multiscale_predictions.csv"
    pd.read_csv(csv).assign(score=50.0).to_csv(csv, index=False)
    _, _, err = reported(tmp_path, capsys)
    assert "by the predictions" in err
    text = (tmp_path / "report.md").read_text()
    assert "undefined: predictions that are all the same" in text


def test_other_settings_are_never_compared(logs, capsys):
    write_run(logs, "exp4", MODELS[1], 12, seed=1, lr=1e-3)
    assert "--lr 0.0001 and 0.001" in reported(logs, capsys, status=1)[2]
    write_run(logs, "exp4", MODELS[1], 12)
    assert "with seed 42 is there 2 times" in reported(logs, capsys, status=1)[2]


@pytest.mark.parametrize("key, values", [("precision", ("bf16", "off")), ("weights", "ab")])
def test_other_precisions_and_backbones_are_never_compared(logs, capsys, key, values):
    for name, value in zip(NAMES, (values[0], *values)):
        path = logs / f"{name}.jsonl"
        config, *rest = path.read_text().splitlines()
        config = json.loads(config)
        if key == "precision":
            config[key] = value
        else:
            config["flags"]["backbone_weights"] = f"folder_of_{name}/{value}.pth"
        path.write_text("\n".join([json.dumps(config), *rest]) + "\n")
    told = reported(logs, capsys, status=1)[2]
    assert f"{NAMES[0]} and {NAMES[2]} can't be compared" in told and key in told
    (logs / f"{NAMES[2]}.jsonl").unlink()
    reported(logs, capsys)  # the same file in another folder is the same


def test_missing_seeds_are_told_where_they_are_missing(tmp_path, capsys):
    for seed in (1, 2):
        for name, model, noise in zip(NAMES, MODELS, (20, 12, 6)):
            if (seed, name) != (2, NAMES[2]):
                write_run(tmp_path, f"{name}_seed{seed}", model, noise, seed=seed)
    results, _, _ = reported(tmp_path, capsys)
    assert [len(c["each"]) for c in results["comparisons"]] == [2, 1, 1]
    text = (tmp_path / "report.md").read_text()
    assert text.count("+ attention (1 of 2 seeds) |") == 1
    assert "both improvements (1 of 2 seeds) |" in text and "multi-scale fusion |" in text
    assert "attention (1 of 2 seeds) &" in (tmp_path / "table.tex").read_text()
    assert "With one seed the variance" in (tmp_path / "paragraph.tex").read_text()


def test_a_collapsed_run_changes_nothing_for_the_others(tmp_path, capsys):
    for name, model, noise in zip(NAMES, MODELS, (20, 12, 6)):
        write_run(tmp_path, name, model, noise)
    path = tmp_path / f"{NAMES[1]}.jsonl"
    config, *records = map(json.loads, path.read_text().splitlines())
    for record in records:
        record |= dict.fromkeys(("val_srcc", "val_plcc", "test_srcc", "test_plcc"))
    path.write_text("\n".join(map(json.dumps, [config, *records])) + "\n")
    csv = tmp_path / f"{NAMES[1]}_predictions.csv"
    pd.read_csv(csv).assign(score=50.0).to_csv(csv, index=False)
    results, out, err = reported(tmp_path, capsys)
    assert results["selection"] == "chosen by val" and "carry over to a CNN" in out
    assert f"{NAMES[1]}_predictions.csv: no epoch has a val SRCC to be chosen by" in err
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
    results, out, _ = reported(tmp_path, capsys)
    both = next(c for c in results["comparisons"] if c["label"] == report.BOTH)
    assert both["difference"]["value"] is None and both["p_permutation"] is None
    assert "not decided by these runs" in out


def test_nothing_to_report_is_one_sentence(tmp_path, capsys):
    assert "no finished run to report" in reported(tmp_path, capsys, status=1)[2]
    assert "no such folder" in reported(tmp_path / "nowhere", capsys, status=1)[2]


def test_a_baseline_that_knows_nothing_has_no_relative_gain(tmp_path, capsys):
    for name, model in zip(NAMES, MODELS):
        write_run(tmp_path, name, model, 5000)
    results, out, _ = reported(tmp_path, capsys)
    assert "not decided by these runs: the gain has no interval" in out
    assert "not surely above 0" in out and results["relative_gain"]["value"] is None


def test_the_contact_sheet_shows_twenty_photographs(logs, capsys, tmp_path):
    for i in range(200):
        photo(tmp_path / "data" / "Images" / f"test_{i:03}.jpg", 40 + i)
    reported(logs, capsys, "--data_path", tmp_path / "data")
    assert (logs / "figures" / "contact_sheet.png").is_file()


def test_neighbours_are_compared_by_backbone_and_interaction(tmp_path, capsys):
    logs = tmp_path / "logs"
    for name, model, noise, *flags in (
        *zip(NAMES, MODELS, (20, 12, 6), ["--use_multiscale"] * 3),
        ("n1", "hyperiqa", 18, "--model", "hyperiqa"),
        ("n2", "smart_iqa_tiny_ms_att", 5, "--model", "smart_iqa_tiny"),
        ("n3", "smart_iqa_tiny_ss_noatt", 7, "--model", "smart_iqa_tiny", "--no-use_multiscale"),
    ):
        told = vars(train.parse_args([*flags, "--epochs", "2", "--data_path", "nowhere"]))
        write_run(logs, name, model, noise, **told)
    results, _, _ = reported(logs, capsys)
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


def test_only_published_splits_stand_beside_the_literature(logs, capsys, monkeypatch):
    reported(logs, capsys)
    text = (logs / "report.md").read_text()
    assert "not the counts of a published split" in text and "TOPIQ" not in text
    known = data.DATASETS["koniq-10k"]._replace(published=((800, 50, 200),))
    monkeypatch.setitem(data.DATASETS, "koniq-10k", known)
    reported(logs, capsys)
    text = (logs / "report.md").read_text()
    assert "TOPIQ" in text and "On the same backbone the improvements close" in text


def test_the_demo_is_never_called_koniq(logs, capsys):
    for path in logs.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"device":', '"demo": true, "device":', 1))
    _, said, _ = reported(logs, capsys)
    assert "Verdict on the demo's drawn scenes (not KonIQ-10k), by one seed alone: " in said
    for name in ("report.md", "table.tex", "paragraph.tex"):
        text = (logs / name).read_text()
        assert "the demo's drawn scenes" in text and "koniq-10k" not in text


def test_it_needs_no_torch(logs):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
class NoTorch:
    def find_spec(name, *_):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch)
"""
    code += f"sys.argv = ['r', {str(logs)!r}, '--resamples', '400']\n"
    code += "import report_resnet_ablation as r; sys.exit(r.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_are_escaped_for_latex():
    assert report.latex(r"a_b & 5% \x") == r"a\_b \& 5\% \textbackslash{}x"
