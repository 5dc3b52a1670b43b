"""progress.html: how far the runs of an ablation are, kept up to date while they train.

    python3 report_resnet_ablation.py LOG_DIR --watch

run_resnet_ablation.sh starts and ends it. It reads the records and the logs only, needs no server,
and never writes anything but the page.
"""

import json
import os
import re
import signal
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from errors import ReportError, first_line
from experiment import CONFIGURATIONS, backbone_of
from files import write_atomically
from progress import duration
from reporting.axes import ticks
from reporting.render import environment
from reporting.runs import continued

SECONDS = 10  # between two looks, and between two reloads of the page
SILENT = 300  # seconds without a sign after which a run may have been killed
RUNS = "runs"  # the file with the names of all runs, which the script writes
STATES = ("finished", "training", "silent", "stopped", "failed", "waiting")


@dataclass
class RunSeen:
    """A run by its files; times are seconds since 1970."""

    name: str
    state: str = "waiting"
    model: str = ""  # its key in CONFIGURATIONS, from here on if it has a record
    backbone: str = ""
    epochs: int = 0  # that it is to have
    records: list[dict] = field(default_factory=list)  # of the epochs done
    began: float = 0.0
    sign: float = 0.0  # its last sign of life
    line: str = ""  # the last of its log

    @property
    def kind(self) -> str:
        """The run's name without its seed: runs of one kind take as long."""
        return re.sub(r"_seed\d+$", "", self.name)

    @property
    def done(self) -> int:
        return len(self.records)

    @property
    def seconds(self) -> float | None:
        """Of an epoch; None if none is done."""
        return statistics.median(r["seconds"] for r in self.records) if self.records else None

    def last(self, metric: str) -> float | None:
        return self.records[-1].get(metric) if self.records else None


@dataclass
class Plot:
    """A curve for each run: points in a drawing of 320 by 180 units."""

    title: str
    curves: list[tuple[str, str, str]]  # colour, points, the run's name
    across: list[tuple[float, str]]  # ticks of the epochs: place, label
    up: list[tuple[float, str]]  # ticks of the values


