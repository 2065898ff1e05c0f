"""Minimising under a bound on the length of every row, by the method of multipliers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from posthoc_lt.family import Certificate
from posthoc_lt.solver.blocks import require_finite
from posthoc_lt.solver.curvature import Likeness
from posthoc_lt.solver.minimise import STEPS, TOLERANCE, Objective, Pair, Precondition, memory, minimise

STRENGTH, SHARPER = 10.0, 0.1
"""How much stiffer than the function the bound is made; how much sharper each round is solved than the last."""
ROUNDS = 40


class Boundable(Objective, Protocol):
    """A penalised function of (C, D + 1) points, rows w_c and their biases, that a common row leaves as it is."""

    @property
    def l2(self) -> float:
        """The curvature of the penalty, part of the function, on w."""

    def likeness(self, point: Tensor) -> Likeness:
        """What the rest of it curves like there."""


def minimise_bounded(
    objective: Boundable,
    start: Tensor,
    radius: float,
    *,
    drafts: Sequence[tuple[Boundable, float]] = (),
    tolerance: float = TOLERANCE,
    enough: float | None = None,
    steps: int = STEPS,
    pairs: deque[Pair] | None = None,
) -> tuple[Tensor, Certificate]:
    """Minimise f over the points with ‖w_c‖ ≤ r for every class c; biases are free.

    The method of multipliers (Hestenes 1969, Powell 1969): with h_c = (‖w_c‖²/r² − 1)/2, minimise
    ``f + r² Σ_c (ν_c² − μ_c²)/2s_c`` for ``ν_c = max(0, μ_c + s_c h_c)`` by L-BFGS, then let μ = ν, and again. A
    spectral projected gradient, also one in the likeness's metric, took up to ten times the steps on weak penalties.

    The point returned is within the bound, and certified by its projected gradient step ‖(p − P(p − t∘∇f))/t‖, with
    t_c = min(1, r/‖∇_c f‖) so that a small bound's small steps do not pass for a minimum; far from the bound it is
    the gradient's norm.

    Args:
        objective: f, convex.
        start: where to begin, within the bound or not.
        radius: r, above 0.
        drafts, tolerance, enough, steps, pairs: as for `minimise`, with that norm for the gradient's.
    """
    pairs = memory(start) if pairs is None else pairs
    point, taken = _within(start, radius), 0
    for current, goal in (*drafts, (objective, enough or tolerance)):
        if taken:  # what a draft's likeness curved like misleads
            pairs.clear()
        point = outside = point if taken else _leaving_zero(current, point, radius)
        value, gradient = current.evaluate(point)
        multiplier, sharp = _multiplier(point, gradient, radius), 1.0
        for _ in range(ROUNDS):
            norm = _residual(point, gradient, radius) / current.scale
            if norm <= goal or taken >= steps:
                break
            sharp = SHARPER * min(sharp, norm)
            lagrangian = _augmented(current, point, radius, multiplier)
            outside, found = minimise(lagrangian, outside, tolerance=sharp, steps=steps - taken, pairs=pairs)
            taken, multiplier = taken + found.iterations, lagrangian.pull(outside)
            point = _within(outside, radius)
            value, gradient = current.evaluate(point)
            if not (found.iterations or found.converged):  # rounding lets no step descend
                break
    norm = _residual(point, gradient, radius) / objective.scale
    return point, Certificate(value, norm, taken, norm <= tolerance)


@dataclass(frozen=True, eq=False)
class _Augmented:
    """f with the bound made a penalty, around multipliers μ (C,) and with strengths s (C,), both float64."""

    objective: Boundable
    radius: float
    multiplier: Tensor
    strength: Tensor
    likeness: Likeness

    @property
    def scale(self) -> float:
        return self.objective.scale

    @property
    def noise(self) -> float:
        return self.objective.noise

    def pull(self, point: Tensor) -> Tensor:
        """ν (C,): how hard each row is drawn back, per length."""
        excess = (_lengths(point) / self.radius).square().sub_(1).div_(2)
        return (self.multiplier + self.strength * excess).clamp(min=0)

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.objective.evaluate(point)
        pull = self.pull(point)
        gradient[:, :-1] += pull.to(point)[:, None] * point[:, :-1]
        more = (pull.square() - self.multiplier.square()) / (2 * self.strength)
        return value + self.radius**2 * more.sum().item(), gradient

    def precondition(self, point: Tensor) -> Precondition:
        """The inverse of the likeness's blocks with their penalties, and of what a common row meets.

        That one changes no probability: only penalties and bounds resist it.
        """
        pull, weight = self.pull(point), _without_bias(point) / self.radius
        solve = self.likeness.inverse(self.objective.l2 + pull.to(point)[:, None])
        stiff = torch.where(pull > 0, self.strength, 0.0).to(point)
        back = solve(weight)
        share = stiff / (1 + stiff * (weight * back).sum(dim=1))
        pulled = (weight[:, :-1] * stiff.sqrt()[:, None]).double()
        common = pulled.T @ pulled
        common.diagonal().add_(len(point) * self.objective.l2 + pull.sum())
        factor = torch.linalg.cholesky(common)

        def apply(gradient: Tensor) -> Tensor:
            step = solve(gradient)
            step = step.addcmul_((share * (back * gradient).sum(dim=1))[:, None], back, value=-1)
            together = gradient[:, :-1].sum(dim=0, dtype=torch.float64)[:, None]
            step[:, :-1] += torch.cholesky_solve(together, factor)[:, 0].to(step)
            step[:, -1] -= step[:, -1].mean()
            return step

        return apply


def _augmented(objective: Boundable, point: Tensor, radius: float, multiplier: Tensor) -> _Augmented:
    """The strengths follow the curvature along each row: the bound is met at one pace, whatever the scale."""
    likeness, along = objective.likeness(point), _without_bias(point)
    along[:, :-1] += (_lengths(point) == 0)[:, None].to(point)  # rows of zeros: along ones, for want of better
    along /= _lengths(along).to(point)[:, None]
    flat = (along * likeness.inverse(objective.l2 + multiplier.to(point)[:, None])(along)).sum(dim=1)
    return _Augmented(objective, radius, multiplier, STRENGTH / flat.double(), likeness)


def _leaving_zero(objective: Boundable, point: Tensor, radius: float) -> Tensor:
    """The point with rows of zeros replaced by a step from there: they do not say which way they will be bounded."""
    zero = _lengths(point) == 0
    value, gradient = objective.evaluate(point)
    require_finite(torch.tensor(value), gradient)
    if not zero.any():
        return point
    step = _without_bias(objective.likeness(point).inverse(objective.l2)(gradient)) * zero[:, None]
    for halvings in range(30):
        moved = _within(point - step / 2**halvings, radius)
        if objective.evaluate(moved)[0] <= value:
            return moved
    return point


def _multiplier(point: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """μ (C,) float64 with ∇_c = −μ_c w_c as nearly as can be; 0 for rows within the bound."""
    inward = -(gradient[:, :-1].double() * point[:, :-1].double()).sum(dim=1) / radius**2
    return torch.where(_lengths(point) >= (1 - 1e-6) * radius, inward.clamp(min=0), 0.0)


def _residual(point: Tensor, gradient: Tensor, radius: float) -> float:
    """‖(p − P(p − t∘∇))/t‖, t = 1 for biases."""
    step = torch.ones_like(gradient, dtype=torch.float64)
    step[:, :-1] = (radius / _lengths(gradient).clamp(min=1e-300)).clamp(max=1)[:, None]
    exact = point.double()
    moved = _within(exact - step * gradient.double(), radius)
    return float(((exact - moved) / step).norm())


def _within(point: Tensor, radius: float) -> Tensor:
    """P: rows longer than the bound are shortened to it."""
    factor = torch.ones_like(point)
    factor[:, :-1] = (radius / _lengths(point).clamp(min=1e-300)).clamp(max=1).to(point)[:, None]
    return point * factor


def _lengths(point: Tensor) -> Tensor:
    """‖w_c‖ (C,), float64."""
    lengths: Tensor = torch.linalg.vector_norm(point[:, :-1], dim=1, dtype=torch.float64)
    return lengths


def _without_bias(point: Tensor) -> Tensor:
    return torch.cat([point[:, :-1], torch.zeros_like(point[:, -1:])], dim=1)
