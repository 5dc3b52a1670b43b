"""Several processes give the result of one: real processes under torchrun, by gloo on the CPU."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT, SMALL, TESTS, TINY, make_koniq10k
from data_loader import open_data, share_of
from errors import RunError
from evaluation import evaluate, evaluation_plan, load_model
from test_resume import outcome, same
from train_resnet_improved import check
from training import processes
from training.flags import parse_args
from training.processes import check_batches, check_gpus, meet, own_gpu
from training.resume import check_same_state

# Writes what each process has seen and all have scored; or kills one process at a step of the first
# attempt; or stops one at a step, when saving is slow, and notes if it leaves after that.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np, torch
from interventions import before_each_step, train_resnet_improved, training

out, rank = Path({out!r}), os.environ.get("RANK", "0")
Run = training.run.Run
gather, images = Run.gather_steps, []
def gathered(run):
    scores, losses = gather(run)
    if len(scores):
        np.save(out / "scores.npy", scores)
        np.save(out / "losses.npy", losses)
        np.save(out / f"images{{rank}}.npy", np.concatenate(images[: run.steps]))
    return scores, losses
Run.gather_steps = gathered
steps = [0]
def seen(batch):
    images.append(batch["images"].numpy())
    steps[0] += 1
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if rank == "1" and steps[0] == {dies_at} and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == "1" and steps[0] == {stops_at}:
        os.kill(os.getpid(), signal.SIGTERM)
before_each_step(seen)
save_state = training.run_files.RunFiles.save_state
def slowly(*args):
    time.sleep(3)
    save_state(*args)
if {stops_at}:
    training.run_files.RunFiles.save_state = slowly
status = train_resnet_improved.main()
(out / f"left{{rank}}").write_text(str((out / "run_state.pth").exists()))
sys.exit(status)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed") / "koniq-10k"
    folder.mkdir()
    return make_koniq10k(folder, train=7)


def trained(folder, out: Path, *flags, ranks=1, restarts=0, dies_at=0, stops_at=0):
    """A run of `ranks` processes; returns the finished process."""
    out.mkdir(exist_ok=True)
    script = out / "driver.py"
    script.write_text(
        DRIVER.format(tests=str(TESTS), out=str(out), dies_at=dies_at, stops_at=stops_at)
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    torchrun += [f"--max-restarts={restarts}", "--monitor-interval=0.2"]
    where = ["--data_path", folder, "--store_dir", f"{folder}.store", "--log_dir", out]
    where += ["--checkpoint_dir", out, "--run_name", "run", "--save_model"]
    where += ["--backbone", SMALL]
    command = [sys.executable, *(torchrun if ranks > 1 else []), script, *TINY, *where, *flags]
    return subprocess.run(
        list(map(str, command)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("loss", [pytest.param("l1", marks=pytest.mark.slow), "mse+nin"])
def test_two_processes_do_the_work_of_one(folder, tmp_path, loss):
    flags = ["--epochs", 1, "--dropout_rate", 0, "--train_patch_num", 5, "--batch_size", 10]
    flags += ["--color_jitter", "--patch_size", 40, "--loss", loss]  # stage 4 is 2 x 2
    for ranks in (1, 2):
        done = trained(folder, tmp_path / str(ranks), *flags, ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("Last Test SRCC") == 1  # the first process speaks for both
    assert "1 threads in each of 2 processes" in done.stdout

    # The same crops in the same batches; the last one, of five, is shared as three and two.
    one, two = tmp_path / "1", tmp_path / "2"
    plan = np.load(one / "images0.npy")
    parts = [np.load(two / f"images{rank}.npy") for rank in (0, 1)]
    shares = [share_of(35, 10, rank, 2) for rank in (0, 1)]
    assert [len(part) for part in parts] == [18, 17]
    assert all((plan[share] == part).all() for share, part in zip(shares, parts))
    assert sorted(np.concatenate(shares)) == list(range(35))

    # The same scores and losses, step by step, within what float32 rounds.
    error = np.abs(np.load(one / "scores.npy") - np.load(two / "scores.npy"))  # of about 50
    assert error[:10].max() < 2e-5 and error.max() < 2e-3
    error = np.abs(np.load(one / "losses.npy") - np.load(two / "losses.npy"))
    assert len(error) == 4 and error.max() < 2e-3

    # The same evaluation of the same weights, each image once.
    config, epoch = map(json.loads, (two / "run.jsonl").read_text().splitlines())
    assert config["ranks"] == 2 and epoch["test_srcc"] is not None
    evaluated = pd.read_csv(two / "run_predictions.csv")
    assert np.abs(evaluated["score"] - scored_again(two)).max() <= 2e-6  # each rounded to 1e-6


def scored_again(out: Path) -> np.ndarray:
    """Scores of a run's evaluated images by its last checkpoint, in one process."""
    model, device = (
        load_model(out / f"{SMALL}_ss_noatt_last.pth", "cpu"),
        torch.device("cpu"),
    )
    args = argparse.Namespace(**model.config["flags"])
    opened = open_data(args, device)
    plan = evaluation_plan(args, opened.table)
    evaluated = pd.read_csv(out / "run_predictions.csv")
    assert list(evaluated["image"]) == list(opened.table["image"][plan[::3, 0]])
    return evaluate(model, opened.loader(plan, 64), 3, device=device, precision="off")[0]


