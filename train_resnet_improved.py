"""How it learns: trains one configuration, evaluates it every epoch, records everything.

    python3 train_resnet_improved.py --dataset koniq-10k --epochs 10 --save_model
    python3 train_resnet_improved.py --dataset koniq-10k --use_multiscale --save_model
    python3 train_resnet_improved.py --use_multiscale --use_attention --save_model

Each yields LOG_DIR/RUN_NAME.jsonl (configuration, then an object an epoch),
LOG_DIR/RUN_NAME_predictions.csv, and with --save_model CHECKPOINT_DIR/..._best.pth and _last.pth.
The console ends with 'Best Test SRCC: 0.9012'. An experiment on KonIQ-10k is 1.76 million patches
of training: about 15 minutes on a data-centre GPU (an estimate), two days on two CPU cores.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import data_loader as data
from data_loader import DataError
from metrics import agreement

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    from collections.abc import Iterable

    import pandas as pd
    import torch
    from torch import Tensor, nn

FINAL_LR = 0.01  # of the initial rate, where the cosine ends
ESTIMATE_AFTER = 10  # training steps, measured to say how long a run on the CPU takes


SWIN_SIZES = ("tiny", "small", "base")
# The published recipes: HyperIQA's (its paper, sec. 4.2, and README.md for what differs from its
# code) and SMART-IQA's.
PRESETS = {
    "hyperiqa_paper": {
        "model": "hyperiqa",
        "split": "random",
        "optimizer": "adam",
        "schedule": "step",
        "lr": 2e-5,
        "lr_ratio": 10.0,
        "weight_decay": 5e-4,
        "gradient_clip": 0.0,
        "batch_size": 96,
        "epochs": 16,
        "train_patch_num": 25,
        "test_patch_num": 25,
    },
    "smart_iqa": {
        "model": "smart_iqa_base",
        "lr": 5e-7,
        "lr_ratio": 10.0,
        "weight_decay": 2e-4,
        "batch_size": 32,
        "epochs": 10,
        "train_patch_num": 20,
        "test_patch_num": 20,
    },
}
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "could not create a primitive"),
    "CUBLAS_STATUS_ALLOC_FAILED",
)
STEP_EPOCHS = 6  # after which --schedule step divides the rates by ten
FREE_FLAGS = {  # what a resumed run may change: it decides where things lie, and who does the work
    *("data_path", "store_dir", "store_device", "workers", "device", "amp", "compile"),
    *("save_model", "checkpoint_dir", "save_minutes", "resume", "log_dir", "run_name"),
}
MACHINE = (  # of a configuration: what a resumed run may be otherwise in, besides FREE_FLAGS
    *("device", "device_name", "store_device", "threads", "versions", "git_commit"),
)


class RunError(RuntimeError):
    """The run can't begin or go on; the message says why, and what to do."""


class Interrupted(Exception):
    """A signal has asked the run to end; its arguments are the signal and what has been saved."""


