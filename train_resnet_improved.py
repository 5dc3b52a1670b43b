"""How one run is trained: one configuration, evaluated and recorded every epoch.

    python3 train_resnet_improved.py --dataset koniq-10k --epochs 10 --save_model
    python3 train_resnet_improved.py --dataset koniq-10k --use_multiscale --save_model
    python3 train_resnet_improved.py --use_multiscale --use_attention --save_model

Each yields LOG_DIR/RUN_NAME.jsonl (configuration, then one object per epoch),
LOG_DIR/RUN_NAME_predictions.csv, and with --save_model LOG_DIR/RUN_NAME_state.pth (for --resume)
and CHECKPOINT_DIR/..._best.pth and _last.pth (for others).
The console ends with 'Best Test SRCC: 0.9012'. An experiment on KonIQ-10k is 1.76 million crops
of training: about 15 minutes on a data-centre GPU (an estimate), two days on two CPU cores.

From Python, for notebooks:

    from train_resnet_improved import train
    record, network = train(use_multiscale=True, data_path="koniq-10k", epochs=3)
"""

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import data_loader as data
from console import command, described
from datasets.labels import check_folder
from devices import autocast, is_out_of_memory, peak_memory
from errors import DataError, Interrupted, RunError
from evaluation import (
    agreement_by_split,
    evaluate,
    evaluated_crops,
    evaluated_size,
    evaluation_batch,
    mean_by_image,
)
from experiment import network_name
from files import check_folder_for, make_folder
from metrics import describe_stage_weights, srcc
from progress import TimeEstimate
from training.flags import parse_args
from training.graph import GraphedSteps, obstacle
from training.keywords import flags_of
from training.learner import Learner, StepResults
from training.losses import needs_scale
from training.processes import Ranks, by_torchrun, died_elsewhere, end_workers, this_rank
from training.records import HEADER, best_epoch, closing_lines, epoch_row
from training.resume import begin, choose_run_name, resume_command, save_state
from training.run import Run, prepare
from training.run_files import RunFiles
from training.tensorboard import Board, check_tensorboard

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    from torch import Tensor, nn


# What the connection to a process that cuts crops ends with, until PyTorch sees that it has died.
DYING_WORKER = (ConnectionResetError, ConnectionRefusedError, EOFError)


# The step ---------------------------------------------------------------------------------------


