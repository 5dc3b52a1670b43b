"""What learns: rates, compiled networks, where a CUDA graph applies."""

import argparse

import pytest
import torch

from datasets.pixel_store import DeviceStore
from devices import compile_in_place
from models_resnet_improved import ResNetImproved
from training.graph import obstacle
from training.learner import learning_rate_factor


def test_the_rate_falls_from_the_start_to_one_percent_and_never_rises():
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(0.01)
    assert factors == sorted(factors, reverse=True)


def test_where_a_cuda_graph_does_not_apply_it_says_why():
    store, args = object.__new__(DeviceStore), argparse.Namespace(compile=False)
    learner = argparse.Namespace(precision="bf16")
    assert obstacle(args, store, learner, processes=1) is None
    assert "not on a GPU" in obstacle(args, None, learner, processes=1)
    assert "several processes" in obstacle(args, store, learner, processes=2)
    args.compile = True
    assert "--compile" in obstacle(args, store, learner, processes=1)
    learner.precision = "fp16"
    assert "fp16" in obstacle(args, store, learner, processes=1)


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
