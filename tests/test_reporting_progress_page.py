"""progress.html: what it says of runs, and that whatever writes it ends and harms nothing."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from browsers import browser, opened, overflow  # noqa: F401 (a fixture)
from conftest import ROOT
from report_runs import change_record, write_three
from reporting.axes import ticks
from reporting.progress_page import SECONDS, look, page, seconds_left, watch

NAMES = ("exp1_baseline", "exp2_multiscale", "exp3_multiscale_attention")


@pytest.fixture
def logs(tmp_path):
    """One run has finished, one is in its third of five epochs, one waits."""
    folder = write_three(tmp_path / "logs", epochs=5)
    for name in NAMES[:2]:
        change_record(folder, name, lambda _, epochs: [e.update(seconds=60.0) for e in epochs])
    change_record(folder, NAMES[1], lambda _, epochs: epochs.__delitem__(slice(2, None)))
    line = "epoch 3/5 training: 992 of 1,800 crops, 16.5/s, 49 s left"
    (folder / f"{NAMES[1]}.log").write_text(f"model  a model\n{line}\n")
    for path in folder.glob(f"{NAMES[2]}*"):
        path.unlink()
    (folder / "runs").write_text("\n".join(NAMES) + "\n")
    return folder


def started(logs, *arguments):
    command = [sys.executable, ROOT / "report_resnet_ablation.py", logs, "--watch", *arguments]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)


def written(path, seconds=120):
    """The page, once it is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.1)
    return path.read_text()


def test_it_says_which_run_which_epoch_and_how_long(logs):
    runs = look([logs])
    assert [(run.name, run.state, run.done) for run in runs] == [
        (NAMES[0], "finished", 5),
        (NAMES[1], "training", 2),
        (NAMES[2], "waiting", 0),
    ]
    # Three epochs of the second run, of which a little has passed, and five of the third.
    assert 7 * 60 < seconds_left(runs) <= 8 * 60
    text = page(runs, logs, last=False)
    assert "1 of 3 runs finished: about 8 min left" in text
    assert f'http-equiv="refresh" content="{SECONDS}"' in text
    assert "992 of 1,800 crops" in text and text.count("<polyline ") == 4


def test_two_runs_at_once_take_half_the_time(logs):
    one = seconds_left(look([logs]))
    for end in (".jsonl", ".log"):
        (logs / f"{NAMES[2]}{end}").write_text((logs / f"{NAMES[1]}{end}").read_text())
    change_record(logs, NAMES[2], lambda _, epochs: epochs.clear())
    assert seconds_left(look([logs])) == pytest.approx(one / 2, rel=0.2)


@pytest.mark.parametrize(
    "line, state",
    [
        ("error: --lr: the loss is not finite", "failed"),
        ("Traceback (most recent call last):", "failed"),
        ("stopped by SIGTERM", "stopped"),
        ("epoch 3/5 training: 1 of 2 crops", "training"),
    ],
)
def test_the_last_line_of_a_log_tells_how_a_run_ended(logs, line, state):
    with open(logs / f"{NAMES[1]}.log", "a") as file:
        file.write(f"{line}\n")
    assert look([logs])[1].state == state


def test_a_run_without_a_sign_of_life_is_said(logs):
    before = time.time() - 3600
    for path in logs.glob(f"{NAMES[1]}*"):
        os.utime(path, (before, before))
    text = page(look([logs]), logs, last=False)
    assert "no sign for 60 min" in text


def test_it_ends_when_all_runs_have_and_the_page_goes_on_to_the_report(logs, tmp_path):
    write_three(logs, epochs=5)
    for name in NAMES:
        change_record(logs, name, lambda _, epochs: [e.update(seconds=60.0) for e in epochs])
    (logs / "report.html").write_text("the report")
    later = time.time() + 1
    os.utime(logs / "report.html", (later, later))
    assert watch([logs], logs) == 0
    text = (logs / "progress.html").read_text()
    assert 'content="3; url=report.html"' in text and "3 of 3 runs finished." in text


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "process"])
def test_a_signal_or_the_end_of_the_process_ends_it(logs, how):
    sleeper = subprocess.Popen(["sleep", "600"])
    watcher = started(logs, *([sleeper.pid] if how == "process" else []))
    text = written(logs / "progress.html")
    assert 'http-equiv="refresh"' in text
    sleeper.kill()
    sleeper.wait()
    if how != "process":
        watcher.send_signal(getattr(signal, how))
    assert watcher.wait(120) == 0 and watcher.stderr.read() == ""
    text = (logs / "progress.html").read_text()
    assert 'http-equiv="refresh"' not in text and "This page has stopped" in text


def test_a_page_that_cannot_be_written_is_said_once_and_tried_again(logs, monkeypatch, capsys):
    monkeypatch.setattr("reporting.progress_page.SECONDS", 0.1)
    write_three(logs)
    (logs / f"{NAMES[2]}.jsonl").unlink()
    in_the_way = logs / "progress.html.tmp"
    in_the_way.mkdir()
    looks = []

    def counted(folders):
        looks.append(1)
        if len(looks) == 4:
            in_the_way.rmdir()
            (logs / f"{NAMES[2]}.log").write_text("error: a sentence\n")
        return look(folders)

    monkeypatch.setattr("reporting.progress_page.look", counted)
    for name in NAMES[:2]:
        change_record(logs, name, lambda _, epochs: [e.update(seconds=60.0) for e in epochs])
    assert watch([logs], logs) == 0
    assert len(looks) == 4
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("note: progress.html: ")
    assert "2 of 3 runs finished." in (logs / "progress.html").read_text()


@pytest.mark.parametrize("text, state", [("", "training"), ('{"type": "conf', "failed")])
def test_a_record_that_is_not_whole_hides_no_other_run(logs, text, state):
    (logs / f"{NAMES[1]}.jsonl").write_text(text)
    runs = look([logs])
    assert [run.state for run in runs] == ["finished", state, "waiting"]
    assert "1 of 3 runs finished" in page(runs, logs, last=False)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    watcher = started(tmp_path / "nowhere")
    assert watcher.wait(120) == 1
    assert watcher.stderr.read() == f"error: {tmp_path / 'nowhere'}: no such folder\n"


def test_the_page_in_a_browser(browser, logs):  # noqa: F811
    path = logs / "progress.html"
    path.write_text(page(look([logs]), logs, last=False))
    for width, scheme in ((1280, "light"), (360, "dark")):
        with opened(browser, path, width=width, color_scheme=scheme) as seen:
            assert overflow(seen) == 0
            assert seen.locator("progress").count() == 3
            assert seen.locator("#clock").inner_text().startswith("As of 20")
    old = re.sub(r'data-time="\d+"', f'data-time="{time.time() - 3600:.0f}"', path.read_text())
    path.write_text(old)
    with opened(browser, path) as seen:
        assert "Not updated for 60 minutes" in seen.locator("#clock").inner_text()


def test_ticks_are_few_and_round():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(-2, 102) == [0, 50, 100] and ticks(-2, 102, 9) == [0, 20, 40, 60, 80, 100]
    assert ticks(1, 3) == [1, 1.5, 2, 2.5, 3]
    for low, high in ((0.8, 0.8001), (1, 1000), (-1e6, 1e6), (5.2, 14.4)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6 and low <= found[0] and found[-1] <= high
