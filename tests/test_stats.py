from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, chi2

from posthoc_lt.errors import PosthocError
from posthoc_lt.metrics import Tally
from posthoc_lt.stats import accuracy_interval, balanced_interval, holm, paired

Z = 1.959963984540054  # the 97.5% quantile of the normal law, from a table


def of(right: Sequence[int], actual: Sequence[int]) -> Tally:
    """A tally whose predictions do not matter."""
    return Tally(torch.tensor(right), torch.tensor(actual), torch.tensor(actual))


def slow_agresti_coull(share: float, samples: float) -> tuple[float, float]:
    """Wald's interval after adding z² samples, half of them right."""
    total = samples + Z * Z
    middle = (samples * share + Z * Z / 2) / total
    reach = Z * math.sqrt(middle * (1 - middle) / total)
    return (0.0 if share == 0 else max(0.0, middle - reach)), (1.0 if share == 1 else min(1.0, middle + reach))


def slow_interval(right: Sequence[int], actual: Sequence[int]) -> tuple[float, float]:
    shares = [r / n for r, n in zip(right, actual, strict=True) if n]
    mean = sum(shares) / len(shares)
    strata = [(1 / n, n - 1, r * (n - r) / n / (n - 1)) for r, n in zip(right, actual, strict=True) if n > 1]
    single = [r for r, n in zip(right, actual, strict=True) if n == 1]
    if len(single) > 1:
        strata.append((len(single), len(single) - 1, float(np.var(single, ddof=1))))
    elif single:
        strata.append((1, 0, 0.0))
    total, variance = sum(weight for weight, _, _ in strata), 0.0
    for weight, freedom, own in strata:
        prior = 6 * weight / total
        variance += weight * (freedom * own + prior * mean * (1 - mean)) / (freedom + prior)
    return slow_agresti_coull(mean, len(shares) ** 2 * mean * (1 - mean) / variance)


