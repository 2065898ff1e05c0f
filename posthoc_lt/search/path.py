"""Choosing on a finite path of heads, from one pass a head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.columns import Columns, blocks, gathered, picked, placed
from posthoc_lt.family import Path
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.curve import TIE
from posthoc_lt.search.figures import paired_error, value
from posthoc_lt.search.goal import GUARD, Goal
from posthoc_lt.search.likelihood import LOG_SCALE_PRIOR, effective_size

PER_OCTAVE = 3
SCALES = 2 ** (torch.arange(-3 * PER_OCTAVE, 3 * PER_OCTAVE + 1, dtype=torch.float64) / PER_OCTAVE)
"""From 1/8 to 8; from one octave to the next each doubles, so that its exponentials are squares of those before."""


@dataclass(frozen=True, eq=False)
class Profile:
    """What every one of K heads of a path makes of every validation sample.

    Args:
        predicted: of each head, the N classes (`columns`).
        losses: of each head, (M, A) float64, the NLL at each of `SCALES`.
        classes: C.
        kept: (M,) bool, which of the samples that have losses are the N; all by default.
    """

    predicted: list[Tensor]
    losses: list[Tensor]
    classes: int
    kept: Tensor | None = None

    def replace(self, index: int, head: Head, val: Features) -> None:
        """Put another head in the place of one."""
        self.predicted[index], self.losses[index] = _profile_head(head.to(val.device), val)

    def subset(self, kept: Tensor) -> Profile:
        """That of the samples that a mask (N,) keeps."""
        predicted = [picked(kept, row)[0] for row in self.predicted]
        return Profile(predicted, self.losses, self.classes, kept if self.kept is None else placed(self.kept, kept))


def profile_path(path: Path, val: Features) -> Profile:
    """One pass over the features for each head."""
    predicted, losses = zip(*(_profile_head(head.to(val.device), val) for head in path.heads), strict=True)
    return Profile(list(predicted), list(losses), path.heads[0].classes)


def predict(head: Head, features: Features) -> Tensor:
    """The predicted classes (N,), in one pass."""
    head, predicted = head.to(features.device), Columns(torch.int64)
    for _, x in features.own_chunks(head.classes, head.weight.dtype):
        predicted.append(head(x).argmax(dim=1))
    return gathered(*predicted.whole())


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
    likely = int(least_losses(profile, goal.weights(labels)).argmin())
    supported = inside
    if goal.rule == "guarded":
        reference = profile.predicted[best]
        error = paired_error(goal.figure, labels, profile.predicted, reference, profile.classes, goal.groups)
        supported = inside & (values >= values[best] - GUARD * error - TIE)
    if supported[likely]:
        return likely, best, "likelihood"
    near = supported.nonzero().flatten()
    return int(near[(near - likely).abs().argmin()]), best, "guard"


def least_losses(profile: Profile, weights: Tensor) -> Tensor:
    """Each head's penalised NLL (K,) at its best scale."""
    effective = effective_size(weights)
    penalty = ((SCALES.log() - LOG_SCALE_PRIOR[0]) / LOG_SCALE_PRIOR[1]).square() / 2
    means = torch.zeros(len(profile.losses), len(SCALES), dtype=torch.float64)
    for mean, losses in zip(means, profile.losses, strict=True):
        start = 0
        for rows in blocks(len(losses)):  # those left out may be infinite, which no weight of 0 takes off
            part = losses[rows] if profile.kept is None else losses[rows][profile.kept[rows]]
            mean += weights[start : start + len(part)] @ part
            start += len(part)
    return _lowest(effective * means + penalty)


def _lowest(curves: Tensor) -> Tensor:
    """The minima (K,) of convex curves (K, A), by the parabola through the lowest point and its neighbours."""
    middle = curves.argmin(dim=1).clamp(1, curves.shape[1] - 2)
    before, at, after = (curves.gather(1, (middle + step)[:, None])[:, 0] for step in (-1, 0, 1))
    slope, curvature = (after - before) / 2, before - 2 * at + after
    step = (-slope / curvature).clamp(-1, 1)
    return at + step * slope + step.square() * curvature / 2


def _profile_head(head: Head, val: Features) -> tuple[Tensor, Tensor]:
    predicted, losses = Columns(torch.int64), Columns(torch.float64)
    for rows, x in val.own_chunks(8 * head.classes, head.weight.dtype):
        logits = head(x)
        predicted.append(logits.argmax(dim=1))
        losses.append(scaled_losses(logits, val.labels[rows].to(x.device)).T.flatten())
    return gathered(*predicted.whole()), gathered(*losses.whole()).view(-1, len(SCALES))


def scaled_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The NLL (A, n) of logits (n, C) at each of `SCALES`, float64: an octave of exponentials, the rest squares."""
    below = logits.double() - logits.amax(dim=1, keepdim=True)
    own = below.gather(1, labels[:, None])[:, 0]
    powers = [torch.exp(scale * below) for scale in SCALES[:PER_OCTAVE].tolist()]
    losses = torch.empty(len(SCALES), len(labels), dtype=torch.float64, device=logits.device)
    for index, scale in enumerate(SCALES.tolist()):
        power = powers[index % PER_OCTAVE]
        losses[index] = power.sum(dim=1).log() - scale * own
        power.square_()
    return losses
