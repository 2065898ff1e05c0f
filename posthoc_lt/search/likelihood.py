"""The knob that a proper likelihood would choose, under weak priors that carry tiny validation sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from posthoc_lt.family import KeptBias, Line, Power
from posthoc_lt.features import Features

LINE_PRIOR, POWER_PRIOR = (1.25, 0.5), (1.0, 1.0)
"""Mean and deviation of τ, for logit adjustment and its like, and for tau-norm and its like.

Taken after five real feature sets had been seen; what that is worth is in examples/benchmarks/README.md.
"""
LOG_SCALE_PRIOR = (0.0, 0.7)

# From features (n, D) to logits (n, C) as a differentiable function of the knob.
Scores = Callable[[Tensor], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class MapFit:
    """The maximum a posteriori knob and scale, and the objective there."""

    knob: float
    scale: float
    objective: float


def fit_knob(family: Line | Power | KeptBias, features: Features, weights: Tensor) -> MapFit:
    """τ and scale a that minimise n_eff·Σ wᵢ NLL(a·s(xᵢ; τ), yᵢ) − log priors, with Σ wᵢ = 1.

    τ ~ N(1.25, 0.5²) for a `Line` and N(1, 1) else, log a ~ N(0, 0.7²); n_eff = (Σw)²/Σw². s are the
    family's logits at τ, for a `Power` with its scales centred, so that a means the same at every τ.

    Args:
        family: a family with a continuous knob.
        features: N labelled validation samples.
        weights: (N,) float64, one a sample; class-balanced for balanced accuracy.
    """
    scores, classes = class_scores(family)
    prior = LINE_PRIOR if isinstance(family, Line) else POWER_PRIOR

    def penalty(point: Tensor) -> Tensor:
        return _normal(point[0], *prior) + _normal(point[1], *LOG_SCALE_PRIOR)

    point, objective = _minimise(scores, classes, features, weights, penalty, [prior[0], LOG_SCALE_PRIOR[0]])
    return MapFit(point[0], exp(point[1]), objective)


def class_scores(family: Line | Power | KeptBias) -> tuple[Scores, int]:
    """The logits of a family as a differentiable function of its knob, and C.

    A `Power` has its scales centred: its logits are then those of its heads up to a common factor, which
    changes no prediction, and which without centring would be a temperature that moves with the knob.
    """
    if isinstance(family, Line):
        origin, direction = family.origin, family.direction

        def line(x: Tensor) -> Callable[[Tensor], Tensor]:
            start, slope = origin.to(x.device)(x).double(), direction.to(x.device)(x)
            return lambda knob: start + knob * slope

        return line, origin.classes
    head, log_scale = family.head, family.log_scale
    if isinstance(family, KeptBias):
        kept = head.bias.double()
    else:
        log_scale, kept = log_scale - log_scale.mean(), torch.zeros_like(log_scale)

    def power(x: Tensor) -> Callable[[Tensor], Tensor]:
        scale, rest = log_scale.to(x.device), kept.to(x.device)
        logits = head.to(x.device)(x).double() - rest
        return lambda knob: logits * torch.exp(-knob * scale) + rest

    return power, head.classes


def _minimise(
    scores: Scores,
    classes: int,
    features: Features,
    weights: Tensor,
    penalty: Callable[[Tensor], Tensor],
    start: list[float],
) -> tuple[list[float], float]:
    """Minimise over (knob, log a)."""
    total = weights.sum()
    effective = total**2 / weights.square().sum()

    def objective(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, list[float]]:
        point = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        loss = penalty(point)
        (gradient,) = torch.autograd.grad(loss, point)
        for rows, x in features.chunks(8 * classes):
            with torch.no_grad():
                at = scores(x)
            here = point.to(x.device)
            labels, weight = features.labels[rows].to(x.device), weights[rows].to(x.device)
            losses = torch.nn.functional.cross_entropy(here[1].exp() * at(here[0]), labels, reduction="none")
            part = effective / total * (weight * losses).sum().cpu()
            gradient = gradient + torch.autograd.grad(part, point)[0]
            loss = loss + part.detach()
        return loss.item(), gradient.tolist()

    found = minimize(objective, np.array(start), jac=True, method="L-BFGS-B", options={"ftol": 1e-12, "gtol": 1e-7})
    return [float(v) for v in found.x], float(found.fun)


def _normal(value: Tensor, mean: float, deviation: float) -> Tensor:
    return ((value - mean) / deviation).square() / 2
