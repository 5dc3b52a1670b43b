"""What a run records and shows: its configuration, its epochs, its closing lines."""

import argparse
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np

from data_loader import OpenData
from datasets.labels import DATASETS, DEMO_MARKER, count_splits, fingerprint, label_fingerprint
from evaluation import described_crops
from experiment import backbone_of, configuration_name, network_name
from training.learner import FINAL_LR, STEP_EPOCHS, Learner
from training.processes import Ranks


def git_commit() -> str:
    """The commit of these scripts, '+changes' if files differ; 'unknown' outside git."""
    here = Path(__file__).resolve().parent.parent
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


def run_config(args: argparse.Namespace, opened: OpenData, learner: Learner, ranks: Ranks) -> dict:
    """The first line of a record, all that a result depends on: flags, data, versions, machine."""
    import pandas as pd
    import PIL
    import scipy
    import torch
    import torchvision

    device, table = learner.device, opened.table
    cuda = torch.cuda.get_device_name() if device.type == "cuda" else None
    return {
        "type": "config",
        "model": configuration_name(vars(args)),
        **learner.costs,
        "flags": vars(args) | {"resize": list(args.resize)},
        "label_source": opened.source,
        "images": count_splits(table),
        "data_fingerprint": fingerprint(table),
        "label_fingerprint": label_fingerprint(table),
        "demo": Path(args.data_path, DEMO_MARKER).is_file(),
        "device": device.type,
        "device_name": cuda or platform.processor() or platform.machine(),
        "store_device": torch.device(opened.store.device).type,
        "precision": learner.precision,
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
            **({"timm": sys.modules["timm"].__version__} if "timm" in sys.modules else {}),
        },
        "git_commit": git_commit(),
        "started": timestamp(),
    }


def timestamp() -> str:
    """Now, to the microsecond: two runs never have the same."""
    return datetime.now().astimezone().isoformat()


def describe(config: dict) -> str:
    """The configuration block of the console."""
    flags, images = config["flags"], config["images"]
    stages = flags["freeze_stages"]
    counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
    published = tuple(images.values()) in DATASETS[flags["dataset"]].published
    labels, _, split = config["label_source"].partition("; ")
    fp32 = "fp32 (TF32 convolutions)" if config["device"] == "cuda" else "fp32"
    courses = {"cosine": f"cosine to {FINAL_LR:.0%}", "constant": "constant"}
    course = courses.get(flags["schedule"], f"a tenth every {STEP_EPOCHS} epochs")
    if flags["warmup_epochs"]:
        course = f"{flags['warmup_epochs']:g} epochs of warm-up, then {course}"
    kind, clip = {"adamw": "AdamW", "adam": "Adam"}[flags["optimizer"]], flags["gradient_clip"]
    lines = {
        "model": f"{network_name(flags)}, {config['parameters'] / 1e6:.2f} M parameters, "
        f"backbone {backbone_of(flags)}, weights {flags['backbone_weights']}, "
        f"dropout {flags['dropout_rate']:g}"
        f"{', BatchNorm of the backbone frozen' if flags['freeze_bn'] else ''}"
        f"{f', frozen first stages: {stages}' if stages else ''}"
        + "".join(f", {rate.replace('_', ' ')} {x:g}" for rate, x in config["rates"].items()),
        "data": f"{flags['dataset']} in {flags['data_path']}: {counts} images "
        f"({'the' if published else 'not the'} counts of a published split)",
        "labels": labels,
        "split": split,
        "fingerprint": config["data_fingerprint"],
        **({"start": start_of(config["init"])} if config.get("init") else {}),
        "crops": f"training: {flags['patch_size']} of {flags['resize'][0]} x {flags['resize'][1]} "
        f"(H x W), {flags['train_patch_num']} per image and epoch, colour jitter "
        f"{'on' if flags['color_jitter'] else 'off'}; test: {described_crops(flags)}",
        "optimiser": f"loss {flags['loss']}, {kind}, lr {flags['lr']:g} (new layers "
        f"x{flags['lr_ratio']:g}), weight decay {flags['weight_decay']:g}, {course}, gradients "
        f"{f'clipped at {clip:g}' if clip else 'not clipped'}, batch {flags['batch_size']}, "
        f"{flags['epochs']} epochs, seed {flags['seed']}"
        f"{f', weights averaged by {ema:g}' if (ema := flags['ema']) else ''}",
        "device": f"{config['device']} ({config['device_name']}), precision "
        f"{fp32 if config['precision'] == 'off' else config['precision']}"
        f"{', compiled' if flags['compile'] else ''}, {config['threads']} threads"
        f"{' in each of ' + str(config['ranks']) + ' processes' if config['ranks'] > 1 else ''}, "
        f"images on {config['store_device']}",
        "versions": ", ".join(f"{k} {v}" for k, v in config["versions"].items())
        + f", commit {config['git_commit']}",
        "files": f"{flags['log_dir']}/{flags['run_name']}.jsonl, _predictions.csv"
        + (
            f", _state.pth; {flags['checkpoint_dir']}/{network_name(flags)}_*.pth"
            if flags["save_model"]
            else ""
        ),
    }
    return "\n".join(f"{name:<12}{text}" for name, text in lines.items())


def start_of(init: dict) -> str:
    """What a run has started from, by what it records of --init."""
    flags = init["config"]["flags"]
    return (
        f"{init['file']} (SHA-256 {init['sha256'][:12]}...), {init['epochs']} epochs on "
        f"{flags['dataset']}"
    )


HEADER = (
    f"{'epoch':>5}{'loss':>9}{'train SRCC':>12}{'val SRCC':>10}{'PLCC':>8}{'test SRCC':>11}"
    f"{'PLCC':>8}{'stages':>8}{'lr':>10}{'lr new':>10}{'crops/s':>9}{'seconds':>9}"
)


def epoch_row(record: dict) -> str:
    """The console's line for an epoch, under HEADER.

    stages: the effective number of stages that the attention weights, of four.
    """
    stages = f"{record['effective_stages']:.2f}" if "effective_stages" in record else "-"

    def metric(name: str) -> str:
        value = record.get(name)
        return "-" if value is None else f"{value:.4f}"

    return (
        f"{record['epoch']:>5}{record['loss']:>9.3f}{metric('train_srcc'):>12}"
        f"{metric('val_srcc'):>10}{metric('val_plcc'):>8}{metric('test_srcc'):>11}"
        f"{metric('test_plcc'):>8}{stages:>8}{record['lr_backbone']:>10.2e}{record['lr_new']:>10.2e}"
        f"{record['patches_per_second']:>9.1f}{record['seconds']:>9.0f}"
    )


def best_epoch(records: list[dict], split: str) -> dict | None:
    """The first epoch with the highest defined SRCC on `split`; None if none is defined."""
    ranked = [r for r in records if r.get(f"{split}_srcc") is not None]
    return max(ranked, key=lambda r: r[f"{split}_srcc"], default=None)


UNDEFINED = "fewer than two images, or scores or labels all the same or not finite"


def closing_lines(records: list[dict]) -> str:
    """Test SRCC and PLCC of three epochs: best on test, chosen on validation, last.

    run_resnet_ablation.sh finds its figures in these lines: a change here is a change there.
    """
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
