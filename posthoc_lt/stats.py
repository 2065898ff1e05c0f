"""How sure a number is: intervals of accuracy, paired differences, many comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from posthoc_lt.columns import blocks
from posthoc_lt.errors import PosthocError
from posthoc_lt.metrics import Tally

LEVEL = 0.95
"""The confidence level of every interval shown."""

_PRIOR = 3.0
"""Degrees of freedom that the pooled variance counts as beside those of the classes' own variances."""

_PRIOR_SAMPLES = 6
"""Samples with the pooled share of disagreements that are added to each class."""

_ROUNDING = 1e-12
"""Gains and losses that cancel leave less than this, of either sign."""

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


def balanced_interval(
    tally: Tally, level: float = LEVEL, weight: Tensor | None = None, counts: Tensor | None = None
) -> tuple[float, float]:
    """Agresti and Coull's interval for the balanced accuracy p̄ and the number of samples that has its variance.

    n' = p̄(1−p̄)/Var with Var = Σ v_c² s_c²/n_c, s_c² = p_c(1−p_c)·n_c/(n_c−1), v_c = 1/C for the C classes that have
    a sample: the effective sample size of surveys (Korn and Graubard 1998, Survey Methodology 24; Franco 2019, J. Surv.
    Stat. Methodol. 7). The interval (Agresti and Coull 1998, Am. Stat. 52) has the middle of Wilson's, is never
    narrower, and fails less where nearly all predictions are right.

    Classes with a single sample show no variance of their own and are collapsed into one stratum (Cochran 1977,
    §5A.12). Its m outcomes y, sorted by train counts, differ from their neighbours' by chance and by what recall
    differs between classes of nearly equal size: s² = Σ(y_i − y_{i+1})²/(2(m−1)) (von Neumann 1941, Ann. Math. Stat.
    12) is too much on average where recall does not follow class size, never too little.

    A few samples, all right or all wrong, are not certain: each s² is drawn toward the pooled p̄(1−p̄), which counts as
    3 degrees of freedom in all, shared out as the v_c²/n_c, and Var toward that of classes alike, p̄(1−p̄)·Σ v_c²/n_c,
    which counts as one failure (or success, where these are fewer) beside those seen. So when every prediction is right
    n' = 1/Σ(v_c²/n_c).

    Args:
        tally: the counts by class.
        level: between 0 and 1.
        weight: (C,) >= 0, how much each class counts, such as the mask of a group; all alike by default.
        counts: (C,) **train** samples, which sort the classes; they stay in their own order by default.

    Raises:
        PosthocError: no class that counts has a sample, or the level is not between 0 and 1.

    >>> ten = torch.tensor([10, 10])
    >>> low, high = balanced_interval(Tally(right=torch.tensor([5, 9]), actual=ten, predicted=ten))
    >>> round(low, 3), round(high, 3)
    (0.487, 0.853)
    """
    right = tally.right.double()
    return _interval(tally.actual, right, right, level, weight, counts)


