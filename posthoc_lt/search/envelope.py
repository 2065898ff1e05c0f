"""Every sample's prediction at every knob value: the upper envelope of its classes' lines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.family import Family
from posthoc_lt.features import Features
from posthoc_lt.search.lines import lines


@dataclass(frozen=True, eq=False)
class Walk:
    """All predictions between two bounds: those at the first, and every change after it.

    Args:
        labels: (N,) true classes.
        first: (N,) predicted on the first cell.
        sample, before, after: (E,) which sample's prediction changes, from which class, to which.
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


def walk(family: Family, features: Features, bounds: tuple[float, float]) -> Walk:
    """One pass over the features follows every sample's argmax from the lower bound to the upper.

    From class k the argmax moves on at the least t = (A_k − A_j)/(B_j − B_k) over steeper lines,
    B_j > B_k; of several lines that meet there the steepest takes over, of equal lines the lowest index.
    A sample changes class a few times at most, so each step looks only at samples still moving.

    Raises:
        PosthocError: the family has no lines.
    """
    first = torch.empty(len(features), dtype=torch.int64)
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    classes = 0
    for rows, start, slope in lines(family, features):
        classes, slope = start.shape[1], slope.expand_as(start)
        now = torch.full((len(start),), float(bounds[0]), dtype=torch.float64, device=start.device)
        current = _steepest(start + bounds[0] * slope, slope)
        first[rows] = current.cpu()
        moving = torch.arange(len(start), device=start.device)
        while len(moving):
            time, following = _next(start[moving], slope[moving], current)
            time = torch.maximum(time, now)
            on = time < bounds[1]
            moving, time, current, following = moving[on], time[on], current[on], following[on]
            if not len(moving):
                break
            steps.append(tuple(part.cpu() for part in (moving + rows.start, current, following, time)))  # type: ignore[arg-type]
            current, now = following, time
    sample, before, after = (torch.cat([torch.empty(0, dtype=torch.int64), *(s[k] for s in steps)]) for k in range(3))
    time = torch.cat([torch.empty(0, dtype=torch.float64), *(s[3] for s in steps)])
    return Walk(features.labels.cpu(), first, sample, before, after, time, classes, bounds)


def _steepest(values: Tensor, slope: Tensor) -> Tensor:
    """The argmax just past t: of the largest values the steepest line, of equals the lowest index."""
    top = values == values.amax(dim=1, keepdim=True)
    return torch.where(top, slope, -torch.inf).argmax(dim=1)


def _next(start: Tensor, slope: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
    """When the class in front is overtaken, and by which; an infinite time where it never is."""
    own = current[:, None]
    gap = slope - slope.gather(1, own)
    meet = torch.where(gap > 0, (start.gather(1, own) - start) / gap, torch.inf)
    time = meet.amin(dim=1)
    return time, torch.where(meet == time[:, None], slope, -torch.inf).argmax(dim=1)