def watch(folders: list[Path], output: Path, until: int = 0) -> int:
    """Write the page again and again: until all runs have ended, or the process `until` has.

    A signal ends it as well. What fails is said once, on stderr, and tried again.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder}: no such folder")
    ended, said = threading.Event(), False
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: ended.set())
    while True:
        last = ended.is_set() or (until > 0 and not alive(until))
        try:
            runs = look(folders)
            last = last or (not until and all(r.state in ("finished", "failed") for r in runs))
            write_atomically(output / "progress.html", page(runs, output, last))
        except Exception as error:  # nothing that the page meets may end it, or a run
            if not said:
                print(f"note: progress.html: {first_line(error)}", file=sys.stderr)
            said = True
        if last:
            return 0
        for _ in range(5):
            if ended.wait(SECONDS / 5) or (until > 0 and not alive(until)):
                break


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def look(folders: list[Path]) -> list[RunSeen]:
    """All runs of the folders: those planned first, in their order."""
    seen = []
    for folder in folders:
        planned = folder / RUNS
        names = planned.read_text(encoding="utf-8").split() if planned.is_file() else []
        files = [*sorted(folder.glob("*.jsonl")), *sorted(folder.glob("*.log"))]
        names += [path.stem for path in files if not path.stem.startswith("slurm_")]
        seen += [look_at(folder, name) for name in dict.fromkeys(names)]
    return seen


def look_at(folder: Path, name: str) -> RunSeen:
    run, log = RunSeen(name), folder / f"{name}.log"
    files = [folder / f"{name}{end}" for end in (".jsonl", ".log", "_state.pth")]
    signs = [path.stat().st_mtime for path in files if path.exists()]
    if not signs:
        return run
    run.sign = max(signs)
    tail = end_of(log)
    run.line = tail[-1] if tail else ""
    try:
        lines = files[0].read_text(encoding="utf-8").splitlines() if files[0].is_file() else []
        config, *records = map(json.loads, lines or ["null"])
        if config:
            run.model, run.backbone = config["model"], backbone_of(config["flags"])
            run.epochs, run.records = config["flags"]["epochs"], records
            run.began = files[0].stat().st_mtime  # of the epoch under way
    except (ValueError, KeyError, TypeError):
        run.state, run.line = "failed", f"{files[0]} is no record"
        return run
    if run.epochs and run.done >= run.epochs:
        run.state = "finished"
    elif any(re.match(r"error: |Traceback |\w+Error\b", line) for line in tail[-3:]):
        run.state = "failed"
    elif run.line.startswith("stopped by"):
        run.state = "stopped"
    else:
        run.state = "training" if time.time() - run.sign < SILENT else "silent"
    return run


def end_of(log: Path, size: int = 4096) -> list[str]:
    """The last lines of a log."""
    if not log.is_file():
        return []
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        text = file.read().decode(errors="replace")
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def seconds_left(runs: list[RunSeen]) -> float | None:
    """Of all runs, as many at once as now; None before the first epoch is done."""
    known = [run for run in runs if run.seconds]
    if not known:
        return None

    def of_epoch(run: RunSeen) -> float:
        like = [other.seconds for other in known if other.kind == run.kind]
        return run.seconds or statistics.mean(like or [other.seconds for other in known])

    epochs = max(run.epochs for run in known)
    left = 0.0
    for run in runs:
        if run.state in ("training", "waiting"):
            gone = min(time.time() - run.began, of_epoch(run)) if run.began else 0.0
            left += ((run.epochs or epochs) - run.done) * of_epoch(run) - gone
    at_once = max(1, sum(run.state == "training" for run in runs))
    return left / at_once


def plots(runs: list[RunSeen]) -> list[Plot]:
    """SRCC and loss by epoch, for each backbone."""
    found = []
    for backbone in dict.fromkeys(run.backbone for run in runs if run.records):
        of_it = [run for run in runs if run.backbone == backbone and run.records]
        split = "val" if any("val_srcc" in r for run in of_it for r in run.records) else "test"
        name = {"val": "SRCC, validation images", "test": "SRCC, test images"}[split]
        for metric, title in ((f"{split}_srcc", name), ("loss", "training loss")):
            found += [plot(f"{backbone}: {title}", of_it, metric)]
    return found


def plot(title: str, runs: list[RunSeen], metric: str) -> Plot:
    values = [r[metric] for run in runs for r in run.records if r.get(metric) is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        low, high = low - 0.05, high + 0.05
    epochs = max(2, *(run.epochs for run in runs))

    def x(epoch: float) -> float:
        return round(320 * (epoch - 1) / (epochs - 1), 1)

    def y(value: float) -> float:
        return round(180 * (high - value) / (high - low), 1)

    curves = []
    for run in runs:
        points = [(x(r["epoch"]), y(r[metric])) for r in run.records if r.get(metric) is not None]
        colour = CONFIGURATIONS[run.model].colour if run.model in CONFIGURATIONS else "#000000"
        curves.append((colour, " ".join(f"{a},{b}" for a, b in points), run.name))
    across = [(x(epoch), f"{epoch:g}") for epoch in ticks(1, epochs) if epoch == int(epoch)]
    up = [(y(value), f"{value:g}") for value in ticks(low, high)]
    return Plot(title, curves, across, up)


def page(runs: list[RunSeen], output: Path, last: bool) -> str:
    """The page; last: it doesn't change any more, and stops to reload itself."""
    from reporting.page import themed

    left = None if last else seconds_left(runs)
    counts = {state: sum(run.state == state for run in runs) for state in STATES}
    report = output / "report.html"
    made = environment(autoescape=True)
    made.filters |= {"colour": themed, "duration": duration}
    return made.get_template("progress.html").render(
        runs=runs,
        counts=counts,
        left=left,
        until=time.strftime("%H:%M", time.localtime(time.time() + left)) if left else "",
        far=left is not None and left > 20 * 3600,
        now=time.time(),
        clock=time.strftime("%Y-%m-%d %H:%M:%S"),
        plots=plots(runs),
        rows={m: CONFIGURATIONS[m] for m in CONFIGURATIONS if any(r.model == m for r in runs)},
        last=last,
        resume=continued([output]),
        report=last and report.is_file() and report.stat().st_mtime > max(r.sign for r in runs),
        seconds=SECONDS,
    )
