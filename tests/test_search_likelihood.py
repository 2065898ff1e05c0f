"""The likelihood's knob against its formula in float64, differentiated by autograd and minimised by scipy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import posthoc_lt.features
from posthoc_lt.family import KeptBias, Line, Offsets, Power, Sheet
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search import Goal, choose
from posthoc_lt.search.likelihood import fit_knob
from posthoc_lt.search.offsets import learn_offsets

Family = Line | Power | KeptBias
CLASSES, DIMENSIONS = 7, 5


def problem(seed: int, per_class: int, scale: float) -> tuple[Features, Head, Tensor]:
    """Noisy class means, a head of any temperature that leans to the frequent classes, and their log frequencies."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, DIMENSIONS, generator=generator).double()
    y = torch.arange(CLASSES).repeat_interleave(per_class)
    x = means[y] + torch.randn(len(y), DIMENSIONS, generator=generator).double()
    log_prior = torch.logspace(0, -2, CLASSES).double().log()
    weight = scale * means * torch.linspace(1.5, 0.7, CLASSES)[:, None]
    return Features(x, y), Head(weight, scale * log_prior), log_prior


def adjusted(head: Head, log_prior: Tensor) -> Line:
    return Line(head, Head(torch.zeros_like(head.weight), -log_prior))


def blended(head: Head, log_prior: Tensor) -> Line:
    """B depends on x."""
    other = Head(head.weight.flip(0), head.bias.flip(0))
    return Line(head, Head(other.weight - head.weight, other.bias - head.bias), (0.5, 0.5), (0.0, 1.0))


def powered(head: Head, log_prior: Tensor) -> Power:
    return Power(Head.without_bias(head.weight), head.weight.norm(dim=1).log())


def keeping(head: Head, log_prior: Tensor) -> KeptBias:
    return KeptBias(head, head.weight.norm(dim=1).log())


def logits(family: Family, x: Tensor, t: Tensor) -> Tensor:
    """As the families define them, a `Power`'s scales centred."""
    if isinstance(family, Line):
        return family.origin(x) + t * family.direction(x)
    if isinstance(family, Power):
        return family.head(x) * torch.exp(-t * (family.log_scale - family.log_scale.mean()))
    return (x @ family.head.weight.T) * torch.exp(-t * family.log_scale) + family.head.bias


def posterior(family: Family, features: Features, w: Tensor, point: Tensor, offsets: Tensor | float = 0.0) -> Tensor:
    """n_eff Σ w NLL(a·s(t)) / Σ w, and the priors of t and log a."""
    scaled = point[1].exp() * (logits(family, features.x, point[0]) + offsets)
    own = torch.log_softmax(scaled, dim=1)[torch.arange(len(features)), features.labels]
    likelihood = w.sum() / w.square().sum() * -(w * own).sum()
    mean, deviation = family.prior
    prior: Tensor = ((point[0] - mean) / deviation) ** 2 / 2 + (point[1] / 0.7) ** 2 / 2
    return likelihood + prior


def minimum(
    objective: Callable[[Tensor], Tensor], start: list[float], bounds: tuple[float, float]
) -> tuple[Any, float]:
    def with_gradient(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, Any]:
        point = torch.tensor(values, requires_grad=True)
        value = objective(point)
        return value.item(), torch.autograd.grad(value, point)[0].numpy()

    limits = [bounds, *[(None, None)] * (len(start) - 1)]
    tight = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000}
    found = minimize(with_gradient, np.array(start), jac=True, method="L-BFGS-B", bounds=limits, options=tight)  # type: ignore[call-overload]
    return found.x, float(found.fun)


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
@pytest.mark.parametrize(("per_class", "seed"), [(1, 0), (4, 1), (40, 2)])
@pytest.mark.parametrize("make", [adjusted, blended, powered, keeping])
def test_the_knob_minimises_the_posterior(
    make: Callable[[Head, Tensor], Family], per_class: int, seed: int, scale: float
) -> None:
    features, head, log_prior = problem(seed, per_class, scale)
    family = make(head, log_prior)
    w = torch.rand(len(features), generator=torch.Generator().manual_seed(seed)).double() + 0.1
    found = fit_knob(family, features, w)
    best, value = minimum(lambda at: posterior(family, features, w, at), [family.prior[0], 0.0], family.bounds)
    assert found.objective == pytest.approx(value, rel=1e-9)
    assert (found.knob, np.log(found.scale)) == pytest.approx(tuple(best), abs=1e-6)


@pytest.mark.parametrize("bounds", [(0.0, 0.5), (2.5, 4.0), (0.3, 0.3 + 1e-9)])
@pytest.mark.parametrize("make", [adjusted, powered])
def test_the_knob_keeps_to_its_bounds(make: Callable[[Head, Tensor], Family], bounds: tuple[float, float]) -> None:
    features, head, log_prior = problem(3, 20, 1.0)
    family, w = make(head, log_prior), torch.ones(len(features)).double()
    found = fit_knob(family, features, w, bounds)
    best, value = minimum(
        lambda at: posterior(family, features, w, at), [min(max(1.0, bounds[0]), bounds[1]), 0.0], bounds
    )
    assert bounds[0] <= found.knob <= bounds[1]
    assert found.objective == pytest.approx(value, rel=1e-9)
    assert (found.knob, np.log(found.scale)) == pytest.approx(tuple(best), abs=1e-6)


