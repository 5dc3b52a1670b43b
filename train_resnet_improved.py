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
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import data_loader as data
from data_loader import DataError
from metrics import agreement

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    import pandas as pd
    import torch
    from torch import Tensor, nn

GRADIENT_CLIP = 1.0
FINAL_LR = 0.01  # of the initial rate, where the cosine ends
ESTIMATE_AFTER = 10  # training steps, measured to say how long a run on the CPU takes


class RunError(RuntimeError):
    """The run can't begin or go on; the message says why, and what to do."""


# Flags ------------------------------------------------------------------------------------------


def number(kind: type, low: float, high: float = math.inf, *, open_end: bool = False):
    """An argparse type: a number within low..high (below high if open_end)."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high) or (open_end and value == high) or math.isinf(value):
            most = "" if math.isinf(high) else f" and {'below' if open_end else 'at most'} {high:g}"
            kind_name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {kind_name} of at least {low:g}{most}")
        return value

    return parse


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

    group = parser.add_argument_group("model")
    flag = group.add_argument
    flag("--use_multiscale", action="store_true", help="fuse all four stages, not stage 4 alone")
    flag("--use_attention", action="store_true", help="weight the stages; needs --use_multiscale")
    flag(
        "--dropout_rate",
        type=number(float, 0, 1, open_end=True),
        default=0.3,
        metavar="RATE",
        help="of the reduced maps and the attention; more where training fits and tests don't",
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
        "--split",
        choices=["auto", "json", "official", "random"],
        default="auto",
        help="auto: koniq_*.json, else the official one; random: 80/20 by --split_seed",
    )
    flag(
        "--split_seed",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="of the random split and of --val_fraction",
    )
    flag(
        "--val_fraction",
        type=number(float, 0, 0.5),
        metavar="F",
        help="part of training to validate on where a data set has no validation images (default: "
        "0 for koniq-10k, 0.1 for biq2021)",
    )
    flag(
        "--resize",
        type=number(int, 32, 8192),
        nargs=2,
        metavar=("H", "W"),
        help="height and width of every image before crops (default: 512 384 for koniq-10k as in "
        "HyperIQA, which makes 1024x768 portrait; 384 512 keeps its aspect; 512 512 for biq2021)",
    )
    flag(
        "--patch_size",
        type=number(int, 32, 8192),
        default=224,
        metavar="N",
        help="side of a crop, pixels",
    )
    flag(
        "--train_patch_num",
        type=number(int, 1, 1000),
        default=25,
        metavar="N",
        help="random crops an image and epoch; fewer for a shorter run",
    )
    flag(
        "--test_patch_num",
        type=number(int, 1, 1000),
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
        type=number(int, 1, 10_000),
        default=10,
        metavar="N",
        help="passes over the training images; the rates fall over all of them",
    )
    flag(
        "--batch_size",
        type=number(int, 1, 65_536),
        default=32,
        metavar="N",
        help="crops a step; fewer when memory runs out, which changes training",
    )
    flag(
        "--lr",
        type=number(float, 0, 1),
        default=1e-4,
        metavar="X",
        help="initial rate of the backbone; more from random weights",
    )
    flag(
        "--lr_ratio",
        type=number(float, 0, 10_000),
        default=10.0,
        metavar="X",
        help="rate of the new layers over that of the backbone",
    )
    flag("--weight_decay", type=number(float, 0, 1), default=1e-4, metavar="X", help="of AdamW")
    flag(
        "--seed",
        type=number(int, 0, 2**32 - 1),
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
        help="torch.compile the network (CUDA graphs on a GPU): minutes at the start, faster steps",
    )
    flag(
        "--workers",
        type=number(int, 0, 256),
        metavar="N",
        help="processes that cut crops from a store on the CPU; results don't depend on it "
        "(default: 0 on the CPU, 4 on CUDA)",
    )
    flag("--save_model", action="store_true", help="write the checkpoints _best.pth and _last.pth")
    flag("--checkpoint_dir", default="checkpoints", metavar="DIR", help="for the checkpoints")
    flag("--log_dir", default="logs", metavar="DIR", help="for the record and the predictions")
    flag("--run_name", metavar="NAME", help="their names (default: the model's, and the time)")

    args = parser.parse_args(argv)
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
    args.resize = tuple(args.resize or data.DATASETS[args.dataset].resize)
    if args.patch_size > min(args.resize):
        parser.error(
            f"--patch_size {args.patch_size} is larger than the images, which --resize makes "
            f"{args.resize[0]} x {args.resize[1]}"
        )
    args.run_name = args.run_name or f"{model_name(args)}_{datetime.now():%Y%m%d_%H%M%S}"
    if Path(args.run_name).name != args.run_name:
        parser.error(f"--run_name {args.run_name}: a name, not a path; the folder is --log_dir")
    return args


def model_name(args: argparse.Namespace) -> str:
    """resnet_improved_ms_att: how checkpoints and runs are called."""
    scales = "ms" if args.use_multiscale else "ss"
    return f"resnet_improved_{scales}_{'att' if args.use_attention else 'noatt'}"


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


def train_one_epoch(
    model: "nn.Module",
    loader: "torch.utils.data.DataLoader",
    mos: "Tensor",
    optimizer: "torch.optim.Optimizer",
    scheduler: "torch.optim.lr_scheduler.LRScheduler",
    scaler: "torch.amp.GradScaler",
    *,
    precision: str,
    watch,
) -> tuple[float, np.ndarray]:
    """One pass over the loader's crops: their mean L1 loss, and each crop's score in plan order.

    `mos` (on the device) holds the label of each image of the plan. `watch` wraps the loader's
    steps (a progress bar). Raises RunError when the loss is not finite.
    """
    import torch
    import torch.nn.functional as F

    device = mos.device
    model.train()
    scores = []
    total_loss = torch.zeros((), device=device, dtype=torch.float64)

    for batch in watch(loader):
        images = data.to_network_input(batch, device)
        labels = mos[batch["images"].to(device, non_blocking=True)]

        with autocast(device, precision):
            score, _ = model(images)
        assert score.shape == labels.shape, f"scores {score.shape} for labels {labels.shape}"
        loss = F.l1_loss(score, labels)

        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()

        scores.append(score.detach().clone())  # a CUDA graph writes its next result in its place
        total_loss += loss.detach() * len(labels)

    scores = torch.cat(scores)
    mean_loss = float(total_loss) / len(scores)
    if not math.isfinite(mean_loss):
        raise RunError("the loss is not finite any more; try a lower --lr, or --amp off")
    return mean_loss, scores.cpu().numpy()


def evaluate(
    model: "nn.Module",
    loader: "torch.utils.data.DataLoader",
    crops_per_image: int,
    *,
    device: "torch.device",
    precision: str,
    watch,
    compiled: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (N,) and stage weights (N, 4) or None of the loader's images: means over their crops.

    The loader's plan goes image by image, `crops_per_image` crops each (data_loader.test_plan).
    Both are float64 of six decimals, so that the predictions CSV holds the very numbers.
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
            scores.append(score.clone())
            weights.append(None if stage_weights is None else stage_weights.clone())

    scores = torch.cat(scores).view(-1, crops_per_image)  # (N, P)
    scores = scores.cpu().double().mean(1).numpy().round(6)  # (N,)
    if weights[0] is None:
        return scores, None
    weights = torch.cat(weights).view(len(scores), crops_per_image, -1)  # (N, P, 4)
    return scores, weights.cpu().double().mean(1).numpy().round(6)  # (N, 4)


def mean_by_image(scores: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean score of each image that occurs, and which images these are."""
    present, at = np.unique(images, return_inverse=True)
    return np.bincount(at, scores) / np.bincount(at), present


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
    parameters: int,
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
        "parameters": parameters,
        "flags": vars(args) | {"resize": list(args.resize)},
        "labels": source,
        "images": data.count_splits(table),
        "data_fingerprint": data.fingerprint(table),
        "device": device.type,
        "device_name": cuda or platform.processor() or platform.machine(),
        "store_device": torch.device(store.device).type,
        "precision": precision,
        "threads": torch.get_num_threads(),
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
        "started": f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
    }