# Flags ------------------------------------------------------------------------------------------


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default to a flag's help, but for flags that are off or derive theirs."""

    def _get_help_string(self, action: argparse.Action) -> str:
        unset = action.default is None or action.default is False
        return action.help if unset else super()._get_help_string(action)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )

    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="a published recipe as defaults, which other flags override; see README.md",
    )
    group = parser.add_argument_group("model")
    flag = group.add_argument
    flag(
        "--model",
        choices=["resnet_improved", "hyperiqa", *(f"smart_iqa_{s}" for s in SWIN_SIZES)],
        default="resnet_improved",
        help="the experiment's model, or a neighbour to compare with (--patch_size 224 alone)",
    )
    flag(
        "--use_multiscale",
        action=argparse.BooleanOptionalAction,
        help="fuse all four stages, not stage 4 alone (default: on for smart_iqa_*, else off)",
    )
    flag(
        "--use_attention",
        action=argparse.BooleanOptionalAction,
        help="weight the stages; needs --use_multiscale (default: as for that)",
    )
    flag(
        "--dropout_rate",
        type=data.number(float, 0, 1, open_end=True),
        metavar="RATE",
        help="of the reduced maps and the attention; more where training fits and tests don't "
        "(default: 0.3; 0.4 for smart_iqa_*: of the reduced maps and the target network)",
    )
    flag(
        "--backbone_weights",
        default="imagenet1k_v1",
        metavar="NAME|FILE",
        help="imagenet1k_v1, imagenet1k_v2, none (random), or a torchvision ResNet-50 state dict",
    )

    group = parser.add_argument_group("data")
    flag = group.add_argument
    flag("--dataset", choices=sorted(data.DATASETS), default="koniq-10k", help="whose layout")
    flag("--data_path", metavar="DIR", help="its folder (default: ./DATASET)")
    flag(
        "--csv",
        nargs="+",
        default=[],
        metavar="[SPLIT=]FILE",
        help="of --dataset csv: its table, or one a split (train=FILE test=FILE), in its folder",
    )
    flag(
        "--csv_columns",
        nargs="+",
        default=[],
        metavar="KEY=NAME",
        help="what its columns are called: image=, score=, and if there split=, group= (images of "
        "one group are never parted)",
    )
    flag("--lower_is_better", action="store_true", help="its scores are DMOS or the like")
    flag(
        "--score_range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="the ends of its scale, which become 0 and 100",
    )
    flag(
        "--split",
        choices=["auto", "json", "official", "random"],
        default="auto",
        help="auto: koniq_*.json, else the official one; random: 80/20 by --split_seed",
    )
    flag(
        "--split_seed",
        type=data.number(int, 0),
        metavar="N",
        help="of the random split and of --val_fraction (default: 0; with --preset "
        "hyperiqa_paper the --seed, so that every seed has its own split)",
    )
    flag(
        "--val_fraction",
        type=data.number(float, 0, 0.5),
        metavar="F",
        help="part of training to validate on where a data set has no validation images (default: "
        "0.1 for biq2021, else 0)",
    )
    flag(
        "--resize",
        type=data.number(int, 32, 8192),
        nargs=2,
        metavar=("H", "W"),
        help="height and width of every image before crops (default: 512 384 for koniq-10k as in "
        "HyperIQA, which makes 1024x768 portrait; 384 512 keeps its aspect; 512 512 for biq2021; "
        "see README.md for the others)",
    )
    flag(
        "--patch_size",
        type=data.number(int, 32, 8192),
        default=224,
        metavar="N",
        help="side of a crop, pixels",
    )
    flag(
        "--train_patch_num",
        type=data.number(int, 1, 1000),
        default=25,
        metavar="N",
        help="random crops an image and epoch; fewer for a shorter run",
    )
    flag(
        "--test_patch_num",
        type=data.number(int, 1, 1000),
        default=25,
        metavar="N",
        help="crops whose mean is an image's score; a square number for a grid; center takes 1",
    )
    crop = group.add_mutually_exclusive_group()
    crop.add_argument(
        "--test_crop",
        choices=["random", "grid", "center"],
        default="random",
        help="random: drawn once, the same in every epoch, configuration and run",
    )
    crop.add_argument(
        "--test_random_crop",
        dest="test_crop",
        action="store_const",
        const="random",
        default=argparse.SUPPRESS,
        help="the same as --test_crop random",
    )
    jitter = group.add_mutually_exclusive_group()
    jitter.add_argument(
        "--color_jitter",
        action="store_true",
        help="vary brightness, contrast and saturation of training crops by up to 10%%",
    )
    jitter.add_argument(
        "--no_color_jitter",
        dest="color_jitter",
        action="store_false",
        default=argparse.SUPPRESS,
        help="leave colours as they are, which is the default",
    )
    flag("--store_dir", default="pixel_store", metavar="DIR", help="where decoded images are kept")
    flag(
        "--store_device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="where crops are cut; auto: on the GPU when the images take at most half of its free "
        "memory; results don't depend on it",
    )

    group = parser.add_argument_group("optimisation")
    flag = group.add_argument
    flag(
        "--epochs",
        type=data.number(int, 1, 10_000),
        default=10,
        metavar="N",
        help="passes over the training images; the rates fall over all of them",
    )
    flag(
        "--batch_size",
        type=data.number(int, 1, 65_536),
        default=32,
        metavar="N",
        help="crops a step; fewer when memory runs out, which changes training",
    )
    flag(
        "--lr",
        type=data.number(float, 0, 1),
        default=1e-4,
        metavar="X",
        help="initial rate of the backbone; more from random weights",
    )
    flag(
        "--lr_ratio",
        type=data.number(float, 0, 10_000),
        default=10.0,
        metavar="X",
        help="rate of the new layers over that of the backbone",
    )
    flag(
        "--weight_decay",
        type=data.number(float, 0, 1),
        default=1e-4,
        metavar="X",
        help="of --optimizer",
    )
    flag(
        "--gradient_clip",
        type=data.number(float, 0),
        default=1.0,
        metavar="NORM",
        help="gradients of a larger norm are scaled down to it; 0: none are",
    )
    flag("--optimizer", choices=["adamw", "adam"], default="adamw", help="adam: as HyperIQA")
    flag(
        "--schedule",
        choices=["cosine", "step"],
        default="cosine",
        help="of the rates: to 1%% at the end, or a tenth every six epochs as HyperIQA",
    )
    flag(
        "--seed",
        type=data.number(int, 0, 2**32 - 1),
        default=42,
        metavar="N",
        help="of initial weights, dropout and training crops",
    )

    group = parser.add_argument_group("run")
    flag = group.add_argument
    flag("--device", choices=["auto", "cuda", "cpu"], default="auto", help="auto: CUDA if there")
    flag(
        "--amp",
        choices=["auto", "bf16", "fp16", "off"],
        default="auto",
        help="precision of the network; auto: bf16 where the hardware has it; off: float32 (with "
        "TF32 convolutions on CUDA)",
    )
    flag(
        "--compile",
        action="store_true",
        help="torch.compile the network (CUDA graphs on a GPU): minutes at the start, faster "
        "steps; in one process",
    )
    flag(
        "--workers",
        type=data.number(int, 0, 256),
        metavar="N",
        help="processes that cut crops from a store on the CPU; results don't depend on it "
        "(default: 0 on the CPU, 4 on CUDA)",
    )
    flag("--save_model", action="store_true", help="write the checkpoints _best.pth and _last.pth")
    flag("--checkpoint_dir", default="checkpoints", metavar="DIR", help="for the checkpoints")
    flag(
        "--save_minutes",
        type=data.number(float, 0, 1e6),
        default=10,
        metavar="X",
        help="_last.pth is written so often within an epoch, besides at its end",
    )
    flag(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="go on from the run's _last.pth, or from FILE, as if nothing had interrupted it; "
        "begins anew where there is no _last.pth; implies --save_model",
    )
    flag("--log_dir", default="logs", metavar="DIR", help="for the record and the predictions")
    flag("--run_name", metavar="NAME", help="their names (default: the model's, and the time)")

    parser.set_defaults(**PRESETS.get(parser.parse_known_args(argv)[0].preset, {}))
    args = parser.parse_args(argv)
    is_smart = args.model.startswith("smart_iqa")
    for name in ("use_multiscale", "use_attention"):
        if getattr(args, name) is None:
            setattr(args, name, is_smart and args.use_multiscale is not False)
        elif args.model == "hyperiqa" and getattr(args, name):
            parser.error(f"--{name}: --model hyperiqa has no fusion and no attention")
    if args.model == "hyperiqa" and args.dropout_rate is not None:
        parser.error("--dropout_rate: --model hyperiqa has no dropout")
    if args.split_seed is None:
        args.split_seed = args.seed if args.preset == "hyperiqa_paper" else 0
    if args.dropout_rate is None:
        args.dropout_rate = 0.4 if is_smart else 0.0 if args.model == "hyperiqa" else 0.3
    if args.model != "resnet_improved" and args.patch_size != 224:
        parser.error(f"--patch_size {args.patch_size}: --model {args.model} takes 224 alone")
    if args.use_attention and not args.use_multiscale:
        parser.error("--use_attention weights several stages: give --use_multiscale as well")
    if args.test_crop == "center":
        args.test_patch_num = 1  # one centre: more of it would be the same crop again
    if args.test_crop == "grid" and math.isqrt(args.test_patch_num) ** 2 != args.test_patch_num:
        parser.error(
            f"--test_patch_num {args.test_patch_num}: --test_crop grid takes a square number, such "
            f"as {math.isqrt(args.test_patch_num) ** 2}"
        )
    args.data_path = args.data_path or f"./{args.dataset}"
    if args.score_range and not -math.inf < args.score_range[0] < args.score_range[1] < math.inf:
        parser.error("--score_range: LOW is below HIGH")
    args.resize = tuple(args.resize or data.DATASETS[args.dataset].resize)
    if args.patch_size > min(args.resize):
        parser.error(
            f"--patch_size {args.patch_size} is larger than the images, which --resize makes "
            f"{args.resize[0]} x {args.resize[1]}"
        )
    args.save_model = args.save_model or args.resume is not None
    if args.run_name and Path(args.run_name).name != args.run_name:
        parser.error(f"--run_name {args.run_name}: a name, not a path; the folder is --log_dir")
    return args


def model_name(args: argparse.Namespace) -> str:
    """resnet_improved_ms_att, hyperiqa and so on: how checkpoints and runs are called."""
    if args.model == "hyperiqa":
        return args.model
    scales = "ms" if args.use_multiscale else "ss"
    return f"{args.model}_{scales}_{'att' if args.use_attention else 'noatt'}"


# Learning ---------------------------------------------------------------------------------------


def choose_device(name: str) -> "torch.device":
    """CUDA where it is there, unless told otherwise; RunError where it was asked for and isn't."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: PyTorch sees no CUDA device here; take auto or cpu")
    use_cuda = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def choose_precision(name: str, device: "torch.device") -> str:
    """bf16, fp16 or off (float32): what `--amp` names, or what the hardware computes fast."""
    import torch

    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "off"


def autocast(device: "torch.device", precision: str) -> "torch.autocast":
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def keep_freed_memory() -> None:
    """Let the C library keep what is freed instead of giving each large block back to the system.

    A training step on the CPU, or decoding images, frees and takes the same memory again; getting
    it anew, page by page, costs 5% of the time. Does nothing where the C library is not glibc.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, size in ((-3, 2**30), (-1, 2**31 - 1), (-2, 2**28)):
            mallopt(option, size)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def compile_in_place(model: "nn.Module", device: "torch.device") -> None:
    """torch.compile a network; on CUDA with CUDA graphs, which take the launches off the CPU."""
    model.compile(mode="reduce-overhead" if device.type == "cuda" else None, dynamic=False)


