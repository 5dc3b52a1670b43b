"""How many operations a training step gives to the device: compared with a bare ResNet-50.

    python3 benchmarks/launches.py

At batch 32 a fast GPU computes a step in less time than the processor needs to launch its kernels.
So what the loop adds is counted in calls of PyTorch's own operators (aten), forward, backward and
around: input, loss, clipping, AdamW. Views and allocations launch nothing and are left out. A call
is one kernel in most cases, and the same on every device, so that it is counted on the CPU, in a
second or two; as for a GPU, in bfloat16 and with colour jitter off. It must stay within LIMITS.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
import torchvision
from torch.utils._python_dispatch import TorchDispatchMode

from console import command
from experiment import BASELINE, FULL, rows_of
from train_resnet_improved import train_one_epoch
from training.flags import parse_args
from training.learner import StepResults, build_learner

LIMITS = {BASELINE: 1.08, FULL: 1.18}  # of the bare network's
BATCH, SIZE = 2, 32
VIEWS = ("_unsafe_view", "detach", "lift_fresh", "as_strided_")  # that their schema does not name


class Launches(TorchDispatchMode):
    """Inside `with`, counts the operators that compute something, by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        namespace, name = operator.name().split("::")
        is_view = operator.is_view or name.partition(".")[0] in VIEWS
        if namespace == "aten" and not is_view and "empty" not in name:
            self.calls[name] += 1
        return operator(*args, **kwargs or {})


def of_bare_network() -> Counter:
    """A training step of torchvision's ResNet-50: forward, backward, AdamW."""
    model = torchvision.models.resnet50().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    classes = torch.arange(BATCH)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), classes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    step()  # makes the optimizer's state
    with Launches() as counted:
        step()
    return counted.calls


def of_our_step(options: dict) -> Counter:
    """A training step of the loop with these flags."""
    args = parse_args(["--backbone_weights", "none", "--patch_size", str(SIZE)])
    vars(args).update(options)
    device = torch.device("cpu")
    learner = build_learner(args, initial_score=50.0, steps=9, device=device, precision="bf16")
    batch = {
        "divisor": float(BATCH),
        "crops": torch.randint(256, (BATCH, SIZE, SIZE, 3)).byte().permute(0, 3, 1, 2),
        "images": torch.arange(BATCH),
        "flips": torch.arange(BATCH) == 0,
    }
    mos, results = torch.full((BATCH,), 50.0), StepResults(BATCH, 1, device)
    train_one_epoch(learner, [batch], mos, results)
    results.clear()
    with Launches() as counted:
        train_one_epoch(learner, [batch], mos, results)
    return counted.calls


def count() -> dict[str, Counter]:
    """Calls by operator: of the bare network, then of each configuration."""
    rows = rows_of("resnet_improved")
    return {"bare": of_bare_network()} | {name: of_our_step(r.flags) for name, r in rows.items()}


@command
def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    counted = count()
    bare, status = counted["bare"], 0
    print(f"{'':<34}{'calls':>6}{'ratio':>8}{'limit':>8}   most of what is added")
    for name, calls in counted.items():
        ratio, limit = calls.total() / bare.total(), LIMITS.get(name)
        added = ", ".join(f"{n} {operator}" for operator, n in (calls - bare).most_common(6))
        shown = f"{limit:>8.2f}" if limit else f"{'':>8}"
        print(f"{name:<34}{calls.total():>6}{ratio:>8.3f}{shown}   {added}")
        if limit and ratio > limit:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
