"""What learns: rates, steps that never wait for the device, compiled networks."""

import numpy as np
import pytest
import torch

import data_loader as data
from datasets.pixel_store import DeviceStore, PixelStore
from devices import compile_in_place
from evaluation import evaluate
from models_resnet_improved import ResNetImproved
from train_resnet_improved import train_one_epoch
from training.flags import parse_args
from training.learner import StepResults, build_learner, learning_rate_factor


def test_the_rate_falls_from_the_start_to_one_percent_and_never_rises():
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(0.01)
    assert factors == sorted(factors, reverse=True)


@pytest.mark.slow
def test_compiled_gradients_differ_by_no_more_than_rounding_does():
    """BatchNorm over few values makes gradients sensitive: how far, weights a little off tell."""
    torch.manual_seed(0)
    patches, mos = torch.randn(8, 3, 64, 64), torch.linspace(10, 90, 8)
    models = [
        ResNetImproved(use_multiscale=True, use_attention=True, dropout_rate=0.0) for _ in range(3)
    ]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    with torch.no_grad():
        for weight in models[1].parameters():
            weight.mul_(1 + 1e-6 * torch.randn_like(weight))
    compile_in_place(models[2], torch.device("cpu"))
    gradients = []
    for model in models:
        (model(patches)[0] - mos).abs().mean().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    off, compiled = ((g - gradients[0]).norm() / gradients[0].norm() for g in gradients[1:])
    assert compiled < 2 * off < 0.2


def test_no_step_waits_for_the_device(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 40, 3), np.uint8)
    (tmp_path / "pixels.u8").write_bytes(pixels.tobytes())
    store = DeviceStore(PixelStore(tmp_path / "pixels.u8", pixels.shape), "cpu")
    plan = data.test_plan(np.arange(6), crop="random", per_image=4, resize=(48, 40), patch_size=32)
    jitter = data.jitter_plan(len(plan), seed=0, epoch=1)
    batches = data.Batches(
        store, np.arange(6), plan, size=32, batch_size=6, augmentations={"jitter": jitter}
    )
    args = parse_args(["--backbone_weights", "none", "--use_multiscale", "--use_attention"])
    device = torch.device("cpu")
    learner = build_learner(args, initial_score=50.0, steps=4, device=device, precision="off")
    results = StepResults(len(plan), 4, device)
    data.to_network_input(batches[0], device)  # makes the constants once

    def that_do_not_wait():
        def waits(*_, **__):
            raise AssertionError("a step reads a value back from the device")

        with monkeypatch.context() as inside:
            for method in ("item", "cpu", "tolist", "numpy", "__float__", "__bool__", "nonzero"):
                inside.setattr(torch.Tensor, method, waits)
            inside.setattr(torch, "tensor", waits)  # a copy from the host, which waits as well
            yield from map(batches.__getitem__, range(len(batches)))

    train_one_epoch(learner, that_do_not_wait(), torch.full((6,), 50.0), results)
    scores, losses = results.so_far()
    assert len(scores) == len(plan) and len(losses) == 4
    evaluate(learner.model, that_do_not_wait(), 4, device=device, precision="off")
