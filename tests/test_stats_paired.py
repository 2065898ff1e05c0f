from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, chi2

from posthoc_lt.stats import paired

Z = 1.959963984540054  # the 97.5% quantile of the normal law, from a table


def slow_paired(labels: list[int], a: list[bool], b: list[bool], weight: list[int]) -> tuple[float, ...]:
    """δ, p and the interval: from the definitions, in fractions, with the likelihood maximised by search."""
    total = sum(weight[c] for c in set(labels))
    v = {c: Fraction(weight[c], total) for c in set(labels) if weight[c]}
    steps = [(b[i] - a[i]) * v[y] / labels.count(y) for i, y in enumerate(labels) if y in v and a[i] != b[i]]
    delta, n = sum(steps, Fraction(0)), slow_samples(labels, a, b, v)
    gain, loss = (float(sum((s for s in steps if s * sign > 0), Fraction(0))) * sign for sign in (1, -1))
    p = 1.0 if not steps else math.erfc(abs(delta) * math.sqrt(n / (gain + loss) / 2))
    if 0 < len(steps) <= 16:
        law = Counter([Fraction(0)])  # the sum's, over all 2^m patterns of signs
        for step in steps:
            law = Counter({x: law[x - step] + law[x + step] for w in law for x in (w + step, w - step)})
        beyond = sum(count for x, count in law.items() if abs(x) > abs(delta))
        ties = sum(count for x, count in law.items() if abs(x) == abs(delta))
        p = max(p, (beyond + ties / 2) / 2 ** len(steps))
    ends = [slow_end(gain, loss, n, outside) for outside in (-1.0, 1.0)]
    return float(delta), p, min(ends[0], 0.0) if p >= 0.05 else ends[0], max(ends[1], 0.0) if p >= 0.05 else ends[1]


def slow_samples(labels: list[int], a: list[bool], b: list[bool], v: dict[int, Fraction]) -> float:
    """The number of samples that has the variance of δ; see `paired`."""
    size = {c: labels.count(c) for c in v}
    share = {c: Fraction(sum(a[i] != b[i] for i, y in enumerate(labels) if y == c), size[c]) for c in v}
    mean, spread = sum(v[c] * share[c] for c in v), {c: v[c] ** 2 / size[c] for c in v}
    if not mean:
        return float(1 / sum(spread.values()))
    pooled = max(mean, sum(share[c] * spread[c] for c in v) / sum(spread.values()))
    drawn = {c: (share[c] * size[c] + 6 * pooled) / (size[c] + 6) for c in v}
    # Every disagreement of class c adds w² to the variance, w its weight: the mean weight by what is added.
    weight = {c: v[c] / size[c] for c in v}
    variance = sum(drawn[c] * size[c] * weight[c] ** 2 for c in v)
    mean_weight = sum(drawn[c] * size[c] * weight[c] ** 3 for c in v) / variance
    variance += mean_weight**2 / 2
    bounds = [float(size[c] / v[c]) for c in v]
    return min(max(float(mean / variance), min(bounds)), max(bounds))


def slow_end(gain: float, loss: float, n: float, outside: float) -> float:
    """Where the score test of δ = d, its variance (2q + d(1 − d))/n at the likeliest share q of losses, reaches z."""

    def score(d: float) -> float:
        q = Polynomial([0, 1])
        # The slope of gain·log(q + d) + loss·log q + (1 − gain − loss)·log(1 − 2q − d), times all three.
        slope = (gain * q + loss * (q + d)) * (1 - d - 2 * q) - 2 * (1 - gain - loss) * q * (q + d)
        likeliest = max(0.0, -d, *slope.roots().real)
        return float(n * (gain - loss - d) ** 2 - Z * Z * (2 * likeliest + d * (1 - d)))

    edge = outside * (1 - 1e-12)
    inside = gain - loss + 1e-9 * (edge - gain + loss)  # at δ = ±1 the score is 0 / 0
    return outside if score(edge) <= 0 else float(brentq(score, inside, edge, xtol=1e-14))


