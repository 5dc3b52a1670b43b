"""What learns: a network, its optimizer, the schedule of its learning rates."""

import argparse
import copy
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devices import compile_in_place, memory_format
from evaluation import build_model, check_takes, evaluated_size, multiply_adds
from training.initial import Initial
from training.losses import loss_function

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    import numpy as np
    import torch
    from torch import Tensor, nn

FINAL_LR = 0.01  # of the initial rate, where the cosine ends
STEP_EPOCHS = 6  # after which --schedule step divides the rates by ten
PARTS = ("model", "optimizer", "scheduler", "scaler", "average")  # of a learner's state


@dataclass
class Learner:
    """A network in training.

    model: the network. parameters: its own, listed once. network: what a step calls: the model
    itself, or FrozenNorms around it if it has some, and with several processes
    DistributedDataParallel around that. average: of its weights over the steps (--ema). loss: of
    scores (B,) and labels (B,). complete: gathers a batch that several processes share, if the loss
    compares its images. score_map: slope and offset from the network's scores to MOS. costs: its
    parameters, the multiply-adds of one crop, the dropout rates that no flag gives, and mean and
    standard deviation by which its input is normalised.
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
    loss: "Callable[[Tensor, Tensor], Tensor]"
    complete: "Callable[[Tensor, float], Tensor] | None" = None
    average: "Average | None" = None
    score_map: tuple[float, float] = (1.0, 0.0)

    def state(self) -> dict:
        """All that training changes: what `restore` takes."""
        parts = {part: getattr(self, part) for part in PARTS}
        state = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return state | {"score_map": self.score_map}

    def restore(self, state: dict) -> None:
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                part.load_state_dict(state[name])
        for group in self.optimizer.param_groups:  # the state may be from another device
            group["capturable"] = self.device.type == "cuda"
        self.score_map = tuple(state.get("score_map", self.score_map))  # older states have none

    def loss_of(self, scores: "Tensor", labels: "Tensor", divisor: float) -> "Tensor":
        """The loss of a step's scores (B,) and labels (B,).

        With several processes B is this one's part of a batch, divisor the batch's size over the
        number of processes, and the mean of the processes' gradients that of the complete batch.
        """
        if self.complete is not None:
            return self.loss(self.complete(scores, divisor), self.complete(labels, divisor))
        loss, share = self.loss(scores, labels), len(labels) / divisor
        return loss if share == 1 else loss * share

    def evaluated(self) -> "nn.Module":
        """The network that is evaluated and saved: the average if there is one; its scores are MOS.

        It may share its tensors with the network that learns.
        """
        model = self.model if self.average is None else self.average.model
        if self.score_map == (1.0, 0.0):
            return model
        model = copy.deepcopy(model)
        model.hyper_net.map_scores(*self.score_map)
        return model


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

    from training.batch_norm import use_batch_norm

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True  # the linear layers of the head stay float32
    torch.manual_seed(args.seed)
    flags = vars(args) | ({"backbone_weights": "none"} if initial else {})
    model = build_model(flags, initial_score)
    if initial:
        initial.put_into(model, head=args.init_head, mean=initial_score)
    for size in {(args.patch_size, args.patch_size), evaluated_size(args)}:
        check_takes(model, size)
    costs = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, args.patch_size),
        "rates": getattr(model, "rates", {}),
        "normalisation": [*map(list, model.backbone.normalisation)],  # as JSON gives it back
    }
    use_batch_norm(model)
    model.to(device, memory_format=memory_format(device))
    network, average = model, Average(model, args.ema) if args.ema else None
    if args.freeze_bn or args.freeze_stages:
        from training.frozen import FrozenNorms, freeze  # which import torch

        norms = freeze(model, norms=args.freeze_bn, stages=args.freeze_stages)
        network = FrozenNorms(model, norms) if norms else model
    if args.compile:
        compile_in_place(network, device)
    optimizer, scheduler = build_optimizer(args, model, steps)
    return Learner(
        model=model,
        network=network,
        parameters=list(model.parameters()),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        device=device,
        precision=precision,
        gradient_clip=args.gradient_clip,
        costs=costs,
        loss=loss_function(args.loss),
        average=average,
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
    per_epoch = steps // args.epochs
    warm_up = min(round(args.warmup_epochs * per_epoch), steps - 1)  # one step for the schedule

    def factor(step: int) -> float:
        """Of the rates at a step, counted from 0."""
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        if args.schedule == "constant":
            return 1.0
        if args.schedule == "step":
            return step_factor(step - warm_up, per_epoch * STEP_EPOCHS)
        return learning_rate_factor(step - warm_up, steps - warm_up)

    class Rates(torch.optim.lr_scheduler.LambdaLR):
        """LambdaLR with rates of float32, which a CUDA graph reads from the device."""

        def get_lr(self) -> list[float]:
            return [*map(as_float32, super().get_lr())]

    return optimizer, Rates(optimizer, factor)


def as_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def learning_rate_factor(step: int, total: int) -> float:
    """Cosine from 1 at the first step to FINAL_LR after the last."""
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))


def step_factor(step: int, steps_between: int) -> float:
    """Falls to a tenth every `steps_between` steps."""
    return 0.1 ** (step // steps_between)


class Average:
    """The average of a network's weights over the steps: `model` holds it.

    After each step it keeps a share of itself and takes the rest from the network (an exponential
    moving average). The share rises with the steps up to `decay`, as in TensorFlow's
    ExponentialMovingAverage with num_updates. So it soon forgets what was there before the first
    step: 3% of a running variance of 1 is much where that of the images is 0.002. Running
    statistics of BatchNorm are averaged as well.
    """

    def __init__(self, model: "nn.Module", decay: float):
        self.decay, self.model = decay, copy.deepcopy(model).eval().requires_grad_(False)
        pairs = [*zip(self.model.parameters(), model.parameters())]
        pairs += zip(self.model.buffers(), model.buffers())
        pairs = [pair for pair in pairs if pair[0].is_floating_point()]  # others stay
        self.averages, self.learned = map(list, zip(*pairs))

    def update(self, steps: int) -> None:
        """After so many steps (1 after the first); does not wait for the device."""
        from torch.optim.swa_utils import get_ema_multi_avg_fn

        share = min(self.decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(share)(self.averages, self.learned, None)

    def state_dict(self) -> dict:
        return self.model.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state)


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
