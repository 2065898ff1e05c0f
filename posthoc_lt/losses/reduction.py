"""What every loss does at its ends: the check of its inputs, and the mean over the batch."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import Tensor

from posthoc_lt.errors import PosthocError, show

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    """The ``mean``, the ``sum`` or ``none``: the losses (n,) themselves.

    Raises:
        PosthocError: there is no such reduction.
    """
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise PosthocError(f"reduction {show(reduction)!r}", "mean, sum or none", "correct its name")
    return losses.sum() if reduction == "sum" else losses.mean()


def a_class(vector: Tensor, logits: Tensor, what: str) -> Tensor:
    """One number a class, in the logits' dtype and place.

    Raises:
        PosthocError: the vector has another shape.
    """
    if vector.shape != logits.shape[1:]:
        raise PosthocError(
            f"a {what} of shape {tuple(vector.shape)} for logits of shape {tuple(logits.shape)}",
            "logits (samples, classes) and one number a class",
            "make it from the counts of all classes, in the order of the logits",
        )
    return vector.to(logits)


def require_labels(y: Tensor, logits: Tensor) -> None:
    """Refuse labels that are no classes; on the CPU alone, for elsewhere a look at them would stall the device.

    Raises:
        PosthocError: not one label a sample, or a label outside 0 … C-1.
    """
    samples, classes = logits.shape
    if y.shape != (samples,) or y.is_floating_point():
        raise PosthocError(
            f"labels of shape {tuple(y.shape)} and type {y.dtype} for logits of shape {tuple(logits.shape)}",
            "one integer class index a sample",
            "give class indices, not one-hot rows",
        )
    if samples and y.device.type == "cpu" and (int(y.min()) < 0 or int(y.max()) >= classes):
        wrong = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise PosthocError(
            f"label {wrong} for logits of {classes} classes",
            f"labels from 0 to {classes - 1}",
            "drop samples that are to be ignored before the loss",
        )
