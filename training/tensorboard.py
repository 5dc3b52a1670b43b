"""The figures of a run's record for TensorBoard (--tensorboard), which is an optional library."""

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

from errors import RunError
from files import check_folder_for


def check_tensorboard(folder: str | Path) -> None:
    """RunError if TensorBoard is not installed, or if the folder can't be written to."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError("--tensorboard needs TensorBoard: pip install tensorboard")
    check_folder_for("--tensorboard", folder)


class Board:
    """A run's figures in FOLDER/RUN_NAME, a point for each epoch; nothing if there is no folder.

    epochs: those that are on record already. They are written again, in place of what an
    interrupted run has left there.
    """

    def __init__(self, folder: str | Path | None, run_name: str, epochs: list[dict]):
        self.writer = None
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(folder, run_name)), purge_step=1)
        for record in epochs:
            self.show(record)

    def show(self, record: dict) -> None:
        """Write the figures of an epoch; if that fails, say so once and go on without."""
        if self.writer is None:
            return
        try:
            for name, value in numbers(record).items():
                self.writer.add_scalar(name, value, record["epoch"])
            self.writer.flush()
        except Exception as error:  # of its thread that writes: many kinds
            print(f"note: --tensorboard: {error}; the run goes on without it", file=sys.stderr)
            self.close()

    def close(self) -> None:
        if self.writer is not None:
            with suppress(Exception):  # what it could not write has been said, or is on record
                self.writer.close()
        self.writer = None


def numbers(record: dict) -> dict[str, float]:
    """The numbers of an epoch's record by name, without those that are undefined.

    val_srcc is val/srcc, so that TensorBoard puts the figures of a split together.
    """
    found = {}
    for name, value in record.items():
        split, _, metric = name.partition("_")
        title = f"{split}/{metric}" if split in ("train", "val", "test") else name
        if isinstance(value, list):
            found |= {f"{name}/w{i}": v for i, v in enumerate(value, 1)}
        elif isinstance(value, (int, float)) and name != "epoch":
            found[title] = value
    return found