@st.composite
def counts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Right and actual samples by class; not all right and not all wrong, which has its own rule."""
    actual = [*draw(st.lists(st.integers(0, 30), max_size=12)), 5]
    right = [draw(st.integers(0, n)) for n in actual[:-1]]
    return [*right, draw(st.integers(1, 4))], actual


@settings(deadline=None)
@given(counts())
def test_balanced_interval_is_its_formula(sample: tuple[list[int], list[int]]) -> None:
    assert balanced_interval(of(*sample)) == pytest.approx(slow_interval(*sample), abs=1e-12)


@settings(deadline=None)
@given(counts(), st.data())
def test_a_masked_interval_is_that_of_its_classes_alone(
    sample: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    right, actual = sample
    mask = [*(data.draw(st.booleans()) for _ in actual[:-1]), True]
    inside = [i for i, member in enumerate(mask) if member]
    alone = slow_interval([right[i] for i in inside], [actual[i] for i in inside])
    assert balanced_interval(of(right, actual), mask=torch.tensor(mask)) == pytest.approx(alone, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=9))
def test_balanced_interval_holds_its_estimate_and_mirrors(sample: list[tuple[int, int]]) -> None:
    right, actual = (list(column) for column in zip(*sample, strict=True))
    low, high = balanced_interval(of(right, actual))
    mean = np.mean([r / n for r, n in sample])
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    assert low < high
    wrong = [n - r for r, n in sample]
    assert balanced_interval(of(wrong, actual)) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_an_interval_of_classes_all_right_and_all_wrong_has_width() -> None:
    low, high = balanced_interval(of([10, 0], [10, 10]))
    assert (low + high) / 2 == pytest.approx(0.5)
    assert 0.12 < high - low < 0.25  # a recall of 0.85 gives 10 of 10 every fifth time


LONG_TAIL = tuple(max(1, round(50 ** (1 - c / 99))) for c in range(100))
PROFILES = {
    "alike": np.full(10, 0.8),
    "half": np.repeat([1.0, 0.3], 5),
    "extreme": np.repeat([0.97, 0.5, 0.03], [6, 1, 3]),
}


@pytest.mark.parametrize("profile", list(PROFILES))
@pytest.mark.parametrize("samples", [2, 3, 5, 20])
def test_balanced_interval_covers(samples: int, profile: str) -> None:
    recalls = np.repeat(PROFILES[profile], 10)
    covered = coverage(recalls, np.full(100, samples))
    assert 0.935 <= covered <= 0.975  # 1,500 draws: two standard errors are 1.1%


@pytest.mark.parametrize("profile", list(PROFILES))
@pytest.mark.parametrize("samples", [1, 2, 3, 5, 20])
def test_balanced_interval_covers_few_classes(samples: int, profile: str) -> None:
    """Where so few samples tell little of how recalls vary it may be too wide, but not too narrow."""
    assert coverage(PROFILES[profile], np.full(10, samples)) >= 0.93


@pytest.mark.parametrize("profile", list(PROFILES))
@pytest.mark.parametrize("turned", [False, True])
def test_balanced_interval_covers_on_a_long_tailed_test(turned: bool, profile: str) -> None:
    recalls = np.sort(np.repeat(PROFILES[profile], 10))
    covered = coverage(recalls[:: 1 if turned else -1], np.array(LONG_TAIL))
    # Where the rarest classes are perfect nobody can tell from so few samples: the interval allows for less.
    assert 0.93 <= covered <= (1.0 if (turned, profile) == (True, "half") else 0.99)


def test_balanced_interval_covers_single_samples_of_classes_alike() -> None:
    assert 0.935 <= coverage(np.full(100, 0.8), np.ones(100, dtype=np.int64)) <= 0.975


@pytest.mark.parametrize(("many", "one"), [(0.95, 0.25), (0.99, 0.5), (0.4, 0.9)])
def test_balanced_interval_covers_where_single_samples_are_of_other_classes(many: float, one: float) -> None:
    """They show their own variance between them; that of all classes would be too small, or far too large."""
    recalls = np.repeat([many, one], 30)
    assert 0.92 <= coverage(recalls, np.repeat([50, 1], 30)) <= 0.975


def coverage(recalls: NDArray[np.float64], sizes: NDArray[np.int64]) -> float:
    rng = np.random.default_rng(7)
    draws = torch.from_numpy(rng.binomial(sizes, recalls, (1500, len(recalls))))
    size = torch.from_numpy(sizes)
    bounds = [balanced_interval(Tally(right, size, size)) for right in draws]
    return float(np.mean([low <= recalls.mean() <= high for low, high in bounds]))


def test_a_perfect_score_is_not_certain() -> None:
    assert balanced_interval(of([10, 10, 10], [10, 10, 10])) == pytest.approx(slow_agresti_coull(1.0, 30))
    # As sure as 4 / (1/40 + 1/10) = 32 samples.
    assert balanced_interval(of([0, 0], [40, 10])) == pytest.approx(slow_agresti_coull(0.0, 32))


def test_a_balanced_interval_is_no_narrower_than_wilsons() -> None:
    for right in range(31):
        low, high = balanced_interval(of([right // 3, (right + 1) // 3, (right + 2) // 3], [10, 10, 10]))
        peer = binomtest(right, 30).proportion_ci(method="wilson")
        if (right // 3) * 3 == right:  # recalls alike: the variance is at most that of 30 samples' one share
            assert low <= peer.low + 0.012
            assert high >= peer.high - 0.012


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_accuracy_interval_is_scipys_wilson(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    split = data.draw(st.integers(0, right))
    peer = binomtest(right, total).proportion_ci(0.9, method="wilson")
    found = accuracy_interval(of([split, right - split, 0], [split, total - split, 0]), 0.9)
    assert found == pytest.approx((peer.low, peer.high), abs=1e-12)


def slow_paired(labels: list[int], a: list[bool], b: list[bool], group: set[int]) -> tuple[float, ...]:
    """δ, p and the interval: from the definitions, in fractions, with the likelihood maximised by search."""
    inside = [i for i, y in enumerate(labels) if y in group]
    present = {labels[i] for i in inside}
    steps = [Fraction(b[i] - a[i], len(present) * labels.count(labels[i])) for i in inside if a[i] != b[i]]
    delta, n = sum(steps, Fraction(0)), slow_samples(labels, a, b, present)
    gain, loss = (float(sum((s for s in steps if s * sign > 0), Fraction(0))) * sign for sign in (1, -1))
    p = 1.0 if not steps else math.erfc(abs(delta) * math.sqrt(n / (gain + loss) / 2))
    if 0 < len(steps) <= 16:
        law = Counter([Fraction(0)])  # the sum's, over all 2^m patterns of signs
        for step in steps:
            law = Counter({v: law[v - step] + law[v + step] for w in law for v in (w + step, w - step)})
        beyond = sum(count for v, count in law.items() if abs(v) > abs(delta))
        ties = sum(count for v, count in law.items() if abs(v) == abs(delta))
        p = max(p, (beyond + ties / 2) / 2 ** len(steps))
    ends = [slow_end(gain, loss, n, outside) for outside in (-1.0, 1.0)]
    return float(delta), p, min(ends[0], 0.0) if p >= 0.05 else ends[0], max(ends[1], 0.0) if p >= 0.05 else ends[1]


def slow_samples(labels: list[int], a: list[bool], b: list[bool], present: set[int]) -> float:
    """The number of samples that has the variance of δ; see `paired`."""
    size = {c: labels.count(c) for c in present}
    share = {c: Fraction(sum(a[i] != b[i] for i, y in enumerate(labels) if y == c), size[c]) for c in present}
    alike, mean = len(present) ** 2 / sum(Fraction(1, n) for n in size.values()), sum(share.values()) / len(present)
    if not mean:
        return float(alike)
    pooled = max(mean, sum(share[c] / size[c] for c in present) / sum(Fraction(1, n) for n in size.values()))
    pooled = (pooled * alike + 1) / (alike + 2)
    variance = sum((share[c] * size[c] + 6 * pooled) / (size[c] + 6) / size[c] for c in present) / len(present) ** 2
    bounds = (len(present) * min(size.values()), len(present) * max(size.values()))
    return float(min(max(mean / variance, bounds[0]), bounds[1]))


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


@settings(deadline=None)
@given(outcomes, st.booleans())
def test_paired_difference_is_its_formula(sample: list[tuple[int, bool, bool]], tail: bool) -> None:
    labels, a, b = (list(column) for column in zip(*[*sample, (4, True, False)], strict=True))
    mask = torch.tensor([False, False, False, True, True]) if tail else None
    found = paired(torch.tensor(labels), torch.tensor(a), torch.tensor(b), 5, mask)
    slow = slow_paired(labels, a, b, {3, 4} if tail else set(range(5)))
    assert (found.delta, found.p, found.low, found.high) == pytest.approx(
        slow, abs=1e-7
    )  # a double root costs half the digits


@settings(deadline=None)
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


@settings(deadline=None)
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


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and the last may not fall below .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.7]) == [0.7]
    assert holm([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_step_down_definition_rejects(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected: set[int] = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if (len(p_values) - rank) * p_values[index] > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


def test_what_cannot_be_compared_is_refused() -> None:
    labels, right = torch.tensor([0, 1]), torch.tensor([True, False])
    nothing = torch.tensor([False, False, True])
    with pytest.raises(PosthocError, match="2 labels for 2 and 1 outcomes"):
        paired(labels, right, right[:1], 3)
    with pytest.raises(PosthocError, match="without a sample"):
        paired(labels, right, right, 3, nothing)
    with pytest.raises(PosthocError, match="without a sample"):
        balanced_interval(of([1, 1, 0], [2, 2, 0]), mask=nothing)
    with pytest.raises(PosthocError, match="without a sample"):
        accuracy_interval(of([0, 0], [0, 0]))
    with pytest.raises(PosthocError, match="confidence level 95"):
        balanced_interval(of([1], [2]), 95)
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(PosthocError, match="p-value"):
            holm([0.5, wrong])
