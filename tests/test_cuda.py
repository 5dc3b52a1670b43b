"""On a real GPU, skipped without one: benchmarks/first_gpu_day.sh runs these tests first.

Kernels add in an order that varies, so that runs are compared within a tolerance.
"""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import data_loader as data
import train_resnet_improved as train
from conftest import ROOT, TINY, make_koniq10k
from datasets.pixel_store import DeviceStore, PixelStore
from evaluation import load_model
from experiment import FULL
from predict_resnet_improved import score_images
from training.flags import parse_args
from training.graph import WARM_UP, GraphedSteps
from training.learner import StepResults, build_learner

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
needs_two = pytest.mark.skipif(GPUS < 2, reason=f"this needs two GPUs, and there are {GPUS}")
FLAGS = [*TINY, "--device", "cuda", "--save_model", "--run_name", "run", "--dropout_rate", "0"]
FLAGS += ["--use_multiscale", "--use_attention", "--epochs", "1", "--train_patch_num", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda") / "koniq-10k"
    folder.mkdir()
    return make_koniq10k(folder)


def argv(folder, out, *flags) -> list[str]:
    where = ["--data_path", folder, "--store_dir", f"{folder}.store", "--log_dir", out]
    return [*map(str, [*FLAGS, *where, "--checkpoint_dir", out, *flags])]


def losses(folder, out, *flags) -> list[float]:
    """The losses of a run's epochs."""
    train.run(parse_args(argv(folder, out, *flags)))
    return recorded_losses(out)


def recorded_losses(out) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "run.jsonl").read_text().splitlines()[1:]]


