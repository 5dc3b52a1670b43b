"""The words of the report."""

import pandas as pd
import pytest

from datasets.labels import DATASETS
from experiment import COMPARISONS
from report_runs import MODELS, NAMES, reported, write_five, write_run, write_three
from reporting.runs import read_runs
from reporting.statistics import Statistics
from reporting.text import CONTROLS, write_report


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
    assert "+ Attention (1 of 2 seeds) &" in (tmp_path / "table.tex").read_text()
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
        "Compared with the literature",
        "Paired differences in SRCC",
        "Stage weights",
        "Costs",
        "Provenance",
    ]
    for section in report.sections:
        assert all(len(row) == len(section.header) for row in section.rows)


def test_the_verdict_says_how_many_seeds_it_rests_on(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_three(tmp_path, suffix=f"_seed{seed}", seed=seed)
    (tmp_path / f"{NAMES[2]}_seed3.jsonl").unlink()
    assert " (2 of 3 seeds): " in reported(tmp_path, capsys)[1]


def test_one_seed_is_followed_by_the_command_for_more(logs, capsys):
    (logs / "arguments").write_text("/a/folder\0--demo\0")
    _, out, _ = reported(logs, capsys)
    assert f"To decide it: bash run_resnet_ablation.sh --resume {logs} --seeds 42,43,44\n" in out


def test_one_seed_of_no_script_is_told_what_is_missing(logs, capsys):
    _, out, _ = reported(logs, capsys)
    assert "train the same configurations with further seeds (43, 44)" in out


def test_what_is_not_found_is_smaller_than_a_number(tmp_path, capsys):
    for seed in (1, 2, 3):
        write_five(tmp_path, (12, 12, 12, 12, 12), suffix=f"_seed{seed}", seed=seed, tests=500)
    results, out, _ = reported(tmp_path, capsys)
    both = next(c for c in results["comparisons"] if c["label"] == "both improvements")
    within = both["difference"]["within"]
    assert both["p_holm"] > 0.05 and 0 < within < 0.05
    shown = float(out.split("with 95% confidence it is smaller than ")[1].split()[0])
    assert within <= shown <= within + 1e-4
    table = (tmp_path / "report.md").read_text().split("## Paired differences")[1].split("\n## ")[0]
    (row,) = [line for line in table.splitlines() if line.startswith("| both improvements |")]
    assert float(row.split("|")[6]) == shown
    paragraph = " ".join((tmp_path / "paragraph.tex").read_text().split())
    assert paragraph.count(r"with 95\% confidence it is smaller than $0.0") == 5


def test_one_seed_shows_nothing_to_be_small(tmp_path, capsys):
    write_three(tmp_path, (12, 12, 12))
    _, out, _ = reported(tmp_path, capsys)
    assert "smaller than 0" not in out + (tmp_path / "paragraph.tex").read_text()
    assert (tmp_path / "report.md").read_text().count("| unknown | 0.") == 3


def test_what_is_assumed_of_the_variance_between_seeds_is_said(tmp_path, capsys):
    texts = {}
    for seeds in (2, 3):
        logs = tmp_path / str(seeds)
        for seed in range(seeds):
            write_three(logs, suffix=f"_seed{seed}", seed=seed)
        reported(logs, capsys)
        texts[seeds] = (logs / "report.md").read_text()
    assert "pooled over 3 configurations and 2 seeds" in texts[2]
    assert "has 2 degrees of freedom instead of 1" in texts[2]
    assert "varies equally between seeds (two seeds cannot test this)" in texts[2]
    assert "has 4 degrees of freedom instead of 2" in texts[3]
    assert "(Brown and Forsythe's test: p = 0." in texts[3]
    paragraph = " ".join((tmp_path / "3" / "paragraph.tex").read_text().split())
    assert "pooled over 3 configurations (4 degrees of freedom)." in paragraph


def test_a_collapse_is_said_wherever_the_row_is_read(tmp_path, capsys):
    for seed in (1, 2):
        write_five(tmp_path, suffix=f"_seed{seed}", seed=seed, stages=(1000, 1, 1, 1))
    _, out, _ = reported(tmp_path, capsys)
    sentence = "'+ attention': the attention has collapsed; this row does not test it"
    for name in ("table.txt", "report.md", "report.html", "paragraph.tex"):
        text = " ".join((tmp_path / name).read_text().replace("&#39;", "'").split())
        assert sentence in text, name
        assert "static': the attention" not in text
    assert out.count(sentence) == 2  # in the table and after the verdict
    section = (tmp_path / "report.md").read_text().split("## Stage weights")[1]
    assert "| 2 of 2 |" in section and "| control: static |" in section


@pytest.mark.parametrize("given", (["--epochs", "3"], ["--epochs=3"]))
def test_equal_weights_ask_for_more_epochs_in_place_of_the_given(tmp_path, capsys, given):
    write_three(tmp_path, stages=(9000,) * 4, epochs=3)
    arguments = ["/a/folder", "--dataset", "biq2021", *given, "--seeds", "1"]
    (tmp_path / "arguments").write_text("".join(f"{each}\0" for each in arguments))
    reported(tmp_path, capsys)
    text = (tmp_path / "report.md").read_text()
    assert "Train for longer: after 3 epochs the weights hardly differ yet." in text
    command = "run_resnet_ablation.sh --dataset biq2021 --seeds 1 --epochs 6\n"
    assert command in text


def test_the_controls_that_are_explained_are_compared(tmp_path, capsys):
    assert set(CONTROLS) <= {label for label, *_ in COMPARISONS}
    reported(write_five(tmp_path), capsys)
    text = (tmp_path / "report.md").read_text()
    assert "as many parameters on stage 4 alone" in text and "the same for all images" in text