def mean_interval(
    labels: Tensor,
    worth: Tensor,
    classes: int,
    level: float = LEVEL,
    weight: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[float, float]:
    """`balanced_interval` for what predictions are worth, anything from 0 to 1, of the mean μ = Σ v_c μ_c.

    s_c² and the pooled variance are then those of the worth, at most μ(1−μ), and n' = μ(1−μ)/Var as before.

    Args:
        labels: (N,) true classes, 0 … C-1.
        worth: (N,) from 0 to 1, what each prediction is worth.
        classes: C.
        level, weight, counts: as for `balanced_interval`.

    Raises:
        PosthocError: no class that counts has a sample, or the level is not between 0 and 1.
    """
    labels, worth = labels.cpu(), worth.cpu()
    size = torch.bincount(labels, minlength=classes)
    total, square = (torch.zeros(classes, dtype=torch.float64) for _ in range(2))
    for rows in blocks(len(labels)):
        one = worth[rows].double()
        total += torch.bincount(labels[rows], one, classes)
        square += torch.bincount(labels[rows], one.square(), classes)
    return _interval(size, total, square, level, weight, counts)


def _interval(
    size: Tensor, total: Tensor, square: Tensor, level: float, weight: Tensor | None, counts: Tensor | None
) -> tuple[float, float]:
    """The interval from each class's samples, what they are worth in all, and the sum of its squares."""
    shares = class_shares(size, weight)
    members = shares.nonzero().flatten()
    if counts is not None:
        members = members[counts[members].argsort(stable=True)]
    size, v = size[members].double(), shares[members]
    share, square = total[members] / size, square[members] / size
    mean, (spread, freedom, variance) = float((v * share).sum()), _strata(size, share, square, v)
    most = mean * (1 - mean)
    pooled = float((v * square).sum()) - mean**2
    if pooled < 1e-12:  # all worth the same: as uncertain as right and wrong
        pooled, variance = most, torch.full_like(variance, most)
    prior = _PRIOR * spread / spread.sum()
    own = float((spread * (freedom * variance + prior * pooled) / (freedom + prior)).sum())
    alike = float(spread.sum())
    seen = min(mean, 1 - mean) / alike
    samples = most * (seen + 1) / (seen * own + alike * pooled) if most else 1 / alike
    return _agresti_coull(mean, samples, level)


def accuracy_interval(tally: Tally, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval for the plain accuracy.

    Raises:
        PosthocError: there is no sample, or the level is not between 0 and 1.
    """
    class_shares(tally.actual, None)
    return _wilson(int(tally.right.sum()) / tally.total, tally.total, level)


def paired(
    labels: Tensor,
    a: Tensor,
    b: Tensor,
    classes: int,
    weight: Tensor | None = None,
    level: float = LEVEL,
) -> Paired:
    """The balanced accuracy of b minus that of a, from the samples on which they disagree.

    δ = g − l: g is the mean, v_c = 1/C, over the C classes that have a sample of the shares that b alone predicts
    right, l of those that a alone does. The interval is the score interval for paired proportions (Tango 1998,
    Statistics in Medicine 17) of g, l and the effective sample size n' = (g+l)/Var, Var = Σ v_c² s_c/n_c with s_c the
    share of class c on which they disagree. Where all n_c are equal n' is the number of samples; else a class of a few
    samples without a disagreement is not certain: s_c is drawn toward a pooled share by six samples, the larger of the
    means weighted by v_c and by v_c²/n_c, and half a disagreement more is reckoned with, of the weight w that one has
    on average in the variance: Var + w²/2, w = Σ(v_c³ s_c/n_c²)/Σ(v_c² s_c/n_c). n' stays within the smallest and the
    largest n_c/v_c, as it does for any s_c. Where nothing disagrees it is 1/Σ(v_c²/n_c).

    p is that of the interval's score at 0, z² = n'δ²/(g+l): McNemar's test where all n_c are equal. With up to 16
    disagreements, for which the normal law is too rough, it is no smaller than the mid-p share of their 2^m sign
    patterns with a sum as far from 0 as δ, the exact law of δ if a and b could be exchanged (Fagerland, Lydersen and
    Laake 2013, BMC Med. Res. Methodol. 13, for equal n_c). Where p does not reject 0 the interval is stretched to
    hold it.

    Where predictions are worth anything from 0 to 1 and differ by d, s_c is the mean of d² and g, l are those that give
    this mean and δ, in units of the largest |d|.

    Args:
        labels: (N,) true classes, 0 … C-1.
        a, b: (N,) whether a, and b, predicted the sample right, or what their predictions are worth, from 0 to 1.
        classes: C.
        weight: (C,) >= 0, how much each class counts, such as the mask of a group; all alike by default.
        level: of the interval, between 0 and 1.

    Raises:
        PosthocError: lengths differ, no class that counts has a sample, or the level is not between 0 and 1.

    >>> better = paired(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 0, 0, 0]), torch.tensor([1, 1, 1, 0]), 2)
    >>> better.delta, better.clear
    (0.5, False)
    """
    if not labels.shape == a.shape == b.shape:
        raise PosthocError(
            f"{len(labels)} labels for {len(a)} and {len(b)} outcomes",
            "two sets of predictions on the same samples",
            "evaluate both heads on the same split",
        )
    labels, a, b = labels.cpu(), a.cpu(), b.cpu()
    size = torch.bincount(labels, minlength=classes)
    shares = class_shares(size, weight)
    net, square, largest, steps = _disagreements(labels, a, b, shares / size)
    unit, members = largest or 1.0, shares > 0
    size, v, net, square = size[members].double(), shares[members], net[members], square[members] / unit**2
    delta, samples = float((v * net / size).sum()) / unit, _effective_samples(square, size, v)
    delta = 0.0 if abs(delta) < _ROUNDING else delta
    apart = max(abs(delta), float((v * square / size).sum()))
    p = _two_sided(delta * math.sqrt(samples / apart)) if apart else 1.0
    if 0 < len(steps) <= _EXACT:
        p = max(p, _sign_flips(steps))
    low, high = _score_interval((apart + delta) / 2, (apart - delta) / 2, samples, _quantile(level))
    if p >= 1 - level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Paired(unit * delta, unit * low, unit * high, p)


def _disagreements(labels: Tensor, a: Tensor, b: Tensor, worth: Tensor) -> tuple[Tensor, Tensor, float, Tensor]:
    """Each class's Σd and Σd² (C,) of the d = b − a of its samples, the largest |d|, and the first few d's part in δ.

    Args:
        worth: (C,) what a sample of each class is worth in the figure; those of none are passed over.
    """
    net, square = torch.zeros_like(worth), torch.zeros_like(worth)
    largest, steps = 0.0, worth.new_empty(0)
    for rows in blocks(len(labels)):
        difference = b[rows].double() - a[rows].double()
        differ = (difference != 0) & (worth[labels[rows]] > 0)
        own, difference = labels[rows][differ], difference[differ]
        net += torch.bincount(own, difference, len(worth))
        square += torch.bincount(own, difference.square(), len(worth))
        largest = max(largest, float(difference.abs().max()) if len(own) else 0.0)
        steps = torch.cat([steps, worth[own] * difference])[: _EXACT + 1]
    return net, square, largest, steps


def _effective_samples(disagree: Tensor, size: Tensor, v: Tensor) -> float:
    """The n' of `paired`, from each class's disagreements (or Σd²), samples and share in the figure, (C,)."""
    share, spread = disagree / size, v.square() / size
    if not bool(disagree.any()):
        return 1 / float(spread.sum())
    mean = float((v * share).sum())
    pooled = max(mean, float((share * spread).sum() / spread.sum()))
    variance = spread * (disagree + _PRIOR_SAMPLES * pooled) / (size + _PRIOR_SAMPLES)
    weight = float((variance * v / size).sum() / variance.sum())
    samples = mean / (float(variance.sum()) + weight**2 / 2)
    return min(max(samples, float((size / v).min())), float((size / v).max()))


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


def class_shares(size: Tensor, weight: Tensor | None) -> Tensor:
    """What each class (C,) counts in the figure: in proportion to `weight`, 0 without a sample, 1 in all."""
    shares = (size > 0).double() if weight is None else (size > 0) * weight.double()
    if not bool(shares.any()):
        raise PosthocError(
            "classes without a sample",
            "at least one sample of one of the classes that count",
            "leave the group out, or move its edges",
        )
    return shares / shares.sum()


def _strata(size: Tensor, share: Tensor, square: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each stratum's weight in the variance, its degrees of freedom and its unbiased variance s²."""
    large, single, spread = size > 1, share[size == 1], v.square() / size
    freedom = size[large] - 1
    variance = (square - share.square())[large].clamp(min=0) * size[large] / freedom
    if not len(single):
        return spread, freedom, variance
    steps = len(single) - 1
    # The degrees of freedom of a normal sample's: 1 for two, two in three for many.
    collapsed = (
        float(spread[~large].sum()),
        2 * steps**2 / (3 * steps - 1),
        float(single.diff().square().sum()) / (2 * max(steps, 1)),
    )
    spread, freedom, variance = (
        torch.cat([each, each.new_tensor([last])])
        for each, last in zip((spread[large], freedom, variance), collapsed, strict=True)
    )
    return spread, freedom, variance


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
