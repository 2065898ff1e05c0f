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

_PRIOR = 3.0
"""Degrees of freedom that the pooled variance counts as beside those of the classes' own variances."""

_EXACT = 16
"""Up to so many disagreements every one of their 2^m sign patterns is looked at."""


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
    """Wilson's interval for the balanced accuracy p̄ and the number of samples that has its variance.

    n' = p̄(1−p̄)/Var with Var = C⁻² Σ s_c²/n_c, s_c² = p_c(1−p_c)·n_c/(n_c−1), C the classes that have a sample:
    the effective sample size of surveys (Korn and Graubard 1998, Survey Methodology 24; Franco 2019,
    J. Surv. Stat. Methodol. 7). Classes with a single sample show no variance of their own and are collapsed
    into one stratum of m samples, s² their variance, which adds m·s² to the sum (Cochran 1977, §5A.12).

    A few samples, all right or all wrong, are not certain: each s² is drawn toward the pooled p̄(1−p̄), which
    counts as 3 degrees of freedom in all, shared out as the 1/n_c (as m). So a lone single sample takes the
    pooled variance, and when every prediction is right (or wrong) n' = C²/Σ(1/n_c). Where each class has one
    sample nobody can tell how recalls vary between classes, and the interval is wide enough for alike ones.

    Args:
        tally: the counts by class.
        level: between 0 and 1.
        mask: (C,) bool, the classes of a group; all by default.

    Raises:
        PosthocError: no class of the group has a sample, or the level is not between 0 and 1.

    >>> ten = torch.tensor([10, 10])
    >>> low, high = balanced_interval(Tally(right=torch.tensor([5, 9]), actual=ten, predicted=ten))
    >>> round(low, 3), round(high, 3)
    (0.491, 0.85)
    """
    members = _members(tally.actual, mask)
    share = recall(tally)[members]
    mean, (weight, freedom, variance) = float(share.mean()), _strata(tally.actual[members].double(), share)
    pooled, prior = mean * (1 - mean), _PRIOR * weight / weight.sum()
    relative = variance / pooled if pooled else torch.ones_like(variance)
    drawn = (freedom * relative + prior) / (freedom + prior)
    return _wilson(mean, len(share) ** 2 / float((weight * drawn).sum()), level)


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
    sample. SE² = C⁻² Σ q_c/n_c with q_c the share of class c on which they disagree, drawn toward the pooled
    share q̄ by two samples, (k_c + 2q̄)/(n_c + 2): unsmoothed it is Σ w_i² d_i², but a class of a few samples
    without a disagreement would then count as certain. q̄ itself has one disagreement in two samples added to
    n' = C²/Σ(1/n_c). The interval is normal.

    p is the larger of two: that of the interval's SE, and that of the disagreements alone: with up to 16 the exact
    share of their 2^m sign patterns with a sum as far from 0 as δ (with every w_i equal, the sign test), since the
    normal law is too rough for so few; with more the normal one (McNemar's test where every w_i is equal).

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
    delta, alone = float(signed.sum()), float(signed.square().sum().sqrt())
    se = _smoothed_error(torch.bincount(labels[signed != 0], minlength=classes)[members], size[members])
    reach = _quantile(level) * se
    steps = signed[signed != 0]
    if not len(steps):
        p = 1.0
    else:
        exact = len(steps) <= _EXACT
        p = max(_two_sided(delta / se), _sign_flips(steps) if exact else _two_sided(delta / alone))
    return Paired(delta, se, max(-1.0, delta - reach), min(1.0, delta + reach), p)


def _smoothed_error(disagree: Tensor, size: Tensor) -> float:
    """SE of the paired difference, from each class's disagreements and samples (C,)."""
    n = size.double()
    effective = len(n) ** 2 / (1 / n).sum()
    pooled = ((disagree / n).mean() * effective + 1) / (effective + 2)
    share = (disagree + 2 * pooled) / (n + 2)
    return float((share / n).sum().sqrt()) / len(n)


def _two_sided(z: float) -> float:
    # erfc, because 2·(1 − Φ(z)) is 0 from z = 8.3 on.
    return math.erfc(abs(z) / math.sqrt(2))


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


def _strata(size: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each stratum's weight in the sum of variances, its degrees of freedom and its unbiased variance s²."""
    large, single = size > 1, share[size == 1]
    weight, freedom, own = 1 / size[large], size[large] - 1, share[large]
    variance = own * (1 - own) * size[large] / freedom
    if not len(single):
        return weight, freedom, variance
    count = len(single)
    collapsed = (count, count - 1, float(single.var(correction=min(1, count - 1))))
    weight, freedom, variance = (
        torch.cat([each, each.new_tensor([last])])
        for each, last in zip((weight, freedom, variance), collapsed, strict=True)
    )
    return weight, freedom, variance


def _sign_flips(steps: Tensor) -> float:
    """The share of all sign patterns of the steps (m,) with a sum at least as far from 0 as their own."""
    sums = steps.new_zeros(1)
    for step in steps:
        sums = torch.cat([sums + step, sums - step])
    rounding = 1e-9 * float(steps.abs().sum())
    return float((sums.abs() >= steps.sum().abs() - rounding).double().mean())


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
