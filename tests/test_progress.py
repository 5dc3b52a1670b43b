"""What a person sees of long work, in a log."""

import re
import sys
import time

from progress import Progress, TimeEstimate, say


def test_progress_in_a_log_is_a_line_a_minute(monkeypatch, capsys):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    for _ in Progress("training", 250, "patches", 32)(range(8)):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "training: 64 of 250 patches, 0.9/s, 4 min left",
        "training: 160 of 250 patches, 1.1/s, 84 s left",
    ]


def test_a_slow_first_step_is_no_trouble(monkeypatch, capsys):
    clock = iter([0, 100, 200])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(Progress("training", 64, "patches", 32)(range(2))) == [0, 1]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_estimate_times_the_steps_after_the_first(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    estimate = TimeEstimate(epochs=3, crops=3200, test_crops=400, batch_size=32, steps=100)
    for step in range(20):
        now[0] += 100 if step == 0 else 16  # the first step warms up
        estimate.after_step()
    (said,) = capsys.readouterr().out.splitlines()
    assert re.search(r"about 82 min for 3 epochs at 2\.0 crops/s", said)


def test_without_streams_the_work_goes_on(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("a line")
    assert list(Progress("training", 64, "patches", 32)(range(2))) == [0, 1]


def test_with_a_single_step_there_is_nothing_to_time(capsys):
    estimate = TimeEstimate(epochs=3, crops=32, test_crops=4, batch_size=32, steps=1)
    estimate.after_step()
    assert capsys.readouterr().out.count("trains on the CPU") == 1
