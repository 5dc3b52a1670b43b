"""What an interrupted run continues from: its state, saved and put back completely."""

import re
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from errors import RunError
from evaluation import load_checkpoint
from experiment import FREE_FLAGS
from training.flags import parse_args
from training.records import best_epoch, describe, timestamp
from training.run_files import RunFiles

if TYPE_CHECKING:
    from training.run import Run

# Parts of a configuration that may differ in a resumed run, besides FREE_FLAGS.
MACHINE = ("device", "device_name", "store_device", "threads", "versions", "git_commit")


def choose_run_name(run_name: str | None, resume: str | None, log_dir: Path, model: str) -> str:
    """The name that is given; with --resume that of the run to continue; else a new one.

    --resume without a name continues the model's last unnamed run that has a state; --resume FILE
    the run of that file.
    """
    if run_name:
        return run_name
    if resume == "auto":
        known = [name for name in runs_with_state(log_dir) if is_unnamed(name, model)]
        if known:
            return known[-1]
    elif resume:
        return load_state(Path(resume))["config"]["flags"]["run_name"]
    return f"{model}_{datetime.now():%Y%m%d_%H%M%S}"


def is_unnamed(name: str, model: str) -> bool:
    """Whether a run's name is its model and the time."""
    return re.fullmatch(rf"{re.escape(model)}_\d{{8}}_\d{{6}}", name) is not None


def runs_with_state(log_dir: Path) -> list[str]:
    """The names of all runs that can be continued, in order.

    A kill while a state is replaced leaves the one before alone.
    """
    found = (re.fullmatch(r"(.*)_state(_before)?\.pth", path.name) for path in log_dir.iterdir())
    return sorted({match[1] for match in found if match})


def begin(run: "Run") -> None:
    """Claim the names of a new run, or take up an interrupted one.

    The order of a resume:
    1. The name says which run it is; its record says when that run began.
    2. The state of that run is loaded; if it is damaged, the one before it.
    3. Another configuration than the state's is refused.
    4. Weights, optimizer, random numbers, scores and losses are put back.
    5. The record and the predictions are written as of the state: what came later is done again.
    6. Files of other runs under this run's names are moved aside.
    7. Checkpoints of the last finished epoch are written if they are not there.
    """
    args, files = run.args, run.files
    state, path = find_state(args.resume, files) if args.resume else (None, None)  # 1, 2
    check_same_state(run.ranks.gather(position_of(state)))  # nobody renames what is still read
    if state:
        restore(run, state)  # 3, 4
    if not run.ranks.is_first:
        return

    print(describe(run.config), flush=True)
    if not state:
        if args.resume:
            print(f"nothing to resume from in {args.log_dir} yet: begins a new run", flush=True)
            others = runs_with_state(Path(args.log_dir))
            if others and is_unnamed(args.run_name, run.files.model):
                print(f"to continue another one give its --run_name: {', '.join(others)}")
        files.claim(run.config, again=bool(args.resume))
        if files.saves:
            files.make_way()
        return
    epoch, crops = len(run.epochs) + 1, len(run.earlier[0])
    if epoch > args.epochs:
        print("resumed     nothing: finished already", flush=True)
    else:
        print(f"resumed     in epoch {epoch}, after {crops:,} of {run.crops:,} crops", flush=True)
    files.write_record(run.config, run.epochs, run.evaluated, run.test_table)  # 5
    done = files.make_way(run.config["started"], run.epochs, loaded=path)  # 6
    best = best_epoch(run.epochs, "test")  # 7
    if run.epochs and not crops:
        if done.get(files.last) != len(run.epochs):
            files.save_last(run.checkpoint())
        if best is run.epochs[-1] and done.get(files.best) != len(run.epochs):
            files.save_best(run.checkpoint())
    if best and not files.best.exists():
        print(f"no {files.best.name} until an epoch is better than epoch {best['epoch']}")


def load_state(path: Path) -> dict:
    """A run's state; RunError if the file is missing, damaged or something else."""
    if not path.is_file():
        raise RunError(f"--resume {path}: no such file")
    state = load_checkpoint(path)
    if "crop_scores" not in state:
        raise RunError(f"--resume {path}: not a run's _state.pth, so there is nothing to continue")
    if "step_losses" not in state:
        raise RunError(f"--resume {path}: written by an earlier version; start a new run")
    # A flag that there was not yet when it was written did what its default does.
    state["config"]["flags"] = vars(parse_args([])) | state["config"]["flags"]
    return state


def find_state(resume: str, files: RunFiles) -> tuple[dict | None, Path | None]:
    """The state that --resume continues from, and its file; None if there is nothing yet.

    resume: 'auto', or a file. A damaged state is replaced by the one before it, with a line on
    stderr. Raises RunError if the record has epochs, and no state is of that run.
    """
    record = files.recorded()
    started = record[0]["started"] if record else None
    state, path, damaged = None, None, None
    if resume != "auto":
        path = Path(resume)
        state = load_state(path)
    elif started:
        for path in (files.state, files.state_before):
            if not path.is_file():
                continue
            try:
                found = load_state(path)
            except RunError as error:
                damaged = damaged or error
                continue
            if found["config"]["started"] == started:
                state = found
                break
        if damaged and state:
            print(f"{damaged}; taking {path.name}, the one before", file=sys.stderr, flush=True)
        elif damaged:
            raise damaged
    if len(record) > 1 and (state is None or state["config"]["started"] != started):
        raise RunError(
            f"--resume: no state is of the run that {files.record} records: give another "
            "--run_name to begin a new run"
        )
    return state, path


