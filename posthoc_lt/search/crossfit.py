"""What choosing on validation data is worth: every sample judged by a choice made without it."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_lt.family import Family, Path
from posthoc_lt.features import Features
from posthoc_lt.search.choose import choose, choose_index
from posthoc_lt.search.folds import FOLDS, stratified_folds
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
    predicted = torch.empty(len(val), dtype=torch.int64)
    profile = profile_path(family, val) if isinstance(family, Path) else None
    for index in fold.unique():  # type: ignore[no-untyped-call]
        held, rest = (fold == index).nonzero().flatten(), (fold != index).nonzero().flatten()
        rest = rest if len(rest) else held
        if profile is None:
            head = choose(family, val.subset(rest), goal.on(val.labels[rest]), strict=False).head
            predicted[held] = predict(head, val.subset(held))
        else:
            chosen = choose_index(profile.subset(rest), val.labels[rest], goal.on(val.labels[rest]))
            predicted[held] = profile.predicted[chosen, held]
    return predicted
