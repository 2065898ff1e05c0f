"""What choosing on validation data is worth: every sample judged by a choice made without it."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_lt.family import Family, Path
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.choose import METRICS, choose
from posthoc_lt.search.path import pick, profile_path

FOLDS = 5


def stratified_folds(labels: Tensor, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """A fold (N,) for every sample, each class dealt out over the folds as evenly as it goes.

    Dealing continues from class to class where the last one stopped, so that classes smaller than
    the number of folds do not all land in the first.

    >>> stratified_folds(torch.tensor([0, 0, 1, 1]), folds=2).bincount()
    tensor([2, 2])
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels[shuffled].argsort(stable=True)]
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels)) % folds
    return fold


def cross_fit(
    family: Family,
    val: Features,
    *,
    metric: str = "balanced-accuracy",
    rule: str = "guarded",
    folds: int = FOLDS,
    seed: int = 0,
) -> Tensor:
    """Which validation samples (N,) are right under a knob chosen on the other folds.

    The heads of a family do not depend on validation data, only the choice of the knob does, so this
    judges method and rule together, without the optimism of judging on the samples chosen on.
    """
    fold = stratified_folds(val.labels, folds, seed)
    right = torch.zeros(len(val), dtype=torch.bool)
    profile = profile_path(family, val) if isinstance(family, Path) else None
    for index in range(folds):
        held, rest = (fold == index).nonzero().flatten(), (fold != index).nonzero().flatten()
        if not (len(held) and len(rest)):
            continue  # a single sample: no choice can be made without it, so it is not counted as right
        if profile is None:
            head = choose(family, val.subset(rest), metric=metric, rule=rule).head
            right[held] = _right(head, val.subset(held))
        else:
            chosen, _, _ = pick(profile.subset(rest), METRICS[metric](val.labels[rest]), rule)
            right[held] = profile.right[chosen, held]
    return right


def _right(head: Head, features: Features) -> Tensor:
    head = head.to(features.device)
    predicted = [head(x).argmax(dim=1).cpu() for _, x in features.chunks(head.classes, head.weight.dtype)]
    return torch.cat(predicted) == features.labels
