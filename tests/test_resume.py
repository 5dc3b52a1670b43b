"""An interrupted run ends bit for bit where an undisturbed one does: real processes, real kills."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train_resnet_improved as train
from conftest import ROOT, TINY, make_koniq10k
from test_train_resnet_improved import without_clock

# Runs training in a fork of this process for each line of its input, a JSON object: `argv`, and the
# `at`-th `event` (a step, or a part of a save) at which the fork kills itself. It prints the exit
# status of each. One import of torch serves them all.
DRIVER = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch, torchvision, pandas, scipy.stats
import data_loader, models_resnet_improved, train_resnet_improved as train

def dies_at(owner, name, at, half=None):
    original, calls = getattr(owner, name), [0]
    def wrapped(*args, **options):
        calls[0] += 1
        if calls[0] == at:
            if half:
                half(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)
    setattr(owner, name, wrapped)

EVENTS = {
    "a step of training or evaluation": lambda at: dies_at(data_loader, "to_network_input", at),
    "evaluation": lambda at: dies_at(train, "evaluate", at),
    "the end of an epoch": lambda at: dies_at(train, "agreement", at),
    "half of a checkpoint": lambda at: dies_at(torch, "save", at, lambda _, f: f.write(b"PK half")),
    "before a rename": lambda at: dies_at(data_loader.os, "replace", at),
    "before the best checkpoint": lambda at: dies_at(train.Run, "save_best", at),
    "before a sync": lambda at: dies_at(data_loader.os, "fsync", at),
}
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            sys.argv = ["train_resnet_improved.py", *job["argv"]]
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            if job["event"]:
                EVENTS[job["event"]](job["at"])
            status = train.main()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        finally:
            os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
EVENTS = re.findall(r'^    "([^"]+)": lambda at', DRIVER, re.MULTILINE)


@pytest.fixture(scope="module")
def driver():
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, ROOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=1
    )

    def run(argv, *, event=None, at=0, log) -> int:
        job = {"argv": [*map(str, argv)], "event": event, "at": at, "log": str(log)}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(timeout=30)


FLAGS = [*TINY, "--epochs", "3", "--use_multiscale", "--use_attention", "--color_jitter"]


def argv(folder: Path, out: Path, *more) -> list:
    where = ["--data_path", folder, "--store_dir", f"{folder}.store", "--run_name", "run"]
    return [*FLAGS, *where, "--log_dir", out, "--checkpoint_dir", out, "--save_model", *more]


def outcome(out: Path) -> dict:
    """All that a run leaves, without the clock: records, predictions, and both checkpoints."""
    config, *epochs = map(json.loads, (out / "run.jsonl").read_text().splitlines())
    checkpoints = {}
    for which in ("best", "last"):
        path = out / f"resnet_improved_ms_att_{which}.pth"
        checkpoints[which] = torch.load(path, weights_only=True)
        checkpoints[which] |= {
            "config": None,
            "epochs": without_clock(checkpoints[which]["epochs"]),
        }
    return {
        "flags": {k: v for k, v in config["flags"].items() if k not in train.FREE_FLAGS},
        "epochs": without_clock(epochs),
        "predictions": (out / "run_predictions.csv").read_bytes(),
        "checkpoints": checkpoints,
        "files": sorted(p.name for p in out.iterdir() if p.suffix != ".log"),
    }


def same(a, b) -> bool:
    """Equal to the last bit, tensors included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def undisturbed(driver, tmp_path_factory):
    base = tmp_path_factory.mktemp("undisturbed")
    folder = base / "koniq-10k"
    folder.mkdir()
    make_koniq10k(folder)
    assert driver(argv(folder, base / "out"), log=base / "log") == 0, (base / "log").read_text()
    return folder, outcome(base / "out")


def resumed_after_kills(driver, undisturbed, out: Path, kills, *more) -> int:
    """Kill a run at each of `kills` in turn, then let it end; how many kills struck."""
    folder, wanted = undisturbed
    command, struck = argv(folder, out, "--resume", *more), 0
    for event, at in kills:
        status = driver(command, event=event, at=at, log=out.with_suffix(".log"))
        assert status in (-signal.SIGKILL, 0), out.with_suffix(".log").read_text()
        struck += status != 0
    assert driver(command, log=out.with_suffix(".log")) == 0, out.with_suffix(".log").read_text()
    ended = outcome(out)
    for part, content in wanted.items():
        assert same(content, ended[part]), f"{part} differ after {kills}"
    return struck


