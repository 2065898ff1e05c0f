"""Choosing on a finite path of heads, from one pass a head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.family import Path
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.curve import TIE
from posthoc_lt.search.figures import paired_error, value
from posthoc_lt.search.goal import GUARD, Goal
from posthoc_lt.search.likelihood import LOG_SCALE_PRIOR

SCALES = 2 ** (torch.arange(-6, 7, dtype=torch.float64) / 2)
"""From 1/8 to 8; each is twice the last but one, so that its exponentials are squares of those."""


@dataclass(frozen=True, eq=False)
class Profile:
    """What every head of a path makes of every validation sample.

    Args:
        predicted: (K, N) classes.
        losses: (K, A, N) float64, the NLL at each of `SCALES`.
        classes: C.
    """

    predicted: Tensor
    losses: Tensor
    classes: int

    def replace(self, index: int, head: Head, val: Features) -> None:
        """Put another head in the place of one."""
        self.predicted[index], self.losses[index] = _profile_head(head.to(val.device), val)

    def subset(self, index: Tensor) -> Profile:
        """The same for some of the samples."""
        return Profile(self.predicted[:, index], self.losses[:, :, index], self.classes)


def profile_path(path: Path, val: Features) -> Profile:
    """One pass over the features for each head."""
    made = [_profile_head(head.to(val.device), val) for head in path.heads]
    predicted, losses = (torch.stack(parts) for parts in zip(*made, strict=True))
    return Profile(predicted, losses, path.heads[0].classes)


def predict(head: Head, features: Features) -> Tensor:
    """The predicted classes (N,), in one pass."""
    head = head.to(features.device)
    predicted = torch.zeros(len(features), dtype=torch.int64)
    for rows, x in features.own_chunks(head.classes, head.weight.dtype):
        predicted[rows] = head(x).argmax(dim=1).cpu()
    return ranks.total(predicted)


def pick(profile: Profile, labels: Tensor, goal: Goal, inside: Tensor) -> tuple[int, int, str]:
    """The index chosen, that of the best metric, and what decided.

    The likelihood of a head is its NLL at the best of a few scales, log a ~ N(0, 0.7²), so that a head
    is not passed over for its temperature. Of equals the first, most regularised, head is taken.

    Args:
        profile: K heads, N samples.
        labels: (N,) true classes.
        goal: the metric and the rule.
        inside: (K,) bool, the heads that may be taken.
    """
    figures = [value(goal.figure, labels, row, profile.classes, goal.groups) for row in profile.predicted]
    values = torch.where(inside, torch.tensor(figures, dtype=torch.float64), -torch.inf)
    best = int((values >= values.max() - TIE).nonzero()[0])
    if goal.rule == "metric":
        return best, best, "metric"
    likely = _likeliest(profile, goal.weights(labels))
    supported = inside
    if goal.rule == "guarded":
        reference = profile.predicted[best]
        error = paired_error(goal.figure, labels, profile.predicted, reference, profile.classes, goal.groups)
        supported = inside & (values >= values[best] - GUARD * error - TIE)
    if supported[likely]:
        return likely, best, "likelihood"
    near = supported.nonzero().flatten()
    return int(near[(near - likely).abs().argmin()]), best, "guard"


def _likeliest(profile: Profile, weights: Tensor) -> int:
    effective = weights.sum() ** 2 / weights.square().sum()
    penalty = ((SCALES.log() - LOG_SCALE_PRIOR[0]) / LOG_SCALE_PRIOR[1]).square() / 2
    return int((effective * (profile.losses * weights).sum(dim=2) + penalty).amin(dim=1).argmin())


def _profile_head(head: Head, val: Features) -> tuple[Tensor, Tensor]:
    predicted = torch.zeros(len(val), dtype=torch.int64)
    losses = torch.zeros(len(SCALES), len(val), dtype=torch.float64)
    for rows, x in val.own_chunks(8 * head.classes, head.weight.dtype):
        logits = head(x)
        predicted[rows] = logits.argmax(dim=1).cpu()
        losses[:, rows] = scaled_losses(logits, val.labels[rows].to(x.device)).cpu()
    return ranks.total(predicted), ranks.total(losses)


def scaled_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The NLL (A, n) of logits (n, C) at each of `SCALES`, float64: two exponentials a logit, the rest squares."""
    below = logits.double() - logits.amax(dim=1, keepdim=True)
    own = below.gather(1, labels[:, None])[:, 0]
    powers = [torch.exp(scale * below) for scale in SCALES[:2].tolist()]
    losses = torch.empty(len(SCALES), len(labels), dtype=torch.float64, device=logits.device)
    for index, scale in enumerate(SCALES.tolist()):
        losses[index] = powers[index % 2].sum(dim=1).log() - scale * own
        powers[index % 2].square_()
    return losses