@pytest.mark.parametrize("deviation", [0.3, 3.0])
def test_offsets_minimise_the_posterior(deviation: float) -> None:
    features, head, log_prior = problem(4, 6, 1.0)
    line, w = adjusted(head, log_prior), torch.ones(len(features)).double()

    def objective(at: Tensor) -> Tensor:
        return posterior(line, features, w, at, deviation * at[2:]) + at[2:].square().sum() / 2

    best, _ = minimum(objective, [1.0, 0.0, *[0.0] * CLASSES], line.bounds)
    learned = learn_offsets(Offsets(line, deviation), features, w)
    assert (learned.origin.bias - head.bias).numpy() == pytest.approx(deviation * best[2:], abs=1e-4)


def test_chunks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, head, log_prior = problem(5, 30, 1.0)
    family, w = adjusted(head, log_prior), torch.ones(len(features)).double()
    whole = fit_knob(family, features, w)
    monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", 1)
    assert fit_knob(family, features, w).knob == pytest.approx(whole.knob, abs=1e-9)


def val_of(seed: int, per_class: int) -> tuple[Features, Head, Tensor, Tensor]:
    features, head, log_prior = problem(seed, per_class, 1.0)
    return features, head, log_prior, torch.full((len(features),), 1 / len(features)).double()


@pytest.mark.parametrize("bounds", [None, (0.0, 0.3), (2.5, 4.0)])
def test_the_offsets_of_a_choice_are_learned_within_its_bounds(bounds: tuple[float, float] | None) -> None:
    features, head, log_prior, w = val_of(4, 6)
    line, deviation = adjusted(head, log_prior), 0.5

    def objective(at: Tensor) -> Tensor:
        return posterior(line, features, w, at, deviation * at[2:]) + at[2:].square().sum() / 2

    low, high = bounds or line.bounds
    best, _ = minimum(objective, [min(max(1.0, low), high), 0.0, *[0.0] * CLASSES], (low, high))
    choice = choose(Offsets(line, deviation), features, Goal(rule="nll"), bounds=bounds)
    assert choice.knob is not None
    assert low <= choice.knob <= high
    offsets = choice.head.bias - head.bias + choice.knob * log_prior
    assert offsets.numpy() == pytest.approx(deviation * best[2:], abs=1e-4)


@pytest.mark.parametrize("rule", ["nll", "metric"])
@pytest.mark.parametrize("bounds", [None, (0.0, 0.2), (3.0, 4.0)])
def test_a_line_is_chosen_within_the_bounds(rule: str, bounds: tuple[float, float] | None) -> None:
    features, head, log_prior, w = val_of(6, 8)
    leaning = (0.0, 1.0, 3.0)  # how much of the log frequencies each line takes off by itself
    lines = tuple(
        Line(Head(head.weight, head.bias - a * log_prior), adjusted(head, log_prior).direction) for a in leaning
    )
    penalties, (low, high) = (0.3, 0.0, 0.1), bounds or lines[0].bounds

    def cost(line: Line) -> float:
        if rule == "nll":
            start = [min(max(1.25, low), high), 0.0]
            return minimum(lambda at: posterior(line, features, w, at), start, (low, high))[1]
        middles = np.linspace(low, high, 2001)[1:-1]
        hits = [(logits(line, features.x, torch.tensor(t)).argmax(dim=1) == features.labels).double() for t in middles]
        return -max(float(w @ each) for each in hits)

    costs = [cost(line) + (penalty if rule == "nll" else 0) for line, penalty in zip(lines, penalties, strict=True)]
    choice = choose(Sheet("lean", leaning, lines, penalties), features, Goal(rule=rule), bounds=bounds)
    assert costs[leaning.index(choice.outer["lean"])] == pytest.approx(min(costs), abs=1e-9)
    assert choice.knob is not None
    assert low <= choice.knob <= high


def test_samples_of_a_masked_class_have_no_say_unless_there_are_no_others() -> None:
    features, head, log_prior, w = val_of(7, 10)
    masked = torch.arange(CLASSES) == 2
    family = Line(head.masking(masked), adjusted(head, log_prior.masked_fill(masked, 0.0)).direction)
    kept = features.labels != 2
    rest = Features(features.x[kept], features.labels[kept])
    best, _ = minimum(lambda at: posterior(family, rest, w[kept], at), [1.0, 0.0], family.bounds)
    found = fit_knob(family, features, w)
    assert (found.knob, np.log(found.scale)) == pytest.approx(tuple(best), abs=1e-6)
    alone = fit_knob(family, Features(features.x[~kept], features.labels[~kept]), w[~kept])
    assert family.bounds[0] <= alone.knob <= family.bounds[1]
