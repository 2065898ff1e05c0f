"""What choosing on validation data is worth: every sample judged by a choice made without it."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_lt.family import Family
from posthoc_lt.features import Features
from posthoc_lt.search.choose import _right, choose

FOLDS = 5


def stratified_folds(labels: Tensor, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """A fold (N,) for every sample, each class dealt out over the folds as evenly as it goes.

    Dealing continues from class to class where the last one stopped, so that classes smaller than
    the number of folds do not all land in the first.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels)) % folds
    return fold


def cross_fit(family: Family, val: Features, *, metric: str, rule: str, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """Which validation samples (N,) are right under a knob chosen on the other folds.

    The heads of a family do not depend on validation data, only the choice of the knob does, so this
    is an unbiased judgement of method and rule together.
    """
    fold = stratified_folds(val.labels, folds, seed)
    right = torch.zeros(len(val), dtype=torch.bool)
    for index in range(folds):
        held, rest = (fold == index).nonzero().flatten(), (fold != index).nonzero().flatten()
        if len(held) and len(rest):
            head = choose(family, val.subset(rest), metric=metric, rule=rule).head
            right[held] = _right(head, val.subset(held))
    return right
