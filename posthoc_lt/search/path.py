"""Choosing on a finite path of heads, from one pass a head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.family import Path
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.curve import TIE
from posthoc_lt.search.likelihood import LOG_SCALE_PRIOR

LOG_SCALES = torch.linspace(-2.0, 2.0, 17, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Profile:
    """What every head of a path makes of every validation sample.

    Args:
        right: (K, N) bool.
        losses: (K, A, N) float64, the NLL at each scale of `LOG_SCALES`.
    """

    right: Tensor
    losses: Tensor

    def subset(self, index: Tensor) -> Profile:
        """The same for some of the samples."""
        return Profile(self.right[:, index], self.losses[:, :, index])


def profile_path(path: Path, val: Features) -> Profile:
    """One pass over the features for each head."""
    made = [_profile_head(head.to(val.device), val) for head in path.heads]
    return Profile(torch.stack([right for right, _ in made]), torch.stack([losses for _, losses in made]))


def pick(profile: Profile, weights: Tensor, rule: str) -> tuple[int, int, str]:
    """The index chosen, that of the best metric, and what decided.

    The likelihood of a head is its NLL at the best of a few scales, log a ~ N(0, 0.7²), so that a head
    is not passed over for its temperature. Of equals the first, most regularised, head is taken.

    Args:
        profile: K heads, N samples.
        weights: (N,) summing to 1.
        rule: ``guarded``, ``nll`` or ``metric``.
    """
    values = (profile.right * weights).sum(dim=1)
    best = int((values >= values.max() - TIE).nonzero()[0])
    if rule == "metric":
        return best, best, "metric"
    effective = weights.sum() ** 2 / weights.square().sum()
    penalty = ((LOG_SCALES - LOG_SCALE_PRIOR[0]) / LOG_SCALE_PRIOR[1]).square() / 2
    objectives = (effective * (profile.losses * weights).sum(dim=2) + penalty).amin(dim=1)
    likely = int(objectives.argmin())
    error = ((profile.right != profile.right[best]) * weights.square()).sum(dim=1).sqrt()
    allowed = (values >= values[best] - error - TIE).nonzero().flatten()
    if rule == "nll" or likely in allowed:
        return likely, best, "likelihood"
    return int(allowed[(allowed - likely).abs().argmin()]), best, "guard"


def _profile_head(head: Head, val: Features) -> tuple[Tensor, Tensor]:
    right = torch.empty(len(val), dtype=torch.bool)
    losses = torch.empty(len(LOG_SCALES), len(val), dtype=torch.float64)
    for rows, x in val.chunks(8 * head.classes, head.weight.dtype):
        labels, logits = val.labels[rows].to(x.device), head(x)
        right[rows] = (logits.argmax(dim=1) == labels).cpu()
        for index, log_scale in enumerate(LOG_SCALES.tolist()):
            scaled = logits.double() * torch.tensor(log_scale).exp().item()
            losses[index, rows] = torch.nn.functional.cross_entropy(scaled, labels, reduction="none").cpu()
    return right, losses