outcomes = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(outcomes, st.sampled_from([None, [0, 0, 0, 1, 1], [1, 3, 0, 2, 5]]))
def test_paired_difference_is_its_formula(sample: list[tuple[int, bool, bool]], weight: list[int] | None) -> None:
    labels, a, b = (list(column) for column in zip(*[*sample, (4, True, False)], strict=True))
    given = None if weight is None else torch.tensor(weight)
    found = paired(torch.tensor(labels), torch.tensor(a), torch.tensor(b), 5, given)
    slow = slow_paired(labels, a, b, weight or [1] * 5)
    assert (found.delta, found.p, found.low, found.high) == pytest.approx(
        slow, abs=1e-7
    )  # a double root costs half the digits


@given(outcomes)
def test_paired_difference_turns_its_sign_with_its_sides_and_not_with_the_order(
    sample: list[tuple[int, bool, bool]],
) -> None:
    labels, a, b = (torch.tensor(column) for column in zip(*sample, strict=True))
    there, back = paired(labels, a, b, 5), paired(labels, b, a, 5)
    assert (back.delta, back.low, back.high) == pytest.approx((-there.delta, -there.high, -there.low))
    assert back.p == pytest.approx(there.p)
    turned = paired(4 - labels.flip(0), a.flip(0), b.flip(0), 5)
    assert (turned.delta, turned.low, turned.high) == pytest.approx((there.delta, there.low, there.high))


@given(outcomes, st.floats(0.5, 0.99))
def test_the_interval_holds_its_estimate_and_leaves_0_out_only_where_the_test_does(
    sample: list[tuple[int, bool, bool]], level: float
) -> None:
    labels, a, b = (torch.tensor(column) for column in zip(*sample, strict=True))
    found = paired(labels, a, b, 5, level=level)
    assert -1 <= found.low <= found.delta <= found.high <= 1
    assert found.low < found.high
    assert found.clear <= (found.p < 1 - level + 1e-9)
    assert found.clear >= (found.p < 1 - level - 1e-9)


def test_paired_difference_on_equal_classes_is_mcnemars_test() -> None:
    labels = torch.arange(4).repeat_interleave(50)
    a, b = torch.zeros(200), torch.zeros(200)
    b[:20], a[60:70] = 1, 1
    assert paired(labels, a, b, 4).p == pytest.approx(chi2.sf((20 - 10) ** 2 / (20 + 10), 1), rel=1e-12)


def test_the_published_example_of_paired_proportions() -> None:
    """Airway hyper-responsiveness of 21 children, 1 and 7 of whom differ (Fagerland, Lydersen and Laake 2014)."""
    labels = torch.zeros(21, dtype=torch.int64)
    a, b = torch.zeros(21), torch.zeros(21)
    b[0], a[1:8] = 1, 1
    found = paired(labels, a, b, 1)
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert found.p == pytest.approx(0.039, abs=5e-4)


@pytest.mark.parametrize(("better", "worse"), [(1, 0), (4, 0), (6, 0), (5, 1), (12, 4), (8, 6)])
def test_few_disagreements_are_no_surer_than_the_mid_p_sign_test(better: int, worse: int) -> None:
    labels = torch.arange(4).repeat_interleave(25)
    a, b = torch.zeros(100), torch.zeros(100)
    b[:better], a[40 : 40 + worse] = 1, 1
    middle = binomtest(better, better + worse).pvalue - binom.pmf(better, better + worse, 0.5)
    assert middle - 1e-12 <= paired(labels, a, b, 4).p <= middle + 0.06