def describe(config: dict) -> str:
    """The configuration block of the console."""
    flags, images = config["flags"], config["images"]
    counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
    published = tuple(images.values()) in data.DATASETS[flags["dataset"]].published
    labels, _, split = config["labels"].partition("; ")
    crops = f"{flags['test_crop']}, {flags['test_patch_num']} an image"
    lines = {
        "model": f"{config['model']}, {config['parameters'] / 1e6:.2f} M parameters, "
        f"backbone weights {flags['backbone_weights']}, dropout {flags['dropout_rate']:g}",
        "data": f"{flags['dataset']} in {flags['data_path']}: {counts} images "
        f"({'the' if published else 'not the'} counts of a published split)",
        "labels": labels,
        "split": split,
        "fingerprint": config["data_fingerprint"],
        "crops": f"{flags['patch_size']} of {flags['resize'][0]} x {flags['resize'][1]} (H x W); "
        f"training {flags['train_patch_num']} an image and epoch, colour jitter "
        f"{'on' if flags['color_jitter'] else 'off'}; test {crops}",
        "optimiser": f"AdamW, lr {flags['lr']:g} (new layers x{flags['lr_ratio']:g}), weight decay "
        f"{flags['weight_decay']:g}, cosine to {FINAL_LR:.0%}, batch {flags['batch_size']}, "
        f"{flags['epochs']} epochs, seed {flags['seed']}",
        "device": f"{config['device']} ({config['device_name']}), precision "
        f"{'fp32' if config['precision'] == 'off' else config['precision']}"
        f"{', compiled' if flags['compile'] else ''}, {config['threads']} threads, "
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


UNDEFINED = "scores or labels that are all the same, or not finite"


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


def save_checkpoint(path: Path, content: dict) -> None:
    """torch.save to a temporary file that is renamed when it is whole on disk."""
    import torch

    try:
        with data.replacing(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise RunError(f"{path}: the checkpoint can't be written ({error})") from error


def keep_earlier(path: Path) -> None:
    """Rename another run's checkpoint by its time of writing: this run's takes its name."""
    if path.exists():
        written = datetime.fromtimestamp(path.stat().st_mtime)
        kept = path.with_name(f"{path.stem}.{written:%Y%m%d_%H%M%S}{path.suffix}")
        path.rename(kept)
        print(f"the earlier {path} is kept as {kept.name}")


def claim(path: Path, text: str) -> None:
    """Begin a record; RunError where another run has begun one of that name meanwhile."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RunError(f"{path} is there already: give another --run_name or --log_dir") from error


def make_folder(flag: str, folder: str) -> Path:
    """The folder, made where it isn't there yet; RunError where it can't be written to."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{flag} {folder}: can't be made ({error.strerror})") from error
    if not os.access(path, os.W_OK):
        raise RunError(f"{flag} {folder}: can't be written to; give a folder that can")
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
    )
    return data.find_images(table, args.data_path), source