def evaluation_batch(device: "torch.device", patch_size: int) -> int:
    """Crops in a batch of evaluation, where nothing is kept for gradients: fewer of large ones."""
    most = 256 if device.type == "cuda" else 64
    return max(1, int(most * min(1.0, (224 / patch_size) ** 2)))


def is_out_of_memory(error: RuntimeError) -> bool:
    return any(sign in str(error) for sign in OUT_OF_MEMORY)


def place_store(store: data.PixelStore, choice: str, device: "torch.device"):
    """The store as it is, or its images in the device's memory, as `--store_device` says."""
    import torch

    if choice == "cuda" and device.type != "cuda":
        raise RunError("--store_device cuda: this run is on the CPU; take auto or cpu")
    if choice == "cpu" or device.type == "cpu":
        return store
    if choice == "auto" and store.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        return store
    return data.DeviceStore(store, device)


def learning_rate_factor(step: int, total: int) -> float:
    """Cosine from 1 at the first step to FINAL_LR after the last."""
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1)))


def step_factor(step: int, steps_between: int) -> float:
    """A tenth of the rate before, every `steps_between` steps."""
    return 0.1 ** (step // steps_between)


def train_one_epoch(
    model: "nn.Module",
    loader: "torch.utils.data.DataLoader",
    mos: "Tensor",
    optimizer: "torch.optim.Optimizer",
    scheduler: "torch.optim.lr_scheduler.LRScheduler",
    scaler: "torch.amp.GradScaler",
    *,
    precision: str,
    gradient_clip: float,
    watch,
    keep: Callable[["Tensor"], None],
) -> None:
    """One pass over the loader's crops by the mean L1 loss; each step's scores (B,) go to `keep`.

    With several ranks each has its part of a batch; their mean gradient is that of the whole.

    `mos` (on the device) holds the label of each image of the plan. gradient_clip: the largest
    norm of a step's gradient; 0 leaves it as it is. `watch` wraps the loader's steps (a progress
    bar); what it does after a step sees the step's scores.
    """
    import torch
    import torch.nn.functional as F

    device = mos.device
    model.train()

    for batch in watch(loader):
        images = data.to_network_input(batch, device)
        labels = mos[batch["images"].to(device, non_blocking=True)]

        with autocast(device, precision):
            score, _ = model(images)
        assert score.shape == labels.shape, f"scores {score.shape} for labels {labels.shape}"
        loss = F.l1_loss(score, labels, reduction="sum") / batch["share"]

        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if gradient_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()

        keep(score.detach())


def score_crops(
    model: "nn.Module",
    loader: "Iterable[dict[str, Tensor]]",
    *,
    device: "torch.device",
    precision: str,
    watch,
    compiled: bool = False,
) -> tuple["Tensor", "Tensor | None"]:
    """Scores (M,) and stage weights (M, 4) or None of all crops of the batches, on the device.

    `watch` wraps the batches (a progress bar).
    """
    import torch

    from models_resnet_improved import folded

    model = folded(model)
    if compiled:
        compile_in_place(model, device)
    scores, weights = [], []
    with torch.inference_mode(), autocast(device, precision):
        for batch in watch(loader):
            score, stage_weights = model(data.to_network_input(batch, device))
            scores.append(score.clone())  # a CUDA graph writes its next result in its place
            weights.append(None if stage_weights is None else stage_weights.clone())
    if not scores:
        return torch.empty(0), None
    return torch.cat(scores), None if weights[0] is None else torch.cat(weights)


def evaluate(
    model: "nn.Module", loader: "Iterable[dict[str, Tensor]]", crops_per_image: int, **options
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (N,) and stage weights (N, 4) or None of the loader's images: means over their crops.

    The loader's plan goes image by image, `crops_per_image` crops each (data_loader.test_plan).
    Both are float64 of six decimals, so that the predictions CSV holds the very numbers.
    `options` are those of score_crops.
    """
    scores, weights = score_crops(model, loader, **options)
    scores = scores.view(-1, crops_per_image)  # (N, P)
    scores = scores.cpu().double().mean(1).numpy().round(6)  # (N,)
    if weights is None:
        return scores, None
    weights = weights.view(len(scores), crops_per_image, -1)  # (N, P, 4)
    return scores, weights.cpu().double().mean(1).numpy().round(6)  # (N, 4)


def mean_by_image(scores: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean score of each image that occurs, and which images these are."""
    present, at = np.unique(images, return_inverse=True)
    return np.bincount(at, scores) / np.bincount(at), present


# Processes and signals ---------------------------------------------------------------------------


class Ranks:
    """The processes of this run: this one alone, or those that torchrun has started.

    Tensors travel by NCCL (CUDA) or gloo (CPU) inside DistributedDataParallel; what the processes
    agree upon and gather besides goes by gloo, so that it never waits for a device.
    """

    def __init__(self):
        self.number = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.is_first = self.number == 0
        self.control = None

    def start(self, device: "torch.device") -> None:
        """Meet the others; RunError where there are fewer GPUs than processes."""
        import torch

        if self.count == 1:
            return
        local = int(os.environ.get("LOCAL_RANK", 0))
        if device.type == "cuda":
            if local >= torch.cuda.device_count():
                raise RunError(
                    f"process {local + 1} of this machine has no GPU, as there are "
                    f"{torch.cuda.device_count()}: give torchrun a smaller --nproc-per-node"
                )
            torch.cuda.set_device(local)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.control = torch.distributed.new_group(backend="gloo")

    def stop(self) -> None:
        """Part from the others, where they have met."""
        if self.control is not None:
            import torch

            torch.distributed.destroy_process_group()

    def gather(self, value) -> list:
        """Every process's value, in the order of their ranks, in every process."""
        if self.count == 1:
            return [value]
        import torch

        values = [None] * self.count
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values

    def highest(self, *values: int) -> list[int]:
        """The highest of each value over all processes."""
        if self.count == 1:
            return [*values]
        import torch

        tensor = torch.tensor(values)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX, group=self.control)
        return tensor.tolist()


class Stopping:
    """Notes SIGTERM and SIGINT while it is entered, for the run to end between two steps.

    A second Ctrl-C ends it at once.
    """

    def __init__(self):
        self.signal = 0

    def __enter__(self):
        self.earlier = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        for number, handler in self.earlier.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, self.note)
        return self

    def note(self, number: int, _) -> None:
        if number == signal.SIGINT:
            signal.signal(number, self.earlier[number])
        self.signal = self.signal or number

    def __exit__(self, *_):
        for number, handler in self.earlier.items():
            signal.signal(number, handler)


# Records ----------------------------------------------------------------------------------------


