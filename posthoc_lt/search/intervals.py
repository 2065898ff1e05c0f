"""For every sample, the one open interval of the knob on which it is classified rightly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt import ranks
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

    def subset(self, kept: Tensor) -> Intervals:
        """Those of the samples that a mask (N,) keeps."""
        return Intervals(self.low[kept], self.high[kept])

    def right(self, knob: float) -> Tensor:
        """Which samples are right at t = `knob`, shape (N,), bool."""
        return (self.low < knob) & (knob < self.high)


def winning_intervals(family: Family, features: Features) -> Intervals:
    """One pass over the features gives, for each sample, where its own class wins.

    Class y beats class j iff (A_y − A_j) + t·(B_y − B_j) > 0, A and B the family's `lines`. So the root
    (A_j − A_y)/(B_y − B_j) bounds t from below where B_y > B_j and from above where B_y < B_j. Where
    B_y = B_j the order never changes, and a tie goes to the lower index, as argmax has it.

    Raises:
        PosthocError: the family has no such intervals.
    """
    low, high = (torch.zeros(len(features), dtype=torch.float64) for _ in range(2))
    for rows, start, slope in lines(family, features):
        labels = features.labels[rows].to(start.device)[:, None]
        low[rows], high[rows] = (bound.cpu() for bound in _intersect(labels, start, slope))
    return Intervals(ranks.total(low), ranks.total(high))


_TIE = 1e-300
"""What an exact tie counts as, a step of index: infinitely more than 0 where slopes are equal, nothing elsewhere."""


def _intersect(labels: Tensor, start: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    # In place where it can be: these few lines are most of the search's time.
    behind = start - start.gather(1, labels)
    step = -_TIE * torch.arange(start.shape[1], dtype=start.dtype, device=start.device)
    behind.add_(step).sub_(step[labels] + _TIE / 2)  # of equals, lower indices are above, the class itself below
    slope = slope + 0.0  # makes of −0 a 0, so that no gap is −0
    gap = slope.expand_as(start).gather(1, labels) - slope
    # With a gap of 0 the root is ±∞: a lower bound of +∞ is a sample that is never right.
    root, falls = behind.div_(gap), gap < 0
    low = root.masked_fill(falls, -torch.inf).amax(dim=1)
    high = root.masked_fill_(falls.logical_not_(), torch.inf).amin(dim=1)
    # A class out of the running, A_y = −∞, makes −∞ − (−∞) = NaN against another such class.
    return low.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf), high.nan_to_num(
        nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf
    )
