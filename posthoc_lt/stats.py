"""How sure a number is: intervals of accuracy, paired differences, many comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.metrics import Tally, recall

LEVEL = 0.95
"""The confidence level of every interval shown."""


@dataclass(frozen=True)
class Paired:
    """What one set of predictions gains over another on the same samples.

    Args:
        delta: the gain in balanced accuracy, as a fraction: -1 … 1.
        se: its standard error.
        low, high: its interval, within -1 … 1.
        p: the two-sided p-value of "no difference".
    """

    delta: float
    se: float
    low: float
    high: float
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def balanced_interval(tally: Tally, level: float = LEVEL, mask: Tensor | None = None) -> tuple[float, float]:
    """A normal interval for balanced accuracy p̄, Var = C⁻² Σ p_c(1−p_c)/(n_c−1), cut to 0 … 1.

    C counts the classes that have a sample. A class with a single one tells nothing of its own variance and
    takes the pooled p̄(1−p̄) instead, p̄ the balanced accuracy itself: at least the true mean variance of
    classes whose recalls average p̄, and not ruled by large classes as the plain accuracy would be.
    When every prediction is right (or wrong) the formula would claim certainty; Wilson's interval for
    C²/Σ(1/n_c) samples, which has the same variance at equal recalls, stands in for it.

    Args:
        tally: the counts by class.
        level: between 0 and 1.
        mask: (C,) bool, the classes of a group; all by default.

    Raises:
        PosthocError: no class of the group has a sample, or the level is not between 0 and 1.

    >>> ten = torch.tensor([10, 10])
    >>> low, high = balanced_interval(Tally(right=torch.tensor([5, 9]), actual=ten, predicted=ten))
    >>> round(low, 3), round(high, 3)
    (0.51, 0.89)
    """
    members = _members(tally.actual, mask)
    size, share = tally.actual[members].double(), recall(tally)[members]
    mean, classes = float(share.mean()), len(share)
    if mean in (0.0, 1.0):
        return _wilson(mean, classes**2 / float((1 / size).sum()), level)
    own = share * (1 - share) / (size - 1).clamp(min=1)
    spread = torch.where(size > 1, own, torch.full_like(own, mean * (1 - mean)))
    reach = _quantile(level) * math.sqrt(float(spread.sum())) / classes
    return max(0.0, mean - reach), min(1.0, mean + reach)


def accuracy_interval(tally: Tally, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval for the plain accuracy.

    Raises:
        PosthocError: there is no sample, or the level is not between 0 and 1.
    """
    _members(tally.actual, None)
    return _wilson(int(tally.right.sum()) / tally.total, tally.total, level)


def paired(
    labels: Tensor,
    right_a: Tensor,
    right_b: Tensor,
    classes: int,
    mask: Tensor | None = None,
    level: float = LEVEL,
) -> Paired:
    """The balanced accuracy of b minus that of a, with its error, from the samples on which they disagree.

    δ = Σ w_i d_i with d_i = right_b − right_a in {−1, 0, 1} and w_i = 1/(C·n_y), C the classes that have a
    sample; SE² = Σ w_i² d_i², its variance if the two are equally good; p and interval are normal. With every
    w_i equal this is McNemar's test without continuity correction. Without a disagreement δ = 0 and p = 1; with
    fewer than about ten of them the normal law is rough and p a little too small.

    Args:
        labels: (N,) true classes, 0 … C-1.
        right_a, right_b: (N,) whether a, and b, predicted the sample right.
        classes: C.
        mask: (C,) bool, the classes of a group; all by default.
        level: of the interval, between 0 and 1.

    Raises:
        PosthocError: lengths differ, no class of the group has a sample, or the level is not between 0 and 1.

    >>> better = paired(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 0, 0]), torch.tensor([1, 1, 1, 0]), 2)
    >>> better.delta, better.clear
    (0.5, False)
    """
    if not labels.shape == right_a.shape == right_b.shape:
        raise PosthocError(
            f"{len(labels)} labels for {len(right_a)} and {len(right_b)} outcomes",
            "two sets of predictions on the same samples",
            "evaluate both heads on the same split",
        )
    size = torch.bincount(labels, minlength=classes)
    members = _members(size, mask)
    weight = torch.where(members, 1 / (int(members.sum()) * size.double()), 0.0)[labels]
    signed = weight * (right_b.double() - right_a.double())
    delta, se = float(signed.sum()), float(signed.square().sum().sqrt())
    if se == 0:
        return Paired(0.0, 0.0, 0.0, 0.0, 1.0)
    reach = _quantile(level) * se
    # erfc, because 2·(1 − Φ(z)) is 0 from z = 8.3 on.
    p = math.erfc(abs(delta) / se / math.sqrt(2))
    return Paired(delta, se, max(-1.0, delta - reach), min(1.0, delta + reach), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: at most 5% chance that *any* adjusted p below 0.05 is a false alarm.

    The k-th smallest of m values is multiplied by m − k + 1, never falls below the one before it, and stops at 1.
    The result keeps the order given.

    Raises:
        PosthocError: a value is no probability.

    >>> holm([0.01, 0.04])
    [0.02, 0.04]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise PosthocError("a p-value outside 0 to 1", "probabilities", "leave out the rows that were not compared")
    adjusted, floor = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def _members(size: Tensor, mask: Tensor | None) -> Tensor:
    """The classes that have a sample, within the mask."""
    members = size > 0 if mask is None else (size > 0) & mask
    if not bool(members.any()):
        raise PosthocError(
            "a group of classes without a sample",
            "at least one sample of one of its classes",
            "leave the group out, or move its edges",
        )
    return members


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise PosthocError(f"confidence level {level}", "a number between 0 and 1", f"give {LEVEL}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _wilson(share: float, size: float, level: float) -> tuple[float, float]:
    z = _quantile(level)
    shrink = 1 + z * z / size
    middle = (share + z * z / (2 * size)) / shrink
    reach = z * math.sqrt(share * (1 - share) / size + (z / (2 * size)) ** 2) / shrink
    # Rounding must not push the bound of an all-wrong or all-right sample past it.
    low = 0.0 if share == 0 else max(0.0, middle - reach)
    return low, 1.0 if share == 1 else min(1.0, middle + reach)
