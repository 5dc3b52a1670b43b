"""What training minimises: a loss of a batch's scores, by its name on the command line.

The names joined by '+' are summed. Errors of l1 and mse are then taken in units of TENS points, so
that the parts have about the same size.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported when work begins, so that --help and errors come at once
    from torch import Tensor

LOSSES = ("l1", "mse", "nin", "l1+nin", "mse+nin", "plcc")  # --loss
TENS = 10.0  # points of the MOS scale of 0 to 100
EPSILON = 1e-8  # below which a norm is taken as this


def needs_batch(name: str) -> bool:
    """Whether a loss compares the images of a batch, so that it needs all of them at once."""
    return "nin" in name or name == "plcc"


def needs_scale(name: str) -> bool:
    """Whether a loss leaves scale and offset of the scores open (they are fitted afterwards)."""
    return name in ("nin", "plcc")


def loss_function(name: str) -> "Callable[[Tensor, Tensor], Tensor]":
    """The loss of that name in LOSSES: scores (B,) and labels (B,), both MOS -> a scalar."""
    parts = name.split("+")
    if len(parts) == 1:
        return ALONE[name]

    def total(scores: "Tensor", labels: "Tensor") -> "Tensor":
        error, batch = parts
        return ALONE[error](scores / TENS, labels / TENS) + ALONE[batch](scores, labels)

    return total


def l1(scores: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean absolute error."""
    import torch.nn.functional as F

    return F.l1_loss(scores, labels, reduction="sum") / len(labels)


def mse(scores: "Tensor", labels: "Tensor") -> "Tensor":
    """Mean squared error."""
    return (scores - labels).square().sum() / len(labels)


def norm_in_norm(scores: "Tensor", labels: "Tensor") -> "Tensor":
    """Norm-in-Norm with p = 1, q = 2 (Li, Jiang and Jiang, ACM MM 2020, eq. 3 to 6): 0 to 1.

    Scores and labels are centred and divided by their 2-norms; the loss is the 1-norm of the
    difference over its largest value, 2 sqrt(B). It is the same for a * scores + b, a > 0.
    """
    difference = centred_and_normalised(scores) - centred_and_normalised(labels)
    return difference.abs().sum() / (2 * len(labels) ** 0.5)


def plcc(scores: "Tensor", labels: "Tensor") -> "Tensor":
    """(1 - PLCC) / 2 of the batch: 0 to 1. It is the same for a * scores + b, a > 0."""
    return (1 - centred_and_normalised(scores) @ centred_and_normalised(labels)) / 2


def centred_and_normalised(values: "Tensor") -> "Tensor":
    """Values (B,) less their mean, of 2-norm 1; zeros if all are the same."""
    import torch.nn.functional as F

    return F.normalize(values - values.mean(), dim=0, eps=EPSILON)


ALONE = {"l1": l1, "mse": mse, "nin": norm_in_norm, "plcc": plcc}
