"""The knob that a proper likelihood would choose, under weak priors that carry tiny validation sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from posthoc_lt.family import KeptBias, Line, Power
from posthoc_lt.features import Features

LOG_SCALE_PRIOR = (0.0, 0.7)

# From features (n, D) to logits (n, C) as a differentiable function of the knob, or of a point.
Scores = Callable[[Tensor], Callable[[Tensor], Tensor]]
Bounds = Sequence[tuple[float | None, float | None]]


@dataclass(frozen=True)
class MapFit:
    """The maximum a posteriori knob and scale, and the objective there."""

    knob: float
    scale: float
    objective: float


def fit_knob(
    family: Line | Power | KeptBias, features: Features, weights: Tensor, bounds: tuple[float, float] | None = None
) -> MapFit:
    """τ and scale a that minimise n_eff·Σ wᵢ NLL(a·s(xᵢ; τ), yᵢ) − log priors, with Σ wᵢ = 1.

    τ has the family's normal prior, log a ~ N(0, 0.7²); n_eff = (Σw)²/Σw². s are the family's logits at τ,
    for a `Power` with its scales centred, so that a means the same at every τ.

    Args:
        family: a family with a continuous knob.
        features: N labelled validation samples.
        weights: (N,) float64, one a sample; class-balanced for balanced accuracy.
        bounds: the range of τ; the family's own by default.
    """
    scores, classes = class_scores(family)

    def scaled(x: Tensor) -> Callable[[Tensor], Tensor]:
        at = scores(x)
        return lambda point: point[1].exp() * at(point[0])

    def penalty(point: Tensor) -> Tensor:
        return normal(point[0], *family.prior) + normal(point[1], *LOG_SCALE_PRIOR)

    if isinstance(family, Line) and bool(family.origin.masked.any()):
        # A class that is never predicted is lost at every τ; its samples would only drive the scale to 0.
        kept = weights * ~family.origin.masked.cpu()[features.labels.cpu()]
        weights = kept if bool(kept.any()) else weights
    start, limits = [family.prior[0], LOG_SCALE_PRIOR[0]], (bounds or family.bounds, (None, None))
    point, objective = minimise_posterior(scaled, classes, features, weights, penalty, start, limits)
    return MapFit(point[0], exp(point[1]), objective)


def class_scores(family: Line | Power | KeptBias) -> tuple[Scores, int]:
    """The logits of a family as a differentiable function of its knob, and C.

    A `Power` has its scales centred: its logits are then those of its heads up to a common factor, which
    changes no prediction, and which without centring would be a temperature that moves with the knob.
    """
    if isinstance(family, Line):
        origin, direction = family.origin, family.direction
        constant = not direction.weight.any()

        def line(x: Tensor) -> Callable[[Tensor], Tensor]:
            there = direction.to(x.device)
            start, slope = origin.to(x.device)(x).double(), there.bias if constant else there(x)
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


def minimise_posterior(
    scores: Scores,
    classes: int,
    features: Features,
    weights: Tensor,
    penalty: Callable[[Tensor], Tensor],
    start: list[float],
    bounds: Bounds,
) -> tuple[list[float], float]:
    """The point that minimises n_eff·Σ wᵢ NLL(scores(xᵢ)(point), yᵢ) + penalty(point), and the minimum.

    Args:
        scores: logits as a function of the point.
        classes: C.
        features: N labelled samples.
        weights: (N,) float64, one a sample.
        penalty: minus the log prior of a point.
        start: the point to start from.
        bounds: the range of each coordinate.
    """
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
            losses = torch.nn.functional.cross_entropy(at(here), labels, reduction="none")
            part = effective / total * (weight * losses).sum().cpu()
            gradient = gradient + torch.autograd.grad(part, point)[0]
            loss = loss + part.detach()
        return loss.item(), gradient.tolist()

    found = minimize(
        objective,
        np.array(start),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-12, "gtol": 1e-7},
    )
    return [float(v) for v in found.x], float(found.fun)


def normal(value: Tensor, mean: float, deviation: float) -> Tensor:
    """Minus the log density of N(mean, deviation²), up to its constant."""
    return ((value - mean) / deviation).square() / 2
