"""Losses against slow formulas, their gradients, and what each reduces to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from posthoc_lt import losses
from posthoc_lt.errors import PosthocError
from posthoc_lt.priors import class_weights, effective_number_weights, log_prior

COUNTS = torch.tensor([70, 20, 7, 3])
WEIGHT, LOG_PRIOR = effective_number_weights(COUNTS, 0.99), log_prior(COUNTS)

Loss = Callable[[Tensor, Tensor], Tensor]

EVERY: dict[str, tuple[Loss, nn.Module]] = {
    "cross-entropy": (losses.cross_entropy, losses.CrossEntropy()),
    "weighted": (lambda z, y: losses.cross_entropy(z, y, WEIGHT), losses.CrossEntropy(WEIGHT)),
    "logit-adjusted": (
        lambda z, y: losses.logit_adjusted(z, y, LOG_PRIOR, 1.3),
        losses.LogitAdjusted(LOG_PRIOR, 1.3),
    ),
    "softmax": (lambda z, y: losses.class_balanced(z, y, WEIGHT), losses.ClassBalanced(WEIGHT)),
    "sigmoid": (
        lambda z, y: losses.class_balanced(z, y, WEIGHT, "sigmoid"),
        losses.ClassBalanced(WEIGHT, "sigmoid"),
    ),
    "focal": (
        lambda z, y: losses.class_balanced(z, y, WEIGHT, "focal", 1.5),
        losses.ClassBalanced(WEIGHT, "focal", 1.5),
    ),
}
every_loss = pytest.mark.parametrize("name", EVERY)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(9, 4, generator=generator, dtype=dtype), torch.randint(4, (9,), generator=generator)


def slow(name: str, z: list[float], y: int) -> float:
    """One sample's loss, written out."""
    weight = [float(v) for v in WEIGHT]
    if name in ("sigmoid", "focal"):
        total = 0.0
        for c, value in enumerate(z):
            p = 1 / (1 + math.exp(-value)) if c == y else 1 - 1 / (1 + math.exp(-value))
            total -= (1 - p) ** (1.5 if name == "focal" else 0.0) * math.log(p)
        return weight[y] * total
    if name == "logit-adjusted":
        z = [value + 1.3 * math.log(n / 100) for value, n in zip(z, (70, 20, 7, 3), strict=True)]
    value = -math.log(math.exp(z[y]) / sum(math.exp(v) for v in z))
    return value * (weight[y] if name in ("weighted", "softmax") else 1.0)


@every_loss
def test_the_written_out_formula(name: str) -> None:
    z, y = batch()
    expected = np.mean([slow(name, row, label) for row, label in zip(z.tolist(), y.tolist(), strict=True)])
    for loss in EVERY[name]:
        assert loss(z, y).item() == pytest.approx(expected, rel=1e-12)


@every_loss
def test_gradients(name: str) -> None:
    z, y = batch(1)
    assert torch.autograd.gradcheck(lambda logits: EVERY[name][0](logits, y), (z.requires_grad_(),))


@every_loss
@pytest.mark.parametrize("size", [1e3, 1e5])
def test_extreme_logits_keep_value_and_gradient_finite(name: str, size: float) -> None:
    z, y = batch(2, torch.float32)
    z = (size * z.sign()).requires_grad_()
    loss = EVERY[name][0](z, y)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_in_the_dtype_of_the_logits(name: str, dtype: torch.dtype) -> None:
    assert EVERY[name][0](*batch(dtype=dtype)).dtype == dtype


def each(name: str, z: Tensor, y: Tensor, reduction: losses.Reduction) -> Tensor:
    if name == "logit-adjusted":
        return losses.logit_adjusted(z, y, LOG_PRIOR, 1.3, reduction)
    if name in ("cross-entropy", "weighted"):
        return losses.cross_entropy(z, y, WEIGHT if name == "weighted" else None, reduction)
    kind: Literal["softmax", "sigmoid", "focal"] = (
        "softmax" if name == "softmax" else "sigmoid" if name == "sigmoid" else "focal"
    )
    return losses.class_balanced(z, y, WEIGHT, kind, 1.5, reduction)


