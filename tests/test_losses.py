"""Losses against their written-out formulas, their gradients, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from loss_cases import CASES, LOG_PRIOR, MARGIN, WEIGHT, C, Case, batch
from torch import Tensor, nn

from posthoc_lt import losses
from posthoc_lt.errors import PosthocError

every_loss = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def expected(case: Case, z: Tensor, y: Tensor) -> list[float]:
    return [case.slow(row, label) for row, label in zip(z.tolist(), y.tolist(), strict=True)]


@every_loss
def test_the_written_out_formula(case: Case) -> None:
    z, y = batch()
    each = expected(case, z, y)
    np.testing.assert_allclose(case.function(z, y, "none").numpy(), each, rtol=1e-11)
    assert case.function(z, y, "sum").item() == pytest.approx(sum(each), rel=1e-12)
    for mean in (case.function(z, y, "mean"), case.module(z, y)):
        assert mean.item() == pytest.approx(np.mean(each), rel=1e-12)


@every_loss
def test_gradients(case: Case) -> None:
    z, y = batch(1)
    assert torch.autograd.gradcheck(lambda logits: case.function(logits, y, "none"), (z.requires_grad_(),))


@every_loss
@pytest.mark.parametrize("size", [1e3, 1e5])
def test_extreme_logits_keep_value_and_gradient_finite(case: Case, size: float) -> None:
    z, y = batch(2, torch.float32)
    z = (size * z.sign()).requires_grad_()
    loss = case.module(z, y)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_in_the_dtype_of_the_logits(case: Case, dtype: torch.dtype) -> None:
    assert case.module(*batch(dtype=dtype)).dtype == dtype


@every_loss
def test_a_module_learns_nothing_and_keeps_its_numbers_through_the_state_dict(case: Case) -> None:
    assert not list(case.module.parameters())
    state = {name: value.clone() for name, value in case.module.state_dict().items()}
    given = {"weight": WEIGHT, "log_prior": LOG_PRIOR, "margin": MARGIN}
    assert all(torch.equal(value, given[name]) for name, value in state.items())
    blank = {name: torch.zeros_like(value) for name, value in state.items()}
    z, y = batch(3)
    before = case.module(z, y).item()
    try:
        case.module.load_state_dict(blank)
        assert not state or case.module(z, y).item() != before
    finally:
        case.module.load_state_dict(state)
    assert case.module(z, y).item() == before


@every_loss
@pytest.mark.parametrize("label", [C, -1, -100])
def test_labels_that_are_no_class_are_refused(case: Case, label: int) -> None:
    z, y = batch()
    y[3] = label
    with pytest.raises(PosthocError, match=f"label {label} for logits of 4 classes"):
        case.module(z, y)


@every_loss
def test_labels_of_another_form_are_refused(case: Case) -> None:
    z, y = batch()
    for labels in (y[:4], nn.functional.one_hot(y, C), y.double()):
        with pytest.raises(PosthocError, match="one integer class index a sample"):
            case.module(z, labels)


@every_loss
def test_small_integer_labels_do_as_well(case: Case) -> None:
    z, y = batch()
    assert case.module(z, y.to(torch.int32)).item() == case.module(z, y).item()


def test_numbers_for_other_classes_are_refused() -> None:
    z, y = batch()
    three = torch.zeros(3)
    calls: list[Callable[[], Tensor]] = [
        lambda: losses.cross_entropy(z, y, torch.ones(1)),
        lambda: losses.logit_adjusted(z, y, three),
        lambda: losses.class_balanced(z, y, torch.ones(4, 1), "focal"),
        lambda: losses.equalised(z, y, three),
        lambda: losses.ldam(z, y, three),
        lambda: losses.vector_scaling(z, y, three),
        lambda: losses.label_aware_smoothing(z, y, three),
    ]
    for call in calls:
        with pytest.raises(PosthocError, match="one number a class"):
            call()
    with pytest.raises(PosthocError, match="one margin a pair of classes"):
        losses.pairwise_margin(z, y, MARGIN[:3])


def test_knobs_out_of_range_are_refused() -> None:
    z, y = batch()
    with pytest.raises(PosthocError, match="loss kind 'hinge'"):
        losses.ClassBalanced(WEIGHT, "hinge")  # type: ignore[arg-type]
    with pytest.raises(PosthocError, match="gamma = -1"):
        losses.class_balanced(z, y, WEIGHT, "focal", gamma=-1.0)
    with pytest.raises(PosthocError, match="margin = nan"):
        losses.LDAM(LOG_PRIOR, margin=float("nan"))
    with pytest.raises(PosthocError, match="scale = 0"):
        losses.ldam(z, y, LOG_PRIOR, scale=0.0)
    with pytest.raises(PosthocError, match=r"smoothing of 1\.5 for the head"):
        losses.LabelAwareSmoothing(LOG_PRIOR, head=1.5)
    with pytest.raises(PosthocError, match="a single class"):
        losses.label_aware_smoothing(z[:, :1], torch.zeros_like(y), LOG_PRIOR[:1])
    with pytest.raises(PosthocError, match="reduction 'max'"):
        losses.cross_entropy(z, y, reduction="max")  # type: ignore[arg-type]
