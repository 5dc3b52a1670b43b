"""BatchNorm over several processes gives what one process gives on the complete batch."""

import copy
import multiprocessing

import pytest
import torch
from torch import nn

from backbones import build_backbone
from conftest import SMALL
from training.batch_norm import BatchNorm, synchronise, use_batch_norm

PARTS = (4, 2)  # crops of each process


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (6, 5, 3, 3) whose channels differ in mean and spread, and the gradient they get."""
    torch.manual_seed(0)
    x = torch.randn(sum(PARTS), 5, 3, 3) * torch.linspace(0.1, 3, 5)[:, None, None]
    x = x + torch.linspace(-4, 4, 5)[:, None, None]
    return x.to(memory_format=torch.channels_last), torch.randn_like(x)


def a_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 5))
        norm.bias.copy_(torch.linspace(1, -1, 5))
    return norm


def results(norm: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    out = norm(x)
    out.backward(gradient)
    of = {"output": out.detach(), "of_x": x.grad}
    of |= {f"of_{name}": p.grad for name, p in norm.named_parameters()}
    return of | {name: b.clone() for name, b in norm.named_buffers()}


def one_of_two(rank: int, folder, dtype: torch.dtype) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    x, gradient = (part.split(PARTS)[rank].to(dtype) for part in a_batch())
    norm = use_batch_norm(nn.Sequential(a_norm()))
    assert synchronise(norm) == []
    torch.save(results(norm[0], x, gradient), folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
def test_two_processes_normalise_as_one_does(tmp_path, dtype, tolerance):
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=one_of_two, args=(r, tmp_path, dtype)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{r}.pth", weights_only=True) for r in (0, 1))

    wanted = results(a_norm(), *(part.to(dtype).float() for part in a_batch()))
    for name in ("running_mean", "running_var"):  # no process has its own
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], wanted[name], rtol=0, atol=1e-5)
    for name in ("output", "of_x"):
        assert first[name].dtype == dtype
        found = torch.cat([first[name], second[name]]).float()
        torch.testing.assert_close(found, wanted[name], rtol=tolerance, atol=tolerance)
    for name in ("of_weight", "of_bias"):  # each has that of its part
        found = first[name] + second[name]
        torch.testing.assert_close(found, wanted[name], rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", ["resnet50", SMALL])
def test_one_process_computes_the_bits_of_the_network_it_was_given(name):
    torch.manual_seed(0)
    given = build_backbone(name)
    ours, images = use_batch_norm(copy.deepcopy(given)), torch.randn(4, 3, 64, 64)
    assert any(isinstance(module, BatchNorm) for module in ours.modules())
    assert not any(type(module) is nn.BatchNorm2d for module in ours.modules())
    assert list(ours.state_dict()) == list(given.state_dict())
    for model in (given, ours):
        for training in (True, False):
            model.train(training)
            model.found = model(images)
            sum(m.square().mean() for m in model.found).backward()
        model.found = [*model.found, *(p.grad for p in model.parameters())]
    assert all(map(torch.equal, given.found, ours.found))
    ours.load_state_dict(given.state_dict())
    for (key, tensor), other in zip(ours.state_dict().items(), given.state_dict().values()):
        assert torch.equal(tensor, other), key


def test_a_batch_norm_of_another_kind_is_named():
    model = use_batch_norm(nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, momentum=None)))
    assert synchronise(model) == ["1"] and model[0].synchronised
