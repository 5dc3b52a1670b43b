"""What learns: a network, its optimizer, the schedule of its learning rates."""

import argparse
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devices import compile_in_place
from evaluation import build_model, multiply_adds

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    import numpy as np
    import torch
    from torch import Tensor, nn

FINAL_LR = 0.01  # of the initial rate, where the cosine ends
STEP_EPOCHS = 6  # after which --schedule step divides the rates by ten
PARTS = ("model", "optimizer", "scheduler", "scaler")  # of a learner's state


@dataclass
class Learner:
    """A network in training.

    model: the network. parameters: its own, listed once. network: what a step calls: the model
    itself, or with several processes DistributedDataParallel around it. costs: its parameters, the
    multiply-adds of one crop, the dropout rates that no flag gives, and mean and standard deviation
    by which its input is normalised.
    """

    model: "nn.Module"
    network: "nn.Module"
    parameters: "list[nn.Parameter]"
    optimizer: "torch.optim.Optimizer"
    scheduler: "torch.optim.lr_scheduler.LRScheduler"
    scaler: "torch.amp.GradScaler"
    device: "torch.device"
    precision: str
    gradient_clip: float
    costs: dict

    def state(self) -> dict[str, dict]:
        """All that training changes: what `restore` takes."""
        return {part: getattr(self, part).state_dict() for part in PARTS}

    def restore(self, state: dict[str, dict]) -> None:
        for part in PARTS:
            getattr(self, part).load_state_dict(state[part])
        for group in self.optimizer.param_groups:  # the state may be from another device
            group["capturable"] = self.device.type == "cuda"


def build_learner(
    args: argparse.Namespace,
    *,
    initial_score: float,
    steps: int,
    device: "torch.device",
    precision: str,
) -> Learner:
    """The network, optimizer and schedule of the flags, with initial weights of --seed.

    initial_score: where scores start. steps: of all epochs. Raises WeightsError.
    """
    import torch

    from training.batch_norm import use_batch_norm

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True  # the linear layers of the head stay float32
    torch.manual_seed(args.seed)
    model = build_model(vars(args), initial_score)
    costs = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, args.patch_size),
        "rates": getattr(model, "rates", {}),
        "normalisation": [*map(list, model.backbone.normalisation)],  # as JSON gives it back
    }
    use_batch_norm(model)
    model.to(device, memory_format=torch.channels_last)
    if args.compile:
        compile_in_place(model, device)
    optimizer, scheduler = build_optimizer(args, model, steps)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Learner(
        model=model,
        network=model,
        parameters=list(model.parameters()),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        device=device,
        precision=precision,
        gradient_clip=args.gradient_clip,
        costs=costs,
    )


def build_optimizer(args: argparse.Namespace, model: "nn.Module", steps: int):
    """AdamW or Adam with one rate for the backbone and one for the new layers, and their schedule.

    steps: of all epochs.
    """
    import torch

    backbone, new = model.parameter_groups()
    kind = torch.optim.AdamW if args.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(
        [{"params": backbone, "lr": args.lr}, {"params": new, "lr": args.lr * args.lr_ratio}],
        weight_decay=args.weight_decay,
        fused=True,
        capturable=new[0].is_cuda,  # in a CUDA graph
    )
    factor = learning_rate_factor
    if args.schedule == "step":
        factor = step_factor
        steps = steps // args.epochs * STEP_EPOCHS

    class Rates(torch.optim.lr_scheduler.LambdaLR):
        """LambdaLR with rates of float32, which a CUDA graph reads from the device."""

        def get_lr(self) -> list[float]:
            return [*map(as_float32, super().get_lr())]

    return optimizer, Rates(optimizer, lambda step: factor(step, steps))


def as_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def learning_rate_factor(step: int, total: int) -> float:
    """Cosine from 1 at the first step to FINAL_LR after the last."""
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))


def step_factor(step: int, steps_between: int) -> float:
    """Falls to a tenth every `steps_between` steps."""
    return 0.1 ** (step // steps_between)


class StepResults:
    """The score of each crop and the loss of each step of an epoch, kept on the device.

    One block of memory for all: small ones of each step would stay between the large ones that come
    and go, and memory would grow with the steps.
    """

    def __init__(self, crops: int, steps: int, device: "torch.device"):
        import torch

        self.scores = torch.empty(crops, device=device)
        self.losses = torch.empty(steps, device=device)
        self.clear()

    def clear(self) -> None:
        self.crops = self.steps = 0

    def add(self, scores: "Tensor", loss: "Tensor") -> None:
        """Copy a step's scores (B,) and loss, as a CUDA graph overwrites its results."""
        self.scores[self.crops : self.crops + len(scores)] = scores
        self.losses[self.steps] = loss
        self.count(len(scores))

    def count(self, crops: int) -> None:
        """One step more, of so many crops, whose results are there already."""
        self.crops, self.steps = self.crops + crops, self.steps + 1

    def so_far(self) -> tuple["np.ndarray", "np.ndarray"]:
        """Scores (crops,) and losses (steps,) of the steps since `clear`."""
        return (
            self.scores[: self.crops].cpu().numpy(),
            self.losses[: self.steps].cpu().numpy(),
        )
