"""The lines for CUDA, on a pretended device: nothing meets the host, no step waits."""

import numpy as np
import pandas as pd
import pytest
import torch

import cross_dataset
import data_loader as data
import train_resnet_improved as train
from conftest import SMALL, TINY, make_biq2021, make_koniq10k
from evaluation import load_model
from predict_resnet_improved import score_images
from pretend_cuda import WaitsError, pretended_cuda
from test_resume import same
from training.flags import parse_args

# The functions that may wait: each is called once in an epoch, at a save, or before the first step.
MAY_WAIT = {
    *("pixel_store.py __init__", "data_loader.py __init__", "data_loader.py colour"),
    *("run.py __init__", "learner.py build_learner", "resume.py restore", "learner.py restore"),
    *(
        "learner.py so_far",
        "evaluation.py mean_of_crops",
        "resume.py save_state",
        "learner.py state",
    ),
}
FLAGS = [*TINY, "--device", "cuda", "--workers", "0", "--save_model", "--run_name", "run"]
FLAGS += ["--use_multiscale", "--use_attention", "--backbone", SMALL]
MODEL = f"{SMALL}_ms_att"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretended") / "koniq-10k"
    folder.mkdir()
    return make_koniq10k(folder)


def start(folder, out, *flags):
    where = ["--data_path", folder, "--store_dir", f"{folder}.store", "--log_dir", out]
    return train.run(parse_args([*map(str, [*FLAGS, *where, "--checkpoint_dir", out, *flags])]))


def outcome(out) -> tuple:
    state = torch.load(out / "run_state.pth", weights_only=True)
    kept = ("model", "optimizer", "crop_scores", "step_losses", "evaluated")
    return {k: state[k] for k in kept}, (out / "run_predictions.csv").read_bytes()


@pytest.fixture(scope="module")
def on_the_cpu(folder, tmp_path_factory):
    """What a run on the CPU leaves."""
    out = tmp_path_factory.mktemp("cpu")
    start(folder, out, "--device", "cpu", "--color_jitter")
    return outcome(out)


@pytest.mark.parametrize("store, graph", [("cuda", "off"), ("cpu", "off"), ("cuda", "auto")])
def test_a_run_is_that_of_the_cpu_and_no_step_waits(
    folder, on_the_cpu, tmp_path, monkeypatch, store, graph
):
    flags = ["--color_jitter", "--store_device", store, "--cuda_graph", graph]
    with pretended_cuda(monkeypatch) as device:
        (config, *_), network = start(folder, tmp_path, *flags)
        assert next(network.parameters()).device.type == "cuda"
    assert (config["device"], config["store_device"]) == ("cuda", store)
    assert set(device.waits) <= MAY_WAIT
    found, wanted = outcome(tmp_path), on_the_cpu
    found[0]["optimizer"]["param_groups"] = wanted[0]["optimizer"]["param_groups"]
    assert same(list(found), list(wanted))  # to the last bit, as the CPU computes both


@pytest.mark.parametrize(
    "flags",
    [
        ["--amp", "bf16", "--no-use_multiscale", "--no-use_attention"],
        ["--amp", "fp16", "--no-use_attention"],
        ["--amp", "bf16", "--cuda_graph", "auto", "--attention", "static"],
    ],
    ids=" ".join,
)
def test_every_precision_and_configuration_runs(folder, tmp_path, monkeypatch, flags):
    with pretended_cuda(monkeypatch) as device:
        _, *epochs = start(folder, tmp_path, "--epochs", 1, *flags).record
    assert len(epochs) == 1 and set(device.waits) <= MAY_WAIT


@pytest.mark.parametrize("graph", ["off", "auto"])
def test_a_run_continues_in_the_middle_of_an_epoch(
    folder, on_the_cpu, tmp_path, monkeypatch, graph
):
    flags = ["--color_jitter", "--cuda_graph", graph]
    with pretended_cuda(monkeypatch), monkeypatch.context() as killed:
        steps, step = [], train.train_step

        def dies(learner, batch, mos):
            steps.append(len(batch["images"]))
            if len(steps) == 5:
                raise KeyboardInterrupt
            return step(learner, batch, mos)

        killed.setattr(train, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            start(folder, tmp_path, *flags, "--save_minutes", 0)
    with pretended_cuda(monkeypatch) as device:
        start(folder, tmp_path, *flags, "--resume")
    assert set(device.waits) <= MAY_WAIT
    found, wanted = outcome(tmp_path), on_the_cpu
    found[0]["optimizer"]["param_groups"] = wanted[0]["optimizer"]["param_groups"]
    assert same(list(found), list(wanted))


def test_prediction_and_tests_on_other_data_sets_run(trained, checkpoint, tmp_path, monkeypatch):
    images = sorted((trained / "koniq-10k" / "1024x768").iterdir())
    (tmp_path / "biq2021").mkdir()
    other = make_biq2021(tmp_path / "biq2021")

    def scores(where: str) -> np.ndarray:
        model = load_model(checkpoint, where)
        options = {"store_dir": tmp_path / "store", "amp": "off"}
        found = [
            score_images(model, images, amp="off"),
            cross_dataset.test_on(model, "biq2021", other, **options),
        ]
        return pd.concat(found)["score"].to_numpy()

    wanted = scores("cpu")
    with pretended_cuda(monkeypatch) as device:
        assert np.array_equal(scores("cuda"), wanted)
    assert set(device.waits) <= {*MAY_WAIT, "evaluation.py load_model", "data_loader.py as_batch"}


# The pretended device finds what it is for


def index_on_the_host(monkeypatch):
    batch_of = data.Batches.at

    def at(self, part):
        batch = batch_of(self, part)
        return batch | {"crops": batch["crops"][torch.arange(len(batch["crops"]))]}

    monkeypatch.setattr(data.Batches, "at", at)


def mean_read_at_each_step(monkeypatch):
    add = train.StepResults.add
    monkeypatch.setattr(
        train.StepResults, "add", lambda self, s, loss: add(self, s, loss) or s.mean().item()
    )


def constant_made_on_the_host(monkeypatch):
    monkeypatch.setattr(data, "colour", data.colour.__wrapped__)


@pytest.mark.parametrize(
    "fault", [index_on_the_host, mean_read_at_each_step, constant_made_on_the_host]
)
def test_a_step_that_waits_is_found(folder, tmp_path, monkeypatch, fault):
    fault(monkeypatch)
    with pretended_cuda(monkeypatch) as device:
        start(folder, tmp_path, "--epochs", 1)
    if fault is constant_made_on_the_host:  # where it may be made once
        assert device.waits["data_loader.py colour"] > 3
    else:
        assert not set(device.waits) <= MAY_WAIT


@pytest.mark.parametrize("fault", [index_on_the_host, constant_made_on_the_host])
def test_a_cuda_graph_takes_nothing_from_the_host(folder, tmp_path, monkeypatch, fault):
    fault(monkeypatch)
    flags = ["--cuda_graph", "auto", "--train_patch_num", 4]
    with pretended_cuda(monkeypatch), pytest.raises(WaitsError, match="in a CUDA graph"):
        start(folder, tmp_path, *flags)


def test_host_and_device_do_not_meet(monkeypatch):
    with pretended_cuda(monkeypatch) as device:
        there = torch.ones(3, device="cuda") * 2
        assert there.device.type == "cuda" and (there + 1).is_cuda
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there.cpu().numpy().sum() == 6 and not there.cpu().is_cuda
        assert device.waits["test_pretended_cuda.py test_host_and_device_do_not_meet"] == 2
