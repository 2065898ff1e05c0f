"""Offsets of the classes learned on validation, held near 0 by a ridge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from posthoc_lt.family import Line, Offsets
from posthoc_lt.features import Features
from posthoc_lt.search.likelihood import LOG_SCALE_PRIOR, class_scores, minimise_posterior, normal


def learn_offsets(
    family: Offsets, features: Features, weights: Tensor, bounds: tuple[float, float] | None = None
) -> Line:
    """The line through the offsets that a proper likelihood prefers, along which t is then chosen exactly.

    ``min n_eff·Σ wᵢ NLL(a·(A(xᵢ) + t·B(xᵢ) + δ), yᵢ) + ‖δ‖²/(2σ²)`` minus the log priors of t and a, over
    t, a and δ (C,) together, σ the family's deviation. δ is the same up to rounding whatever constant all
    offsets share, which the ridge sets to 0.

    Args:
        family: A, B and σ.
        features: N labelled validation samples.
        weights: (N,) float64, one a sample; class-balanced for balanced accuracy.
        bounds: the range of t; the line's own by default.

    Returns:
        Line: A + δ as its origin, in A's dtype, and B.
    """
    line, deviation = family.line, family.deviation
    if deviation == 0:
        return line
    scores, classes = class_scores(line)

    def shifted(x: Tensor) -> Callable[[Tensor], Tensor]:
        at = scores(x)
        return lambda point: point[1].exp() * (at(point[0]) + deviation * point[2:])

    def penalty(point: Tensor) -> Tensor:
        ridge = point[2:].square().sum() / 2
        return ridge + normal(point[0], *line.prior) + normal(point[1], *LOG_SCALE_PRIOR)

    start = [line.prior[0], LOG_SCALE_PRIOR[0], *[0.0] * classes]
    limits = [bounds or line.bounds, *[(None, None)] * (classes + 1)]
    point, _ = minimise_posterior(shifted, classes, features, weights, penalty, start, limits)
    offsets = deviation * torch.tensor(point[2:], dtype=torch.float64)
    bias = line.origin.bias.double() + offsets.to(line.origin.bias.device)
    return replace(line, origin=replace(line.origin, bias=bias.to(line.origin.bias.dtype)))
