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

import files
import train_resnet_improved as train
from conftest import ROOT, SMALL, TESTS, TINY, make_koniq10k
from errors import RunError
from experiment import FREE_FLAGS
from interventions import EVENTS
from test_train_resnet_improved import without_clock
from training.flags import parse_args
from training.resume import resume_command

# Runs training in a fork of this process for each line of its input, a JSON object: `argv`, and the
# `at`-th `event` (a step, or a part of a save) at which the fork kills itself. It prints the exit
# status of each. One import of torch serves them all.
DRIVER = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import interventions, torchvision, pandas, scipy.stats
from interventions import train_resnet_improved as train

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            sys.argv = ["train_resnet_improved.py", *job["argv"]]
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            if job["event"]:
                interventions.EVENTS[job["event"]](job["at"])
            status = train.main()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        finally:
            os._exit(99)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def driver():
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, TESTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=1
    )

    def run(argv, *, event=None, at=0, log) -> int:
        job = {"argv": [*map(str, argv)], "event": event, "at": at, "log": str(log)}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(timeout=30)


MODEL = f"{SMALL}_ms_att"  # killed ResNets: slow tests
FLAGS = [*TINY, "--epochs", "3", "--use_multiscale", "--use_attention", "--color_jitter"]
FLAGS += ["--backbone", SMALL, "--loss", "nin", "--ema", "0.9", "--freeze_bn"]
FLAGS += ["--freeze_stages", "1"]
FLAGS += ["--warmup_epochs", "0.5", "--test_crop", "full", "--test_flip"]


def argv(folder: Path, out: Path, *more) -> list:
    where = ["--data_path", folder, "--store_dir", f"{folder}.store", "--run_name", "run"]
    return [*FLAGS, *where, "--log_dir", out, "--checkpoint_dir", out, "--save_model", *more]


