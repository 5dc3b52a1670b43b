"""Where a run starts: from a trained checkpoint of this software (--init), for fine-tuning."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from datasets.label_files import first_few
from errors import RunError
from evaluation import contents_to_tensor, load_checkpoint, put_weights
from experiment import network_name
from published import find_checkpoint, sha256
from training.processes import this_rank

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn


class Initial(NamedTuple):
    """A checkpoint to start from.

    record: what the new run records of it: the file, its SHA-256, its epochs, the configuration of
    its training. trained_on: content hashes (N, 8) of its training and validation images; None if
    it does not say.
    """

    path: Path
    content: dict
    record: dict
    trained_on: "Tensor | None"

    def put_into(self, model: "nn.Module", *, head: str, mean: float) -> None:
        """All weights into the network; with head 'mean' its last bias becomes `mean`."""
        import torch

        put_weights(model, self.content, self.path)
        if head == "mean":
            biases = model.hyper_net.biases  # one layer, or a layer for each layer of the target
            last = biases if hasattr(biases, "bias") else biases[-1]
            with torch.no_grad():
                last.bias[-1] = mean

    def all_trained_on(self, table: "pd.DataFrame") -> "Tensor | None":
        """Hashes of the images that this checkpoint, or a run from it on `table`, has seen.

        None if the checkpoint does not say, with a line on stderr. Raises RunError if test images
        are among its own: their scores would be too good.
        """
        import torch

        if self.trained_on is None:
            if this_rank() == 0:
                print(
                    f"note: --init {self.path} does not say which images it was trained on: make "
                    "sure that no test image is among them",
                    file=sys.stderr,
                )
            return None
        known = {bytes(content).hex() for content in self.trained_on.numpy()}
        test = table[table["split"] == "test"]
        seen = test["image"][test["content"].isin(known)]
        if len(seen):
            raise RunError(
                f"--init {self.path}: was trained or validated on {len(seen):,} of the "
                f"{len(test):,} test images ({first_few(seen)}), so their scores would be too "
                "good: give another checkpoint, or another split"
            )
        own = contents_to_tensor(table["content"][table["split"] != "test"])
        return torch.cat([self.trained_on, own]).unique(dim=0)


def load_initial(args: argparse.Namespace) -> Initial | None:
    """The checkpoint that --init names, or None; RunError if it is of another network."""
    if not args.init:
        return None
    path = find_checkpoint(args.init)
    content = load_checkpoint(path)
    config = content["config"]
    theirs, ours = config["flags"], vars(args)
    try:
        has = network_name(theirs)
    except ValueError:  # a row that experiment.py does not have
        has = config["model"]
    wanted = network_name(ours)
    if has == wanted and ours["use_attention"] and theirs["attention"] != ours["attention"]:
        has, wanted = (f"{wanted} with --attention {f['attention']}" for f in (theirs, ours))
    if has != wanted:
        raise RunError(
            f"--init {path}: is a checkpoint of {has}, and these flags train {wanted}: give the "
            "configuration and the --backbone of the checkpoint, or another checkpoint"
        )
    record = {
        "file": str(path),
        "sha256": sha256(path),
        "epochs": len(content["epochs"]),
        "chosen_on": content.get("chosen_on"),
        "config": config,
    }
    return Initial(path, content, record, content.get("trained_on"))