def test_killed_and_resumed_it_ends_bit_for_bit_the_same(driver, undisturbed, tmp_path):
    kills = [(event, 3 if "step" in event else 2) for event in EVENTS]
    often = "--save_minutes", 0.005
    assert resumed_after_kills(driver, undisturbed, tmp_path / "out", kills, *often) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_any_number_of_kills_at_random_points_change_nothing(driver, undisturbed, tmp_path, seed):
    rng = random.Random(seed)
    events = [rng.choice(EVENTS) for _ in range(6)]
    kills = [(event, rng.randint(1, 7 if "step" in event else 3)) for event in events]
    often = rng.choice([0, 0.002])
    struck = resumed_after_kills(
        driver, undisturbed, tmp_path / "out", kills, "--save_minutes", often
    )
    assert struck >= 2


@pytest.mark.slow
def test_kills_by_the_clock_change_nothing(undisturbed, tmp_path):
    folder, wanted = undisturbed
    command = argv(folder, tmp_path / "out", "--resume", "--save_minutes", 0)
    rng, killed = random.Random(1), 0
    while True:
        process = subprocess.Popen(
            [sys.executable, ROOT / "train_resnet_improved.py", *map(str, command)],
            stdout=subprocess.DEVNULL,
        )
        try:
            assert process.wait(timeout=rng.uniform(3, 9)) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed
    assert same(wanted, outcome(tmp_path / "out"))


@pytest.mark.parametrize(
    "number, status, during",
    [(signal.SIGTERM, 143, "training"), (signal.SIGINT, 130, "evaluation")],
)
def test_a_signal_saves_and_says_how_to_go_on(undisturbed, tmp_path, number, status, during):
    folder, wanted = undisturbed
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import data_loader, train_resnet_improved as train
original, calls = data_loader.to_network_input, []
def signalled(batch, device):
    if len(batch["images"]) {">" if during == "evaluation" else "<="} 4:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), {int(number)})
    return original(batch, device)