def outcome(out: Path) -> dict:
    """All that a run leaves, without the clock: records, predictions, checkpoints, state."""
    config, *epochs = map(json.loads, (out / "run.jsonl").read_text().splitlines())
    checkpoints = {}
    for name in (f"{MODEL}_best", f"{MODEL}_last", "run_state"):
        content = torch.load(out / f"{name}.pth", weights_only=True)
        content |= {"config": None, "epochs": without_clock(content["epochs"])}
        checkpoints[name] = content
    return {
        "flags": {k: v for k, v in config["flags"].items() if k not in FREE_FLAGS},
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
    # In an order in which each strikes: those that need the end of an epoch come first.
    at = {
        "before the last checkpoint": 1,
        "before the best checkpoint": 1,
        "evaluation": 1,
        "the end of an epoch": 1,
        "half of a checkpoint": 1,
        "a step of training or evaluation": 2,
        "before a rename": 2,
        "before a sync": 2,
    }
    assert set(at) == set(EVENTS)
    kills = list(at.items())
    often = "--save_minutes", 0.005
    struck = resumed_after_kills(driver, undisturbed, tmp_path / "out", kills, *often)
    assert struck == len(kills)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_any_number_of_kills_at_random_points_change_nothing(driver, undisturbed, tmp_path, seed):
    rng = random.Random(seed)
    events = [rng.choice(list(EVENTS)) for _ in range(6)]
    kills = [(event, rng.randint(1, 7 if "step" in event else 3)) for event in events]
    often = rng.choice([0, 0.002])
    struck = resumed_after_kills(
        driver, undisturbed, tmp_path / "out", kills, "--save_minutes", often
    )
    assert struck


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
import os, sys
sys.path.insert(0, {str(TESTS)!r})
import interventions
raised = interventions.at_call(1, lambda: os.kill(os.getpid(), {int(number)}))
evaluates = lambda batch: len(batch["images"]) > 4
interventions.before_each_step(
    lambda batch: raised() if evaluates(batch) == {during == "evaluation"} else None
)
sys.argv = {["train_resnet_improved.py", *map(str, argv(folder, tmp_path / "out"))]!r}
sys.exit(interventions.train_resnet_improved.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr
    command = shlex.split(done.stderr.splitlines()[-1])
    assert command[-1] == "--resume" and command[1] == "train_resnet_improved.py"
    state = torch.load(tmp_path / "out" / "run_state.pth", weights_only=True)
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
sys.path.insert(0, {str(TESTS)!r})
import interventions
def hangs(batch):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
interventions.before_each_step(hangs)
sys.argv = {["t", *map(str, argv(undisturbed[0], tmp_path / "out"))]!r}
sys.exit(interventions.train_resnet_improved.main())
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130 and "stopped by Ctrl-C at once" in done.stderr
    assert "Traceback" not in done.stderr and time.monotonic() - began < 60


# In one process: what a resume refuses, and what it says


@pytest.fixture(scope="module")
def halfway(driver, undisturbed, tmp_path_factory):
    """A run that was killed in its second epoch, with its state and the one before."""
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
    train.run(parse_args([*map(str, argv(folder, out, "--resume", *more))]))


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
    with pytest.raises(RunError, match="of another run") as refusal:
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
    with pytest.raises(RunError, match="data_fingerprint was"):
        go_on(folder, copy(halfway, tmp_path / "out"))


def test_a_damaged_state_gives_way_to_the_one_before(undisturbed, halfway, tmp_path, capfd):
    folder, wanted = undisturbed
    out = copy(halfway, tmp_path / "out")
    state = out / "run_state.pth"
    state.write_bytes(state.read_bytes()[:-5000])
    go_on(folder, out)
    said = capfd.readouterr().err
    assert f"{state}: damaged" in said and "taking run_state_before.pth" in said
    assert same(wanted["predictions"], outcome(out)["predictions"])


def test_damaged_and_foreign_files_are_refused(undisturbed, halfway, tmp_path):
    out = copy(halfway, tmp_path / "out")
    state = out / "run_state.pth"
    (out / "run_state_before.pth").unlink()
    state.write_bytes(state.read_bytes()[:-5000])
    with pytest.raises(RunError, match=r"_state\.pth: damaged, or not a file of tensors"):
        go_on(undisturbed[0], out)
    torch.save({"weight": torch.ones(2)}, state)
    with pytest.raises(RunError, match="not a checkpoint of this software"):
        go_on(undisturbed[0], out)
    with pytest.raises(RunError, match=r"nowhere\.pth: no such file"):
        go_on(undisturbed[0], out, "--resume", out / "nowhere.pth")
    best = out / f"{MODEL}_best.pth"
    with pytest.raises(RunError, match=r"not a run's _state\.pth"):
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
    state = halfway / "run_state.pth"
    (out / "run.jsonl").unlink()  # else it is that record which is in the way
    go_on(folder, out, "--resume", state)
    said = capfd.readouterr().out
    assert said.count("is kept as ") == len(theirs)  # best and last checkpoint, and the state
    now = checkpoint_runs(out)
    assert sorted(now.values()).count(theirs[f"{MODEL}_last.pth"]) == len(theirs)
    assert now[f"{MODEL}_last.pth"] == checkpoint_runs(halfway)[state.name]
    assert (out / "run_predictions.csv").read_bytes() == wanted["predictions"]


def test_a_new_run_never_goes_on_from_an_earlier_ones_checkpoint(
    driver, undisturbed, halfway, tmp_path, capfd
):
    folder = undisturbed[0]
    out = copy(halfway, tmp_path / "out")
    assert (out / "run_state_before.pth").exists()
    command = argv(folder, out, "--log_dir", tmp_path / "new")
    named = command.index("--run_name")
    del command[named : named + 2]
    at = {"event": "a step of training or evaluation", "at": 1}
    assert driver(command, **at, log=tmp_path / "log") == -signal.SIGKILL
    train.run(parse_args([*map(str, command), "--resume"]))
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
    files = [out / f"{MODEL}_last.pth", out / f"{MODEL}_best.pth", out / "run_state.pth"]
    before = [os.stat(path).st_mtime_ns for path in files]
    assert driver(argv(folder, out, "--resume"), log=log) == 0
    assert [os.stat(path).st_mtime_ns for path in files] == before
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


def test_without_a_name_the_last_unnamed_run_continues(driver, undisturbed, tmp_path):
    folder, wanted = undisturbed
    out, log = tmp_path / "out", tmp_path / "log"
    command = argv(folder, out, "--save_minutes", 0)
    named = command.index("--run_name")
    del command[named : named + 2]
    at = {"event": "a step of training or evaluation", "at": 6}
    assert driver(command, **at, log=log) == -signal.SIGKILL
    at = {"event": "before a rename", "at": 4}  # its state is the one before, for a moment
    assert driver([*command, "--resume"], **at, log=log) == -signal.SIGKILL
    assert [p.name.endswith("_state_before.pth") for p in out.glob("*_state*.pth")] == [True]
    assert driver([*command, "--resume"], log=log) == 0
    (record,) = out.glob("*.jsonl")
    assert re.fullmatch(rf"{MODEL}_\d{{8}}_\d{{6}}", record.stem)
    assert log.read_text().count("resumed     in epoch 2") == 2
    csv = record.with_name(f"{record.stem}_predictions.csv")
    assert csv.read_bytes() == wanted["predictions"]


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("t.py --lr 1 --resume", "t.py --lr 1 --run_name r --resume"),
        ("t.py --resume old_state.pth --lr 1", "t.py --lr 1 --run_name r --resume"),
        ("t.py --resume=old_state.pth --run_name=mine", "t.py --run_name=mine --resume"),
        ("t.py --run_name mine", "t.py --run_name mine --resume"),
    ],
)
def test_the_command_to_continue_names_the_run(monkeypatch, given, wanted):
    monkeypatch.setattr(sys, "argv", given.split())
    assert resume_command("r").partition(" ")[2] == wanted


