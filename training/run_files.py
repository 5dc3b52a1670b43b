"""The files of a run: its record, its predictions, its state, its checkpoints.

LOG_DIR/RUN_NAME.jsonl               the configuration, then one object per epoch
LOG_DIR/RUN_NAME_predictions.csv     every evaluated image of every epoch
LOG_DIR/RUN_NAME_state.pth           what --resume continues from (with --save_model)
LOG_DIR/RUN_NAME_state_before.pth    the state before that one, until the run ends
CHECKPOINT_DIR/MODEL_last.pth        configuration and weights after the last epoch
CHECKPOINT_DIR/MODEL_best.pth        those of the best epoch on the test images
CHECKPOINT_DIR/MODEL_best_model_card.md, MODEL_last_model_card.md     what these are
"""

import json
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from errors import RunError
from evaluation import load_checkpoint, predictions_frame
from files import locked, replacing, unused, write_atomically
from training.model_card import card_of

if TYPE_CHECKING:
    import pandas as pd


class RunFiles:
    """The files of the run `name` of `model`; without a checkpoint folder it saves no state."""

    def __init__(self, log_dir: Path, checkpoint_dir: Path | None, model: str, name: str):
        self.record = log_dir / f"{name}.jsonl"
        self.predictions = log_dir / f"{name}_predictions.csv"
        self.name, self.model, self.checkpoint_dir = name, model, checkpoint_dir
        self.saves = checkpoint_dir is not None
        if self.saves:
            self.state = log_dir / f"{name}_state.pth"
            self.state_before = log_dir / f"{name}_state_before.pth"
            self.best = checkpoint_dir / f"{model}_best.pth"
            self.last = checkpoint_dir / f"{model}_last.pth"

    def has_state(self) -> bool:
        return self.saves and self.state.exists()

    @contextmanager
    def locked(self):
        """Held while the run writes its state and checkpoints; RunError if another holds them."""
        with ExitStack() as held:
            if self.saves:
                for lock, what, flag in (
                    (self.state.with_name(f".{self.state.stem}.lock"), self.state, "--run_name"),
                    (
                        self.checkpoint_dir / f".{self.model}.lock",
                        self.checkpoint_dir / f"{self.model}_*.pth",
                        "--checkpoint_dir",
                    ),
                ):
                    try:
                        held.enter_context(locked(lock, wait=False))
                    except BlockingIOError as error:
                        raise RunError(
                            f"another run is writing {what}: give another {flag}"
                        ) from error
            yield

    def check_free(self) -> None:
        """RunError if a run of that name has a record already."""
        if self.record.exists():
            raise RunError(self.taken())

    def taken(self) -> str:
        return f"{self.record} is there already: give another --run_name or --log_dir"

    def recorded(self) -> list[dict]:
        """The lines of the record, configuration first; none if it is empty or not there yet.

        Raises RunError for a file that is no record.
        """
        text = self.record.read_text(encoding="utf-8") if self.record.exists() else ""
        if not text:
            return []
        try:
            config, *epochs = map(json.loads, text.splitlines())
            config["started"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.record}: not the record of a run; give --run_name") from error
        return [config, *epochs]

    def claim(self, config: dict, *, again: bool) -> None:
        """Begin the record; RunError if there is one already.

        again=True overwrites a record that has no epochs yet.
        """
        line = json.dumps(config) + "\n"
        if again and self.record.exists() and len(self.recorded()) <= 1:
            return write_atomically(self.record, line)
        try:
            with open(self.record, "x", encoding="utf-8") as file:
                file.write(line)
        except FileExistsError as error:
            raise RunError(self.taken()) from error

    def write_record(
        self, config: dict, epochs: list[dict], evaluated: list, table: "pd.DataFrame"
    ) -> None:
        """The record and the predictions of the epochs done, each completely or not at all.

        evaluated: of each epoch the scores (N,) and stage weights (N, 4) or None of `table`.
        """
        import pandas as pd

        if epochs:
            frames = []
            for epoch, found in zip(epochs, evaluated):
                frame = predictions_frame(table, *found)
                frame.insert(0, "epoch", epoch["epoch"])
                frames.append(frame)
            write_atomically(self.predictions, pd.concat(frames).to_csv(index=False))
        lines = [json.dumps(line) for line in (config, *epochs)]
        write_atomically(self.record, "\n".join(lines) + "\n")

    def save_state(self, state: dict) -> None:
        """Write the state; the one that was there becomes `state_before`."""
        save(self.state, state, "--log_dir", before=self.state_before)

    def save_last(self, checkpoint: dict) -> None:
        save(self.last, checkpoint, "--checkpoint_dir")

    def save_best(self, checkpoint: dict) -> None:
        """After the state and `save_last`, so that its epoch is always on record."""
        save(self.best, checkpoint | {"chosen_on": "test"}, "--checkpoint_dir")

    def make_way(
        self,
        started: str | None = None,
        epochs: list[dict] | None = None,
        *,
        loaded: Path | None = None,
    ) -> dict[Path, int]:
        """Move what other runs have left under this run's names aside.

        started, epochs: of a run that is resumed, from the state in the file `loaded`. Its own
        files stay, unless they hold epochs that it doesn't have on record (these will be trained
        again). Returns the number of epochs in each file that stays.
        """
        stay = {}
        for path in (self.state, self.state_before, self.best, self.last):
            if not path.exists() or path == loaded:
                continue
            done = epochs_of(path, started) if started else None
            if done is not None and done == epochs[: len(done)]:
                stay[path] = len(done)
                continue
            written = datetime.fromtimestamp(path.stat().st_mtime)
            kept = path.with_name(f"{path.stem}.{written:%Y%m%d_%H%M%S}{path.suffix}")
            kept = unused(kept)  # object stores give every file the same time
            path.rename(kept)
            if (card := card_of(path)).exists():
                card.rename(card_of(kept))
            print(f"the earlier {path} is kept as {kept.name}")
        return stay


def epochs_of(path: Path, started: str) -> list[dict] | None:
    """The epochs in a file of the run that began then; None if it is another's, or damaged."""
    try:
        content = load_checkpoint(path)
    except RunError:
        return None
    return content["epochs"] if content["config"]["started"] == started else None


def save(path: Path, content: dict, flag: str, *, before: Path | None = None) -> None:
    """torch.save to a temporary file that is renamed once it is complete on disk."""
    import torch

    try:
        with replacing(path, before=before) as file:
            torch.save(content, file)
    except OSError as error:
        raise RunError(f"{flag}: {path}: {error.strerror}") from error
    except RuntimeError as error:  # torch's own, of a disk that is full
        raise RunError(
            f"{flag}: {path}: can't be written ({str(error).splitlines()[0]}); the previous "
            "file is unchanged"
        ) from error