def test_without_a_disagreement_nothing_is_shown_to_differ() -> None:
    """Three samples do not make certain: the interval is wide around 0."""
    labels, right = torch.tensor([0, 1, 1]), torch.tensor([True, False, True])
    same = paired(labels, right, right, 3)
    assert (same.delta, same.p, same.clear) == (0, 1, False)
    assert same.high == pytest.approx(-same.low)
    assert 0.3 < same.high <= 1
    # A disagreement outside the group is none of its business.
    other = paired(labels, right, torch.tensor([False, False, True]), 3, torch.tensor([False, True, True]))
    assert (other.delta, other.p) == (0, 1)


def test_a_certain_gain_has_a_p_value_above_zero() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    gain = paired(labels, torch.zeros(100), torch.ones(100), 1)
    assert gain.p == pytest.approx(chi2.sf(100, 1), rel=1e-9)
    assert 0 < gain.p < 1e-20
    assert gain.clear
    assert gain.high == 1


TAIL = (60, 40, 25, 15, 12, 10, 8, 8, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1)


@pytest.mark.parametrize(("size", "redrawn"), [(TAIL, 1.0), (TAIL, 0.15), ((8,) * 10, 0.1), ((20,) * 10, 0.05)])
def test_the_paired_test_errs_no_more_often_than_it_says(size: tuple[int, ...], redrawn: float) -> None:
    """Two classifiers of the same quality that differ on a share of the samples, 2,000 draws."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(len(size)), size)
    share = rng.uniform(0.2, 0.9, len(size))[labels]
    found = []
    for _ in range(2000):
        right_a = rng.random(labels.shape) < share
        right_b = np.where(rng.random(labels.shape) < redrawn, rng.random(labels.shape) < share, right_a)
        a, b = torch.from_numpy(right_a), torch.from_numpy(right_b)
        found.append(paired(torch.from_numpy(labels), a, b, len(size)).p)
    assert np.mean([p < 0.05 for p in found]) <= 0.06


def test_the_paired_test_errs_no_more_often_where_rare_classes_gain_what_frequent_ones_lose() -> None:
    """The rarest class, whose samples decide, may show no gain at all."""
    rng, size = np.random.default_rng(3), np.logspace(2, 0, 10).round().astype(int)
    labels, trials = torch.from_numpy(np.repeat(np.arange(10), size)), 2000
    u = rng.random((trials, len(labels)))
    gains, losses = (torch.from_numpy(u < 0.3) & members for members in (labels >= 7, labels < 3))
    assert np.mean([paired(labels, a, b, 10).p < 0.05 for a, b in zip(losses, gains, strict=True)]) <= 0.06


def test_a_real_difference_is_found_and_its_interval_covers() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(20), TAIL)
    share = rng.uniform(0.2, 0.9, 20)[labels]
    better = share + 0.5 * (1 - share)
    truth = np.mean([(better - share)[labels == c].mean() for c in range(20)])
    trials = [outcome(rng, labels, share, better) for _ in range(500)]
    assert np.mean([low <= truth <= high for _, low, high in trials]) >= 0.94
    assert np.mean([p < 0.05 for p, _, _ in trials]) >= 0.8


def outcome(
    rng: np.random.Generator, labels: NDArray[np.int64], a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[float, float, float]:
    right_a, right_b = (torch.from_numpy(rng.random(share.shape) < share) for share in (a, b))
    found = paired(torch.from_numpy(labels), right_a, right_b, 20)
    return found.p, found.low, found.high


def test_gains_and_losses_that_cancel_are_no_difference() -> None:
    """Their sum in floating point is 1e-18, of either sign, which must not be shown as a loss."""
    labels = torch.arange(3).repeat_interleave(100)
    for gains in ((3, 1, -4), (7, -2, -5), (1, 2, -3), (-6, 5, 1)):
        a, b = torch.zeros(300), torch.zeros(300)
        for c, gain in enumerate(gains):
            (b if gain > 0 else a)[100 * c : 100 * c + abs(gain)] = 1
        assert str(paired(labels, a, b, 3).delta) == "0.0"