def git_commit() -> str:
    """The commit of these scripts, '+changes' where files differ; 'unknown' outside git."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return head.stdout.strip() or "unknown"


def configuration(
    args: argparse.Namespace,
    table: "pd.DataFrame",
    source: str,
    device: "torch.device",
    store: data.PixelStore | data.DeviceStore,
    precision: str,
    costs: dict[str, int | dict[str, float]],
    ranks: Ranks,
) -> dict:
    """All that a result stands on: flags, data, versions, machine."""
    import pandas as pd
    import PIL
    import scipy
    import torch
    import torchvision

    cuda = torch.cuda.get_device_name() if device.type == "cuda" else None
    return {
        "type": "config",
        "model": model_name(args),
        **costs,
        "flags": vars(args) | {"resize": list(args.resize)},
        "labels": source,
        "images": data.count_splits(table),
        "data_fingerprint": data.fingerprint(table),
        "label_fingerprint": data.label_fingerprint(table),
        "demo": Path(args.data_path, data.DEMO_MARKER).is_file(),
        "device": device.type,
        "device_name": cuda or platform.processor() or platform.machine(),
        "store_device": torch.device(store.device).type,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "ranks": ranks.count,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "pandas": pd.__version__,
            "pillow": PIL.__version__,
        },
        "git_commit": git_commit(),
        "started": timestamp(),
    }


def timestamp() -> str:
    """Now, to the microsecond: it tells one run from another."""
    return datetime.now().astimezone().isoformat()


def peak_memory(device: "torch.device") -> float:
    """The most memory that tensors on the GPU, or this process on the CPU, have taken: GB."""
    import torch

    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)


def describe(config: dict) -> str:
    """The configuration block of the console."""
    flags, images = config["flags"], config["images"]
    counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
    published = tuple(images.values()) in data.DATASETS[flags["dataset"]].published
    labels, _, split = config["labels"].partition("; ")
    crops = f"{flags['test_crop']}, {flags['test_patch_num']} an image"
    fp32 = "fp32 (TF32 convolutions)" if config["device"] == "cuda" else "fp32"
    course, clip = f"cosine to {FINAL_LR:.0%}", flags["gradient_clip"]
    if flags["schedule"] == "step":
        course = f"a tenth every {STEP_EPOCHS} epochs"
    lines = {
        "model": f"{config['model']}, {config['parameters'] / 1e6:.2f} M parameters, "
        f"backbone weights {flags['backbone_weights']}, dropout {flags['dropout_rate']:g}"
        + "".join(f", {rate.replace('_', ' ')} {x:g}" for rate, x in config["rates"].items()),
        "data": f"{flags['dataset']} in {flags['data_path']}: {counts} images "
        f"({'the' if published else 'not the'} counts of a published split)",
        "labels": labels,
        "split": split,
        "fingerprint": config["data_fingerprint"],
        "crops": f"{flags['patch_size']} of {flags['resize'][0]} x {flags['resize'][1]} (H x W); "
        f"training {flags['train_patch_num']} an image and epoch, colour jitter "
        f"{'on' if flags['color_jitter'] else 'off'}; test {crops}",
        "optimiser": f"{'AdamW' if flags['optimizer'] == 'adamw' else 'Adam'}, lr {flags['lr']:g} "
        f"(new layers x{flags['lr_ratio']:g}), weight decay {flags['weight_decay']:g}, {course}, "
        f"gradients {f'clipped at {clip:g}' if clip else 'not clipped'}, "
        f"batch {flags['batch_size']}, {flags['epochs']} epochs, seed {flags['seed']}",
        "device": f"{config['device']} ({config['device_name']}), precision "
        f"{fp32 if config['precision'] == 'off' else config['precision']}"
        f"{', compiled' if flags['compile'] else ''}, {config['threads']} threads"
        f"{' in each of ' + str(config['ranks']) + ' processes' if config['ranks'] > 1 else ''}, "
        f"images on {config['store_device']}",
        "versions": ", ".join(f"{k} {v}" for k, v in config["versions"].items())
        + f", commit {config['git_commit']}",
        "files": f"{flags['log_dir']}/{flags['run_name']}.jsonl and _predictions.csv"
        + (f", {flags['checkpoint_dir']}/{config['model']}_*.pth" if flags["save_model"] else ""),
    }
    return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


HEADER = (
    f"{'epoch':>5}{'loss':>9}{'train SRCC':>12}{'val SRCC':>10}{'PLCC':>8}{'test SRCC':>11}"
    f"{'PLCC':>8}{'lr':>10}{'lr new':>10}{'patch/s':>9}{'seconds':>9}"
)


def epoch_row(record: dict) -> str:
    """The console's line for an epoch, under HEADER."""

    def metric(name: str) -> str:
        value = record.get(name)
        return "-" if value is None else f"{value:.4f}"

    return (
        f"{record['epoch']:>5}{record['loss']:>9.3f}{metric('train_srcc'):>12}"
        f"{metric('val_srcc'):>10}{metric('val_plcc'):>8}{metric('test_srcc'):>11}"
        f"{metric('test_plcc'):>8}{record['lr_backbone']:>10.2e}{record['lr_new']:>10.2e}"
        f"{record['patches_per_second']:>9.1f}{record['seconds']:>9.0f}"
    )


def best_epoch(records: list[dict], split: str) -> dict | None:
    """The first epoch with the highest defined SRCC on `split`; None where none is defined."""
    ranked = [r for r in records if r.get(f"{split}_srcc") is not None]
    return max(ranked, key=lambda r: r[f"{split}_srcc"], default=None)


UNDEFINED = "fewer than two images, or scores or labels all the same or not finite"


def closing_lines(records: list[dict]) -> str:
    """Test SRCC and PLCC of three epochs: best on test, chosen on validation, last."""
    chosen = {
        "Best": (best_epoch(records, "test"), "chosen on the test images themselves: optimistic"),
        "Validation-Chosen": (best_epoch(records, "val"), "chosen on the validation images"),
        "Last": (records[-1], "not chosen"),
    }
    lines = []
    for label, (record, how) in chosen.items():
        if label == "Validation-Chosen" and "val_srcc" not in records[-1]:
            lines.append("No validation images: no epoch is chosen by them.")
            continue
        for metric in ("srcc", "plcc"):
            value = (record or {}).get(f"test_{metric}")
            if value is None:
                lines.append(f"{label} Test {metric.upper()}: undefined ({UNDEFINED})")
            else:
                lines.append(
                    f"{label} Test {metric.upper()}: {value:.4f}  (epoch {record['epoch']}, {how})"
                )
    return "\n".join(lines)


def predictions_frame(
    epoch: int, table: "pd.DataFrame", scores: np.ndarray, weights: np.ndarray | None
) -> "pd.DataFrame":
    """The rows of an epoch in the predictions CSV: epoch, split, image, mos, score (and w1..w4)."""
    frame = table[["split", "image", "mos"]].assign(score=scores)
    frame.insert(0, "epoch", epoch)
    if weights is not None:
        frame[["w1", "w2", "w3", "w4"]] = weights
    return frame


def write_outputs(
    log_dir: Path, name: str, config: dict, epochs: list[dict], judged: list, table: "pd.DataFrame"
) -> None:
    """The record and the predictions CSV of the epochs done, each whole or not at all."""
    import pandas as pd

    if epochs:
        frames = [predictions_frame(e["epoch"], table, *j) for e, j in zip(epochs, judged)]
        text = pd.concat(frames).to_csv(index=False)
        data.write_atomically(log_dir / f"{name}_predictions.csv", text)
    lines = [json.dumps(line) for line in (config, *epochs)]
    data.write_atomically(log_dir / f"{name}.jsonl", "\n".join(lines) + "\n")


def claim(path: Path, config: dict, *, again: bool) -> None:
    """Begin a record; RunError where a run of that name has begun one.

    `again` allows a record without an epoch: that of a run that was interrupted before there was
    anything to resume from.
    """
    line = json.dumps(config) + "\n"
    if again and path.exists() and len(path.read_text().splitlines()) <= 1:
        return data.write_atomically(path, line)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(line)
    except FileExistsError as error:
        raise RunError(f"{path} is there already: give another --run_name or --log_dir") from error