@pytest.fixture
def parts(tmp_path):
    """A learner on the GPU, batches of a store there, labels, and room for their results."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    device = torch.device("cuda")
    store = DeviceStore(PixelStore(tmp_path / "pixels.u8", pixels.shape), device)
    plan = data.test_plan(np.arange(6), crop="random", per_image=8, resize=(48, 40), patch_size=32)
    batches = data.Batches(
        store,
        np.arange(6),
        plan,
        size=32,
        batch_size=6,
        augmentations={"jitter": data.jitter_plan(len(plan), seed=0, epoch=1)},
    )
    args = parse_args(["--backbone_weights", "none", "--use_multiscale", "--use_attention"])
    learner = build_learner(args, initial_score=50.0, steps=99, device=device, precision="bf16")
    mos = torch.linspace(20, 80, 6, device=device)
    return learner, batches, mos, StepResults(len(plan), len(batches), device)


def test_no_step_waits_for_the_gpu(parts):
    learner, batches, mos, results = parts
    every = [batches[i] for i in range(len(batches))]
    train.train_one_epoch(learner, every[:3], mos, results)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train.train_one_epoch(learner, (batches[i] for i in range(3, 8)), mos, results)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    scores, step_loss = results.so_far()
    assert len(scores) == 48 and np.isfinite(step_loss).all()


def test_a_cuda_graph_trains_what_ordinary_steps_do(parts):
    learner, batches, mos, results = parts
    loader = data.make_loader(batches, workers=0, pin=False)
    before = copy.deepcopy(learner.state())
    found = []
    for graphed in (None, GraphedSteps(train.train_step, learner, mos, results)):
        learner.restore(copy.deepcopy(before))
        for _ in range(2):  # two epochs of one graph
            results.clear()
            torch.manual_seed(0)
            steps = graphed.begin(loader) if graphed else loader
            train.train_one_epoch(learner, steps, mos, results, graphed=graphed)
            scores, step_loss = results.so_far()
            assert len(scores) == 48 and len(step_loss) == 8
        found.append((step_loss, learner.model.state_dict()["fusion.project.0.1.running_mean"]))
    assert graphed.replay is not None and graphed.done == 16 > WARM_UP
    assert found[1][0] == pytest.approx(found[0][0], rel=0.05)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0.1, atol=0.01)


def test_crops_of_the_gpu_are_those_of_the_host(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    host = PixelStore(tmp_path / "pixels.u8", pixels.shape)
    where = torch.tensor([[5, 0, 3], [16, 0, 7], [8, 0, 2]])
    there = DeviceStore(host, "cuda").crops(*where.cuda(), 32)
    assert torch.equal(there.cpu(), host.crops(*where, 32))


@pytest.mark.parametrize(
    "flags",
    [["--store_device", "cpu"], ["--cuda_graph", "auto"], ["--amp", "bf16"], ["--amp", "fp16"]],
    ids=" ".join,
)
def test_runs_agree(folder, tmp_path, flags):
    wanted = losses(folder, tmp_path / "wanted")
    assert losses(folder, tmp_path / "found", *flags) == pytest.approx(wanted, rel=0.05)


@pytest.mark.slow
def test_a_compiled_run_agrees(folder, tmp_path):
    wanted = losses(folder, tmp_path / "wanted", "--epochs", 2)
    found = losses(folder, tmp_path / "found", "--epochs", 2, "--compile")
    assert found == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("graph", ["off", "auto"])
def test_a_run_continues_in_the_middle_of_an_epoch(folder, tmp_path, monkeypatch, graph):
    flags = ["--cuda_graph", graph]
    wanted = losses(folder, tmp_path / "wanted", *flags)
    with monkeypatch.context() as killed:
        save, saves = train.save_or_stop, []

        def dies(run, **options):
            save(run, **options)
            saves.append(1)
            if len(saves) == 7:
                raise KeyboardInterrupt

        killed.setattr(train, "save_or_stop", dies)
        with pytest.raises(KeyboardInterrupt):
            losses(folder, tmp_path / "found", *flags, "--save_minutes", 0)
    found = losses(folder, tmp_path / "found", *flags, "--resume")
    assert found == pytest.approx(wanted, rel=0.05)


def test_scores_on_the_gpu_are_those_of_the_cpu(folder, tmp_path):
    losses(folder, tmp_path)
    images = sorted((folder / "1024x768").iterdir())
    path = tmp_path / f"{FULL}_last.pth"
    found, wanted = (
        score_images(load_model(path, where), images, amp="off")["score"]
        for where in ("cuda", "cpu")
    )
    assert found.to_numpy() == pytest.approx(wanted.to_numpy(), abs=0.2)  # TF32 convolutions


@needs_two
def test_two_gpus_train_what_one_does(folder, tmp_path):
    found = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", str(ROOT / "train_resnet_improved.py")]
        done = subprocess.run(
            [*command, *argv(folder, out, "--patch_size", 40)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        scores = pd.read_csv(out / "run_predictions.csv")["score"].to_numpy()
        found.append((recorded_losses(out), scores))
    assert found[1][0] == pytest.approx(found[0][0], rel=0.05)
    assert found[1][1] == pytest.approx(found[0][1], abs=2)


@needs_two
def test_batch_norm_by_nccl_is_that_of_one_process(tmp_path):
    code = """
import os, sys, torch
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from test_batch_norm import PARTS, a_batch, a_norm, results
from training.batch_norm import synchronise, use_batch_norm
rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
torch.distributed.init_process_group("nccl")
x, gradient = (part.split(PARTS)[rank].cuda() for part in a_batch())
norm = use_batch_norm(torch.nn.Sequential(a_norm())).cuda()
synchronise(norm)
found = results(norm[0], x, gradient)
wanted = results(a_norm(), *a_batch())
for name in ("output", "of_x"):
    part = wanted[name].split(PARTS)[rank]
    torch.testing.assert_close(found[name].cpu(), part, rtol=1e-5, atol=1e-5)
for name in ("running_mean", "running_var"):
    torch.testing.assert_close(found[name].cpu(), wanted[name], rtol=1e-5, atol=1e-5)
torch.distributed.destroy_process_group()
"""
    (tmp_path / "norm.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "norm.py"), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
