"""What each loss reduces to: the family's members, its limits, other libraries' losses, and Cui's start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import COUNTS, LOG_PRIOR, WEIGHT, C, batch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from posthoc_lt import losses
from posthoc_lt.errors import PosthocError
from posthoc_lt.priors import class_weights, effective_number_weights, log_prior

PI = LOG_PRIOR.exp()
EVEN = log_prior(torch.tensor([5, 5, 5, 5]))


def test_members_of_the_pairwise_margin_family() -> None:
    z, y = batch(5)
    zero, row = torch.zeros(C, C), torch.ones(C, 1)
    assert_close(losses.pairwise_margin(z, y, zero), losses.cross_entropy(z, y))
    assert_close(losses.pairwise_margin(z, y, zero, 1 / PI), losses.cross_entropy(z, y, 1 / PI))
    adjusted = 1.3 * (LOG_PRIOR[None, :] - LOG_PRIOR[:, None])
    assert_close(losses.pairwise_margin(z, y, adjusted), losses.logit_adjusted(z, y, LOG_PRIOR, 1.3))
    assert_close(losses.pairwise_margin(z, y, row * LOG_PRIOR * 0.7), losses.equalised(z, y, LOG_PRIOR, 0.7))
    quarter = COUNTS.double() ** -0.25
    margins = (0.5 * quarter / quarter.max())[:, None].expand(C, C)
    assert_close(losses.pairwise_margin(z, y, margins), losses.ldam(z, y, LOG_PRIOR, 0.5, 1.0))


@given(st.integers(0, 100), st.floats(-50, 50))
def test_a_constant_added_to_all_logits_changes_no_pairwise_loss(seed: int, shift: float) -> None:
    z, y = batch(seed)
    margin = torch.randn(C, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert_close(losses.pairwise_margin(z + shift, y, margin), losses.pairwise_margin(z, y, margin))


def test_a_margin_of_minus_infinity_spares_the_pair() -> None:
    z, y = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64, requires_grad=True), torch.tensor([0])
    margin = torch.zeros(3, 3).index_fill(1, torch.tensor(2), float("-inf"))
    loss = losses.pairwise_margin(z, y, margin)
    assert_close(loss, losses.cross_entropy(z[:, :2], y))
    assert torch.autograd.grad(loss, z)[0][0, 2] == 0


def test_adjusted_with_tau_one_is_balanced_softmax() -> None:
    z, y = batch(7)
    scores = COUNTS * z.exp()  # Ren 2020, equation 3
    expected = -(scores[torch.arange(9), y] / scores.sum(dim=1)).log().mean()
    assert_close(losses.logit_adjusted(z, y, LOG_PRIOR), expected)


def test_what_becomes_cross_entropy() -> None:
    z, y = batch(6)
    plain = losses.cross_entropy(z, y)
    assert_close(plain, functional.cross_entropy(z, y))
    for same in (
        losses.logit_adjusted(z, y, LOG_PRIOR, tau=0.0),
        losses.logit_adjusted(z, y, EVEN, tau=2.0),
        losses.equalised(z, y, LOG_PRIOR, tau=0.0),
        losses.ldam(z, y, LOG_PRIOR, margin=0.0, scale=1.0),
        losses.vector_scaling(z, y, LOG_PRIOR, tau=0.0, gamma=0.0),
        losses.vector_scaling(z, y, EVEN),
        losses.label_aware_smoothing(z, y, LOG_PRIOR, head=0.0, tail=0.0),
        losses.label_aware_smoothing(z, y, EVEN),
        losses.class_balanced(z, y, effective_number_weights(COUNTS, 0.0)),
    ):
        assert_close(same, plain)


def test_vector_scaling_without_factors_is_logit_adjusted() -> None:
    z, y = batch(8)
    assert_close(
        losses.vector_scaling(z, y, LOG_PRIOR, 1.7, gamma=0.0), losses.logit_adjusted(z, y, LOG_PRIOR, tau=1.7)
    )


def test_even_smoothing_is_that_of_torch_after_its_share_for_the_true_class() -> None:
    z, y = batch(9)
    ours = losses.label_aware_smoothing(z, y, LOG_PRIOR, head=0.3, tail=0.3)
    assert_close(ours, functional.cross_entropy(z, y, label_smoothing=0.3 * C / (C - 1)))


def test_focal_with_gamma_zero_is_sigmoid_which_is_binary_cross_entropy() -> None:
    z, y = batch(8)
    ones = torch.ones(C)
    sigmoid = losses.class_balanced(z, y, ones, "sigmoid")
    assert_close(losses.class_balanced(z, y, ones, "focal", gamma=0.0), sigmoid)
    one_hot = functional.one_hot(y, C).double()
    assert_close(sigmoid, functional.binary_cross_entropy_with_logits(z, one_hot, reduction="sum") / len(y))


def test_beta_toward_one_weighs_by_inverse_frequency() -> None:
    z, y = batch(9)
    inverse = C * (1 / COUNTS) / (1 / COUNTS).sum()
    near = losses.class_balanced(z, y, effective_number_weights(COUNTS, 1 - 1e-9), "focal")
    assert_close(near, losses.class_balanced(z, y, inverse, "focal"), rtol=1e-6, atol=0.0)


def test_weighted_cross_entropy_is_that_of_torch_up_to_its_normalisation() -> None:
    z, y = batch(4)
    expected = functional.cross_entropy(z, y, weight=WEIGHT, reduction="sum") / len(y)
    assert_close(losses.cross_entropy(z, y, WEIGHT), expected)


def test_sampler_weights_over_all_samples_make_the_mean_of_class_means() -> None:
    y = torch.repeat_interleave(torch.arange(C), COUNTS)
    z = torch.randn(len(y), C, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    plain = losses.cross_entropy(z, y, reduction="none").numpy()
    expected = np.mean([plain[y.numpy() == c].mean() for c in range(C)])
    weighted = losses.cross_entropy(z, y, class_weights(COUNTS, q=0.0), reduction="sum")
    assert weighted.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("prior", [None, LOG_PRIOR])
def test_the_bias_starts_at_the_priors_log_odds(prior: Tensor | None) -> None:
    layer = nn.Linear(3, C).double()
    weight = layer.weight.clone()
    losses.initialise_bias(layer, prior)
    assert_close(layer.bias.sigmoid(), torch.full_like(layer.bias, 1 / C) if prior is None else PI)
    assert torch.equal(layer.weight, weight)
    assert layer.bias.requires_grad
    if prior is None:
        assert_close(layer.bias, -torch.full_like(layer.bias, C - 1).log())


def test_weight_decay_reaches_all_parameters_but_the_last_bias() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, C))
    last = model[1]
    assert isinstance(last, nn.Linear)
    optimiser = torch.optim.SGD(losses.parameter_groups(model, last, 0.5), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in model.named_parameters():
        assert_close(p.detach(), before[name] * (1.0 if name == "1.bias" else 0.5))


def test_layers_without_a_bias_to_start_are_refused() -> None:
    for layer in (nn.Linear(3, C, bias=False), nn.Linear(3, 1)):
        with pytest.raises(PosthocError, match="a bias to start at their priors"):
            losses.initialise_bias(layer)
    with pytest.raises(PosthocError, match="one number a class"):
        losses.initialise_bias(nn.Linear(3, C), LOG_PRIOR[:3])
    with pytest.raises(PosthocError, match="the layer object that the model holds"):
        losses.parameter_groups(nn.Linear(3, C), nn.Linear(3, C), 0.1)
