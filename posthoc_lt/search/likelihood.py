"""The knob that a proper likelihood would choose, under weak priors that carry tiny validation sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from typing import NamedTuple

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.columns import blocks, computed
from posthoc_lt.family import Continuous, KeptBias, Line
from posthoc_lt.features import Features
from posthoc_lt.head import Head

LOG_SCALE_PRIOR = (0.0, 0.7)

CLOSE = 1e-4
"""A Newton step that is shorter is the last: the one after it would be of the order of its square."""
PASSES = 100


class Terms(NamedTuple):
    """Logits (n, C), float64, at a knob value, their slope in the knob, (n, C) or (1, C), and its slope (0 if None)."""

    value: Tensor
    slope: Tensor
    bend: Tensor | None


# From features (n, D) to the logits as a function of the knob.
Scores = Callable[[Tensor], Callable[[float], Terms]]


@dataclass(frozen=True)
class MapFit:
    """The maximum a posteriori knob and scale, and the objective there."""

    knob: float
    scale: float
    objective: float


def fit_knob(
    family: Continuous, features: Features, weights: Tensor, bounds: tuple[float, float] | None = None
) -> MapFit:
    """τ and scale a that minimise n_eff·Σ wᵢ NLL(a·s(xᵢ; τ), yᵢ) − log priors, with Σ wᵢ = 1.

    τ has the family's normal prior, log a ~ N(0, 0.7²); n_eff = (Σw)²/Σw². s are the family's logits at τ,
    for a `Power` with its scales centred, so that a means the same at every τ. Newton's method in (τ, log a):
    four to six passes over the features as a rule.

    Args:
        family: a family with a continuous knob.
        features: N labelled validation samples.
        weights: (N,) float64, one a sample; class-balanced for balanced accuracy.
        bounds: the range of τ; the family's own by default.
    """
    if isinstance(family, Line) and bool(family.origin.masked.any()):
        # A class that is never predicted is lost at every τ; its samples would only drive the scale to 0.
        there, labels = ~family.origin.masked.cpu(), features.labels.cpu()
        kept = computed(len(weights), lambda rows: weights[rows] * there[labels[rows]])
        weights = kept if bool(kept.any()) else weights
    scores, head = class_scores(family)
    low, high = bounds or family.bounds
    priors = torch.tensor([family.prior, LOG_SCALE_PRIOR], dtype=torch.float64)
    effective = effective_size(weights)

    def measure(at: Tensor) -> _Point:
        found = effective / weights.sum() * _likelihood(scores, head, features, weights, at)
        off = (at - priors[:, 0]) / priors[:, 1]
        precision = torch.diag(priors[:, 1] ** -2)
        curvature = found[[3, 4, 4, 5]].reshape(2, 2) + precision
        return _Point(
            at=at,
            value=float(found[0] + off.square().sum() / 2),
            gradient=found[1:3] + off / priors[:, 1],
            hessian=curvature + found[[6, 7, 7, 8]].reshape(2, 2),
            curvature=curvature,
        )

    at, objective = _minimise(
        measure, priors[:, 0].clamp(torch.tensor([low, -torch.inf]), torch.tensor([high, torch.inf])), (low, high)
    )
    return MapFit(float(at[0]), exp(float(at[1])), objective)


def effective_size(weights: Tensor) -> Tensor:
    """Kish's (Σw)²/Σw² of weights (N,) float64: N where all are alike."""
    squares = torch.zeros((), dtype=torch.float64)
    for rows in blocks(len(weights)):
        squares += weights[rows].square().sum()
    return weights.sum() ** 2 / squares


