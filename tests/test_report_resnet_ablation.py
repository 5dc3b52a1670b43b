"""The report as a command: what it prints, its files, and its exit status."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from conftest import ROOT
from report_runs import MODELS, NAMES, change_record, reported, write_run, write_three


@pytest.fixture
def logs(tmp_path):
    return write_three(tmp_path / "logs")


def test_a_clear_gain_carries_over_and_every_file_is_there(logs, capsys):
    results, out, _ = reported(logs, capsys, draw=True)
    assert "the improvements carry over to a CNN" in out and results["selection"] == "chosen by val"
    wanted = ["table.txt", "report.md", "report.html", "table.tex", "paragraph.tex", "results.json"]
    assert all((logs / name).is_file() for name in wanted)
    figures = {p.name for p in (logs / "figures").iterdir()}
    stems = ("configurations", "curves", "scatter", "forest", "stage_weights", "thirds", "costs")
    assert figures == {f"{s}.{kind}" for s in stems for kind in ("png", "pdf")}
    for stem in stems:
        with Image.open(logs / "figures" / f"{stem}.png") as image:
            assert image.width <= 3.5 * 300 + 1  # a journal's column
    text = (logs / "report.md").read_text()
    assert "No contact sheet: 20 of its 20 photographs are not under nowhere" in text
    assert "variance between seeds is unknown" in text


def test_nothing_to_report_is_one_sentence(tmp_path, capsys):
    assert "no finished run to report" in reported(tmp_path, capsys, status=1)[2]
    assert list(tmp_path.iterdir()) == []
    assert "no such folder" in reported(tmp_path / "nowhere", capsys, status=1)[2]


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


def test_table_verdict_and_place_are_printed_in_this_order(logs, capsys):
    _, out, err = reported(logs, capsys)
    table = (logs / "table.txt").read_text()
    assert out.startswith(table) and err == ""
    *_, remark, place = out.splitlines()
    assert "variance between seeds is unknown" in remark
    assert place.startswith(f"The report is in {logs}: ")
    assert out.count("Verdict on") == 1 and table.splitlines()[-1].startswith("Verdict on")


def test_table_verdict_and_paper_lead_with_the_same_selection(tmp_path, capsys):
    """'best on test' and 'chosen by val' are different epochs here."""
    write_three(tmp_path, (12, 12, 12), epochs=2)

    def worst_by_val(config, epochs):
        better = [e["test_srcc"] for e in epochs].index(max(e["test_srcc"] for e in epochs))
        for i, epoch in enumerate(epochs):
            epoch["val_srcc"] = 0.1 if i == better else 0.2

    change_record(tmp_path, NAMES[2], worst_by_val)
    results, out, _ = reported(tmp_path, capsys)
    found = results["configurations"][MODELS[2]]
    srcc, best = (found["selections"][s][0] for s in ("chosen by val", "best on test"))
    base = results["configurations"][MODELS[0]]["selections"]["chosen by val"][0]
    value = results["relative_gain"]["value"]
    assert best > srcc + 0.01 and value == pytest.approx(srcc / base - 1)
    gain = f"{100 * value:+.2f}"
    (row,) = [line.split() for line in out.splitlines() if line.startswith("+ attention ")]
    assert row[2] == f"{srcc:.4f}" and row[5] == gain and row[6] == f"{best:.4f}"
    assert f"change the SRCC of the baseline by {gain}%" in out
    assert results["selection"] == "chosen by val"
    assert (
        "200 test images, epoch with the highest SRCC on the validation images"
        in (tmp_path / "table.tex").read_text()
    )


def test_a_configuration_that_is_no_row_is_an_error_after_the_report(logs, capsys):
    write_run(logs, "exp9_other", "resnet_improved_other", 9)
    results, out, err = reported(logs, capsys, status=1)
    record = logs / "exp9_other.jsonl"
    assert f"error: {record}: its configuration resnet_improved_other is not a row of" in err
    assert list(results["configurations"]) == list(MODELS) and "carry over to a CNN" in out
    assert "Not in this table: exp9_other (resnet_improved_other is not in experiment.py)." in out
    assert "resnet_improved_other is not a row" in (logs / "report.md").read_text()


def test_failed_runs_are_notes_and_their_rows_say_so(logs, capsys):
    (logs / "exp2_multiscale.jsonl").unlink()
    _, out, err = reported(logs, capsys)
    log = logs / "exp2_multiscale.log"
    assert err.startswith(f"note: {log}: failed before training started")
    assert f"+ multi-scale  FAILED: see {log}" in out
    for name in ("report.md", "report.html"):
        assert "+ multi-scale (failed" in (logs / name).read_text(), name
    assert "+ Multi-scale (failed" in (logs / "table.tex").read_text()


def test_without_a_finished_run_the_table_still_names_the_failed_ones(tmp_path, capsys):
    write_three(tmp_path)
    for name in NAMES:
        (tmp_path / f"{name}.jsonl").unlink()
    _, out, err = reported(tmp_path, capsys, status=1)
    assert "no finished run to report" in err and out.count("FAILED: see") == 3
    assert (tmp_path / "table.txt").read_text() in out
    assert "Verdict" not in out and not (tmp_path / "report.md").exists()


def test_runs_of_two_folders_with_the_same_names_are_two_runs(tmp_path, capsys):
    for seed in (1, 2):
        write_three(tmp_path / f"machine{seed}", (12, 10, 8), seed=seed)
    results, _, _ = reported(tmp_path / "machine1", capsys, tmp_path / "machine2")
    for name, model in zip(NAMES, MODELS):
        each = []
        for seed in (1, 2):
            path = tmp_path / f"machine{seed}" / f"{name}.jsonl"
            each.append(json.loads(path.read_text().splitlines()[-1])["test_srcc"])
        assert results["configurations"][model]["selections"]["last epoch"] == pytest.approx(each)
        assert each[0] != each[1]
    assert (
        "| machine2/exp1_baseline | baseline | 2 |"
        in (tmp_path / "machine1" / "report.md").read_text()
    )
