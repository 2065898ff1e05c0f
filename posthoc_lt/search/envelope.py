"""Every sample's prediction at every knob value: the upper envelope of its classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from posthoc_lt.columns import Columns, blocks, computed, empty, gathered, picked
from posthoc_lt.family import Family, KeptBias
from posthoc_lt.features import Features
from posthoc_lt.search.curve import rounded
from posthoc_lt.search.kept import Curves, overtaken
from posthoc_lt.search.lines import BLOCKS, lines

# From samples still moving (m,), their class in front (m,) and where they are (m,), to the next change:
# its knob value (m,), infinite where there is none, and the class that takes over (m,).
Following = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Walk:
    """All predictions between two bounds: those at the first, and every change after it.

    Args:
        labels: (N,) true classes.
        first: (N,) predicted on the first cell.
        sample, before, after: (E,) which sample's prediction changes, from which class, to which; the changes of a
            sample are in the order of the knob.
        time: (E,) float64, the knob value at which it does.
        classes: C.
        bounds: the lowest and the highest knob value.
    """

    labels: Tensor
    first: Tensor
    sample: Tensor
    before: Tensor
    after: Tensor
    time: Tensor
    classes: int
    bounds: tuple[float, float]

    @cached_property
    def cells(self) -> tuple[Tensor, Tensor]:
        """The edges (M + 1,) of all cells, and for each change the cell (E,) that it opens."""
        edges = rounded(torch.tensor(self.bounds, dtype=torch.float64))
        for rows in blocks(len(self.time)):
            edges = torch.unique(torch.cat([edges, rounded(self.time[rows])]))
        return edges, computed(len(self.time), lambda rows: torch.searchsorted(edges, rounded(self.time[rows])))

    def subset(self, kept: Tensor) -> Walk:
        """The walk of the samples that a mask (N,) keeps."""
        place, passed = empty(len(kept), torch.int64), 0
        for rows in blocks(len(kept)):
            place[rows] = kept[rows].cumsum(dim=0) + (passed - 1)
            passed += int(kept[rows].sum())
        stays = computed(len(self.time), lambda rows: kept[self.sample[rows]])
        sample, before, after, time = picked(stays, self.sample, self.before, self.after, self.time)
        moved = computed(len(sample), lambda rows: place[sample[rows]])
        labels, first = picked(kept, self.labels, self.first)
        return Walk(labels, first, moved, before, after, time, self.classes, self.bounds)


def walk(family: Family, features: Features, bounds: tuple[float, float]) -> Walk:
    """One pass over the features follows every sample's argmax from the lower bound to the upper.

    A sample changes class a few times at most, so each step looks only at samples still moving.

    Raises:
        PosthocError: the family has no continuous knob.
    """
    starts, steps = Columns(torch.int64), Columns(torch.int64, torch.int64, torch.int64, torch.float64)
    chunks = _curved(family, features, bounds) if isinstance(family, KeptBias) else _straight(family, features, bounds)
    for rows, current, following in chunks:
        starts.append(current)
        for step in _follow(current, following, bounds, rows.start):
            steps.append(*step)
    first, sample, before, after, time = (gathered(each) for each in (*starts.whole(), *steps.whole()))
    return Walk(features.labels.cpu(), first, sample, before, after, time, family.at(bounds[0]).classes, bounds)


_Step = tuple[Tensor, Tensor, Tensor, Tensor]
_Chunk = tuple[slice, Tensor, Following]


def _follow(current: Tensor, following: Following, bounds: tuple[float, float], offset: int) -> Iterator[_Step]:
    """The changes (sample, before, after, time) of a chunk, each sample's in the order of the knob."""
    moving = torch.arange(len(current), device=current.device)
    now = torch.full((len(current),), float(bounds[0]), dtype=torch.float64, device=current.device)
    while len(moving):
        time, after = following(moving, current, now)
        time = torch.maximum(time, now)
        on = time < bounds[1]
        moving, before, current, now = moving[on], current[on], after[on], time[on]
        yield moving + offset, before, current, now


def _straight(family: Family, features: Features, bounds: tuple[float, float]) -> Iterator[_Chunk]:
    """Lines: the class in front, k, is overtaken at the least t = (A_k − A_j)/(B_j − B_k) over B_j > B_k."""
    for rows, start, slope in lines(family, features):
        slope = slope.expand_as(start)

        def following(
            moving: Tensor, current: Tensor, now: Tensor, start: Tensor = start, slope: Tensor = slope
        ) -> tuple[Tensor, Tensor]:
            return _next_line(start[moving], slope[moving], current)

        yield rows, _in_front(start + bounds[0] * slope, slope), following


def _next_line(start: Tensor, slope: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
    """Of several lines that meet there the steepest takes over, of equal lines the lowest index."""
    own = current[:, None]
    gap = slope - slope.gather(1, own)
    meet = torch.where(gap > 0, (start.gather(1, own) - start) / gap, torch.inf)
    time = meet.amin(dim=1)
    return time, torch.where(meet == time[:, None], slope, -torch.inf).argmax(dim=1)


def _curved(family: KeptBias, features: Features, bounds: tuple[float, float]) -> Iterator[_Chunk]:
    head, log_scale = family.head.to(features.device), family.log_scale.to(features.device)
    for rows, x in features.own_chunks(BLOCKS * head.classes, head.weight.dtype):
        curves = Curves(head(x).double() - head.bias.double(), log_scale, head.bias.double())

        def following(moving: Tensor, current: Tensor, now: Tensor, curves: Curves = curves) -> tuple[Tensor, Tensor]:
            return overtaken(curves.rows(moving), current, now, bounds[1])

        yield rows, _in_front(curves.at(bounds[0]), curves.slope(bounds[0])), following


def _in_front(values: Tensor, slope: Tensor) -> Tensor:
    """The argmax just past t: of the largest values the steepest, of equals the lowest index."""
    top = values == values.amax(dim=1, keepdim=True)
    return torch.where(top, slope, -torch.inf).argmax(dim=1)