def train_step(
    learner: Learner, batch: "dict[str, Tensor]", mos: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """One step: the scores (B,) and the loss of a batch.

    mos (N,) on the device: the label of each image of the plan. With several processes each has its
    part of a batch; the mean of their gradients is that of the complete batch. On a GPU nothing in
    it may wait for the device, or come from the host but for the batch: it may be in a CUDA graph.
    """
    import torch

    images = data.to_network_input(batch, learner.device)  # (B, 3, size, size)
    labels = mos[batch["images"].to(learner.device, non_blocking=True)]  # (B,)

    with autocast(learner.device, learner.precision, cache=False):
        score, _ = learner.network(images)
    assert score.shape == labels.shape, f"scores {score.shape} for labels {labels.shape}"
    loss = learner.loss_of(score, labels, batch["divisor"])

    learner.optimizer.zero_grad(set_to_none=True)
    learner.scaler.scale(loss).backward()
    learner.scaler.unscale_(learner.optimizer)
    if learner.gradient_clip:
        clip = torch.nn.utils.clip_grad_norm_
        clip(learner.parameters, learner.gradient_clip, foreach=True)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    return score.detach(), loss.detach()


def train_one_epoch(
    learner: Learner,
    batches: "Iterable[dict[str, Tensor] | None]",
    mos: "Tensor",
    results: StepResults,
    between_steps: Callable[[], None] | None = None,
    graphed: GraphedSteps | None = None,
) -> None:
    """One pass over the batches; None stands for the next full one, which `graphed` trains.

    results: takes each step's scores (B,) and loss. between_steps: called after each step.
    """
    learner.network.train()

    for batch in batches:
        if batch is None:
            graphed.step()
        else:
            results.add(*train_step(learner, batch, mos))
        learner.scheduler.step()
        if learner.average is not None:
            learner.average.update(learner.scheduler.last_epoch)  # steps of the run
        if between_steps:
            between_steps()


# An epoch ---------------------------------------------------------------------------------------


def train_epoch(run: Run, epoch: int, *, announce: bool) -> np.ndarray:
    """Train on what is left of an epoch's plan; the image of each crop of the plan (n,).

    announce: on a CPU, say how long the run takes. Raises Interrupted.
    """
    args, ranks, done = run.args, run.ranks, len(run.earlier[0])
    plan = data.training_plan(
        run.train_images,
        per_image=args.train_patch_num,
        resize=args.resize,
        patch_size=args.patch_size,
        seed=args.seed,
        epoch=epoch,
    )
    augmentations = data.augmentation_plans(
        len(plan), seed=args.seed, epoch=epoch, color_jitter=args.color_jitter
    )
    if done == len(plan):
        return plan[:, 0]
    loader = run.data.loader(
        plan[done:],
        args.batch_size,
        augmentations={name: numbers[done:] for name, numbers in augmentations.items()},
        rank=ranks.rank,
        ranks=ranks.count,
    )
    progress = run.progress(f"epoch {epoch}/{args.epochs} training", len(plan) - done)
    estimate = None
    if announce and run.learner.device.type == "cpu" and ranks.is_first:
        estimate = TimeEstimate(
            epochs=args.epochs - epoch + 1,
            crops=run.crops,
            test_crops=len(run.test_plan),
            batch_size=args.batch_size,
            steps=len(loader),
        )

    def between_steps() -> None:
        if estimate:
            estimate.after_step()
        save_or_stop(run, may_save=True)

    batches = progress(run.graphed.begin(loader) if run.graphed else loader)
    train_one_epoch(run.learner, batches, run.mos, run.results, between_steps, run.graphed)
    return plan[:, 0]


def evaluate_epoch(run: Run, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (N,) and stage weights (N, 4) or None of all validation and test images.

    For a loss that leaves the scale of the scores open, that is found first. Raises Interrupted.
    """
    run.ranks.share_buffers(run.learner.model)
    what = f"epoch {epoch}/{run.args.epochs}"
    if needs_scale(run.args.loss):
        run.learner.score_map = (1.0, 0.0)
        scores, _ = evaluate_plan(run, run.scale_plan, f"{what} scale of the scores")
        if not np.isfinite(scores).all():
            raise run.not_finite(run.steps)
        images = run.scale_plan[:: len(run.scale_plan) // len(scores), 0]
        run.learner.score_map = straight_line(scores, run.image_mos[images])
    return evaluate_plan(run, run.test_plan, f"{what} evaluation")


def evaluate_plan(run: Run, plan: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (N,) and stage weights (N, 4) or None of the images of a plan (N * P, 4).

    Each process evaluates every count-th image. Raises Interrupted.
    """
    args, ranks, learner = run.args, run.ranks, run.learner
    per_image, size = evaluated_crops(args), evaluated_size(args)
    batch_size = evaluation_batch(learner.device, size)
    plans = plan.reshape(-1, per_image, 4)  # (N, P, 4)
    part = plans[ranks.rank :: ranks.count].reshape(-1, 4)
    loader = run.data.loader(part, batch_size, size=size)
    progress = run.progress(what, len(part), batch_size)
    scores, weights = evaluate(
        learner.evaluated(),
        progress(loader),
        per_image,
        device=learner.device,
        precision=learner.precision,
        compiled=args.compile,
        between_steps=lambda: save_or_stop(run),
    )
    most = -(-len(plans[:: ranks.count]) * per_image // batch_size)  # of any process
    for _ in range(most - len(loader)):
        save_or_stop(run)
    found = run.interleave(scores, len(plans))
    return found, None if weights is None else run.interleave(weights, len(plans))


def straight_line(scores: np.ndarray, mos: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the line from scores (N,) to MOS (N,) with the least squared error."""
    if np.ptp(scores) < 1e-6:  # all the same, as of a network that has learnt nothing
        return 1.0, float(np.mean(mos) - np.mean(scores))
    slope, offset = np.polyfit(scores, mos, 1)
    return float(slope), float(offset)


def save_or_stop(run: Run, *, may_save: bool = False) -> None:
    """Between two steps: save if it is time to, and end the run if a signal has come.

    Every process calls it equally often, as they have to agree. Raises Interrupted once the state
    is saved.
    """
    minutes = (time.monotonic() - run.saved) / 60
    due = may_save and run.ranks.is_first and minutes >= run.args.save_minutes
    number, due = run.ranks.highest(run.stopping.signal, due)
    if number or due:
        save_state(run)
    if number:
        run.ranks.gather(None)  # torchrun kills the others soon after the first has left
        raise Interrupted(number, run.files.state if run.files.saves else None)


# The run ----------------------------------------------------------------------------------------


def learn(run: Run) -> None:
    """The epochs that are left: each is trained, evaluated, recorded, saved, and then shown."""
    files, first = run.files, len(run.epochs) + 1
    board = Board(run.args.tensorboard if run.ranks.is_first else None, files.name, run.epochs)
    for epoch in range(first, run.args.epochs + 1):
        began, rates = time.monotonic(), run.rates()
        left = run.crops - len(run.earlier[0])
        order = train_epoch(run, epoch, announce=epoch == first)
        crop_scores, losses = run.gather_steps()
        trained = time.monotonic()
        scores, weights = evaluate_epoch(run, epoch)
        evaluated = time.monotonic()

        slope, offset = run.learner.score_map
        fitted, fitted_images = mean_by_image(slope * crop_scores + offset, order)
        errors = np.abs(slope * crop_scores + offset - run.image_mos[order])
        sizes = np.diff([*range(0, run.crops, run.args.batch_size), run.crops])
        record = {
            "type": "epoch",
            "epoch": epoch,
            "loss": float(losses @ sizes / run.crops),
            "l1": float(errors.mean()),
            "train_srcc": srcc(fitted, run.image_mos[fitted_images]),
            **agreement_by_split(run.test_table, scores),
            **({} if weights is None else describe_stage_weights(weights)),
            **({"slope": slope, "offset": offset} if needs_scale(run.args.loss) else {}),
            "lr_backbone": rates[0],
            "lr_new": rates[1],
            "patches_per_second": left / (trained - began),
            "test_patches_per_second": len(run.test_plan) / (evaluated - trained),
            "peak_memory_gb": peak_memory(run.learner.device),
            "seconds": evaluated - began,
        }
        record = {k: None if v != v else v for k, v in record.items()}  # JSON knows no NaN
        run.epochs.append(record)
        run.evaluated.append((scores, weights))
        run.forget_steps()

        try:
            save_state(run)  # first, as --resume writes the record again from it
        finally:  # on a full disk the epoch is on record at least
            if run.ranks.is_first:
                files.write_record(run.config, run.epochs, run.evaluated, run.test_table)
        if run.ranks.is_first:
            if files.saves:
                files.save_last(run.checkpoint())
                if best_epoch(run.epochs, "test") is record:
                    files.save_best(run.checkpoint())
                run.write_cards(ended=False)
            if epoch == first:
                print(HEADER)
            print(epoch_row(record), flush=True)
            board.show(record)
    board.close()
    if run.ranks.is_first:
        if files.saves:
            run.write_cards(ended=True)
            files.state_before.unlink(missing_ok=True)
        print(closing_lines(run.epochs), flush=True)


class Trained(NamedTuple):
    """A finished run: its record (the configuration, then one object per epoch) and its network."""

    record: list[dict]
    network: "nn.Module"


def train(**flags) -> Trained:
    """Train and evaluate: the command for Python. Keyword arguments are its flags without '--'.

    train(dataset="csv", data_path="photos", csv=["scores.csv"], use_multiscale=True, lr=1e-4)

    They are checked as on the command line. Values are numbers, strings, paths, lists of these, or
    True and False for flags without a value; None is the default. The network comes back in eval
    mode, and files are written as by the command. Raises RunError for flags that can't be used,
    and what `run` raises.
    """
    args = flags_of(flags)
    if args.check:
        raise RunError("check: is for the command line; leave it out to train")
    return run(args)


def run(args: argparse.Namespace) -> Trained:
    """Train and evaluate as the flags say; the network comes back in eval mode.

    Raises DataError and RunError with one sentence, and Interrupted once the state is saved.
    """
    ranks, others = Ranks(), set(multiprocessing.active_children())
    check_places(args)
    log_dir = make_folder("--log_dir", args.log_dir)
    checkpoint_dir = None
    if args.save_model:
        checkpoint_dir = make_folder("--checkpoint_dir", args.checkpoint_dir)
    model = network_name(vars(args))
    args.run_name = choose_run_name(args.run_name, args.resume, log_dir, model)
    files = RunFiles(log_dir, checkpoint_dir, model, args.run_name)
    if not args.resume:
        files.check_free()

    try:
        with files.locked() if ranks.is_first else nullcontext():
            this = Run(args, ranks, files)
            begin(this)
            if args.cuda_graph == "auto":
                use_cuda_graph(this)
            with this.stopping:
                learn(this)
        ranks.stop()
    except (RuntimeError, *DYING_WORKER) as error:
        if isinstance(error, DYING_WORKER) or "DataLoader worker" in str(error):
            reason = (str(error) or "its connection has ended").splitlines()[0]
            raise RunError(
                f"a process that cuts crops has died ({reason}): give more "
                "memory (in a container: shared memory), or --workers 0"
            ) from error
        if ranks.count == 1 or not died_elsewhere(error):
            raise
        raise RunError(
            f"another process of this run has died ({str(error).splitlines()[0]}); the same "
            "command with --save_model and --resume continues from its last state"
        ) from error
    finally:
        end_workers(others)
    return Trained([this.config, *this.epochs], this.learner.evaluated().eval())


def use_cuda_graph(run: Run) -> None:
    """Train full batches by a CUDA graph from here on, if the run allows it; says so."""
    why_not = obstacle(run.args, run.data.store, run.learner, processes=run.ranks.count)
    if not why_not:
        run.graphed = GraphedSteps(train_step, run.learner, run.mos, run.results)
    if run.ranks.is_first:
        print(f"CUDA graph  {f'none: {why_not}' if why_not else 'of the step on full batches'}")


def check(args: argparse.Namespace) -> None:
    """Raise DataError or RunError if a run of these flags could not begin; writes nothing."""
    ranks = Ranks()
    check_places(args)
    prepare(args, ranks)
    ranks.stop()


def check_places(args: argparse.Namespace) -> None:
    """The data folder, and those that are written to, before anything slow is loaded."""
    check_folder(args.dataset, args.data_path)
    for flag in ("store_dir", "log_dir", *(["checkpoint_dir"] if args.save_model else [])):
        check_folder_for(f"--{flag}", getattr(args, flag))
    if args.tensorboard:
        check_tensorboard(args.tensorboard)


# The command ------------------------------------------------------------------------------------


def stop_early(number: int, _) -> None:
    """End as after an error, so that temporary files are removed."""
    raise SystemExit(128 + number)


@command
def main() -> int:
    args = parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, stop_early)
    try:
        check(args) if args.check else run(args)
    except (DataError, RunError) as error:
        return fail(str(error).rpartition("DataError: ")[2])  # from a worker: below its traceback
    except MemoryError:
        return fail("out of memory: give a smaller --batch_size or --patch_size, or --workers 0")
    except OSError as error:  # a disk that is full, a file that went away
        return fail(described(error))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return fail(
            f"out of memory ({str(error).splitlines()[0]}): on a GPU, --store_device cpu leaves it "
            "more and changes no result; or give a smaller --batch_size, and say so beside your "
            "numbers, as it changes the training"
        )
    except Interrupted as interrupted:
        number, state = interrupted.args
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
        if state and this_rank() == 0:
            command = resume_command(args.run_name)
            print(f"{state} is complete; to continue:\n  {command}", file=sys.stderr)
        elif not state:
            print("No checkpoint saved (run without --save_model).", file=sys.stderr)
        return 128 + number
    except SystemExit as stopped:
        name = signal.Signals(stopped.code - 128).name
        print(f"stopped by {name} before there was anything to save", file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C at once", file=sys.stderr)
        return 130
    return 0


def fail(sentence: str) -> int:
    """Say on stderr what went wrong, and in which process if there are several."""
    several = by_torchrun() and os.environ["WORLD_SIZE"] != "1"
    process = f"process {this_rank()}: " if several else ""
    print(f"error: {process}{sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