def class_scores(family: Continuous) -> tuple[Scores, Head]:
    """The logits of a family as a function of its knob, and the head that it starts from.

    A `Power` has its scales centred: its logits are then those of its heads up to a common factor, which
    changes no prediction, and which without centring would be a temperature that moves with the knob.
    """
    if isinstance(family, Line):
        origin, direction = family.origin, family.direction
        constant = not direction.weight.any()

        def line(x: Tensor) -> Callable[[float], Terms]:
            there = direction.to(x.device)
            start, slope = origin.to(x.device)(x).double(), there.bias[None] if constant else there(x)
            return lambda knob: Terms(start + knob * slope, slope.double(), None)

        return line, origin
    head, log_scale = family.head, family.log_scale
    if isinstance(family, KeptBias):
        kept = head.bias.double()
    else:
        log_scale, kept = log_scale - log_scale.mean(), torch.zeros_like(log_scale)

    def power(x: Tensor) -> Callable[[float], Terms]:
        scale, rest = log_scale.to(x.device), kept.to(x.device)
        logits = head.to(x.device)(x).double() - rest

        def at(knob: float) -> Terms:
            scaled = logits * torch.exp(-knob * scale)
            return Terms(scaled + rest, -scale * scaled, scale.square() * scaled)

        return at

    return power, head


def _likelihood(scores: Scores, head: Head, features: Features, weights: Tensor, at: Tensor) -> Tensor:
    """Σ wᵢ NLL(a·s(τ)) at (τ, log a): value, gradient (2), and the two parts of the Hessian, (9,) float64.

    With p the softmax, Hessian = Cov_p of the slopes, never negative, plus E_p minus own of the second derivatives.
    """
    knob, a, parts = float(at[0]), exp(float(at[1])), []
    for rows, x in features.own_chunks(8 * head.classes, head.weight.dtype):
        s, slope, bend = scores(x)(knob)
        own, w = features.labels[rows, None].to(x.device), weights[rows].to(x.device)
        p = torch.log_softmax(a * s, dim=1)
        loss = -p.gather(1, own)[:, 0]
        p.exp_()

        def above(values: Tensor, mean: Tensor, own: Tensor = own) -> Tensor:
            return a * (mean - values.expand(len(own), -1).gather(1, own)[:, 0])

        ps = p * s
        d, z = _mean(p, slope), ps.sum(dim=1)
        dd, dz, zz = _mean(p, slope.square()) - d * d, _mean(ps, slope) - d * z, _mean(ps, s) - z * z
        rise, stretch = above(slope, d), above(s, z)
        bent = torch.zeros_like(rise) if bend is None else above(bend, _mean(p, bend))
        own_parts = (loss, rise, stretch, a * a * dd, a * a * dz, a * a * zz, bent, rise, stretch)
        parts.append((torch.stack(own_parts) @ w).cpu())
    return ranks.added(parts, torch.zeros(9, dtype=torch.float64))


def _mean(p: Tensor, values: Tensor) -> Tensor:
    """Σ_c p_c·values_c, (n,), of values (n, C) or (1, C)."""
    if len(values) == 1:
        return p @ values[0]
    found: Tensor = torch.linalg.vecdot(p, values)
    return found


class _Point(NamedTuple):
    """The objective at (τ, log a): value, gradient, Hessian, and the part of that which is positive."""

    at: Tensor
    value: float
    gradient: Tensor
    hessian: Tensor
    curvature: Tensor


def _minimise(measure: Callable[[Tensor], _Point], start: Tensor, bounds: tuple[float, float]) -> tuple[Tensor, float]:
    """Where the objective is least and its value there: Newton steps, halved until they descend."""
    point = measure(start)
    for _ in range(PASSES):
        step = _newton_step(point, bounds)
        slope = float(point.gradient @ step)
        if float(step.abs().max()) < CLOSE:
            return point.at + step, point.value + slope + float(step @ point.hessian @ step) / 2
        size = 1.0
        while (there := measure(point.at + size * step)).value > point.value + 1e-4 * size * slope and size > CLOSE:
            size /= 2
        point = there
    return point.at, point.value


def _newton_step(point: _Point, bounds: tuple[float, float]) -> Tensor:
    """To the minimum of the second-order model with τ within its bounds, at most 1 long in either direction."""
    low, high = (bound - float(point.at[0]) for bound in bounds)
    hessian = point.hessian if float(torch.linalg.eigvalsh(point.hessian)[0]) > 0 else point.curvature
    step: Tensor = -torch.linalg.solve(hessian, point.gradient)
    if not low <= float(step[0]) <= high:
        knob = min(max(float(step[0]), low), high)
        rest = -(point.gradient[1] + hessian[0, 1] * knob) / hessian[1, 1]
        step = torch.stack([rest.new_tensor(knob), rest])
    return step / max(1.0, float(step.abs().max()))