def test_two_runs_never_write_one_state(undisturbed, halfway, tmp_path, monkeypatch):
    out = copy(halfway, tmp_path / "out")
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.3)
    with (
        files.locked(out / ".run_state.lock"),
        pytest.raises(RunError, match=r"another run is writing .*run_state\.pth"),
    ):
        go_on(undisturbed[0], out, "--checkpoint_dir", tmp_path / "other")


def test_a_record_that_a_full_disk_left_empty_is_begun_again(driver, undisturbed, tmp_path):
    folder, wanted = undisturbed
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.jsonl").write_text("")
    assert driver(argv(folder, out, "--resume"), log=tmp_path / "log") == 0
    assert same(wanted, outcome(out))


def test_a_state_of_an_earlier_version_is_refused(undisturbed, halfway, tmp_path):
    out = copy(halfway, tmp_path / "out")
    for path in out.glob("run_state*.pth"):
        state = torch.load(path, weights_only=True)
        del state["step_losses"]
        torch.save(state, path)
    with pytest.raises(RunError, match="written by an earlier version"):
        go_on(undisturbed[0], out)


def test_named_runs_that_can_be_continued_are_named(undisturbed, halfway, tmp_path, capfd):
    out = copy(halfway, tmp_path / "out")
    command = argv(undisturbed[0], out, "--epochs", 1, "--checkpoint_dir", tmp_path / "other")
    named = command.index("--run_name")
    del command[named : named + 2]
    train.run(parse_args([*map(str, command), "--resume"]))
    assert "to continue another one give its --run_name: run\n" in capfd.readouterr().out


def test_a_file_that_is_no_record_is_refused(undisturbed, tmp_path):
    (tmp_path / "run.jsonl").write_text("precious")
    with pytest.raises(RunError, match=r"run\.jsonl: not the record of a run"):
        go_on(undisturbed[0], tmp_path)
    assert (tmp_path / "run.jsonl").read_text() == "precious"
