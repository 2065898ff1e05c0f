"""What choosing on validation data is worth: every sample judged by a choice made without it."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_lt.columns import blocks, empty, picked, placed
from posthoc_lt.family import Family, Path
from posthoc_lt.features import Features
from posthoc_lt.search.choose import choose, choose_index
from posthoc_lt.search.folds import FOLDS, members, stratified_folds
from posthoc_lt.search.goal import Goal
from posthoc_lt.search.path import predict, profile_path


def cross_fit(family: Family, val: Features, goal: Goal | None = None, *, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """The predictions (N,) on validation samples, each under a knob chosen on the other folds.

    The heads of a family do not depend on validation data, only the choice among them does (that of offsets, which
    are learned anew, included), so this judges method and rule together, without the optimism of judging on the
    samples chosen on. A single sample has no other fold and is judged by the choice made on itself. Where a fold's
    others hold no sample of a group that the goal names, the choice for that fold does without that part of the goal.
    """
    goal = goal or Goal()
    fold = stratified_folds(val.labels, folds, seed)
    predicted = empty(len(val), torch.int64)
    profile = profile_path(family, val) if isinstance(family, Path) else None
    for index in fold.unique():  # type: ignore[no-untyped-call]
        held = members(fold, int(index))
        rest = held if bool(held.all()) else ~held
        (labels,) = picked(rest, val.labels)
        if profile is None:
            head = choose(family, _part(val, rest), goal.on(labels), strict=False).head
            outcome = placed(held, predict(head, _part(val, held)))
        else:
            outcome = profile.predicted[choose_index(profile.subset(rest), labels, goal.on(labels))]
        for rows in blocks(len(val)):
            predicted[rows] = torch.where(held[rows], outcome[rows], predicted[rows])
    return predicted


def _part(val: Features, kept: Tensor) -> Features:
    return val.subset(kept.nonzero().flatten())
