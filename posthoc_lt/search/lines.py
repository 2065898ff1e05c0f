"""Every family's order of classes as straight lines in the knob, one pass over the features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Family, Line, Power
from posthoc_lt.features import Features

BLOCKS = 8
"""How many float64 (rows, C) blocks are alive at once; it divides the rows of a chunk."""


def lines(family: Family, features: Features) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """This process's chunks ``(rows, A, B)`` such that the predicted class at t is the argmax of A + t·B.

    A `Line` is its own. In a `Power` of logits z, signs do not depend on t, so that only the logits of
    the best sign compete: positive ones by ln z − t·u, else zeros by index, else negative ones by
    −ln|z| + t·u; the others have A = −∞. Logits are computed as deployed, in the head's dtype.

    Args:
        family: a `Line` or a `Power`.
        features: N samples.

    Returns:
        Iterator: A of shape (n, C), which the caller may overwrite, and B of shape (n, C) or (1, C), in which no zero
        is −0, so that no difference of two is; float64, on the features' device.

    Raises:
        PosthocError: the family has no such lines.
    """
    if isinstance(family, Line):
        return _straight(family, features)
    if isinstance(family, Power):
        return _logarithmic(family, features)
    raise _not_lines(family)


def _straight(family: Line, features: Features) -> Iterator[tuple[slice, Tensor, Tensor]]:
    origin, direction = family.origin.to(features.device), family.direction.to(features.device)
    constant = None if direction.weight.any() else direction.bias[None].double() + 0.0
    for rows, x in features.own_chunks(BLOCKS * origin.classes, origin.weight.dtype):
        yield rows, origin(x).double(), direction(x).double() + 0.0 if constant is None else constant


def _logarithmic(family: Power, features: Features) -> Iterator[tuple[slice, Tensor, Tensor]]:
    head, log_scale = family.head.to(features.device), family.log_scale.to(features.device)
    for rows, x in features.own_chunks(BLOCKS * head.classes, head.weight.dtype):
        logits = head(x).double()
        best = logits.amax(dim=1, keepdim=True).sign()
        # A zero logit stays zero at every t: best·(…) leaves exactly that.
        start = best * torch.where(best == 0, 0.0, logits.abs().log())
        yield rows, torch.where(logits.sign() == best, start, -torch.inf), (-best * log_scale).add_(0.0)


def _not_lines(family: Family) -> PosthocError:
    return PosthocError(
        f"heads of the kind {type(family).__name__.lower()}, whose order of classes is not one of lines",
        "a method with a knob tau: logit-adjust or tau-norm",
        "give --method logit-adjust",
    )
