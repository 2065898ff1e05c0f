"""Offsets of the classes learned on validation, held near 0 by a ridge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.family import Line, Offsets
from posthoc_lt.features import Features
from posthoc_lt.search.likelihood import LOG_SCALE_PRIOR, class_scores, effective_size

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


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
    classes, effective = line.origin.classes, effective_size(weights)
    mean, spread = np.zeros(2 + classes), np.ones(2 + classes)
    (mean[0], spread[0]), (mean[1], spread[1]) = line.prior, LOG_SCALE_PRIOR

    def objective(values: Vector) -> tuple[float, Vector]:
        off, point = (values - mean) / spread, torch.from_numpy(values.copy())
        found = (effective / weights.sum() * _likelihood(line, deviation, features, weights, point)).numpy()
        return float(found[0] + off @ off / 2), found[1:] + off / spread

    limits = [bounds or line.bounds, *[(None, None)] * (classes + 1)]
    found = minimize(objective, mean, jac=True, method="L-BFGS-B", bounds=limits, options={"ftol": 1e-12, "gtol": 1e-7})
    offsets = deviation * torch.from_numpy(found.x[2:])
    bias = line.origin.bias.double() + offsets.to(line.origin.bias.device)
    return replace(line, origin=replace(line.origin, bias=bias.to(line.origin.bias.dtype)))


def _likelihood(line: Line, deviation: float, features: Features, weights: Tensor, point: Tensor) -> Tensor:
    """Σ wᵢ NLL at (t, log a, δ/σ), and its gradient: (3 + C,) float64."""
    scores, head = class_scores(line)
    knob, a, parts = float(point[0]), float(point[1].exp()), []
    for rows, x in features.own_chunks(8 * head.classes, head.weight.dtype):
        at, own = scores(x)(knob), features.labels[rows, None].to(x.device)
        w, offsets = weights[rows].to(x.device), deviation * point[2:].to(x.device)
        logits = a * (at.value + offsets)
        residual = torch.log_softmax(logits, dim=1)
        loss = -(residual.gather(1, own)[:, 0] @ w)
        residual.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=torch.float64)).mul_(w[:, None])
        rise, stretch = a * (residual * at.slope).sum(), (residual * logits).sum()
        parts.append(torch.cat([torch.stack([loss, rise, stretch]), a * deviation * residual.sum(dim=0)]).cpu())
    return ranks.added(parts, torch.zeros(3 + head.classes, dtype=torch.float64))