# Checkpoints ------------------------------------------------------------------------------------


def save_checkpoint(path: Path, content: dict, *, before: Path | None = None) -> None:
    """torch.save to a temporary file that is renamed when it is whole on disk.

    The file whose place it takes is kept as `before`, where that is given.
    """
    import torch

    try:
        with data.replacing(path, before=before) as file:
            torch.save(content, file)
    except OSError as error:
        raise RunError(f"--checkpoint_dir: {path}: {error.strerror}") from error
    except RuntimeError as error:  # torch's own, of a disk that is full
        raise RunError(
            f"--checkpoint_dir: {path}: can't be written ({str(error).splitlines()[0]}); what was "
            "there is as it was"
        ) from error


def load_checkpoint(path: Path) -> dict:
    """A checkpoint of this software; RunError where the file is damaged or something else."""
    from models_resnet_improved import WeightsError, load_tensors

    try:
        state = load_tensors(path)
    except WeightsError as error:
        raise RunError(str(error)) from error
    if not (isinstance(state, dict) and {"model", "config", "epochs"} <= set(state)):
        raise RunError(f"{path}: not a checkpoint of this software")
    # A flag that there was not when it was written did what its default does.
    state["config"]["flags"] = vars(parse_args([])) | state["config"]["flags"]
    return state


def interrupted_state(
    resume: str, last_path: Path, before_path: Path, started: str | None
) -> dict | None:
    """What `--resume` goes on from; None where there is nothing yet.

    started: when the run began whose checkpoint it has to be, also among those that were set aside
    for later runs'; None for any run. Where the last checkpoint is damaged it takes the one before,
    and says so.
    """
    paths = [Path(resume)] if resume != "auto" else [last_path, before_path]
    if started:
        paths += sorted(last_path.parent.glob(f"{last_path.stem}.*.pth"), reverse=True)
    paths = [path for path in paths if path.is_file()]
    if not paths and resume != "auto":
        raise RunError(f"--resume {resume}: no such file")
    damaged = None
    for path in paths:
        try:
            state = load_checkpoint(path)
        except RunError as error:
            damaged = damaged or error
            continue
        if started not in (None, state["config"]["started"]):
            continue
        if "crop_scores" not in state:
            raise RunError(f"--resume {path}: not a _last.pth, so there is nothing to go on from")
        if damaged:
            print(f"{damaged}; taking {path.name}, the one before", file=sys.stderr, flush=True)
        return state
    if damaged:
        raise damaged
    return None


def check_same_run(old: dict, new: dict) -> None:
    """Raise RunError that lists in what two configurations differ, save for FREE_FLAGS."""
    ours = ("model", "images", "labels", "data_fingerprint", "precision", "ranks")
    old, new = (
        {f"--{k}": v for k, v in c["flags"].items() if k not in FREE_FLAGS}
        | {k: c[k] for k in ours}
        for c in (old, new)
    )
    differing = [k for k in old | new if old.get(k) != new.get(k)]
    if differing:
        changes = "; ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in differing)
        raise RunError(
            f"--resume: the checkpoint is of another run ({changes}): give that run's settings, "
            "or another --checkpoint_dir"
        )


def keep_earlier(path: Path) -> None:
    """Rename another run's checkpoint by its time of writing: this run's takes its name."""
    if path.exists():
        written = datetime.fromtimestamp(path.stat().st_mtime)
        kept = path.with_name(f"{path.stem}.{written:%Y%m%d_%H%M%S}{path.suffix}")
        path.rename(kept)
        print(f"the earlier {path} is kept as {kept.name}")


def make_folder(flag: str, folder: str) -> Path:
    """The folder, made where it isn't there yet; RunError where it can't be written to."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{flag} {folder}: can't be made ({error.strerror})") from error
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"a byte")
    except OSError as error:
        raise RunError(
            f"{flag} {folder}: can't be written to ({error.strerror}); give a folder that can"
        ) from error
    return path


# The run ----------------------------------------------------------------------------------------


def load_data(args: argparse.Namespace) -> tuple["pd.DataFrame", str]:
    """The label table with its images found on disk, and where the labels came from."""
    table, source = data.read_labels(
        args.dataset,
        args.data_path,
        split=args.split,
        split_seed=args.split_seed,
        val_fraction=args.val_fraction,
        own_csv=data.CsvOptions(args.csv, args.csv_columns, args.lower_is_better, args.score_range),
    )
    return data.find_images(table, args.data_path), source


def build_model(args: argparse.Namespace, initial_score: float) -> "nn.Module":
    """The network of the flags; RunError where its weights can't be had."""
    from models_resnet_improved import ResNetImproved, WeightsError

    options = {"backbone_weights": args.backbone_weights, "initial_score": initial_score}
    name = args.model
    if name != "hyperiqa":
        options |= {name: getattr(args, name) for name in ("use_multiscale", "use_attention")}
        options["dropout_rate"] = args.dropout_rate
    try:
        if name == "resnet_improved":
            return ResNetImproved(**options)
        from models_hyperiqa import build_neighbour

        return build_neighbour(name, **options)
    except WeightsError as error:
        raise RunError(str(error)) from error


def build_optimizer(args: argparse.Namespace, model: "nn.Module", steps: int):
    """AdamW or Adam, a rate for the backbone and one for the new layers; their course over `steps`.

    `steps` are those of all epochs.
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


def judged_plan(args: argparse.Namespace, table: "pd.DataFrame") -> np.ndarray:
    """The crops of all validation images, then of all test images.

    Each split's are drawn by themselves, so that test crops don't depend on who validates.
    """
    plans = [
        data.test_plan(
            np.flatnonzero(table["split"] == split),
            crop=args.test_crop,
            patches=args.test_patch_num,
            resize=args.resize,
            patch_size=args.patch_size,
        )
        for split in ("val", "test")
    ]
    return np.concatenate(plans)


def judge(judged: "pd.DataFrame", scores: np.ndarray) -> dict[str, float]:
    """val_srcc, test_srcc, test_plcc ... of the judged images' scores, for the splits there are."""
    figures = {}
    for split in ("val", "test"):
        part = (judged["split"] == split).to_numpy()
        if part.any():
            values = agreement(scores[part], judged["mos"].to_numpy()[part])
            figures |= {f"{split}_{name}": value for name, value in values.items()}
    return figures


def check_batches(args: argparse.Namespace, crops: int, processes: int) -> None:
    """RunError where batches can't be shared out, or are too small to be normalised."""
    if args.batch_size % processes:
        raise RunError(
            f"--batch_size {args.batch_size} can't be shared by {processes} processes: it is the "
            f"whole batch; give a multiple of {processes}"
        )
    last = crops % args.batch_size or args.batch_size
    least = 1 if args.patch_size > 32 else 2  # stage 4 is 1 x 1 at 32: BatchNorm needs two of them
    if last // processes < least:
        raise RunError(
            f"--batch_size {args.batch_size} leaves a last batch of {last} crops, and "
            f"{'each process' if processes > 1 else 'it'} needs at least {least} (at --patch_size "
            f"{args.patch_size}): give another --batch_size"
        )