@pytest.mark.slow  # test_two_processes_do_the_work_of_one ends with this, too
def test_every_process_evaluates_the_network_that_is_saved(folder, tmp_path):
    out = tmp_path / "out"
    done = trained(folder, out, "--epochs", 1, "--lr", 1e-3, "--train_patch_num", 8, ranks=2)
    assert done.returncode == 0, done.stderr
    evaluated = pd.read_csv(out / "run_predictions.csv")
    assert np.abs(evaluated["score"] - scored_again(out)).max() <= 2e-6  # each rounded to 1e-6


def test_after_a_signal_no_process_leaves_before_the_state_is_written(folder, tmp_path):
    flags = ["--train_patch_num", 4]
    done = trained(folder, tmp_path / "out", *flags, ranks=2, stops_at=2)
    assert done.returncode == 1 and "Traceback (most" not in done.stderr.partition("E1")[0]
    assert [(tmp_path / "out" / f"left{rank}").read_text() for rank in (0, 1)] == ["True"] * 2
    state = torch.load(tmp_path / "out" / "run_state.pth", weights_only=True)
    assert len(state["epochs"]) == 0 and len(state["crop_scores"]) == 8


def test_processes_that_find_different_states_are_refused():
    check_same_state([None, None])
    check_same_state([("today", 1, 8), ("today", 1, 8)])
    with pytest.raises(RunError, match=r"process 0 .* process 1 \(2 epochs and 8 crops .*; none\)"):
        check_same_state([("today", 2, 8), None])


def test_processes_share_no_gpu(monkeypatch):
    seen = iter([1, 4, 4])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: next(seen))
    assert [own_gpu(1), own_gpu(3)] == [0, 3]  # a process that sees one alone takes that one
    with pytest.raises(RunError, match="process 5 of this machine has no GPU, as there are 4"):
        own_gpu(4)
    check_gpus(["GPU-a", "GPU-b"])
    with pytest.raises(RunError, match="processes 0 and 2 have the same GPU"):
        check_gpus(["GPU-a", "GPU-b", "GPU-a"])


def test_several_processes_are_not_compiled(folder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RunError, match="--compile is for one process"):
        check(parse_args([*TINY, "--data_path", str(folder), "--compile"]))


