"""What a training epoch and an evaluation spend their time on, by phase and by operator.

    python3 benchmarks/profile_loop.py
    python3 benchmarks/profile_loop.py --steps 20 --use_multiscale --use_attention

By torch.profiler, over the loops of train_resnet_improved.py: first the phases of a step (wall
time), then every operator above 1% of the processor's or the GPU's own time. Further flags are
those of train_resnet_improved.py; without --data_path the demo data set is drawn.
"""

import argparse
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import data_loader as data
from loop import Ours, training_flags
from models_resnet_improved import ResNetImproved

PHASES = {
    "phase: crops from the store": (data.Batches, "__getitem__"),
    "phase: to the device, flip, normalise": (data, "to_network_input"),
    "phase: forward": (ResNetImproved, "__call__"),
    "phase: backward": (torch.Tensor, "backward"),
    "phase: clip gradients": (torch.nn.utils, "clip_grad_norm_"),
    "phase: optimizer": (torch.optim.AdamW, "step"),
}


def label_phases() -> None:
    """Let the profiler see the phases under their names, without a line of it in the loops."""

    def labelled(name: str, function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            with record_function(name):
                return function(*args, **kwargs)

        return wrapper

    for name, (owner, attribute) in PHASES.items():
        setattr(owner, attribute, labelled(name, getattr(owner, attribute)))


def print_profile(title: str, work, device: torch.device) -> None:
    """Run `work` once to warm up and once under the profiler; print what takes more than 1%."""
    work()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler, record_function("all"):
        patches = work()
    events = profiler.key_averages()
    total = next(e.cpu_time_total for e in events if e.key == "all")
    print(f"\n{title}: {patches} patches in {total / 1e6:.2f} s\n{'phase':<44}{'share':>8}")
    rest = 1.0
    for name in PHASES:
        share = sum(e.cpu_time_total for e in events if e.key == name) / total
        rest -= share
        if share:
            print(f"{name.removeprefix('phase: '):<44}{share:>8.1%}")
    print(f"{'the rest':<44}{rest:>8.1%}")

    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    whole = sum(getattr(e, own) for e in events)
    print(f"\n{'operator':<56}{'calls':>8}{'share':>8}")
    for event in sorted(events, key=lambda e: -getattr(e, own)):
        share = getattr(event, own) / whole
        if share < 0.01:
            break
        print(f"{event.key[:55]:<56}{event.count:>8}{share:>8.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8, help="batches (default: 8)")
    own, rest = parser.parse_known_args()
    args = training_flags(rest)

    ours = Ours(args, {}, own.steps)
    label_phases()
    print(f"device {ours.device}, precision {ours.precision}, batch {args.batch_size}")
    print_profile("training", ours.train, ours.device)
    print_profile("evaluation", ours.evaluate, ours.device)


if __name__ == "__main__":
    main()
