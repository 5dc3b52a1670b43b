"""The report over several backbones."""

import json

import pytest

from report_runs import MODELS, NAMES, reported, write_run
from reporting.runs import read_runs


def write_backbones(folder, gains, *, seeds=(1, 2, 3), **options):
    """Runs of the three configurations on each backbone, by how much less noise they have."""
    for index, (backbone, gain) in enumerate(gains.items()):
        suffix = "" if backbone == "resnet50" else f"_{backbone}"
        for seed in seeds:
            for name, model, share in zip(NAMES, MODELS, (0, 0.5, 1)):
                run, noise = f"{name}{suffix}_seed{seed}", 20 - share * gain - index / 10
                own = {"backbone": backbone, "backbone_weights": f"{backbone}.pth"} | options
                write_run(folder, run, model, noise, seed=seed, tests=300, epochs=1, **own)
    return folder


LARGE = {"resnet18": 15, "convnext_tiny": 15, "regnety_008": 15, "resnet50": 15, "resnet34": 15}


def test_each_backbone_has_its_report_and_all_have_a_summary(tmp_path, capsys):
    results, out, _ = reported(write_backbones(tmp_path, LARGE), capsys)
    assert results["backbones"] == sorted(LARGE)
    gain = results["relative_gain"]
    assert set(gain["each"]) == set(LARGE) and gain["over"]["count"] == 5
    assert gain["over"]["next"]["low"] < gain["over"]["mean"]["low"]
    assert "the improvements carry over to CNNs like these: on a further backbone" in out
    for name in LARGE:
        alone = json.loads((tmp_path / name / "results.json").read_text())
        assert alone["backbone"] == name
        assert alone["relative_gain"] == gain["each"][name]
        assert f"{name}.pth" in out and f"| {name} |" in (tmp_path / "report.md").read_text()
        assert (tmp_path / name / "report.html").is_file()
    text = (tmp_path / "convnext_tiny" / "table.txt").read_text()
    assert "carry over to convnext_tiny" in text and "CNN" not in text
    assert (tmp_path / "figures" / "backbones.png").stat().st_size > 1000
    assert "Further backbone & " in (tmp_path / "backbones.tex").read_text()
    labels = [c["label"] for c in results["comparisons"]]
    assert labels == ["multi-scale fusion", "channel attention", "both improvements"]
    assert all(c["p_holm"] >= c["over"]["mean"]["p"] for c in results["comparisons"])


def test_a_collapse_is_said_of_the_backbone_that_has_it(tmp_path, capsys):
    for index, backbone in enumerate(("resnet18", "resnet34", "convnext_tiny")):
        stages = (1000, 1, 1, 1) if backbone == "resnet34" else (4, 3, 2, 1)
        write_backbones(tmp_path, {backbone: 9 + index}, seeds=(1, 2), stages=stages)
    reported(tmp_path, capsys)
    text = " ".join((tmp_path / "table.txt").read_text().split())
    assert text.count("the attention has collapsed") == 1
    assert "resnet34: '+ attention': the attention has collapsed" in text


def test_backbones_of_which_one_differs_decide_nothing(tmp_path, capsys):
    gains = LARGE | {"resnet34": -15}
    results, out, _ = reported(write_backbones(tmp_path, gains), capsys)
    assert "not decided whether the improvements carry over" in out
    assert results["relative_gain"]["over"]["tau"] > 0.05


@pytest.mark.slow
def test_one_is_left_out_of_the_summary_only(tmp_path, capsys):
    write_backbones(tmp_path, LARGE)
    results, out, _ = reported(tmp_path, capsys, "--leave_out", "resnet50")
    assert results["relative_gain"]["over"]["count"] == 4
    assert "Left out of the summary: resnet50." in out and "resnet50" in results["backbones"]
    _, _, errors = reported(tmp_path, capsys, "--leave_out", "resnet", status=1)
    assert "--leave_out resnet: there are runs of convnext_tiny, " in errors


@pytest.mark.parametrize(
    "gains, seeds, reason",
    [
        ({"resnet18": 10, "resnet34": 10}, (1, 2), "2 backbones have a gain; it takes 3"),
        (LARGE, (1,), "a backbone has one training run per configuration; it takes two"),
    ],
)
def test_generality_is_not_assessed_from_too_little(tmp_path, capsys, gains, seeds, reason):
    results, out, _ = reported(write_backbones(tmp_path, gains, seeds=seeds), capsys)
    assert f"generality is not assessed: {reason}" in out
    assert results["relative_gain"]["over"] is None


def test_one_other_backbone_alone_has_the_ordinary_report(tmp_path, capsys):
    results, out, _ = reported(write_backbones(tmp_path, {"resnet18": 15}), capsys)
    assert results["backbone"] == "resnet18" and "--backbone_weights resnet18.pth" in out
    assert "resnet18 ablation, 3 seed(s)" in out and not (tmp_path / "resnet18").exists()


def test_backbones_trained_otherwise_are_refused(tmp_path, capsys):
    write_backbones(tmp_path, {"resnet18": 10})
    write_backbones(tmp_path, {"resnet34": 10}, lr=1e-3)
    _, _, errors = reported(tmp_path, capsys, status=1)
    assert "can't be compared: --lr 0.0001 and 0.001" in errors


def test_a_failed_run_is_named_with_its_backbone(tmp_path, capsys):
    write_backbones(tmp_path, LARGE)
    for name in NAMES:
        for seed in (1, 2, 3):
            write_run(tmp_path, f"{name}_resnet101_seed{seed}", MODELS[0], 9, backbone="resnet101")
            run = tmp_path / f"{name}_resnet101_seed{seed}.jsonl"
            run.write_text(run.read_text().splitlines()[0])
    (tmp_path / "exp2_multiscale_resnet18_seed2.jsonl").unlink()
    (tmp_path / "exp2_multiscale_resnet18_seed2.log").write_text("error: it fails\n")
    found = {(x.model, x.backbone, x.seed) for x in read_runs([tmp_path]).failed}
    assert (MODELS[1], "resnet18", 2) in found and len(found) == 2
    _, out, errors = reported(tmp_path, capsys)
    title, row = out[out.rindex("\nresnet101\n") + 1 :].splitlines()[:2]
    assert title.strip() == "resnet101" and "baseline" in row and "FAILED: see" in row
    assert "failed before training started" in errors