def test_a_batch_that_cannot_be_shared_is_refused():
    sizes = {"batch_size": 30, "patch_size": 224}
    with pytest.raises(RunError, match="30 can't be shared by 4 processes"):
        check_batches(**sizes, crops=1000, processes=4)
    with pytest.raises(RunError, match="last batch of 1 crops, and each process needs"):
        check_batches(**sizes, crops=301, processes=2)
    check_batches(**sizes, crops=302, processes=2)


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "1"}, {"WORLD_SIZE": "many"}]
)
def test_a_cluster_that_sets_world_size_is_no_torchrun(folder, tmp_path, environment):
    command = [sys.executable, ROOT / "train_resnet_improved.py", "--data_path", folder]
    environment = os.environ | environment | {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("error: WORLD_SIZE=") and "torchrun" in line
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_waits_for_the_others_says_so_and_hears_signals(folder, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
    code += "from interventions import train_resnet_improved, training\n"
    code += "training.processes.QUIET_SECONDS = 0\n"
    code += f"sys.argv = {['t', *TINY, '--data_path', str(folder)]!r}\n"
    code += "sys.exit(train_resnet_improved.main())"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | place | torchrun,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, later = process.communicate(timeout=60)
    assert said.startswith("process 0 waits for the others of 2 at localhost:")
    *repeated, last = later.splitlines()  # it may be said again before the signal comes
    assert process.returncode == 143 and {f"{line}\n" for line in repeated} <= {said}
    assert last == "stopped by SIGTERM before there was anything to save"


def test_the_processes_that_are_waited_for_are_named(monkeypatch, capsys):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([[store, 0, 3]]))
    monkeypatch.setattr(processes, "QUIET_SECONDS", 0.2)
    late = threading.Timer(0.6, lambda: [*others.map(lambda rank: meet(rank, 3), (1, 2))])
    with ThreadPoolExecutor(2) as others:
        late.start()
        meet(0, 3)
        late.join()
    assert "process 0 waits for process 1, 2 of 3 (counted from 0)" in capsys.readouterr().err


def test_what_an_earlier_attempt_left_in_the_store_is_not_read(monkeypatch):
    """torchrun has one store for all its restarts; gloo's addresses in it are of dead processes."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([[store, 0, 2]]))
    store.set("asking/1", "of a process that was killed")
    for attempt in ("first", "second"):
        with ThreadPoolExecutor(2) as processes:
            one, two = processes.map(lambda rank: meet(rank, 2), (0, 1))
        assert not one.check(["address"])
        one.set("address", attempt)
        assert two.get("address") == attempt.encode()


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_a_restart_goes_on(folder, tmp_path):
    flags = ["--epochs", 3, "--use_multiscale", "--use_attention", "--train_patch_num", 4]
    flags += ["--save_minutes", 0]
    done = trained(folder, tmp_path / "undisturbed", *flags, ranks=2)
    assert done.returncode == 0, done.stderr
    wanted = outcome(tmp_path / "undisturbed")

    out = tmp_path / "died"
    done = trained(folder, out, *flags, ranks=2, dies_at=11)
    assert done.returncode == 1
    assert "error: process 0: another process of this run has died" in done.stderr
    done = trained(folder, out, *flags, "--resume", ranks=2)
    assert done.returncode == 0, done.stderr
    assert same_but_for_driver(wanted, outcome(out))

    out = tmp_path / "restarted"
    done = trained(folder, out, *flags, "--resume", ranks=2, restarts=1, dies_at=11)
    assert done.returncode == 0, done.stderr
    assert "nothing to resume from" in done.stdout and "resumed     in epoch" in done.stdout
    assert same_but_for_driver(wanted, outcome(out))

    out = tmp_path / "died"
    done = trained(folder, out, *flags, "--resume", ranks=1)
    assert done.returncode == 1 and "ranks was 2, is 1" in done.stderr


def same_but_for_driver(wanted: dict, ended: dict) -> bool:
    return all(same(wanted[k], ended[k]) for k in ("epochs", "predictions", "checkpoints"))
