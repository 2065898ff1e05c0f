"""The least of many classes at every knob value, each class constant from one change to the next."""

from __future__ import annotations

import torch
from torch import Tensor


def least_over_classes(
    start: Tensor, classes: Tensor, cells: Tensor, terms: Tensor, counting: Tensor, count: int
) -> Tensor:
    """The least over classes, in each of `count` cells, of terms (·, 1) that hold from one change to the next.

    Args:
        start: (C, 1) before any change.
        classes, cells, terms: of each change, the class, the cell that it opens and the terms from there on;
            classes together, cells in order.
        counting: (C,) bool, the classes that are looked at.
        count: M.
    """
    every = torch.cat([torch.arange(len(start)), classes])
    first, values = torch.cat([torch.zeros(len(start), dtype=torch.int64), cells]), torch.cat([start, terms])[:, 0]
    order = (every * (count + 2) + first).argsort(stable=True)
    every, first, values = every[order], first[order], values[order]
    ends = every != every.roll(-1)
    ends[-1] = True
    last = torch.where(ends, count, first.roll(-1)).clamp(max=count)
    holds = counting[every] & (first < last)
    return least_of_stretches(first[holds], last[holds], values[holds], count)[:, None]


def least_of_stretches(first: Tensor, last: Tensor, values: Tensor, count: int) -> Tensor:
    """The least value among the stretches [first, last) that hold each of `count` cells; infinite where none does.

    A stretch is covered by two, which may overlap, of the largest power of two that fits. From the longest
    down, every power hands what it has gathered to its two halves: (stretches + cells)·log(cells) work.

    >>> least_of_stretches(torch.tensor([0, 1]), torch.tensor([3, 2]), torch.tensor([5.0, 4.0]), 3)
    tensor([5., 4., 5.])
    """
    power = torch.frexp((last - first).double()).exponent.long() - 1
    least = values.new_full((count,), torch.inf)
    for exponent in range(int(power.max()) if len(power) else 0, -1, -1):
        half, at = 2**exponent, power == exponent
        handed = least.clone()
        handed[half:] = torch.minimum(least[half:], least[:-half])
        begin = torch.cat([first[at], last[at] - half])
        least = handed.scatter_reduce_(0, begin, values[at].repeat(2), "amin")
    return least