data_loader.to_network_input = signalled
sys.argv = {["train_resnet_improved.py", *map(str, argv(folder, tmp_path / "out"))]!r}
sys.exit(train.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr
    command = shlex.split(done.stderr.splitlines()[-1])
    assert command[-1] == "--resume" and command[1] == "train_resnet_improved.py"
    state = torch.load(tmp_path / "out" / "resnet_improved_ms_att_last.pth", weights_only=True)
    assert len(state["epochs"]) == 0 and len(state["crop_scores"]) == (
        12 if during == "evaluation" else 4
    )
    command = [sys.executable, str(ROOT / command[1]), *command[2:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed     in epoch 1, after " in done.stdout
    assert same(wanted, outcome(tmp_path / "out"))


def test_a_second_ctrl_c_stops_at_once(undisturbed, tmp_path):
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
import data_loader, train_resnet_improved as train
def hangs(batch, device):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
data_loader.to_network_input = hangs
sys.argv = {["t", *map(str, argv(undisturbed[0], tmp_path / "out"))]!r}
sys.exit(train.main())
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and "stopped by Ctrl-C at once" in done.stderr
    assert "Traceback" not in done.stderr and time.monotonic() - began < 60


# In one process: what a resume refuses, and what it says


@pytest.fixture(scope="module")
def halfway(driver, undisturbed, tmp_path_factory):
    """A run that was killed in its second epoch, with both checkpoints of _last there."""
    out = tmp_path_factory.mktemp("halfway")
    command = argv(undisturbed[0], out, "--save_minutes", 0)
    at = {"event": "a step of training or evaluation", "at": 6}
    assert driver(command, **at, log=out / "log") == -signal.SIGKILL
    return out


def copy(halfway: Path, to: Path) -> Path:
    to.mkdir()
    for path in halfway.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def go_on(folder: Path, out: Path, *more) -> None:
    train.run(train.parse_args([*map(str, argv(folder, out, "--resume", *more))]))


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--lr", "1e-3"], ["--lr was 0.0001, is 0.001"]),
        (["--epochs", "5", "--batch_size", "6"], ["--epochs was 3, is 5", "--batch_size was 4"]),
        (["--seed", "1"], ["--seed was 42, is 1"]),
        (["--split", "official"], ["--split was auto, is official"]),
        (["--amp", "bf16"], ["precision was off, is bf16"]),
    ],
)
def test_another_configuration_is_refused(undisturbed, halfway, tmp_path, flags, named):
    out = copy(halfway, tmp_path / "out")
    before = {p: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(train.RunError, match="of another run") as refusal:
        go_on(undisturbed[0], out, *flags)
    assert all(text in str(refusal.value) for text in named)
    assert all(p.read_bytes() == content for p, content in before.items())


def test_what_a_resumed_run_changes_is_recorded(undisturbed, halfway, tmp_path, capsys):
    folder = undisturbed[0]
    out = copy(halfway, tmp_path / "out")
    go_on(folder, out, "--workers", 1)
    config = json.loads(next(out.glob("*.jsonl")).read_text().splitlines()[0])
    assert config["flags"]["workers"] == 1 and config["flags"]["log_dir"] == str(out)
    before = config["resumed"][-1]["before"]
    assert before["flags"]["workers"] is None and before["flags"]["log_dir"] != str(out)
    assert f"files       {out}" in capsys.readouterr().out


def test_other_labels_are_refused(undisturbed, halfway, tmp_path):
    folder = make_koniq10k(tmp_path, train=7)
    with pytest.raises(train.RunError, match="data_fingerprint was"):
        go_on(folder, copy(halfway, tmp_path / "out"))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    driver, undisturbed, halfway, tmp_path, capfd
):
    folder, wanted = undisturbed
    out = copy(halfway, tmp_path / "out")
    last = out / "resnet_improved_ms_att_last.pth"
    last.write_bytes(last.read_bytes()[:-5000])
    go_on(folder, out)
    said = capfd.readouterr().err
    assert f"{last}: damaged" in said and "taking resnet_improved_ms_att_before.pth" in said
    assert same(wanted["predictions"], outcome(out)["predictions"])


def test_damaged_and_foreign_files_are_refused(undisturbed, halfway, tmp_path):
    out = copy(halfway, tmp_path / "out")
    last = out / "resnet_improved_ms_att_last.pth"
    (out / "resnet_improved_ms_att_before.pth").unlink()
    last.write_bytes(last.read_bytes()[:-5000])
    with pytest.raises(train.RunError, match=r"_last\.pth: damaged, or not a file of tensors"):
        go_on(undisturbed[0], out)
    torch.save({"weight": torch.ones(2)}, last)
    with pytest.raises(train.RunError, match="not a checkpoint of this software"):
        go_on(undisturbed[0], out)
    with pytest.raises(train.RunError, match=r"nowhere\.pth: no such file"):
        go_on(undisturbed[0], out, "--resume", out / "nowhere.pth")
    best = out / "resnet_improved_ms_att_best.pth"
    with pytest.raises(train.RunError, match=r"not a _last\.pth"):
        go_on(undisturbed[0], out, "--resume", best)


def checkpoint_runs(out: Path) -> dict[str, str]:
    """When the run of each checkpoint in a folder began, by the checkpoint's name."""
    return {
        path.name: torch.load(path, weights_only=True)["config"]["started"]
        for path in out.glob("*.pth")
    }


def test_another_runs_checkpoints_are_kept_by_a_run_resumed_beside_them(
    driver, undisturbed, halfway, tmp_path, capfd
):
    folder, wanted = undisturbed
    out = tmp_path / "out"
    assert driver(argv(folder, out, "--seed", 7), log=tmp_path / "log") == 0
    theirs = checkpoint_runs(out)
    last = halfway / "resnet_improved_ms_att_last.pth"
    (out / "run.jsonl").unlink()  # else it is that record which is in the way
    go_on(folder, out, "--resume", last)
    said = capfd.readouterr().out
    assert said.count("is kept as resnet_improved_ms_att_") == len(theirs)
    now = checkpoint_runs(out)
    assert sorted(now.values()).count(theirs["resnet_improved_ms_att_last.pth"]) == len(theirs)
    assert now["resnet_improved_ms_att_last.pth"] == checkpoint_runs(halfway)[last.name]
    assert (out / "run_predictions.csv").read_bytes() == wanted["predictions"]


def test_a_new_run_never_goes_on_from_an_earlier_ones_checkpoint(
    driver, undisturbed, halfway, tmp_path, capfd
):
    folder = undisturbed[0]
    out = copy(halfway, tmp_path / "out")
    assert (out / "resnet_improved_ms_att_before.pth").exists()
    command = argv(folder, out, "--log_dir", tmp_path / "new")
    named = command.index("--run_name")
    del command[named : named + 2]
    at = {"event": "a step of training or evaluation", "at": 1}
    assert driver(command, **at, log=tmp_path / "log") == -signal.SIGKILL
    train.run(train.parse_args([*map(str, command), "--resume"]))
    assert "nothing to resume from" in capfd.readouterr().out


def test_the_same_command_with_another_log_folder_is_another_run(undisturbed, tmp_path, driver):
    folder = undisturbed[0]
    out, log = tmp_path / "out", tmp_path / "log"
    assert driver(argv(folder, out, "--epochs", 1), log=log) == 0
    command = argv(folder, out, "--epochs", 1, "--log_dir", tmp_path / "later", "--resume")
    assert driver(command, log=log) == 0
    assert "nothing to resume from" in log.read_text() and "is kept as" in log.read_text()
    runs = checkpoint_runs(out)
    assert len(set(runs.values())) == 2 and all("later" not in str(p) for p in out.iterdir())


def test_an_interrupted_run_goes_on_after_another_one_took_its_names(
    undisturbed, halfway, tmp_path, driver, capfd
):
    folder, wanted = undisturbed
    out = copy(halfway, tmp_path / "out")
    another = argv(folder, out, "--seed", 7, "--log_dir", tmp_path / "later")
    assert driver(another, log=tmp_path / "log") == 0
    go_on(folder, out)
    assert "resumed     in epoch 2" in capfd.readouterr().out
    assert (out / "run_predictions.csv").read_bytes() == wanted["predictions"]


def test_the_best_epoch_has_its_checkpoint_when_killed_before_it_was_written(
    driver, undisturbed, tmp_path
):
    folder, wanted = undisturbed
    out = tmp_path / "out"
    epochs = [e["test_srcc"] for e in wanted["epochs"]]
    nth = len([i for i, x in enumerate(epochs) if x > max(epochs[:i], default=-2)])
    at = {"event": "before the best checkpoint", "at": nth}
    assert driver(argv(folder, out), **at, log=tmp_path / "log") == -signal.SIGKILL
    go_on(folder, out)
    assert same(wanted, outcome(out))


def test_a_finished_run_is_not_run_again(undisturbed, tmp_path, driver):
    folder, wanted = undisturbed
    out, log = tmp_path / "out", tmp_path / "log"
    assert driver(argv(folder, out), log=log) == 0
    before = os.stat(out / "resnet_improved_ms_att_last.pth").st_mtime_ns
    assert driver(argv(folder, out, "--resume"), log=log) == 0
    assert os.stat(out / "resnet_improved_ms_att_last.pth").st_mtime_ns == before
    assert log.read_text().count("Last Test SRCC") == 2
    assert "finished already" in log.read_text()
    config = json.loads((out / "run.jsonl").read_text().splitlines()[0])
    assert "resumed" not in config
    assert same(wanted, outcome(out))


def test_a_checkpoint_from_before_a_flag_goes_on_with_its_default(undisturbed, halfway, tmp_path):
    folder, wanted = undisturbed
    out = copy(halfway, tmp_path / "out")
    for path in out.glob("*.pth"):
        state = torch.load(path, weights_only=True)
        for flag in ("model", "preset", "optimizer", "schedule", "lower_is_better"):
            del state["config"]["flags"][flag]
        torch.save(state, path)
    go_on(folder, out)
    assert same(wanted["predictions"], outcome(out)["predictions"])
