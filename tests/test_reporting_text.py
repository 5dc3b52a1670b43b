"""The words of the report."""

import pandas as pd
import pytest

from datasets.labels import DATASETS
from report_runs import MODELS, NAMES, reported, write_run, write_three
from reporting.runs import read_runs
from reporting.statistics import Statistics
from reporting.text import write_report


@pytest.fixture
def logs(tmp_path):
    return write_three(tmp_path / "logs")


def test_undefined_scores_are_said(tmp_path, capsys):
    for name, model, noise in zip(NAMES[:2], MODELS, (20, 12)):
        write_run(tmp_path, name, model, noise, epochs=1)
    csv = tmp_path / "exp2_multiscale_predictions.csv"
    pd.read_csv(csv).assign(score=50.0).to_csv(csv, index=False)
    _, _, err = reported(tmp_path, capsys, draw=True)
    assert "by the predictions" in err
    text = (tmp_path / "report.md").read_text()
    assert "undefined: predictions that are all the same" in text


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


def test_only_published_splits_are_compared_with_the_literature(logs, capsys, monkeypatch):
    reported(logs, capsys)
    text = (logs / "report.md").read_text()
    assert "not the counts of a published split" in text and "TOPIQ" not in text
    known = DATASETS["koniq-10k"]._replace(published=((800, 50, 200),))
    monkeypatch.setitem(DATASETS, "koniq-10k", known)
    reported(logs, capsys)
    text = (logs / "report.md").read_text()
    assert "TOPIQ" in text and "On the same backbone the improvements close" in text


def test_the_demo_is_never_called_koniq(logs, capsys):
    for path in logs.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"device":', '"demo": true, "device":', 1))
    _, said, _ = reported(logs, capsys)
    assert "Verdict on the demo's synthetic scenes (not KonIQ-10k), single seed: " in said
    for name in ("report.md", "table.tex", "paragraph.tex"):
        text = (logs / name).read_text()
        assert "the demo's synthetic scenes" in text and "koniq-10k" not in text


def test_the_report_is_a_data_object(logs):
    runs = read_runs([logs])
    report = write_report(Statistics(runs.finished, resamples=400, seed=0), runs, [])
    assert report.title == "Do multi-scale fusion and channel attention help a ResNet-50?"
    assert report.verdict.sentence.startswith("Verdict on koniq-10k") and report.problems == []
    headings = [section.heading for section in report.sections]
    assert headings == [
        "Configurations",
        "Three ways to choose the epoch",
        "Paired differences in SRCC",
        "Compared with the literature",
        "Costs",
        "Figures",
        "Provenance",
    ]
    for section in report.sections:
        assert all(len(row) == len(section.header) for row in section.rows)


def test_the_verdict_says_how_many_seeds_it_rests_on(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_three(tmp_path, suffix=f"_seed{seed}", seed=seed)
    (tmp_path / f"{NAMES[2]}_seed3.jsonl").unlink()
    assert " (2 of 3 seeds): " in reported(tmp_path, capsys)[1]