def distributed(model: "nn.Module", device: "torch.device") -> "nn.Module":
    """The network as one of several processes trains it: gradients are averaged over them all.

    On CUDA BatchNorm takes its statistics over the whole batch. On the CPU, where PyTorch has no
    such layer, each process takes them over its own part, and the first one's running averages are
    kept.
    """
    from torch import nn

    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, as no BatchNorm is the root
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


class Run:
    """A run: its data, its network and its optimizer, and how far it has come.

    epochs: the record of each finished epoch. judged: of each, the scores (N,) and stage weights
    (N, 4) or None of the validation and test images. In the epoch under way: earlier_scores (n,)
    are those of the crops done before an interruption, in the order of the plan, and the first
    `kept` of crop_scores those of this process's steps since.
    """

    def __init__(self, args: argparse.Namespace, ranks: Ranks):
        """Raises DataError and RunError for data, weights and flags that can't be used."""
        self.args, self.ranks, self.stopping = args, ranks, Stopping()
        labels, source = load_data(args)  # before torch is loaded, as much can be wrong with it

        import torch

        from models_resnet_improved import multiply_adds

        self.device = device = choose_device(args.device)
        self.precision = choose_precision(args.amp, device)
        ranks.start(device)
        keep_freed_memory()
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = True  # the linear layers of the head stay float32
        torch.manual_seed(args.seed)

        self.train_images = np.flatnonzero(labels["split"] == "train")
        self.crops = len(self.train_images) * args.train_patch_num
        self.steps = -(-self.crops // args.batch_size)
        check_batches(args, self.crops, ranks.count)
        model = build_model(args, initial_score=float(labels["mos"][self.train_images].mean()))
        costs = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "multiply_adds": multiply_adds(model, args.patch_size),
            "rates": getattr(model, "rates", {}),  # those that no flag gives
        }
        self.model = model.to(device, memory_format=torch.channels_last)
        if args.compile:
            compile_in_place(self.model, device)
        self.optimizer, self.scheduler = build_optimizer(args, model, self.steps * args.epochs)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

        store, self.table = data.open_store(
            labels, args.data_path, resize=args.resize, store_dir=args.store_dir, name=args.dataset
        )
        self.store = place_store(store, args.store_device, device)
        self.labels = self.table["mos"].to_numpy()
        self.mos = torch.tensor(self.labels, dtype=torch.float32, device=device)
        self.test_plan = judged_plan(args, self.table)
        self.test_table = self.table.loc[self.test_plan[:: args.test_patch_num, 0]]
        self.config = configuration(
            args, self.table, source, device, self.store, self.precision, costs, ranks
        )
        self.epochs, self.judged = [], []
        self.earlier_scores = np.empty(0, np.float32)
        # One block for all: a small one of each step would stay between the large ones that come
        # and go, and memory would grow by the step.
        self.crop_scores, self.kept = torch.empty(self.crops, device=device), 0

        self.network = self.model
        if ranks.count > 1:
            if len(self.test_table) < ranks.count:
                raise RunError(
                    f"{len(self.test_table)} images to judge can't be shared by {ranks.count} "
                    "processes: give torchrun a smaller --nproc-per-node"
                )
            self.network = distributed(self.model, device)
            if ranks.number:  # its own dropout
                torch.manual_seed(args.seed + 2**32 * ranks.number)

    def loader(self, plan: np.ndarray, batch_size: int, *, ranks: int = 1, **options):
        """The batches of a plan; with `ranks`, this process's part of each."""
        workers, on_cuda = self.args.workers, self.device.type == "cuda"
        batches = data.Batches(
            self.store,
            self.table["row"].to_numpy(),
            plan,
            patch_size=self.args.patch_size,
            batch_size=batch_size,
            rank=self.ranks.number if ranks > 1 else 0,
            ranks=ranks,
            **options,
        )
        workers = 4 * on_cuda if workers is None else workers
        return data.make_loader(batches, workers=workers, pin=on_cuda)

    def train_epoch(self, epoch: int, *, announce: bool) -> tuple[np.ndarray, np.ndarray]:
        """Train on what is left of an epoch's plan; images and scores of all its crops, in order.

        Raises Interrupted, and RunError when the loss is not finite.
        """
        args = self.args
        plan = data.training_plan(
            self.train_images,
            patches=args.train_patch_num,
            resize=args.resize,
            patch_size=args.patch_size,
            seed=args.seed,
            epoch=epoch,
        )
        done = len(self.earlier_scores)
        jitter = None
        if args.color_jitter:
            jitter = data.jitter_plan(len(plan), seed=args.seed, epoch=epoch)[done:]
        watch = self.progress(f"epoch {epoch}/{args.epochs} training", self.crops - done)
        if announce and self.device.type == "cpu" and self.ranks.is_first:
            watch = announce_time(watch, args, self.crops, len(self.test_plan), epoch)
        loader = self.loader(plan[done:], args.batch_size, ranks=self.ranks.count, jitter=jitter)
        if done < len(plan):
            train_one_epoch(
                self.network,
                loader,
                self.mos,
                self.optimizer,
                self.scheduler,
                self.scaler,
                precision=self.precision,
                gradient_clip=args.gradient_clip,
                watch=self.between_steps(watch, len(loader), save=True),
                keep=self.keep_scores,
            )
        return plan[:, 0], self.gather_scores()

    def keep_scores(self, scores: "Tensor") -> None:
        """Copies them, as a CUDA graph writes its next result in their place."""
        self.crop_scores[self.kept : self.kept + len(scores)] = scores
        self.kept += len(scores)

    def evaluate(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores (N,) and stage weights (N, 4) or None of all judged images. Raises Interrupted."""
        args, ranks = self.args, self.ranks
        batch_size = evaluation_batch(self.device, args.patch_size)
        plans = self.test_plan.reshape(-1, args.test_patch_num, 4)  # (N, P, 4)
        plan = plans[ranks.number :: ranks.count].reshape(-1, 4)  # every count-th image
        most = len(plans[:: ranks.count]) * args.test_patch_num  # of any process
        watch = self.progress(f"epoch {epoch}/{args.epochs} evaluation", len(plan), batch_size)
        scores, weights = evaluate(
            self.model,
            self.loader(plan, batch_size),
            args.test_patch_num,
            device=self.device,
            precision=self.precision,
            watch=self.between_steps(watch, -(-most // batch_size), save=False),
            compiled=args.compile,
        )
        return self.interleave(scores), None if weights is None else self.interleave(weights)

    def interleave(self, values: np.ndarray) -> np.ndarray:
        """The values of all images, of which each process has every count-th."""
        parts = self.ranks.gather(values)
        whole = np.full((len(self.test_table), *values.shape[1:]), np.nan)
        for rank, part in enumerate(parts):
            whole[rank :: self.ranks.count] = part
        assert sum(map(len, parts)) == len(whole), "every image is judged exactly once"
        return whole

    def progress(self, what: str, total: int, batch_size: int | None = None):
        """How the steps are shown: by the first process alone."""
        if not self.ranks.is_first:
            return iter
        return data.Progress(what, total, "patches", batch_size or self.args.batch_size)

    def between_steps(self, watch, steps: int, *, save: bool):
        """`watch`, which after each step looks for signals and, with `save`, at the clock.

        Every process looks `steps` times, as they have to agree. Raises Interrupted when a signal
        has come and the state is saved.
        """

        def watched(loader):
            left = steps
            for batch in watch(loader):
                yield batch
                left -= 1
                self.look_up(save)
            for _ in range(left):
                self.look_up(save)

        return watched

    def look_up(self, save: bool) -> None:
        minutes = (time.monotonic() - self.saved) / 60
        due = save and self.ranks.is_first and minutes >= self.args.save_minutes
        number, due = self.ranks.highest(self.stopping.signal, due)
        if number or due:
            self.save_last()
        if number:
            raise Interrupted(number, self.last_path)

    def gather_scores(self) -> np.ndarray:
        """Scores of the epoch's crops so far; RunError with the step where one is not finite."""
        own = self.crop_scores[: self.kept].cpu().numpy()
        parts = self.ranks.gather(own)
        done = len(self.earlier_scores)
        scores = np.concatenate([self.earlier_scores, np.empty(sum(map(len, parts)), np.float32)])
        for rank, part in enumerate(parts):
            at = data.share_of(self.crops - done, self.args.batch_size, rank, self.ranks.count)
            scores[done + at[: len(part)]] = part
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise self.not_finite(bad[0] // self.args.batch_size + 1)
        return scores

    def not_finite(self, step: int) -> RunError:
        there = self.last_path is not None and self.last_path.exists()
        return RunError(
            f"epoch {len(self.epochs) + 1}, step {step} of {self.steps}: the loss is not finite "
            "any more; try a lower --lr, or --amp off"
            + (f"; {self.last_path} is from before" if there else "")
        )

    def save_last(self) -> None:
        """Write `_last.pth`, from which the run goes on as if nothing had happened."""
        import torch

        self.saved = time.monotonic()
        if self.last_path is None:
            return
        crop_scores = torch.tensor(self.gather_scores())
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise self.not_finite(-(-len(crop_scores) // self.args.batch_size))
        cuda_rng = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        rng = self.ranks.gather((torch.get_rng_state(), cuda_rng))
        if not self.ranks.is_first:
            return
        state = self.content() | {
            "judged": [[None if a is None else torch.tensor(a) for a in j] for j in self.judged],
            "crop_scores": crop_scores,
            "rng": rng,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.last_path, state, before=self.before_path)

    def save_best(self) -> None:
        """Write `_best.pth`: after `_last.pth`, so that its epoch is always one on record."""
        if self.last_path:
            save_checkpoint(self.best_path, self.content() | {"chosen_on": "test"})

    def content(self) -> dict:
        """What every checkpoint holds."""
        return {"model": self.model.state_dict(), "config": self.config, "epochs": self.epochs}

    def restore(self, state: dict) -> None:
        """Put everything back to where `state` was taken; RunError for another run's."""
        import torch

        check_same_run(state["config"], self.config)
        present, self.config = self.config, state["config"]
        where = {k: present["flags"][k] for k in FREE_FLAGS - {"resume", "run_name"}}
        if len(state["epochs"]) < self.args.epochs:  # else the present machine has no part in it
            self.record_resumption(present, where, state)
        self.config["flags"] |= where
        self.epochs = state["epochs"]
        self.judged = [[None if a is None else a.numpy() for a in j] for j in state["judged"]]
        self.earlier_scores = state["crop_scores"].numpy()
        for name in ("model", "optimizer", "scheduler", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        rng, cuda_rng = state["rng"][self.ranks.number]
        torch.set_rng_state(rng)
        if self.device.type == "cuda" and cuda_rng is not None:
            torch.cuda.set_rng_state(cuda_rng)

    def record_resumption(self, present: dict, where: dict, state: dict) -> None:
        """Note in the configuration what is otherwise from here on, and what it was before."""
        for what in ("device_name", "threads", "versions", "git_commit"):
            old, new = self.config[what], present[what]
            if old != new and self.ranks.is_first:
                print(f"resumed with another {what}: not the same to the last bit ({old}; {new})")
        before = {what: self.config.get(what) for what in MACHINE}
        before = {what: was for what, was in before.items() if was != present[what]}
        before["flags"] = {k: v for k, v in self.config["flags"].items() if where.get(k, v) != v}
        self.config |= {what: present[what] for what in MACHINE}
        self.config["resumed"] = [
            *self.config.get("resumed", []),
            {
                "at": timestamp(),
                "epoch": len(state["epochs"]) + 1,
                "crops": len(state["crop_scores"]),
                "before": before,  # what was otherwise until then
            },
        ]

    def begin(self, log_dir: Path, checkpoint_dir: Path | None) -> None:
        """Take up an interrupted run, or claim the names of a new one."""
        args, is_first = self.args, self.ranks.is_first
        self.log_dir, self.saved, self.last_path = log_dir, time.monotonic(), None
        if checkpoint_dir:
            stem = checkpoint_dir / model_name(args)
            self.best_path, self.last_path, self.before_path = (
                stem.with_name(f"{stem.name}_{which}.pth") for which in ("best", "last", "before")
            )
        state = None
        if args.resume:
            state = self.interrupted()
            self.ranks.gather(None)  # nobody renames what another still reads
        if state:
            self.restore(state)
            args.run_name = args.run_name or self.config["flags"]["run_name"]
        else:
            args.run_name = args.run_name or f"{model_name(args)}_{datetime.now():%Y%m%d_%H%M%S}"
            self.config["flags"]["run_name"] = args.run_name
        if not is_first:
            return
        print(describe(self.config), flush=True)
        if state:
            epoch, crops = len(self.epochs) + 1, len(self.earlier_scores)
            if epoch > args.epochs:
                print("resumed     nothing: finished already", flush=True)
            else:
                print(f"resumed     in epoch {epoch}, after {crops:,} of {self.crops:,} crops")
            self.write_outputs()
            self.take_over_checkpoints()
            return
        if args.resume:
            print(f"nothing to resume from in {checkpoint_dir} yet: begins anew", flush=True)
        claim(self.record_path(), self.config, again=bool(args.resume))
        if checkpoint_dir:
            for path in (self.best_path, self.last_path, self.before_path):
                keep_earlier(path)

    def take_over_checkpoints(self) -> None:
        """Of a resumed run: set aside what isn't of its past, and see to `_best.pth`."""
        for path in (self.best_path, self.last_path, self.before_path):
            if path.exists() and not self.is_past(path):
                keep_earlier(path)
        best = best_epoch(self.epochs, "test")
        if best and best is self.epochs[-1] and not len(self.earlier_scores):
            self.save_best()  # of the network as it is now: it may have come to `_last.pth` alone
        elif best and not self.best_path.exists():
            print(f"no {self.best_path.name} until an epoch is better than epoch {best['epoch']}")

    def is_past(self, path: Path) -> bool:
        """Whether a checkpoint is whole, and of an epoch that this run has on record."""
        try:
            state = load_checkpoint(path)
        except RunError:
            return False
        epochs = state["epochs"]
        of_this_run = state["config"]["started"] == self.config["started"]
        return of_this_run and epochs == self.epochs[: len(epochs)]

    def record_path(self) -> Path:
        return self.log_dir / f"{self.args.run_name}.jsonl"

    def interrupted(self) -> dict | None:
        """What `--resume` goes on from: a given file, or the run of the record of this run's name.

        Without a name it is the last run of this model; None where there is nothing yet. RunError
        where the record has epochs of a run that can't be gone on with.
        """
        args, lines = self.args, []
        if args.run_name and self.record_path().exists():
            lines = [json.loads(line) for line in self.record_path().read_text().splitlines()]
        started = lines[0]["started"] if lines else None
        if args.resume == "auto" and args.run_name and not started:
            return None
        wanted = started if args.resume == "auto" else None
        state = interrupted_state(args.resume, self.last_path, self.before_path, wanted)
        if len(lines) > 1 and (state is None or state["config"]["started"] != started):
            raise RunError(
                f"--resume: no checkpoint in {self.last_path.parent} is of the run that "
                f"{self.record_path()} records: give another --run_name to begin anew"
            )
        return state

    def write_outputs(self) -> None:
        write_outputs(
            self.log_dir,
            self.args.run_name,
            self.config,
            self.epochs,
            self.judged,
            self.test_table,
        )

    def learn(self) -> None:
        """All epochs that are left, each trained, judged, recorded and saved."""
        first = len(self.epochs) + 1
        for epoch in range(first, self.args.epochs + 1):
            began = time.monotonic()
            done = (epoch - 1) * self.steps
            rates = [
                x * f(done) for x, f in zip(self.scheduler.base_lrs, self.scheduler.lr_lambdas)
            ]
            left = self.crops - len(self.earlier_scores)
            order, crop_scores = self.train_epoch(epoch, announce=epoch == first)
            trained = time.monotonic()
            scores, weights = self.evaluate(epoch)
            evaluated = time.monotonic()

            fitted, fitted_images = mean_by_image(crop_scores, order)
            record = {
                "type": "epoch",
                "epoch": epoch,
                "loss": float(np.abs(crop_scores - self.labels[order]).mean()),
                "train_srcc": agreement(fitted, self.labels[fitted_images])["srcc"],
                **judge(self.test_table, scores),
                "lr_backbone": rates[0],
                "lr_new": rates[1],
                "patches_per_second": left / (trained - began),
                "test_patches_per_second": len(self.test_plan) / (evaluated - trained),
                "peak_memory_gb": peak_memory(self.device),
                "seconds": evaluated - began,
            }
            record = {k: None if v != v else v for k, v in record.items()}  # JSON knows no NaN
            self.epochs.append(record)
            self.judged.append((scores, weights))
            self.earlier_scores, self.kept = np.empty(0, np.float32), 0
            if self.ranks.is_first:
                if epoch == first:
                    print(HEADER)
                print(epoch_row(record), flush=True)
                self.write_outputs()
            self.save_last()
            if self.ranks.is_first and best_epoch(self.epochs, "test") is record:
                self.save_best()
        if self.ranks.is_first:
            if self.last_path:
                self.before_path.unlink(missing_ok=True)
            print(closing_lines(self.epochs))


def announce_time(watch, args: argparse.Namespace, crops: int, test_crops: int, epoch: int):
    """`watch`, saying after the first steps how long the rest of the run takes on this CPU."""

    def watched(loader):
        measured = min(ESTIMATE_AFTER, len(loader) - 1)
        first = min(1, measured - 1)  # the first step warms up, if there are others to measure
        if measured == 0:
            data.say("no CUDA device in use: this trains on the CPU, a step an epoch")
        for step, batch in enumerate(watch(loader)):
            if step == first:
                began = time.monotonic()
            if step == measured > 0:
                rate = (measured - first) * args.batch_size / (time.monotonic() - began)
                # A patch of evaluation costs about a quarter of one of training.
                left = args.epochs - epoch + 1
                seconds = left * (crops + test_crops / 4) / rate
                data.say(
                    "no CUDA device in use: this trains on the CPU, about "
                    f"{data.duration(seconds)} for {left} epochs at {rate:.1f} patches/s"
                )
            yield batch

    return watched


def run(args: argparse.Namespace) -> None:
    """Train and evaluate as the flags say.

    Raises DataError and RunError with one sentence, and Interrupted once the state is saved.
    """
    data.check_folder(args.dataset, args.data_path)
    log_dir = make_folder("--log_dir", args.log_dir)
    record = log_dir / f"{args.run_name}.jsonl"
    if args.run_name and not args.resume and record.exists():
        raise RunError(f"{record} is there already: give another --run_name or --log_dir")
    checkpoint_dir = (
        make_folder("--checkpoint_dir", args.checkpoint_dir) if args.save_model else None
    )

    ranks, lock = Ranks(), nullcontext()
    if checkpoint_dir and ranks.is_first:
        lock = data.locked(checkpoint_dir / f".{model_name(args)}.lock", wait=False)
    try:
        with lock:
            run = Run(args, ranks)
            run.begin(log_dir, checkpoint_dir)
            with run.stopping:
                run.learn()
        ranks.stop()
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise RunError(
                f"a process that cuts crops has died ({str(error).splitlines()[0]}): give more "
                "memory (in a container: shared memory), or --workers 0"
            ) from error
        if ranks.count == 1 or not died_elsewhere(error):
            raise
        raise RunError(
            f"another process of this run has died ({str(error).splitlines()[0]}); the same "
            "command with --save_model and --resume goes on from its last checkpoint"
        ) from error
    except BlockingIOError as error:
        raise RunError(
            f"another run is writing {checkpoint_dir}/{model_name(args)}_*.pth: give another "
            "--checkpoint_dir"
        ) from error
    finally:
        end_workers()


def end_workers() -> None:
    """Kill the processes that cut crops where an error has left them: they ignore SIGTERM."""
    workers = multiprocessing.active_children()
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would report each as lost
    for worker in workers:
        worker.kill()
        worker.join()


def died_elsewhere(error: RuntimeError) -> bool:
    """Whether it is the connection to another process that has failed."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo/" in str(error)


def stop_on_sigterm(*_) -> None:
    """End as after an error, so that temporary files are removed."""
    print("stopped by SIGTERM before there was anything to save", file=sys.stderr)
    raise SystemExit(143)


def resume_command() -> str:
    """This process's command line with --resume."""
    arguments = [a for a in sys.argv[1:] if a != "--resume"]
    return shlex.join([Path(sys.executable).name, sys.argv[0], *arguments, "--resume"])


def main() -> int:
    args = parse_args()
    signal.signal(signal.SIGTERM, stop_on_sigterm)
    try:
        run(args)
    except (DataError, RunError) as error:
        return fail(str(error).rpartition("DataError: ")[2])  # from a worker: below its traceback
    except MemoryError:
        return fail("out of memory: give a smaller --batch_size or --patch_size, or --workers 0")
    except OSError as error:  # a disk that is full, a file that went away
        return fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return fail(
            f"out of memory ({str(error).splitlines()[0]}): on a GPU, --store_device cpu leaves it "
            "more and changes no result; or give a smaller --batch_size, and say so beside your "
            "numbers, as it changes the training"
        )
    except Interrupted as interrupted:
        number, saved = interrupted.args
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
        if saved:
            print(f"{saved} is whole; to go on:\n  {resume_command()}", file=sys.stderr)
        else:
            print("nothing is saved but the record, for want of --save_model", file=sys.stderr)
        return 128 + number
    except KeyboardInterrupt:
        print("stopped by Ctrl-C at once", file=sys.stderr)
        return 130
    return 0


def fail(sentence: str) -> int:
    """Say on stderr what went wrong, and in which process where there are several."""
    rank = f"process {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    print(f"error: {rank}{sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