@every_loss
def test_reductions(name: str) -> None:
    z, y = batch(3)
    expected = [slow(name, row, label) for row, label in zip(z.tolist(), y.tolist(), strict=True)]
    np.testing.assert_allclose(each(name, z, y, "none").numpy(), expected, rtol=1e-11)
    assert each(name, z, y, "sum").item() == pytest.approx(sum(expected), rel=1e-12)


def test_weighted_cross_entropy_is_that_of_torch_up_to_its_normalisation() -> None:
    z, y = batch(4)
    expected = functional.cross_entropy(z, y, weight=WEIGHT, reduction="sum") / len(y)
    torch.testing.assert_close(losses.cross_entropy(z, y, WEIGHT), expected)


def test_sampler_weights_over_all_samples_make_the_mean_of_class_means() -> None:
    generator = torch.Generator().manual_seed(5)
    y = torch.repeat_interleave(torch.arange(4), COUNTS)
    z = torch.randn(len(y), 4, generator=generator, dtype=torch.float64)
    plain = losses.cross_entropy(z, y, reduction="none").numpy()
    expected = np.mean([plain[y.numpy() == c].mean() for c in range(4)])
    weighted = losses.cross_entropy(z, y, class_weights(COUNTS, q=0.0), reduction="sum")
    assert weighted.item() == pytest.approx(expected, rel=1e-12)


def test_adjusted_with_tau_zero_or_a_uniform_prior_is_cross_entropy() -> None:
    z, y = batch(6)
    plain = losses.cross_entropy(z, y)
    torch.testing.assert_close(losses.logit_adjusted(z, y, LOG_PRIOR, tau=0.0), plain)
    torch.testing.assert_close(losses.logit_adjusted(z, y, log_prior(torch.tensor([5, 5, 5, 5])), tau=2.0), plain)


def test_adjusted_with_tau_one_is_balanced_softmax() -> None:
    z, y = batch(7)
    scores = COUNTS * z.exp()  # Ren 2020, equation 3
    expected = -(scores[torch.arange(9), y] / scores.sum(dim=1)).log().mean()
    torch.testing.assert_close(losses.logit_adjusted(z, y, LOG_PRIOR), expected)


def test_focal_with_gamma_zero_is_sigmoid_which_is_binary_cross_entropy() -> None:
    z, y = batch(8)
    ones = torch.ones(4)
    sigmoid = losses.class_balanced(z, y, ones, "sigmoid")
    torch.testing.assert_close(losses.class_balanced(z, y, ones, "focal", gamma=0.0), sigmoid)
    one_hot = functional.one_hot(y, 4).double()
    expected = functional.binary_cross_entropy_with_logits(z, one_hot, reduction="sum") / len(y)
    torch.testing.assert_close(sigmoid, expected)


def test_beta_zero_weighs_nothing() -> None:
    z, y = batch(9)
    even = effective_number_weights(COUNTS, 0.0)
    torch.testing.assert_close(losses.class_balanced(z, y, even), losses.cross_entropy(z, y))


def test_modules_keep_their_numbers_in_the_state_dict() -> None:
    assert torch.equal(losses.LogitAdjusted(LOG_PRIOR).state_dict()["log_prior"], LOG_PRIOR)
    assert torch.equal(losses.ClassBalanced(WEIGHT).state_dict()["weight"], WEIGHT)
    assert losses.CrossEntropy().state_dict() == {}
    assert not list(losses.ClassBalanced(WEIGHT).parameters())


def test_numbers_for_other_classes_are_refused() -> None:
    z, y = batch()
    calls: list[Callable[[], Tensor]] = [
        lambda: losses.cross_entropy(z, y, torch.ones(1)),
        lambda: losses.logit_adjusted(z, y, torch.zeros(3)),
        lambda: losses.class_balanced(z, y, torch.ones(4, 1), "focal"),
    ]
    for call in calls:
        with pytest.raises(PosthocError, match="one number a class"):
            call()


def test_unknown_kinds_and_reductions_are_refused() -> None:
    z, y = batch()
    with pytest.raises(PosthocError, match="loss kind 'hinge'"):
        losses.ClassBalanced(WEIGHT, "hinge")  # type: ignore[arg-type]
    with pytest.raises(PosthocError, match="gamma = -1"):
        losses.class_balanced(z, y, WEIGHT, "focal", gamma=-1.0)
    with pytest.raises(PosthocError, match="reduction 'max'"):
        losses.cross_entropy(z, y, reduction="max")  # type: ignore[arg-type]
