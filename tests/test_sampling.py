"""Samplers: the exact properties of the cycles, and frequencies of the draws by χ²."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import DataLoader, TensorDataset

from posthoc_lt.errors import PosthocError
from posthoc_lt.sampling import (
    ClassAwareSampler,
    EpochSampler,
    InstanceBalancedSampler,
    PowerSampler,
    ProgressivelyBalancedSampler,
)

N = (40, 12, 5, 1)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), N))

MAKERS: dict[str, Callable[..., EpochSampler]] = {
    "instance": InstanceBalancedSampler,
    "class": ClassAwareSampler,
    "square-root": PowerSampler,
    "progressive": lambda labels, **shared: ProgressivelyBalancedSampler(labels, epochs=3, **shared),
}
every_sampler = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def passes(sampler: EpochSampler, epochs: int) -> list[int]:
    """The indices of several epochs in a row."""
    drawn: list[int] = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        drawn += sampler
    return drawn


@every_sampler
def test_the_same_seed_and_epoch_give_the_same_pass_others_another(make: Callable[..., EpochSampler]) -> None:
    first, again, other = make(LABELS, seed=1), make(LABELS, seed=1), make(LABELS, seed=2)
    early = list(first)
    assert early == list(first) == list(again)
    assert early != list(other)
    first.set_epoch(1)
    late = list(first)
    assert late != early
    again.set_epoch(1)
    assert list(again) == late
    first.set_epoch(0)
    assert list(first) == early
    assert list(other) != late  # seed 2 at epoch 0 is not seed 1 at epoch 1


@every_sampler
def test_labels_of_any_form(make: Callable[..., EpochSampler]) -> None:
    expected = list(make(LABELS))
    assert list(make(torch.from_numpy(LABELS))) == list(make(LABELS.tolist())) == expected
    # Class numbers that no sample has do not count as classes.
    assert list(make(3 * LABELS + 2)) == expected


@every_sampler
@pytest.mark.parametrize("samples", [None, 7, 200])
def test_replicas_divide_the_pass_of_one(make: Callable[..., EpochSampler], samples: int | None) -> None:
    whole = list(make(LABELS, samples=samples, seed=3))
    assert len(whole) == len(make(LABELS, samples=samples)) == (samples or len(LABELS))
    shares = [make(LABELS, samples=samples, seed=3, replicas=3, rank=rank) for rank in range(3)]
    assert {len(list(share)) for share in shares} == {len(share) for share in shares} == {len(whole) // 3}
    assert [i for step in zip(*shares, strict=True) for i in step] == whole[: len(whole) // 3 * 3]


@every_sampler
def test_a_data_loader_takes_it(make: Callable[..., EpochSampler]) -> None:
    sampler = make(LABELS, seed=4)
    data = TensorDataset(torch.arange(len(LABELS)))
    loaded = [i for (batch,) in DataLoader(data, batch_size=16, sampler=sampler) for i in batch.tolist()]
    assert loaded == list(sampler)


@given(st.integers(1, 150), st.integers(0, 50))
def test_instances_come_once_a_shuffle(samples: int, seed: int) -> None:
    sampler = InstanceBalancedSampler(LABELS, samples=samples, seed=seed)
    times = np.bincount(list(sampler), minlength=len(LABELS))
    assert times.max() - times.min() <= 1
    assert times.sum() == samples


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 20),
)
def test_the_class_aware_cycle(counts: list[int], run: int, samples: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = np.array(passes(ClassAwareSampler(labels, run=run, samples=samples, seed=seed), epochs=6))
    classes, cycle = labels[drawn], run * len(counts)
    # Across epochs: every whole cycle holds `run` of each class, in runs of one class.
    for start in range(0, len(drawn) - cycle + 1, cycle):
        runs = classes[start : start + cycle].reshape(-1, run)
        assert (runs == runs[:, :1]).all()
        assert sorted(runs[:, 0]) == list(range(len(counts)))
    # Within a class, every stretch of n_c visits, counted from the first, holds each of its samples once.
    for c, n in enumerate(counts):
        visits = drawn[classes == c]
        for start in range(0, len(visits) - n + 1, n):
            assert sorted(visits[start : start + n]) == np.flatnonzero(labels == c).tolist()


def test_every_order_of_the_class_aware_cycle_is_as_likely() -> None:
    labels = np.repeat(np.arange(3), 3)
    sampler = ClassAwareSampler(labels, run=1, samples=3 * 3000)
    drawn = np.array(list(sampler))
    orders = Counter(map(tuple, labels[drawn].reshape(-1, 3).tolist()))
    within = Counter(map(tuple, drawn[labels[drawn] == 2].reshape(-1, 3).tolist()))
    assert len(orders) == len(within) == 6
    assert chisquare(list(orders.values())).pvalue > 1e-4
    assert chisquare(list(within.values())).pvalue > 1e-4


@pytest.mark.parametrize("q", [-0.5, 0.0, 0.5, 1.0, 1.5])
def test_frequencies_under_a_power(q: float) -> None:
    times = np.bincount(list(PowerSampler(LABELS, q=q, samples=30_000)), minlength=len(LABELS))

    def p_value(power: float) -> float:
        weight = np.array(N, dtype=np.float64) ** power
        share = (weight / weight.sum() / np.array(N))[LABELS]
        return float(chisquare(times, times.sum() * share).pvalue)

    assert p_value(q) > 1e-4
    assert p_value(q + 0.1) < 1e-6  # 30,000 draws do tell the powers apart


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0)])
def test_frequencies_from_instances_to_classes(epoch: int, share: float) -> None:
    sampler = ProgressivelyBalancedSampler(LABELS, epochs=5, samples=30_000)
    sampler.set_epoch(epoch)
    expected = (1 - share) * np.array(N) / sum(N) + share / 4
    np.testing.assert_allclose(sampler.probability, expected, rtol=1e-12)
    times = np.bincount(LABELS[list(sampler)])
    assert chisquare(times, times.sum() * expected).pvalue > 1e-4


def test_a_progress_of_one_epoch_draws_instances() -> None:
    np.testing.assert_allclose(ProgressivelyBalancedSampler(LABELS, epochs=1).probability, np.array(N) / sum(N))


def test_huge_exponents_stay_finite() -> None:
    np.testing.assert_array_equal(PowerSampler([0] * 9 + [1], q=1e4).probability, [1.0, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InstanceBalancedSampler([]), "at least one sample"),
        (lambda: ClassAwareSampler(np.eye(3, dtype=int)), "one integer class a sample"),
        (lambda: PowerSampler([0.0, 1.0]), "one integer class a sample"),
        (lambda: PowerSampler(LABELS, q=float("inf")), "q = inf"),
        (lambda: ClassAwareSampler(LABELS, run=0), "run = 0"),
        (lambda: ClassAwareSampler(LABELS, seed=-1), "seed = -1"),
        (lambda: ClassAwareSampler(LABELS, samples=2, replicas=3), "samples = 2"),
        (lambda: InstanceBalancedSampler(LABELS, replicas=0), "replicas = 0"),
        (lambda: InstanceBalancedSampler(LABELS, replicas=2, rank=2), "rank 2 of 2"),
        (lambda: InstanceBalancedSampler(LABELS).set_epoch(-1), "epoch = -1"),
        (lambda: ProgressivelyBalancedSampler(LABELS, epochs=0), "epochs = 0"),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(PosthocError, match=message):
        call()
