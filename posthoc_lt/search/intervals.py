"""For every sample, the one open interval of the knob on which it is classified rightly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.columns import Columns, computed, gathered, picked
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
        return Intervals(*picked(kept, self.low, self.high))

    def right(self, knob: float) -> Tensor:
        """Which samples are right at t = `knob`, shape (N,), bool."""
        return computed(len(self.low), lambda rows: (self.low[rows] < knob) & (knob < self.high[rows]))


def winning_intervals(family: Family, features: Features) -> Intervals:
    """One pass over the features gives, for each sample, where its own class wins.

    Class y beats class j iff (A_y − A_j) + t·(B_y − B_j) > 0, A and B the family's `lines`. So the root
    (A_j − A_y)/(B_y − B_j) bounds t from below where B_y > B_j and from above where B_y < B_j. Where
    B_y = B_j the order never changes, and a tie goes to the lower index, as argmax has it.

    Raises:
        PosthocError: the family has no such intervals.
    """
    bounds = Columns(torch.float64, torch.float64)
    room: Tensor | None = None
    for rows, start, slope in lines(family, features):
        room = start.new_empty(2, *start.shape) if room is None else room
        labels = features.labels[rows].to(start.device)[:, None]
        bounds.append(*_intersect(labels, start, slope, room))
    low, high = (gathered(each) for each in bounds.whole())
    return Intervals(low, high)


def _intersect(labels: Tensor, start: Tensor, slope: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """The bounds (n,) of each sample; overwrites `start`, and `room` (2, n or more, C), which is taken only once.

    These few lines are most of the search's time, and memory taken anew for each chunk would double it.
    """
    gap, masked = room[:, : len(start)]
    torch.sub(slope.expand_as(start).gather(1, labels), slope, out=gap)
    own, falls, never = start.gather(1, labels), gap < 0, start.new_tensor(torch.inf)
    # With a gap of 0 the root is ±∞: a lower bound of +∞ is a sample that is never right. Of two equal lines it is NaN.
    root = start.sub_(own).div_(gap).scatter_(1, labels, -torch.inf)
    low = torch.where(falls, -never, root, out=masked).amax(dim=1)
    high = torch.where(falls, root, never, out=masked).amin(dim=1)
    out = ~own[:, 0].isfinite()  # of the running: −∞, as other classes may be, or no number at all
    low[out], high[out] = torch.inf, -torch.inf
    equal = low.isnan()
    if equal.any():
        ahead = torch.arange(root.shape[1], device=root.device) < labels[equal]
        root = torch.where(root[equal].isnan(), torch.where(ahead, never, -never), root[equal])
        low[equal] = torch.where(falls[equal], -never, root).amax(dim=1)
    return low, high
