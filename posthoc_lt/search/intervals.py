"""For every sample, the one open interval of the knob on which it is classified rightly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.columns import Columns, computed, gathered, picked
from posthoc_lt.family import Family
from posthoc_lt.features import Features
from posthoc_lt.search.lines import lines

CACHED = 1 << 17
"""Elements of a block of float64 rows (1 MB) that stays in a processor's cache from one operation to the next."""


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
    for rows, start, slope in lines(family, features):
        labels = features.labels[rows].to(start.device)[:, None]
        bounds.append(*_intersect(labels, start, slope))
    low, high = (gathered(each) for each in bounds.whole())
    return Intervals(low, high)


def _intersect(labels: Tensor, start: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    slope = (slope + 0.0).expand_as(start)  # makes of −0 a 0, so that no gap is −0
    rows = len(start) if start.is_cuda else max(1, CACHED // start.shape[1])
    parts = zip(*(each.split(rows) for each in (labels, start, slope)), strict=True)  # type: ignore[no-untyped-call]
    low, high = (torch.cat(bound) for bound in zip(*(_intersect_rows(*part) for part in parts), strict=True))
    return low, high


def _intersect_rows(labels: Tensor, start: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    low, high = _bounds(*_roots(labels, start, slope))
    out = start.gather(1, labels)[:, 0].isneginf()  # of the running, as other classes may be
    low[out], high[out] = torch.inf, -torch.inf
    equal = low.isnan()
    if equal.any():
        labels, start = labels[equal], start[equal]
        root, falls = _roots(labels, start, slope[equal])
        ahead = torch.arange(start.shape[1], device=start.device) < labels
        by_index = torch.where(ahead, torch.inf, -torch.inf).to(root)
        low[equal] = _bounds(torch.where(root.isnan(), by_index, root), falls)[0]
    return low, high


def _roots(labels: Tensor, start: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Where every class meets the own one (n, C), −∞ for that itself, and whether it is ahead after that.

    With a gap of 0 the root is ±∞: a lower bound of +∞ is a sample that is never right. Of two equal lines it is NaN.
    """
    # In place where it can be: these few lines are most of the search's time.
    gap = slope.gather(1, labels) - slope
    root = (start - start.gather(1, labels)).div_(gap)
    return root.scatter_(1, labels, -torch.inf), gap < 0


def _bounds(root: Tensor, falls: Tensor) -> tuple[Tensor, Tensor]:
    low = root.masked_fill(falls, -torch.inf).amax(dim=1)
    return low, root.masked_fill_(falls.logical_not_(), torch.inf).amin(dim=1)
