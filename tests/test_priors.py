"""Priors and weights against exact fractions and their limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.priors import class_weights, effective_number_weights, log_prior

counts_given = st.lists(st.integers(1, 10**6), min_size=1, max_size=20)


def exact_effective_weights(counts: list[int], beta: float) -> list[float]:
    """Cui's weights in rational arithmetic, without rounding."""
    b = Fraction(beta)
    weights = [(1 - b) / (1 - b**n) for n in counts]
    return [float(w * len(counts) / sum(weights)) for w in weights]


@given(counts_given)
def test_log_prior_is_the_log_frequency(counts: list[int]) -> None:
    prior = log_prior(torch.tensor(counts))
    assert prior.dtype == torch.float64
    expected = [math.log(Fraction(n, sum(counts))) for n in counts]
    np.testing.assert_allclose(prior.numpy(), expected, rtol=1e-12, atol=1e-14)


@given(counts_given, st.sampled_from([0.0, 0.5, 1.0, 1.5, -0.3]))
def test_class_weights_draw_classes_by_n_to_the_q(counts: list[int], q: float) -> None:
    weights = class_weights(torch.tensor(counts), q).numpy()
    drawn = np.array(counts) * weights  # how often each class comes up
    powers = np.array(counts, dtype=np.float64) ** q
    np.testing.assert_allclose(drawn, powers / powers.sum(), rtol=1e-11)
    np.testing.assert_allclose(drawn.sum(), 1.0, rtol=1e-12)


@given(counts_given)
def test_class_weights_of_the_two_plain_samplers(counts: list[int]) -> None:
    by_class, by_instance = (class_weights(torch.tensor(counts), q).numpy() for q in (0.0, 1.0))
    np.testing.assert_allclose(by_class, [1 / (len(counts) * n) for n in counts], rtol=1e-12)
    np.testing.assert_allclose(by_instance, [1 / sum(counts)] * len(counts), rtol=1e-12)


def test_class_weights_of_huge_exponents_stay_finite() -> None:
    weights = class_weights(torch.tensor([1_000_000, 1]), q=200.0)
    torch.testing.assert_close(weights, torch.tensor([1e-6, 0.0], dtype=torch.float64))


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.sampled_from([0.1, 0.9, 0.99, 0.999, 1 - 2.0**-40, 1e-20]),
)
@settings(max_examples=30, deadline=None)  # fractions of thousands of digits
def test_effective_numbers_are_exact(counts: list[int], beta: float) -> None:
    weights = effective_number_weights(torch.tensor(counts), beta).numpy()
    np.testing.assert_allclose(weights, exact_effective_weights(counts, beta), rtol=1e-12)


@given(counts_given, st.floats(0, 1))
def test_effective_number_weights_sum_to_the_classes_and_fall_with_n(counts: list[int], beta: float) -> None:
    weights = effective_number_weights(torch.tensor(counts), beta)
    assert weights.sum().item() == pytest.approx(len(counts))
    ordered = weights[torch.tensor(counts).argsort()]
    assert (ordered.diff() <= 1e-12 * len(counts)).all()


@given(counts_given)
def test_effective_numbers_at_their_limits(counts: list[int]) -> None:
    n = torch.tensor(counts)
    inverse = np.array([1 / c for c in counts])
    inverse *= len(counts) / inverse.sum()
    assert torch.equal(effective_number_weights(n, 0.0), torch.ones(len(counts), dtype=torch.float64))
    np.testing.assert_allclose(effective_number_weights(n, 1.0).numpy(), inverse, rtol=1e-12)
    np.testing.assert_allclose(effective_number_weights(n, 1 - 2.0**-53).numpy(), inverse, rtol=1e-9)


@pytest.mark.parametrize("make", [log_prior, class_weights, effective_number_weights])
def test_a_class_without_samples_is_named(make: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(PosthocError, match="no train sample of class 1, 3"):
        make(torch.tensor([5, 0, 2, 0]))
    with pytest.raises(PosthocError, match="class counts of shape"):
        make(torch.tensor([[5, 1]]))
    with pytest.raises(PosthocError, match="class counts of shape"):
        make(torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(PosthocError, match="a number from 0 to 1"):
        effective_number_weights(torch.tensor([2, 1]), beta)


@pytest.mark.parametrize("q", [math.nan, math.inf])
def test_a_sampler_exponent_that_is_not_finite_is_refused(q: float) -> None:
    with pytest.raises(PosthocError, match="a finite number"):
        class_weights(torch.tensor([2, 1]), q)
