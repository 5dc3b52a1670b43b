"""What a run knows: its data, what learns, and how far it has come."""

import argparse
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import data_loader as data
from datasets.labels import load_labels
from devices import choose_device, choose_precision, keep_freed_memory
from errors import RunError
from evaluation import contents_to_tensor, crops_of, evaluated_crops, evaluation_plan
from progress import Progress
from training.initial import Initial, load_initial
from training.learner import Learner, StepResults, build_learner
from training.losses import needs_batch
from training.model_card import write_card
from training.processes import Ranks, Stopping, check_batches, distributed
from training.records import best_epoch, run_config
from training.run_files import RunFiles

if TYPE_CHECKING:
    import pandas as pd


SCALE_IMAGES = 256  # training images that show the scale of the scores, where the loss does not


class Prepared(NamedTuple):
    """What a run begins with: its labels and their source, how much it trains, what learns."""

    labels: tuple["pd.DataFrame", str]
    train_images: np.ndarray  # rows of the label table
    crops: int  # per epoch
    steps: int  # per epoch
    initial: Initial | None  # what --init names
    learner: Learner


def prepare(args: argparse.Namespace, ranks: Ranks) -> Prepared:
    """Connect the processes, read the labels, build the network; writes nothing.

    Raises DataError and RunError for data, weights and flags that can't be used.
    """
    labels = load_labels(args)  # before torch is loaded, as much can be wrong with it
    device = choose_device(args.device)
    if args.compile and ranks.count > 1:
        raise RunError(
            "--compile is for one process: with several, compiled BatchNorms are known to be "
            "slower than others; leave it out, or train without torchrun"
        )
    ranks.start(device)
    keep_freed_memory()
    table, _ = labels
    train_images = np.flatnonzero(table["split"] == "train")
    crops = len(train_images) * args.train_patch_num
    steps = -(-crops // args.batch_size)
    check_batches(
        batch_size=args.batch_size,
        patch_size=args.patch_size,
        crops=crops,
        processes=ranks.count,
        compares=needs_batch(args.loss),
    )
    initial = load_initial(args)
    learner = build_learner(
        args,
        initial=initial,
        initial_score=float(table["mos"][train_images].mean()),
        steps=steps * args.epochs,
        device=device,
        precision=choose_precision(args.amp, device),
    )
    return Prepared(labels, train_images, crops, steps, initial, learner)


def some_of(images: np.ndarray, least: int) -> np.ndarray:
    """Up to SCALE_IMAGES of the images, evenly spaced; `least` of them if there are so many."""
    count = min(len(images), max(SCALE_IMAGES, least))
    return images[np.linspace(0, len(images) - 1, count).round().astype(int)]


class Run:
    """A run in progress, in this process.

    epochs: the record of each finished epoch. evaluated: of each, the scores (N,) and stage weights
    (N, 4) or None of the validation and test images. Of the epoch that is being trained: earlier
    are the crops' scores (n,) and the steps' losses from before the resume, results those since.
    """

    def __init__(self, args: argparse.Namespace, ranks: Ranks, files: RunFiles):
        """Raises DataError and RunError for data, weights and flags that can't be used."""
        self.args, self.ranks, self.files, self.stopping = args, ranks, files, Stopping()
        prepared = prepare(args, ranks)
        labels, self.train_images, self.crops, self.steps, initial, self.learner = prepared
        device = self.learner.device

        import torch

        self.data = data.open_data(args, device, labels)
        self.image_mos = self.data.table["mos"].to_numpy()
        self.mos = torch.tensor(self.image_mos, dtype=torch.float32, device=device)
        self.test_plan = evaluation_plan(args, self.data.table)
        self.test_table = self.data.table.loc[self.test_plan[:: evaluated_crops(args), 0]]
        self.scale_plan = crops_of(args, some_of(self.train_images, ranks.count))
        evaluated_only = self.data.table["split"] == "test"
        self.trained_on = contents_to_tensor(self.data.table["content"][~evaluated_only])
        self.config = run_config(args, self.data, self.learner, ranks)
        if initial:
            self.trained_on = initial.all_trained_on(self.data.table)
            self.config["init"] = initial.record

        self.epochs, self.evaluated = [], []
        self.results = StepResults(self.crops, self.steps, device)
        self.graphed = None  # GraphedSteps, if full batches are trained by a CUDA graph
        self.forget_steps()
        self.saved = time.monotonic()
        if ranks.count > 1:
            if len(self.test_table) < ranks.count:
                raise RunError(
                    f"{len(self.test_table)} images to evaluate can't be shared by {ranks.count} "
                    "processes: give torchrun a smaller --nproc-per-node"
                )
            self.learner.network = distributed(self.learner.network)
            if needs_batch(args.loss):
                self.learner.complete = ranks.complete_batch
            if ranks.rank:  # its own dropout
                torch.manual_seed(args.seed + 2**32 * ranks.rank)

    def forget_steps(self) -> None:
        """At the end of an epoch: what is known of its steps is in the record."""
        self.earlier = np.empty(0, np.float32), np.empty(0, np.float32)
        self.results.clear()

    def checkpoint(self) -> dict:
        """What every file of weights holds."""
        return {
            "model": self.learner.evaluated().state_dict(),
            "config": self.config,
            "epochs": self.epochs,
            "trained_on": self.trained_on,
        }

    def write_cards(self, *, ended: bool) -> None:
        """The model cards of the checkpoints that are there."""
        best = best_epoch(self.epochs, "test")
        cards = [(self.files.last, len(self.epochs), "the last one, not chosen")]
        if best:
            optimistic = "chosen by the SRCC on the test images themselves, which is optimistic"
            cards.append((self.files.best, best["epoch"], optimistic))
        for checkpoint, count, chosen in cards:
            if checkpoint.exists():
                write_card(
                    checkpoint,
                    self.config,
                    self.epochs[:count],
                    self.evaluated[count - 1][0],
                    self.test_table,
                    chosen=chosen,
                    ended=ended,
                )

    def rates(self) -> list[float]:
        """Learning rates of backbone and new layers at the beginning of the next epoch."""
        step, schedule = len(self.epochs) * self.steps, self.learner.scheduler
        return [rate * at(step) for rate, at in zip(schedule.base_lrs, schedule.lr_lambdas)]

    def interleave(self, values: np.ndarray, images: int) -> np.ndarray:
        """The values of that many images, of which each process has every count-th."""
        parts = self.ranks.gather(values)
        complete = np.full((images, *values.shape[1:]), np.nan)
        for rank, part in enumerate(parts):
            complete[rank :: self.ranks.count] = part
        assert sum(map(len, parts)) == len(complete), "every image is evaluated exactly once"
        return complete

    def progress(self, what: str, total: int, batch_size: int | None = None):
        """How steps are shown: by the first process alone."""
        if not self.ranks.is_first:
            return iter
        return Progress(what, total, "crops", batch_size or self.args.batch_size)

    def gather_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the epoch's crops and losses of its steps so far, of all processes.

        Raises RunError with the step if one is not finite.
        """
        (earlier_scores, earlier_losses), batch_size = self.earlier, self.args.batch_size
        parts = self.ranks.gather(self.results.so_far())
        done, count = len(earlier_scores), sum(len(scores) for scores, _ in parts)
        scores = np.concatenate([earlier_scores, np.empty(count, np.float32)])
        for rank, (part, _) in enumerate(parts):
            at = data.share_of(self.crops - done, batch_size, rank, self.ranks.count)
            scores[done + at[: len(part)]] = part
        losses = np.mean([losses for _, losses in parts], 0, dtype=np.float64)
        losses = np.concatenate([earlier_losses, losses.astype(np.float32)])
        bad = [*np.flatnonzero(~np.isfinite(scores)) // batch_size]
        bad += [*np.flatnonzero(~np.isfinite(losses))]
        if bad:
            raise self.not_finite(min(bad) + 1)
        return scores, losses

    def not_finite(self, step: int) -> RunError:
        return RunError(
            f"epoch {len(self.epochs) + 1}, step {step} of {self.steps}: the loss is not finite "
            "any more; try a lower --lr, or --amp off"
            + (f"; {self.files.state} was saved before that" if self.files.has_state() else "")
        )
