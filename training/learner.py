"""What learns: a network, its optimizer, the schedule of its learning rates."""

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devices import compile_in_place, memory_format
from evaluation import build_model, multiply_adds
from training.initial import Initial

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

    model: the network. network: what a step calls: the model itself, or with several processes
    DistributedDataParallel around it. costs: its parameters, the multiply-adds of one crop, the
    dropout rates that no flag gives, and mean and standard deviation by which its input is
    normalised.
    """

    model: "nn.Module"
    network: "nn.Module"
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


def build_learner(
    args: argparse.Namespace,
    *,
    initial_score: float,
    steps: int,
    device: "torch.device",
    precision: str,
    initial: Initial | None = None,
) -> Learner:
    """The network, optimizer and schedule of the flags, with initial weights of --seed or --init.

    initial_score: where scores start. steps: of all epochs. Raises RunError for weights that can't
    be used.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True  # the linear layers of the head stay float32
    torch.manual_seed(args.seed)
    flags = vars(args) | ({"backbone_weights": "none"} if initial else {})
    model = build_model(flags, initial_score)
    if initial:
        initial.put_into(model, head=args.init_head, mean=initial_score)
    costs = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, args.patch_size),
        "rates": getattr(model, "rates", {}),
        "normalisation": [*map(list, model.backbone.normalisation)],  # as JSON gives it back
    }
    model.to(device, memory_format=memory_format(device))
    if args.compile:
        compile_in_place(model, device)
    optimizer, scheduler = build_optimizer(args, model, steps)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Learner(
        model, model, optimizer, scheduler, scaler, device, precision, args.gradient_clip, costs
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
    )
    factor = learning_rate_factor
    if args.schedule == "step":
        factor = step_factor
        steps = steps // args.epochs * STEP_EPOCHS
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, steps))
    return optimizer, scheduler


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
        self.crops, self.steps = self.crops + len(scores), self.steps + 1

    def so_far(self) -> tuple["np.ndarray", "np.ndarray"]:
        """Scores (crops,) and losses (steps,) of the steps since `clear`."""
        return (
            self.scores[: self.crops].cpu().numpy(),
            self.losses[: self.steps].cpu().numpy(),
        )
