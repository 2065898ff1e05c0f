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

_PRIOR = 6.0
"""Degrees of freedom that the pooled variance counts as beside those of the classes' own variances."""

_PRIOR_SAMPLES = 6
"""Samples with the pooled share of disagreements that are added to each class."""

_EXACT = 16
"""Up to so many disagreements every one of their 2^m sign patterns is looked at."""


@dataclass(frozen=True)
class Paired:
    """What one set of predictions gains over another on the same samples.

    Args:
        delta: the gain in balanced accuracy, as a fraction: -1 … 1.
        low, high: its interval, within -1 … 1; it leaves 0 out only where p is below 1 - level.
        p: the two-sided p-value of "no difference".
    """

    delta: float
    low: float
    high: float
    p: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def balanced_interval(tally: Tally, level: float = LEVEL, mask: Tensor | None = None) -> tuple[float, float]:
    """Agresti and Coull's interval for the balanced accuracy p̄ and the number of samples that has its variance.

    n' = p̄(1−p̄)/Var with Var = C⁻² Σ s_c²/n_c, s_c² = p_c(1−p_c)·n_c/(n_c−1), C the classes that have a sample:
    the effective sample size of surveys (Korn and Graubard 1998, Survey Methodology 24; Franco 2019, J. Surv. Stat.
    Methodol. 7). The interval (Agresti and Coull 1998, Am. Stat. 52) has the middle of Wilson's, is never narrower,
    and fails less where nearly all predictions are right. Classes with a single sample show no variance of their own
    and are collapsed into one stratum of m samples, s² their variance, which adds m·s² to the sum (Cochran 1977,
    §5A.12).

    A few samples, all right or all wrong, are not certain: each s² is drawn toward the pooled p̄(1−p̄), which
    counts as 6 degrees of freedom in all, shared out as the 1/n_c (as m). So a lone single sample takes the
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
    (0.487, 0.852)
    """
    members = _members(tally.actual, mask)
    share = recall(tally)[members]
    mean, (weight, freedom, variance) = float(share.mean()), _strata(tally.actual[members].double(), share)
    pooled, prior = mean * (1 - mean), _PRIOR * weight / weight.sum()
    relative = variance / pooled if pooled else torch.ones_like(variance)
    drawn = (freedom * relative + prior) / (freedom + prior)
    return _agresti_coull(mean, len(share) ** 2 / float((weight * drawn).sum()), level)


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
    """The balanced accuracy of b minus that of a, from the samples on which they disagree.

    δ = g − l: g is the mean over the C classes that have a sample of the shares that b alone predicts right,
    l of those that a alone does. The interval is the score interval for paired proportions (Tango 1998, Statistics in
    Medicine 17) of g, l and the effective sample size n' = (g+l)/Var, Var = C⁻² Σ s_c/n_c with s_c the share of class
    c on which they disagree. Where all n_c are equal n' is the number of samples; else a class of a few samples
    without a disagreement is not certain: s_c is drawn toward a pooled share by six samples. That is the larger of
    the mean s_c and the mean weighted by 1/n_c, with one disagreement in two samples added to C²/Σ(1/n_c). n'
    stays within C times the smallest and the largest n_c, as it does for any s_c. Where nothing disagrees it is
    C²/Σ(1/n_c).

    p is that of the interval's score at 0, z² = n'δ²/(g+l): McNemar's test where all n_c are equal. With up to 16
    disagreements, for which the normal law is too rough, it is no smaller than the mid-p share of their 2^m sign
    patterns with a sum as far from 0 as δ, the exact law of δ if a and b could be exchanged (Fagerland, Lydersen and
    Laake 2013, BMC Med. Res. Methodol. 13, for equal n_c). Where p does not reject 0 the interval is stretched to
    hold it.

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
    size = size[members].double()
    sides = (right_b.bool() & ~right_a.bool(), right_a.bool() & ~right_b.bool())
    better, worse = (torch.bincount(labels[side], minlength=classes)[members] for side in sides)
    gain, loss = (float((side / size).mean()) for side in (better, worse))
    delta, samples = gain - loss, _effective_samples(better + worse, size)
    p, disagreements = 1.0, int((better + worse).sum())
    if disagreements:
        p = _two_sided(delta * math.sqrt(samples / (gain + loss)))
    if 0 < disagreements <= _EXACT:
        p = max(p, _sign_flips(torch.cat([(1 / size).repeat_interleave(better), (-1 / size).repeat_interleave(worse)])))
    low, high = _score_interval(gain, loss, samples, _quantile(level))
    return Paired(delta, low, high, p) if p < 1 - level else Paired(delta, min(low, 0.0), max(high, 0.0), p)


def _effective_samples(disagree: Tensor, size: Tensor) -> float:
    """The n' of `paired`, from each class's disagreements and samples (C,)."""
    share, classes = disagree / size, len(size)
    alike = classes**2 / float((1 / size).sum())
    if not bool(disagree.any()):
        return alike
    pooled = max(float(share.mean()), float((share / size).sum() / (1 / size).sum()))
    pooled = (pooled * alike + 1) / (alike + 2)
    drawn = (disagree + _PRIOR_SAMPLES * pooled) / (size + _PRIOR_SAMPLES)
    samples = classes**2 * float(share.mean()) / float((drawn / size).sum())
    return min(max(samples, classes * float(size.min())), classes * float(size.max()))


def _score_interval(gain: float, loss: float, samples: float, z: float) -> tuple[float, float]:
    """The differences d that the score test does not refuse: |δ − d| ≤ z·√Var(d).

    Var(d) = (2q + d(1−d))/n, where q, the likeliest share of losses given d, solves
    2q² − (gain + loss − (2 − gain + loss)d)q − loss·d(1−d) = 0.
    """
    delta = gain - loss

    def beyond(d: float) -> bool:
        slope, constant = (2 - delta) * d - gain - loss, -loss * d * (1 - d)
        q = max(0.0, -d, (math.sqrt(max(0.0, slope * slope - 8 * constant)) - slope) / 4)
        return samples * (delta - d) ** 2 > z * z * (2 * q + d * (1 - d))

    def end(outside: float) -> float:
        inside = delta
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if beyond(middle) else (middle, outside)
        return inside

    return end(-1.0), end(1.0)


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
    """The share of the steps' (m,) 2^m sign patterns with a sum farther from 0 than their own; as far counts half."""
    sums = steps.new_zeros(1)
    for step in steps:
        sums = torch.cat([sums + step, sums - step])
    excess = sums.abs() - steps.sum().abs()
    rounding = 1e-9 * float(steps.abs().sum())
    return float((excess > rounding).double().mean() + (excess.abs() <= rounding).double().mean() / 2)


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise PosthocError(f"confidence level {level}", "a number between 0 and 1", f"give {LEVEL}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _wilson(share: float, size: float, level: float) -> tuple[float, float]:
    z = _quantile(level)
    shrink = 1 + z * z / size
    reach = z * math.sqrt(share * (1 - share) / size + (z / (2 * size)) ** 2) / shrink
    return _around((share + z * z / (2 * size)) / shrink, reach, share)


def _agresti_coull(share: float, size: float, level: float) -> tuple[float, float]:
    z = _quantile(level)
    total = size + z * z
    middle = (share * size + z * z / 2) / total
    return _around(middle, z * math.sqrt(middle * (1 - middle) / total), share)


def _around(middle: float, reach: float, share: float) -> tuple[float, float]:
    # Rounding must not push the bound of an all-wrong or all-right sample past it.
    low = 0.0 if share == 0 else max(0.0, middle - reach)
    return low, 1.0 if share == 1 else min(1.0, middle + reach)