def position_of(state: dict | None) -> tuple[str, int, int] | None:
    """Which run a state is of, its finished epochs, and its crops of the one after."""
    if state is None:
        return None
    return state["config"]["started"], len(state["epochs"]), len(state["crop_scores"])


def check_same_state(positions: list[tuple[str, int, int] | None]) -> None:
    """Raise RunError if processes continue from different states; positions: one per process."""
    for rank, position in enumerate(positions):
        if position != positions[0]:
            found = [
                "none" if p is None else f"{p[1]} epochs and {p[2]} crops of the run of {p[0]}"
                for p in (positions[0], position)
            ]
            raise RunError(
                f"--resume: process 0 finds another state than process {rank} ({found[0]}; "
                f"{found[1]}): --log_dir must be one folder, which all of them see"
            )


def check_same_run(old: dict, new: dict) -> None:
    """Raise RunError that lists in what two configurations differ, except FREE_FLAGS."""
    ours = ("model", "images", "data_fingerprint", "precision", "ranks")
    old, new = (
        {f"--{k}": v for k, v in c["flags"].items() if k not in FREE_FLAGS}
        | {k: c[k] for k in ours}
        | {"--init": (c.get("init") or {}).get("sha256")}
        for c in (old, new)
    )
    differing = [k for k in old | new if old.get(k) != new.get(k)]
    if differing:
        changes = "; ".join(f"{k} was {old.get(k)}, is {new.get(k)}" for k in differing)
        raise RunError(
            f"--resume: the state is of another run ({changes}): give that run's settings, or "
            "another --run_name"
        )


def save_state(run: "Run") -> None:
    """Write all that the run needs to continue as if nothing had happened. Every process calls it.

    Raises RunError if scores or weights are not finite: the state before stays.
    """
    import torch

    run.saved = time.monotonic()
    if not run.files.saves:
        return
    scores, losses = run.gather_steps()
    if not all(bool(p.isfinite().all()) for p in run.learner.model.parameters()):
        raise run.not_finite(len(losses))
    device = run.learner.device.type
    device_rng = None if device == "cpu" else torch.get_device_module(device).get_rng_state()
    rng = run.ranks.gather((torch.get_rng_state(), device_rng))
    if not run.ranks.is_first:
        return
    run.files.save_state(
        run.checkpoint()
        | run.learner.state()
        | {
            "evaluated": [
                [None if a is None else torch.tensor(a) for a in found] for found in run.evaluated
            ],
            "crop_scores": torch.tensor(scores),
            "step_losses": torch.tensor(losses),
            "rng": rng,
        }
    )


def restore(run: "Run", state: dict) -> None:
    """Put everything back to where `state` was saved; RunError if it is another run's."""
    import torch

    check_same_run(state["config"], run.config)
    if state["model"].keys() != run.learner.model.state_dict().keys():
        raise RunError(
            f"{run.files.state}: its network has other layers; an earlier version of this software "
            "wrote it: give another --run_name to begin a new run"
        )
    saved_on = state["config"]["device"]
    present, run.config = run.config, state["config"]
    where = {k: present["flags"][k] for k in FREE_FLAGS - {"resume"}}
    if len(state["epochs"]) < run.args.epochs:  # else the present machine has no part in it
        record_resumption(run, present, where, state)
    run.config["flags"] |= where
    run.epochs = state["epochs"]
    run.evaluated = [
        [None if a is None else a.numpy() for a in found] for found in state["evaluated"]
    ]
    run.earlier = state["crop_scores"].numpy(), state["step_losses"].numpy()
    run.learner.restore(state)
    rng, device_rng = state["rng"][run.ranks.rank]
    torch.set_rng_state(rng)
    device = run.learner.device.type
    if device == saved_on and device_rng is not None:
        torch.get_device_module(device).set_rng_state(device_rng)


def record_resumption(run: "Run", present: dict, where: dict, state: dict) -> None:
    """Note in the configuration what differs from here on, and what it was before."""
    for what in ("device_name", "threads", "versions", "git_commit"):
        old, new = run.config[what], present[what]
        if old != new and run.ranks.is_first:
            print(f"resumed with another {what}: not the same to the last bit ({old}; {new})")
    before = {what: run.config.get(what) for what in MACHINE}
    before = {what: was for what, was in before.items() if was != present[what]}
    before["flags"] = {k: v for k, v in run.config["flags"].items() if where.get(k, v) != v}
    run.config |= {what: present[what] for what in MACHINE}
    run.config["resumed"] = [
        *run.config.get("resumed", []),
        {
            "at": timestamp(),
            "epoch": len(state["epochs"]) + 1,
            "crops": len(state["crop_scores"]),
            "before": before,  # what was different until then
        },
    ]


def resume_command(run_name: str | None) -> str:
    """This process's command line, with --resume and the run's name."""
    arguments = []
    for previous, argument in zip(sys.argv, sys.argv[1:]):
        of_resume = previous == "--resume" and not argument.startswith("-")  # the FILE of it
        if argument.partition("=")[0] != "--resume" and not of_resume:
            arguments.append(argument)
    if run_name and not any(a.partition("=")[0] == "--run_name" for a in arguments):
        arguments += ["--run_name", run_name]
    return shlex.join([Path(sys.executable).name, sys.argv[0], *arguments, "--resume"])