def build_model(args: argparse.Namespace, initial_score: float) -> "nn.Module":
    """The network of the flags; RunError where its weights can't be had."""
    from models_resnet_improved import ResNetImproved, WeightsError

    try:
        return ResNetImproved(
            use_multiscale=args.use_multiscale,
            use_attention=args.use_attention,
            dropout_rate=args.dropout_rate,
            backbone_weights=args.backbone_weights,
            initial_score=initial_score,
        )
    except WeightsError as error:
        raise RunError(str(error)) from error


def build_optimizer(args: argparse.Namespace, model: "nn.Module", steps: int):
    """AdamW with a rate for the backbone and one for the new layers; their cosine over `steps`."""
    import torch

    backbone, new = model.parameter_groups()
    optimizer = torch.optim.AdamW(
        [{"params": backbone, "lr": args.lr}, {"params": new, "lr": args.lr * args.lr_ratio}],
        weight_decay=args.weight_decay,
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps)
    )
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


def run(args: argparse.Namespace) -> None:
    """Train and evaluate as the flags say. Raises DataError and RunError with one sentence."""
    data.check_folder(args.dataset, args.data_path)
    if not args.save_model:
        return train(args, None)
    checkpoint_dir = make_folder("--checkpoint_dir", args.checkpoint_dir)
    try:
        with data.locked(checkpoint_dir / f".{model_name(args)}.lock", wait=False):
            train(args, checkpoint_dir)
    except BlockingIOError as error:
        raise RunError(
            f"another run is writing {checkpoint_dir}/{model_name(args)}_*.pth: give another "
            "--checkpoint_dir"
        ) from error


