from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

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


def slow_interval(
    right: Sequence[int],
    actual: Sequence[int],
    train: Sequence[int] | None = None,
    weight: Sequence[float] | None = None,
) -> tuple[float, float]:
    order = range(len(actual)) if train is None else sorted(range(len(actual)), key=lambda c: train[c])
    weigh = [1.0] * len(actual) if weight is None else weight
    sample = [(right[c], actual[c], weigh[c]) for c in order if actual[c] and weigh[c]]
    total = sum(v for _, _, v in sample)
    sample = [(r, n, v / total) for r, n, v in sample]
    mean = sum(v * r / n for r, n, v in sample)
    strata = [(v * v / n, float(n - 1), r * (n - r) / n / (n - 1)) for r, n, v in sample if n > 1]
    single, squares = [r for r, n, _ in sample if n == 1], sum(v * v for _, n, v in sample if n == 1)
    if len(single) > 1:
        between = [(one - other) ** 2 / 2 for one, other in itertools.pairwise(single)]
        # The freedom of a mean square successive difference is twice its squared mean over its variance.
        strata.append((squares, freedom_of_differences(len(single)), sum(between) / len(between)))
    elif single:
        strata.append((squares, 0, 0.0))
    alike, variance = sum(spread for spread, _, _ in strata), 0.0
    for spread, freedom, own in strata:
        prior = 3 * spread / alike
        variance += spread * (freedom * own + prior * mean * (1 - mean)) / (freedom + prior)
    failures = min(mean, 1 - mean) / alike
    variance = (failures * variance + 1 * mean * (1 - mean) * alike) / (failures + 1)
    return slow_agresti_coull(mean, mean * (1 - mean) / variance)


def freedom_of_differences(count: int) -> float:
    """Of Σ(y_i − y_{i+1})² of normal y: a quadratic form yᵀAy has mean tr A and variance 2 tr A²."""
    step = np.diff(np.eye(count), axis=0)
    form = step.T @ step
    return float(np.trace(form) ** 2 / np.trace(form @ form))


@st.composite
def counts(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Right and actual samples by class; not all right and not all wrong, which has its own rule."""
    actual = [*draw(st.lists(st.integers(0, 30), max_size=12)), 5]
    right = [draw(st.integers(0, n)) for n in actual[:-1]]
    return [*right, draw(st.integers(1, 4))], actual


@given(counts())
def test_balanced_interval_is_its_formula(sample: tuple[list[int], list[int]]) -> None:
    assert balanced_interval(of(*sample)) == pytest.approx(slow_interval(*sample), abs=1e-12)


@given(counts(), st.randoms(use_true_random=False))
def test_train_counts_sort_the_classes(sample: tuple[list[int], list[int]], random: Random) -> None:
    right, actual = sample
    train = random.sample(range(100), len(actual))
    found = balanced_interval(of(right, actual), counts=torch.tensor(train))
    assert found == pytest.approx(slow_interval(right, actual, train), abs=1e-12)


@given(counts(), st.data())
def test_weights_and_masks_say_how_much_a_class_counts(
    sample: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    right, actual = sample
    weight = [*(data.draw(st.integers(0, 3)) for _ in actual[:-1]), 2]
    found = balanced_interval(of(right, actual), weight=torch.tensor(weight))
    assert found == pytest.approx(slow_interval(right, actual, weight=weight), abs=1e-12)
    inside = [c for c, each in enumerate(weight) if each]
    alone = slow_interval([right[c] for c in inside], [actual[c] for c in inside])
    mask = torch.tensor(weight) > 0
    assert balanced_interval(of(right, actual), weight=mask) == pytest.approx(alone, abs=1e-12)


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


@pytest.mark.parametrize("recalls", [np.repeat([0.9, 0.0], 50), np.linspace(0.95, 0.2, 100)])
def test_balanced_interval_covers_single_samples_of_classes_whose_recall_follows_their_size(
    recalls: NDArray[np.float64],
) -> None:
    """Without the order of the classes the first is always held, by an interval twice as wide."""
    assert 0.935 <= coverage(recalls, np.ones(100, dtype=np.int64)) <= 0.98


def test_balanced_interval_covers_nearly_perfect_classes_on_a_long_tailed_test() -> None:
    assert 0.93 <= coverage(np.full(100, 0.99), np.logspace(2, 0, 100).round().astype(np.int64)) <= 0.99


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


@given(st.integers(1, 500), st.data())
def test_accuracy_interval_is_scipys_wilson(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    split = data.draw(st.integers(0, right))
    peer = binomtest(right, total).proportion_ci(0.9, method="wilson")
    found = accuracy_interval(of([split, right - split, 0], [split, total - split, 0]), 0.9)
    assert found == pytest.approx((peer.low, peer.high), abs=1e-12)


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and the last may not fall below .06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.7]) == [0.7]
    assert holm([]) == []


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
        balanced_interval(of([1, 1, 0], [2, 2, 0]), weight=nothing)
    with pytest.raises(PosthocError, match="without a sample"):
        accuracy_interval(of([0, 0], [0, 0]))
    for level in (0, 1, 95):
        with pytest.raises(PosthocError, match=f"confidence level {level}"):
            balanced_interval(of([1], [2]), level)
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(PosthocError, match="p-value"):
            holm([0.5, wrong])
