"""The complete training step as one CUDA graph: one launch instead of hundreds.

At batch 32 a fast GPU waits for the processor, which launches each kernel of a step. A CUDA graph
is a step that was recorded once; replaying it launches everything together. All that a step reads
and writes therefore has a fixed place on the device: plan, position in it, labels, rates, results.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datasets.pixel_store import DeviceStore
from devices import captured, on_another_stream
from training.learner import Learner, StepResults

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WARM_UP = 3  # ordinary steps before the recording, in which libraries choose their algorithms


def obstacle(
    args: argparse.Namespace, store: object, learner: Learner, *, processes: int
) -> str | None:
    """Why --cuda_graph auto does not apply to a run; None if it does."""
    if not isinstance(store, DeviceStore):
        return "the images are not on a GPU"
    if processes > 1:
        return "there are several processes"
    if learner.precision == "fp16":
        return "the scaler of fp16 may skip a step"
    if args.compile:
        return "--compile has graphs of its own"
    return None


class GraphedSteps:
    """Trains the full batches of an epoch by a CUDA graph of `train_step`.

    The first WARM_UP steps are ordinary ones, on the same data: all of them count.
    """

    def __init__(self, train_step: Callable, learner: Learner, mos: "Tensor", results: StepResults):
        import torch

        self.train_step, self.learner, self.mos = train_step, learner, mos
        self.results, self.device = results, learner.device
        self.batches = None  # of the epoch, but with tensors that stay where they are
        self.position = torch.zeros((), dtype=torch.int64, device=self.device)  # crops so far
        self.number = torch.zeros(1, dtype=torch.int64, device=self.device)  # steps so far
        self.rates = [torch.zeros((), device=self.device) for _ in learner.optimizer.param_groups]
        self.done, self.replay = 0, None

    def begin(self, loader: "torch.utils.data.DataLoader") -> Iterator[dict | None]:
        """Take an epoch's plan; yields None for each full batch, and then the last short one."""
        import torch

        batches = loader.dataset
        size, count = batches.batch_size, len(batches.plan)
        if self.batches is None:
            self.batches = batches.with_room(len(self.results.scores))
            self.within = torch.arange(size, device=self.device)
        self.batches.take_plan(batches)
        self.position.zero_()
        self.number.zero_()
        for _ in range(count // size):
            yield None
        if count % size:
            yield batches[count // size]

    def step(self) -> None:
        """Train the next full batch of the plan."""
        with rates_on_device(self.learner.optimizer, self.rates):
            if self.done < WARM_UP:
                on_another_stream(self.on_device)
            else:
                if self.replay is None:
                    self.learner.optimizer.zero_grad(set_to_none=True)
                    self.replay = captured(self.on_device)
                self.replay()
        self.done += 1
        self.results.count(len(self.within))

    def on_device(self) -> None:
        """The step, from the position to the results: without a word from the host."""
        at = self.position + self.within  # (B,)
        scores, loss = self.train_step(self.learner, self.batches.at(at), self.mos)
        self.results.scores.index_copy_(0, at, scores)
        self.results.losses.index_copy_(0, self.number, loss[None])
        self.position += len(self.within)
        self.number += 1


@contextmanager
def rates_on_device(optimizer: "torch.optim.Optimizer", rates: "list[torch.Tensor]"):
    """Inside `with`, the optimizer reads its rates from these tensors; they are filled before."""
    numbers = [group["lr"] for group in optimizer.param_groups]
    for group, number, rate in zip(optimizer.param_groups, numbers, rates):
        rate.fill_(number)
        group["lr"] = rate
    try:
        yield
    finally:
        for group, number in zip(optimizer.param_groups, numbers):
            group["lr"] = number
