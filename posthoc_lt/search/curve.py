"""The step curve F(t) = Σ wᵢ·[lowᵢ < t < highᵢ], exact, and its plateaus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.columns import blocks
from posthoc_lt.search.intervals import Intervals

TIE = 1e-11
"""Sums that differ by less are the same value summed in another order."""

RESOLUTION = 2.0**-18
"""Breakpoints are rounded to multiples of this, about 4e-6.

The same breakpoint reached through two divisions differs in its last bits, which would open a cell of
width 1e-16 on which both of two neighbours seem right; and a head in float32 cannot tell knob values
apart that are closer than about 1e-6. Rounding keeps the order of breakpoints, so no overlap is invented,
and every cell that remains is wide enough to put a head in.
"""


@dataclass(frozen=True, eq=False)
class Curve:
    """A step function: `values[k]` on the open cell from `edges[k]` to `edges[k + 1]`.

    Args:
        edges: (M + 1,) float64, strictly increasing, the first and last are the bounds of the search.
        values: (M,) float64.
    """

    edges: Tensor
    values: Tensor

    def cell(self, knob: float) -> int:
        """The index of the cell that holds t = `knob` (an edge belongs to the cell on its right)."""
        index = int(torch.searchsorted(self.edges, torch.tensor(knob, dtype=torch.float64), right=True)) - 1
        return min(max(index, 0), len(self.values) - 1)

    def at(self, knob: float) -> float:
        """F at t = `knob`."""
        return float(self.values[self.cell(knob)])

    def plateau(self, knob: float) -> tuple[float, float]:
        """The widest stretch around t = `knob` on which F keeps its value there."""
        start = stop = self.cell(knob)
        value = self.values[start]
        while start > 0 and (self.values[start - 1] - value).abs() <= TIE:
            start -= 1
        while stop + 1 < len(self.values) and (self.values[stop + 1] - value).abs() <= TIE:
            stop += 1
        return float(self.edges[start]), float(self.edges[stop + 1])

    def maximum(self, allowed: Tensor) -> tuple[float, tuple[float, float]]:
        """The exact maximum of F over the cells `allowed` (M,), and the widest plateau that reaches it (the first)."""
        best = self.values[allowed].max()
        runs = _runs(allowed & (self.values >= best - TIE))
        low, high = max(
            ((float(self.edges[start]), float(self.edges[stop])) for start, stop in runs),
            key=lambda plateau: plateau[1] - plateau[0],
        )
        return float(best), (low, high)

    def hull(self, allowed: Tensor) -> tuple[float, float]:
        """From the lowest to the highest knob value of the cells `allowed` (M,)."""
        cells = allowed.nonzero().flatten().tolist()
        return float(self.edges[cells[0]]), float(self.edges[cells[-1] + 1])

    def nearest(self, knob: float, allowed: Tensor) -> float:
        """The point nearest to t = `knob` inside the cells `allowed` (M,), off every edge.

        A point on an edge has a sample exactly tied, which rounding would decide: the point stays
        inside by 0.01, or by half of a narrower cell.
        """
        widths = self.edges.diff()
        inset = (widths / 2).clamp(max=0.01)
        points = torch.full_like(widths, knob).clamp(self.edges[:-1] + inset, self.edges[1:] - inset)
        distance = torch.where(allowed, (points - knob).abs(), torch.inf)
        return float(points[distance.argmin()])


def step_curve(intervals: Intervals, weights: Tensor, bounds: tuple[float, float]) -> Curve:
    """The exact curve of weighted samples that are right, between two bounds.

    Breakpoints are sorted a block of samples at a time and merged within `RESOLUTION`, so that a curve never has
    more than 2^18 cells a unit of the knob, however many samples there are. Intervals are open.

    Args:
        intervals: N of them.
        weights: (N,) float64, of either sign.
        bounds: the lowest and the highest knob value.

    >>> one = Intervals(torch.tensor([0.5]).double(), torch.tensor([2.0]).double())
    >>> step_curve(one, torch.ones(1).double(), (0.0, 3.0)).values
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    first, last = bounds
    edges = rounded(torch.tensor([first, last], dtype=torch.float64))
    jumps = torch.zeros_like(edges)
    for rows in blocks(len(weights)):
        low, high = (rounded(ends[rows].clamp(first, last)) for ends in (intervals.low, intervals.high))
        keep = low < high
        low, high, weight = low[keep], high[keep], weights[rows][keep]
        edges, where = torch.unique(torch.cat([edges, low, high]), return_inverse=True)
        jumps = torch.zeros_like(edges).index_add_(0, where, torch.cat([jumps, weight, -weight]))
    return Curve(edges, jumps.cumsum(0)[:-1])


def rounded(knobs: Tensor) -> Tensor:
    """Knob values as multiples of `RESOLUTION`."""
    return torch.round(knobs / RESOLUTION) * RESOLUTION


def _runs(mask: Tensor) -> list[tuple[int, int]]:
    """The (start, stop) of each stretch of True in a 1-D mask."""
    padded = torch.nn.functional.pad(mask.to(torch.int8), (1, 1))
    steps = padded.diff()
    return list(zip((steps == 1).nonzero().flatten().tolist(), (steps == -1).nonzero().flatten().tolist(), strict=True))
