"""For every sample, the one open interval of the knob on which it is classified rightly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Family, KeptBias, Line, Power
from posthoc_lt.features import Features

_BLOCKS = 8
"""How many float64 (rows, C) blocks are alive at once; it divides the rows of a chunk."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """Sample i is right exactly for low_i < t < high_i (never where low_i >= high_i).

    Args:
        low, high: shape (N,), float64, infinite where there is no limit.
    """

    low: Tensor
    high: Tensor

    def right(self, knob: float) -> Tensor:
        """Which samples are right at t = `knob`, shape (N,), bool."""
        return (self.low < knob) & (knob < self.high)


def winning_intervals(family: Family, features: Features) -> Intervals:
    """One pass over the features gives, for each sample, where its own class wins.

    Class y beats class j iff α + t·β > 0, with for a `Line` α = A_y − A_j, β = B_y − B_j, and for a
    `Power` of logits of one sign sgn, α = sgn·(ln|z_y| − ln|z_j|), β = −sgn·(u_y − u_j); logits of unlike
    sign keep their order at every t. So low = max over β > 0 of −α/β, high = min over β < 0 of −α/β.
    Where β = 0 the order never changes, and a tie goes to the lower index, as argmax has it. Logits are
    computed as deployed, in the head's dtype; differences in float64.

    Raises:
        PosthocError: the family has no such intervals (`KeptBias` has two roots a pair).
    """
    if not isinstance(family, Line | Power):
        raise _no_intervals(family)
    low, high = [torch.empty(0, dtype=torch.float64)], [torch.empty(0, dtype=torch.float64)]
    for labels, alpha, beta in _inequalities(family, features):
        bound_low, bound_high = _intersect(labels, alpha, beta)
        low.append(bound_low.cpu())
        high.append(bound_high.cpu())
    return Intervals(torch.cat(low), torch.cat(high))


def _inequalities(family: Line | Power, features: Features) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of (labels (n, 1), α (n, C), β (n, C))."""
    if isinstance(family, Line):
        origin, direction = family.origin.to(features.device), family.direction.to(features.device)
        width, constant = origin.classes, not direction.weight.any()
    else:
        head, log_scale = family.head.to(features.device), family.log_scale.to(features.device)
        width = head.classes
    for rows, x in features.chunks(_BLOCKS * width, torch.float64 if _wide(family) else torch.float32):
        labels = features.labels[rows].to(features.device)[:, None]
        if isinstance(family, Line):
            slope = direction.bias.expand(len(x), -1) if constant else direction(x)
            yield labels, _margins(origin(x).double(), labels), _margins(slope, labels)
        else:
            yield labels, *_log_margins(head(x).double(), log_scale, labels)


def _wide(family: Line | Power) -> bool:
    head = family.origin if isinstance(family, Line) else family.head
    return head.weight.dtype == torch.float64


def _margins(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.gather(1, labels) - scores


def _log_margins(logits: Tensor, log_scale: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    sign = logits.sign()
    # A zero logit stays zero at every t: with its logarithm set to 0, sign·(…) leaves exactly that.
    logs = torch.where(sign == 0, 0.0, logits.abs().log())
    own = sign.gather(1, labels)
    alike = own == sign
    alpha = torch.where(alike, own * _margins(logs, labels), own - sign)
    beta = torch.where(alike, -own * (log_scale[labels] - log_scale), 0.0)
    return alpha, beta


def _intersect(labels: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    infinity = torch.inf
    root = -alpha / beta
    low = torch.where(beta > 0, root, -infinity).amax(dim=1)
    high = torch.where(beta < 0, root, infinity).amin(dim=1)
    rival = torch.arange(alpha.shape[1], device=alpha.device)
    always = (alpha > 0) | ((alpha == 0) & (labels <= rival))  # a tie goes to the lower index
    lost = ((beta == 0) & ~always).any(dim=1)
    return torch.where(lost, infinity, low), torch.where(lost, -infinity, high)


def _no_intervals(family: Family) -> PosthocError:
    if isinstance(family, KeptBias):
        return PosthocError(
            "tau-norm with its bias kept, which has no single interval a sample",
            "a family that the exact search covers",
            "give --bias drop or --bias scale, or set --tau yourself",
        )
    return PosthocError(
        f"a {type(family).__name__.lower()} of heads, which has no continuous knob",
        "a method with a knob tau: logit-adjust or tau-norm",
        "give --method logit-adjust",
    )
