"""Dealing samples out, so that some can be judged by choices that the others made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posthoc_lt.columns import blocks, computed, empty

FOLDS = 5

REPEATS = 10
"""How often `vote` halves the samples anew; each gives two votes."""


def stratified_folds(labels: Tensor, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """A fold (N,) for every sample, each class dealt out over the folds as evenly as it goes.

    Dealing continues from class to class where the last one stopped, so that classes smaller than
    the number of folds do not all land in the first.

    >>> stratified_folds(torch.tensor([0, 0, 1, 1]), folds=2).bincount()
    tensor([2, 2])
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator, out=empty(len(labels), torch.int64))
    sizes = torch.bincount(labels)
    dealt, fold = sizes.cumsum(0) - sizes, empty(len(labels), torch.int64)
    for rows in blocks(len(labels)):
        own, order = labels[shuffled[rows]].sort(stable=True)
        met = torch.bincount(own, minlength=len(sizes))
        place = dealt[own] + torch.arange(len(own)) - (met.cumsum(0) - met)[own]
        fold[shuffled[rows][order]] = place % folds
        dealt += met
    return fold


def vote(labels: Tensor, best: Callable[[Tensor], float], seed: int = 0) -> float:
    """The median of the choices that halves of the samples make: ``med {best(H)}`` over both halves H of 10 splits.

    A maximum follows the noise of the samples it was taken on. Halves share no sample, so what only a few
    samples want gets few votes. Of two middle votes the lower counts, so that the outcome is always a vote.

    Args:
        labels: (N,), each class split as evenly as it goes.
        best: from a mask (N,) of the samples that may choose, to their choice.
        seed: of the splits.

    >>> vote(torch.zeros(4).long(), lambda half: float(half.sum()))
    2.0
    """
    votes = []
    for repeat in range(REPEATS):
        fold = stratified_folds(labels, 2, (seed * REPEATS + repeat) % 2**63)
        votes += [best(members(fold, half)) for half in range(min(2, len(labels)))]
    return sorted(votes)[(len(votes) - 1) // 2]


def members(fold: Tensor, index: int) -> Tensor:
    """A mask (N,) of the samples in a fold."""
    return computed(len(fold), lambda rows: fold[rows] == index)
