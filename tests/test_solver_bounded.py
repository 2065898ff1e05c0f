"""Heads whose weight vectors have a longest length: optimal by their own conditions, by a peer, and at the extremes."""

from __future__ import annotations

import functools
from math import inf

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import Problem, penalty_unit, problem, sample_weights
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Path
from posthoc_lt.features import Features, Training
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.priors import class_weights
from posthoc_lt.recipe import Schedule, sgd
from posthoc_lt.sampling import InstanceBalancedSampler
from posthoc_lt.solver import Certified, blocks, fit_logistic, penalties

OFF = 30.0  # what all features are moved by: a bound on other weights than these would show


def moved(seed: int = 0, **options: object) -> Problem:
    p = problem(seed, **options)  # type: ignore[arg-type]
    p.x[:] = 3 * p.x + OFF
    return p


def fitted(p: Problem, l2: float, bound: float, towards: Tensor | None = None, **options: float) -> Certified:
    features, weights = Features(torch.tensor(p.x), torch.tensor(p.y)), class_weights(torch.tensor(p.counts))
    (found,) = fit_logistic(features, weights, [l2], towards=towards, max_norm=bound, **options)  # type: ignore[arg-type]
    return found


def stated(p: Problem, l2: float, weight: Tensor, bias: Tensor, towards: Tensor | float = 0.0) -> Tensor:
    """The objective as the documentation has it."""
    losses = torch.nn.functional.cross_entropy(torch.tensor(p.x) @ weight.T + bias, torch.tensor(p.y), reduction="none")
    penalty = l2 * penalty_unit(p, balanced=True) / 2 * (weight - towards).square().sum()
    return torch.tensor(sample_weights(p, balanced=True)) @ losses + penalty


def require_optimal(p: Problem, l2: float, found: Certified, bound: float, towards: Tensor | float = 0.0) -> int:
    """The conditions of Karush, Kuhn and Tucker, sufficient for a convex problem; how many rows are bounded."""
    weight, bias = (each.detach().clone().requires_grad_() for each in (found.weight, found.bias))
    slope, offset = torch.autograd.grad(stated(p, l2, weight, bias, towards), (weight, bias))
    at_0 = torch.autograd.grad(stated(p, l2, none := 0 * found.weight.requires_grad_(), 0 * found.bias), none)[0]
    rows, small = found.weight.detach(), 1e-6 * float(at_0.norm())
    lengths = rows.norm(dim=1)
    on_it = lengths >= bound * (1 - 1e-6)
    outward = rows / lengths[:, None]
    pull = -(slope * outward).sum(dim=1)
    assert (lengths <= bound * (1 + 1e-9)).all()
    assert offset.norm() < 1e-6
    assert slope[~on_it].norm() < small
    assert (slope + pull[:, None] * outward)[on_it].norm() < small
    assert (pull[on_it] >= -small).all()
    return int(on_it.sum())


@functools.cache
def free_length(seed: int, l2: float) -> float:
    return float(fitted(moved(seed), l2, inf).weight.norm(dim=1).median())


