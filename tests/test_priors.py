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
from posthoc_lt.head import MASKED, Head
from posthoc_lt.priors import Shares, class_weights, effective_number_weights, log_prior

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


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_smoothing_is_half_a_sample_more_for_every_class(counts: list[int]) -> None:
    total = Fraction(2 * sum(counts) + len(counts), 2)
    expected = [math.log((n + Fraction(1, 2)) / total) for n in counts]
    np.testing.assert_allclose(log_prior(torch.tensor(counts), "smooth").numpy(), expected, rtol=1e-12, atol=1e-14)


def test_masking_leaves_the_other_classes_their_frequencies() -> None:
    found = log_prior(torch.tensor([6, 0, 2, 0]), "mask").tolist()
    assert found == pytest.approx([math.log(0.75), 0, math.log(0.25), 0])
    with pytest.raises(PosthocError, match="class counts of shape"):
        log_prior(torch.tensor([0, 0]), "mask")


def test_an_empty_class_is_refused_with_both_ways_out() -> None:
    with pytest.raises(PosthocError, match=r"--zero-count smooth .* --zero-count mask"):
        log_prior(torch.tensor([3, 0]))


def test_a_masked_class_is_finite_in_every_precision_and_never_predicted() -> None:
    head = Head(torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]), torch.tensor([0.0, 5.0, 1.0]))
    masked = head.masking(torch.tensor([False, True, False]))
    assert masked.masked.tolist() == [False, True, False]
    assert not bool(head.masked.any())
    assert head.masking(torch.zeros(3, dtype=torch.bool)) is head
    x = 100 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    kept = [0, 2]
    assert (masked(x).argmax(dim=1) == torch.tensor(kept)[head(x)[:, kept].argmax(dim=1)]).all()
    assert torch.softmax(masked(x), dim=1)[:, 1].max() == 0
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert float(torch.tensor(MASKED, dtype=dtype)) == MASKED


def test_shares_are_values_with_a_short_name() -> None:
    one, same = Shares((1.0, 3.0), "em"), Shares((1.0, 3.0), "em")
    assert one == same
    assert hash(one) == hash(same)
    assert str(one) == "em"
    assert one.log(2).exp().tolist() == pytest.approx([0.25, 0.75])
    with pytest.raises(PosthocError, match=r"2 frequencies .* for 3 classes"):
        one.log(3)


@pytest.mark.parametrize("values", [(), (1.0, 0.0), (1.0, math.nan), (math.inf, 1.0), (-1.0, 2.0)])
def test_shares_that_have_no_logarithm_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(PosthocError, match="one positive, finite number a class"):
        Shares(values)


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
@settings(max_examples=30)  # fractions of thousands of digits
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
