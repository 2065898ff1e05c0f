"""For every sample, the one open interval of the knob on which it is classified rightly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.family import Family
from posthoc_lt.features import Features
from posthoc_lt.search.lines import lines


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

    Class y beats class j iff α + t·β > 0 with α = A_y − A_j and β = B_y − B_j of the family's `lines`.
    So low = max over β > 0 of −α/β, high = min over β < 0 of −α/β. Where β = 0 the order never
    changes, and a tie goes to the lower index, as argmax has it.

    Raises:
        PosthocError: the family has no such intervals.
    """
    low = torch.empty(len(features), dtype=torch.float64)
    high = torch.empty_like(low)
    for rows, start, slope in lines(family, features):
        labels = features.labels[rows].to(start.device)[:, None]
        bounds = _intersect(labels, _margins(start, labels), _margins(slope.expand_as(start), labels))
        low[rows], high[rows] = (bound.cpu() for bound in bounds)
    return Intervals(low, high)


def _margins(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.gather(1, labels) - scores


def _intersect(labels: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    root = -alpha / beta
    low = torch.where(beta > 0, root, -torch.inf).amax(dim=1)
    high = torch.where(beta < 0, root, torch.inf).amin(dim=1)
    rival = torch.arange(alpha.shape[1], device=alpha.device)
    always = (alpha > 0) | ((alpha == 0) & (labels <= rival))  # a tie goes to the lower index
    # The own class may be out of the running (α = −∞ against the rivals, NaN against others that are).
    lost = ((beta == 0) & (rival != labels) & ~always).any(dim=1) | (alpha == -torch.inf).any(dim=1)
    return torch.where(lost, torch.inf, low), torch.where(lost, -torch.inf, high)