def train(args: argparse.Namespace, checkpoint_dir: Path | None) -> None:
    """The run itself: data, model, optimizer, loop. Checkpoints only where there is a folder."""
    log_dir = make_folder("--log_dir", args.log_dir)
    record_path = log_dir / f"{args.run_name}.jsonl"
    if record_path.exists():
        raise RunError(f"{record_path} is there already: give another --run_name or --log_dir")
    table, source = load_data(args)

    import pandas as pd
    import torch

    device = choose_device(args.device)
    precision = choose_precision(args.amp, device)
    on_cuda = device.type == "cuda"
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True  # the linear layers of the head stay float32
    torch.manual_seed(args.seed)

    train_images = np.flatnonzero(table["split"] == "train")
    model = build_model(args, initial_score=float(table["mos"][train_images].mean()))
    model = model.to(device, memory_format=torch.channels_last)
    if args.compile:
        compile_in_place(model, device)
    crops = len(train_images) * args.train_patch_num
    steps = -(-crops // args.batch_size)
    if args.patch_size == 32 and crops - (steps - 1) * args.batch_size == 1:
        raise RunError(
            f"--batch_size {args.batch_size} leaves a last batch of one crop, whose 1 x 1 maps at "
            "--patch_size 32 can't be batch-normalised: change either"
        )
    optimizer, scheduler = build_optimizer(args, model, steps * args.epochs)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    store, table = data.open_store(
        table, args.data_path, resize=args.resize, store_dir=args.store_dir, name=args.dataset
    )
    store = place_store(store, args.store_device, device)
    mos = torch.tensor(table["mos"].to_numpy(), dtype=torch.float32, device=device)
    workers = args.workers if args.workers is not None else 4 * on_cuda

    def loader(plan: np.ndarray, batch_size: int, jitter: np.ndarray | None = None):
        rows, size = table["row"].to_numpy(), args.patch_size
        batches = data.Batches(
            store, rows, plan, patch_size=size, batch_size=batch_size, jitter=jitter
        )
        return data.make_loader(batches, workers=workers, pin=on_cuda)

    test_plan = judged_plan(args, table)
    test_batch = max(args.batch_size, 256 if on_cuda else 64)  # nothing is kept for gradients
    test_loader = loader(test_plan, test_batch)
    judged = table.loc[test_plan[:: args.test_patch_num, 0]]

    parameters = sum(p.numel() for p in model.parameters())
    config = configuration(args, table, source, device, store, precision, parameters)
    print(describe(config), flush=True)
    claim(record_path, json.dumps(config) + "\n")
    if checkpoint_dir:
        best_path, last_path = (
            checkpoint_dir / f"{model_name(args)}_{which}.pth" for which in ("best", "last")
        )
        keep_earlier(best_path)
        keep_earlier(last_path)

    records, frames = [], []
    for epoch in range(1, args.epochs + 1):
        began, rates = time.monotonic(), scheduler.get_last_lr()
        name = f"epoch {epoch}/{args.epochs}"
        plan = data.training_plan(
            train_images,
            patches=args.train_patch_num,
            resize=args.resize,
            patch_size=args.patch_size,
            seed=args.seed,
            epoch=epoch,
        )
        jitter = None
        if args.color_jitter:
            jitter = data.jitter_plan(len(plan), seed=args.seed, epoch=epoch)
        watch = data.Progress(f"{name} training", len(plan), "patches", args.batch_size)
        if epoch == 1 and not on_cuda:
            watch = announce_time(watch, args, len(plan), len(test_plan))
        loss, train_scores = train_one_epoch(
            model,
            loader(plan, args.batch_size, jitter),
            mos,
            optimizer,
            scheduler,
            scaler,
            precision=precision,
            watch=watch,
        )
        trained = time.monotonic()

        watch = data.Progress(f"{name} evaluation", len(test_plan), "patches", test_batch)
        scores, weights = evaluate(
            model,
            test_loader,
            args.test_patch_num,
            device=device,
            precision=precision,
            watch=watch,
            compiled=args.compile,
        )
        evaluated = time.monotonic()

        fitted, fitted_images = mean_by_image(train_scores, plan[:, 0])
        record = {
            "type": "epoch",
            "epoch": epoch,
            "loss": loss,
            "train_srcc": agreement(fitted, table["mos"].to_numpy()[fitted_images])["srcc"],
            **judge(judged, scores),
            "lr_backbone": rates[0],
            "lr_new": rates[1],
            "patches_per_second": len(plan) / (trained - began),
            "test_patches_per_second": len(test_plan) / (evaluated - trained),
            "seconds": evaluated - began,
        }
        record = {k: None if v != v else v for k, v in record.items()}  # JSON knows no NaN
        print(f"{HEADER}\n{epoch_row(record)}" if epoch == 1 else epoch_row(record), flush=True)

        records.append(record)
        frames.append(predictions_frame(epoch, judged, scores, weights))
        predictions = pd.concat(frames).to_csv(index=False)
        data.write_atomically(log_dir / f"{args.run_name}_predictions.csv", predictions)
        lines = [json.dumps(line) for line in (config, *records)]
        data.write_atomically(record_path, "\n".join(lines) + "\n")
        if checkpoint_dir:
            content = {"model": model.state_dict(), "config": config, "epochs": records}
            if best_epoch(records, "test") is record:
                save_checkpoint(best_path, content | {"chosen_on": "test"})
            content["optimizer"] = optimizer.state_dict()
            content["scheduler"] = scheduler.state_dict()
            content["scaler"] = scaler.state_dict()
            content["rng"] = torch.get_rng_state()
            content["cuda_rng"] = torch.cuda.get_rng_state_all()
            save_checkpoint(last_path, content)

    print(closing_lines(records))


def announce_time(watch, args: argparse.Namespace, train_patches: int, test_patches: int):
    """`watch`, saying after the first steps how long the whole run takes on this CPU."""

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
                seconds = args.epochs * (train_patches + test_patches / 4) / rate
                data.say(
                    "no CUDA device in use: this trains on the CPU, about "
                    f"{data.duration(seconds)} for {args.epochs} epochs at {rate:.1f} patches/s"
                )
            yield batch

    return watched


def stop_on_sigterm(*_) -> None:
    """End as after an error, so that temporary files are removed."""
    print("stopped by SIGTERM; epochs that are not in the record are lost", file=sys.stderr)
    raise SystemExit(143)


def main() -> int:
    args = parse_args()
    signal.signal(signal.SIGTERM, stop_on_sigterm)
    try:
        run(args)
    except (DataError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a disk that is full, a file that went away
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        print(
            f"error: out of memory ({str(error).splitlines()[0]}): give a smaller --batch_size, "
            "and say so beside your numbers, as it changes the training",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; epochs that are not in the record are lost", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