@pytest.mark.parametrize("share", [1e-9, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
@pytest.mark.parametrize("seed", [0, 1])
def test_rows_on_the_bound_are_drawn_outward_and_others_not_at_all(seed: int, l2: float, share: float) -> None:
    p = moved(seed)
    bound = share * free_length(seed, l2)
    found = fitted(p, l2, bound)
    assert found.certificate.converged
    bounded = require_optimal(p, l2, found, bound)
    assert bounded == 4 if share < 0.5 else bounded > 0  # at the median some rows are within, as the next test sees


def test_some_rows_may_be_bounded_and_others_not() -> None:
    p, bound = moved(), free_length(0, 1e-4)
    assert 0 < require_optimal(p, 1e-4, fitted(p, 1e-4, bound), bound) < 4


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_the_minimum_is_that_of_scipy(share: float) -> None:
    p, l2 = problem(2, counts=(12, 5, 3), dimensions=2), 0.01
    bound = share * float(fitted(p, l2, inf).weight.norm(dim=1).min())

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        each = torch.tensor(point.reshape(3, 3), requires_grad=True)
        value = stated(p, l2, each[:, :2], each[:, 2])
        (gradient,) = torch.autograd.grad(value, each)
        return value.item(), gradient.flatten().numpy()

    def room(point: np.ndarray) -> np.ndarray:
        return np.asarray(bound**2 - (point.reshape(3, 3)[:, :2] ** 2).sum(axis=1))

    peer = scipy.optimize.minimize(
        objective,
        np.zeros(9),
        args=(),
        method="SLSQP",
        jac=True,
        constraints=scipy.optimize.NonlinearConstraint(room, 0.0, np.inf),
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    found = fitted(p, l2, bound)
    assert found.certificate.objective == pytest.approx(peer.fun, rel=1e-8)
    np.testing.assert_allclose(found.weight, peer.x.reshape(3, 3)[:, :2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("l2", [1.0, 1e-3])
def test_the_penalty_s_centre_may_be_out_of_bounds(l2: float) -> None:
    p = moved(3)
    towards = torch.tensor(p.w)
    bound = 0.5 * float(towards.norm(dim=1).min())
    found = fitted(p, l2, bound, towards)
    assert found.certificate.converged
    require_optimal(p, l2, found, bound, towards)


def test_a_tiny_bound_leaves_the_directions_of_steepest_descent() -> None:
    p, bound = moved(), 1e-9
    found = fitted(p, 1e-4, bound)
    means = np.array([p.x[p.y == c].mean(axis=0) for c in range(4)])
    away = means - means.mean(axis=0)
    np.testing.assert_allclose(found.weight, bound * away / np.linalg.norm(away, axis=1, keepdims=True), rtol=1e-6)
    assert found.certificate.converged


@pytest.mark.parametrize("bound", [1e3, 1e12])
@pytest.mark.parametrize("l2", [10.0, 0.01])
def test_a_wide_bound_changes_nothing(l2: float, bound: float) -> None:
    p = moved(1)
    bounded, free = fitted(p, l2, bound), fitted(p, l2, inf)
    torch.testing.assert_close(bounded.weight, free.weight, rtol=1e-5, atol=1e-7)
    assert bounded.certificate.objective == pytest.approx(free.certificate.objective, rel=1e-12)


def test_the_certificate_is_a_projected_gradient_step_in_the_solver_s_units() -> None:
    p, l2 = moved(2), 0.01
    bound, unit = 0.5 * free_length(2, l2), penalty_unit(p, balanced=True) ** 0.5
    w = torch.tensor(sample_weights(p, balanced=True))
    centre = w @ torch.tensor(p.x)

    def slopes(head: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        """The gradient in the weights and biases of (x − m)/σ."""
        weight, offset = (each.clone().requires_grad_() for each in (head * unit, bias + head @ centre))
        return torch.autograd.grad(stated(p, l2, weight / unit, offset - weight / unit @ centre), (weight, offset))

    found = fitted(p, l2, bound, tolerance=1e-2)
    weight, radius = found.weight * unit, bound * unit
    slope, offset = slopes(found.weight, found.bias)
    size = (radius / slope.norm(dim=1, keepdim=True)).clamp(max=1)
    there = weight - size * slope
    there = there * (radius / there.norm(dim=1, keepdim=True)).clamp(max=1)
    expected, scale = (
        float(sum(each.square().sum() for each in parts)) ** 0.5
        for parts in (((weight - there) / size, offset), slopes(0 * found.weight, 0 * found.bias))
    )
    assert 1e-6 < found.certificate.gradient_norm <= 1e-2
    assert found.certificate.gradient_norm == pytest.approx(expected / scale, rel=1e-6)
    assert found.certificate.objective == pytest.approx(float(stated(p, l2, found.weight, found.bias)), rel=1e-12)


def test_steps_that_run_out_are_told_and_their_head_is_within_the_bound() -> None:
    found = fitted(moved(), 1e-4, 0.05, steps=2)
    assert not found.certificate.converged
    assert found.certificate.iterations == 2
    assert found.weight.norm(dim=1).max() <= 0.05 * (1 + 1e-9)


@given(
    bound=st.floats(1e-12, 1e12),
    l2=st.floats(1e-5, 1e2),
    seed=st.integers(0, 5),
    towards=st.booleans(),
    large=st.booleans(),
)
@settings(max_examples=30)
def test_no_row_is_ever_longer(bound: float, l2: float, seed: int, towards: bool, large: bool) -> None:
    p = problem(seed, counts=(12, 5, 1), dimensions=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "LARGE", 0 if large else blocks.LARGE)
        found = fitted(p, l2, bound, torch.tensor(p.w) if towards else None)
    assert found.weight.isfinite().all()
    assert found.bias.isfinite().all()
    assert found.weight.double().norm(dim=1).max() <= bound * (1 + 1e-6)


# The method


def test_a_path_of_penalties_is_bounded_all_along() -> None:
    p, bound = moved(), free_length(0, 0.01)
    family = METHODS["crt"](**{"max_norm": bound}).fit(p.head(), p.training())
    assert isinstance(family, Path)
    assert family.knobs == penalties(None)
    bounded = 0
    for l2, head, certificate in zip(family.knobs, family.heads, family.certificates, strict=True):
        assert certificate.converged
        bounded += require_optimal(p, l2, Certified(head.weight, head.bias, certificate), bound)
    assert 0 < bounded < 4 * len(family.knobs)


def test_large_problems_are_drafted_within_the_bound_and_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(4, counts=(400, 90, 30, 4), dimensions=8)
    method = METHODS["crt"](**{"max_norm": 0.5})
    exact = method.fit(p.head(), p.training())
    monkeypatch.setattr(blocks, "LARGE", 0)
    path = method.fit(p.head(), p.training())
    assert isinstance(path, Path)
    assert isinstance(exact, Path)
    assert not all(each.converged for each in path.certificates)
    for index, knob in enumerate(path.knobs):
        assert path.heads[index].weight.norm(dim=1).max() <= 0.5 * (1 + 1e-6)
        head = path.at(knob)
        assert path.certificates[index].converged
        assert head.weight.norm(dim=1).max() <= 0.5 * (1 + 1e-6)
        least = exact.certificates[2 * index].objective
        gap = path.certificates[index].objective - least
        assert abs(gap) <= 1e-6 * least + 1e-3**2 / (2 * knob)  # ‖∇‖²/2λ, and float32
    features, weights = p.training().features, class_weights(torch.tensor(p.counts))
    assert features is not None
    (sharp,) = fit_logistic(features, weights, [1e-4], max_norm=0.5, tolerance=1e-7)
    assert sharp.certificate.converged
    torch.testing.assert_close(sharp.weight, exact.at(1e-4).weight, rtol=1e-4, atol=1e-5)


def test_an_adjusted_loss_moves_the_bias_alone() -> None:
    p = moved()
    options = {"l2": 0.01, "sampler": "instance", "max_norm": free_length(0, 0.01) / 2}
    plain, adjusted = (
        METHODS["crt"](**options, **{"loss": loss}).fit(p.head(), p.training()).at(0.01)
        for loss in ("cross-entropy", "logit-adjusted")
    )
    torch.testing.assert_close(adjusted.weight, plain.weight)
    torch.testing.assert_close(plain.bias - adjusted.bias, torch.tensor(p.counts / p.counts.sum()).log())


@pytest.mark.parametrize("recipe", ["convex", "paper"])
@pytest.mark.parametrize("init", ["fresh", "checkpoint"])
def test_either_recipe_and_start_keeps_within_the_bound_and_reaches_it(recipe: str, init: str) -> None:
    p = problem()
    options = {"recipe": recipe, "init": init, "max_norm": 0.3, "l2": 1e-3}
    head = METHODS["crt"](**options).fit(p.head(torch.float32), p.training()).at(1e-3)
    lengths = head.weight.norm(dim=1)
    assert lengths.max() <= 0.3 * (1 + 1e-6)
    assert lengths.max() == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("recipe", ["convex", "paper"])
@pytest.mark.parametrize("bound", [0.0, -1.0, inf, float("nan")])
def test_a_bound_that_is_no_length_is_refused_with_those_of_the_head(bound: float, recipe: str) -> None:
    head = Head(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2))
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    with pytest.raises(
        PosthocError, match=r"max_norm = .*the untouched head's weights are 1 to 5 long.*--max-norm 1\.4"
    ):
        METHODS["crt"](**{"max_norm": bound, "recipe": recipe}).fit(
            head, Training(torch.tensor([1, 1]), Features(x, y))
        )


def test_the_paper_s_steps_end_each_within_the_bound() -> None:
    p, head, bound = problem(), problem().head(), 0.7
    labels = torch.tensor(p.y)
    schedule = Schedule(epochs=4, batch=len(p.y), lr=0.5, momentum=0.8, weight_decay=0.01)
    sampler = InstanceBalancedSampler(labels)  # every sample once, so that a batch is all of them
    features = Features(torch.tensor(p.x), labels)
    options = {"start": head, "sampler": sampler, "dtype": torch.float64}
    found = sgd(features, 4, schedule=schedule, max_norm=bound, **options)  # type: ignore[arg-type]
    point = np.column_stack([p.w, p.b])
    velocity, inputs = np.zeros_like(point), np.column_stack([p.x, np.ones(len(p.y))])
    for epoch in range(1, 5):
        scores = np.exp(inputs @ point.T)
        residual = scores / scores.sum(axis=1, keepdims=True) - np.eye(4)[p.y]
        velocity = 0.8 * velocity + residual.T @ inputs / len(p.y) + 0.01 * point
        point = point - schedule.rate(epoch) * velocity
        for row in point:
            row[:-1] *= min(1.0, bound / np.linalg.norm(row[:-1]))
    np.testing.assert_allclose(found.weight, point[:, :-1], rtol=1e-5)
    np.testing.assert_allclose(found.bias, point[:, -1], rtol=1e-5)
