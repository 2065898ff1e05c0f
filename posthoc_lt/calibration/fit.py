"""Fitting what makes logits likelihoods: one scale, and one strength of the train prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.calibration.samples import blocks, finite_log_prior, weighting
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Certificate
from posthoc_lt.features import Features
from posthoc_lt.head import Head

Normal = tuple[float, float]

SCALE_PRIOR: Normal = (0.0, 0.7)
"""Mean and deviation of log a."""
STRENGTH_PRIOR: Normal = (1.0, 0.5)
"""Mean and deviation of c."""

STEPS, TOLERANCE = 100, 1e-9
UNBOUNDED = 100.0
"""The deviation of log a past which the samples do not bound it: far out, the likelihood is flat."""


@dataclass(frozen=True)
class Calibration:
    """What makes logits z likelihoods: ``p(x|y) ∝ exp(a z_y − c log π_y)``, π the train prior.

    Args:
        scale: a, the inverse temperature; below 1 where the network is too sure of itself.
        prior_strength: c, how much of the train prior the logits hold: 1 for plain cross-entropy that learned
            all of it, 0 for a head that is balanced already.
        deviations: the standard deviations of log a and c, by Laplace; infinite where nothing tells.
        samples: the effective number that they were fitted on, (Σw)²/Σw²; 0 where they were not fitted.
        certificate: the objective a sample, the norm of its gradient in (log a, c), and the steps taken.
    """

    scale: float
    prior_strength: float
    deviations: tuple[float, float] = (math.inf, math.inf)
    samples: float = 0.0
    certificate: Certificate | None = None


def calibrate(
    head: Head,
    features: Features,
    log_prior: Tensor,
    *,
    under: Tensor | None = None,
    scale_prior: Normal | None = SCALE_PRIOR,
    strength_prior: Normal | None = STRENGTH_PRIOR,
) -> Calibration:
    """Scale a and prior strength c, fitted jointly on samples that the network was not trained on.

    If ``p(x|y) ∝ exp(a z_y − c log π_y)``, then among samples whose labels have frequencies v the posterior is
    ``softmax(a z − c log π + log v)_y``. log v is a fact of the samples, not of the network: put in, it leaves a and
    c the same whether validation is balanced, train-like or neither (Prentice and Pyke 1979, on case-control data).
    With `under`, v is that distribution and a sample weighs v_y/n_y, which differs where the model is not right.

    Minimised is n_eff·Σ wᵢ NLLᵢ, Σ w = 1, minus log priors, log a ~ N(0, 0.7²) and c ~ N(1, 0.5²): they carry tiny
    validation sets and fade as those grow. Classes without a sample, and those that `head` masks, take no part. The
    scale alone, c held by a strong prior at 0 on balanced samples, is temperature scaling (Guo 2017, arXiv:1706.04599).

    Args:
        head: C classes; one that was balanced after training wants ``strength_prior=(0.0, 0.5)``.
        features: N labelled samples.
        log_prior: log π, (C,), of the labels that `head` was trained on. Equal everywhere, it says nothing of c.
        under: (C,) ≥ 0, in any unit, the label distribution to fit under; None for that of `features`.
        scale_prior, strength_prior: mean and deviation, or None for none.

    Raises:
        PosthocError: shapes do not fit, values are not finite, no sample carries weight, or there is no optimum,
            as without priors on samples that are all classified right.

    >>> val = Features(torch.eye(2), torch.tensor([0, 1]))
    >>> round(calibrate(Head(torch.eye(2), torch.zeros(2)), val, torch.zeros(2)).scale, 3)
    1.314
    """
    objective = _objective(head, features, log_prior, under, (scale_prior, strength_prior))
    start = torch.tensor([0.0 if scale_prior is None else scale_prior[0], (strength_prior or STRENGTH_PRIOR)[0]])
    point, steps = _minimise(objective, start.double())
    deviations = _deviations(point.hessian * objective.effective)
    if deviations[0] > UNBOUNDED:
        raise PosthocError(
            "a calibration without a prior on samples that do not bound its scale",
            "an optimum, which samples have not that are all classified right, or no better than by chance",
            "keep the weak prior on the scale, or give samples that the network was not trained on",
        )
    norm = float(point.gradient.norm())
    certificate = Certificate(point.value, norm, steps, norm <= TOLERANCE)
    return Calibration(math.exp(float(point.at[0])), float(point.at[1]), deviations, objective.effective, certificate)


class _Point(NamedTuple):
    """The objective a sample at (log a, c): value, gradient, Hessian, and the part of it that is never negative."""

    at: Tensor
    value: float
    gradient: Tensor
    hessian: Tensor
    curvature: Tensor


@dataclass(frozen=True, eq=False)
class _Objective:
    """Σ wᵢ NLL(a z + c g + offset), g = −log π, Σ w = 1, plus the priors divided by n_eff."""

    head: Head
    features: Features
    slope: Tensor
    weight: Tensor
    offset: Tensor
    priors: tuple[Normal | None, Normal | None]

    @cached_property
    def effective(self) -> float:
        return 1 / float(self.weight[self.features.labels.cpu()].square().sum())

    def measure(self, at: Tensor) -> _Point:
        a, c = at.exp()[0], at[1]
        value, slope, square = self._likelihood(float(a), float(c))
        unit = torch.stack([a, torch.ones_like(a)])
        gradient, curvature = unit * slope, torch.outer(unit, unit) * square
        bend = gradient[0].clone()  # of log a: the second derivative of exp adds the slope itself
        for i, prior in enumerate(self.priors):
            if prior is not None:
                mean, precision = prior[0], 1 / (self.effective * prior[1] ** 2)
                value += precision * float(at[i] - mean) ** 2 / 2
                gradient[i] += precision * (at[i] - mean)
                curvature[i, i] += precision
        hessian = curvature.clone()
        hessian[0, 0] += bend
        return _Point(at, value, gradient, hessian, curvature)

    def _likelihood(self, a: float, c: float) -> tuple[float, Tensor, Tensor]:
        """Σ wᵢ NLLᵢ with its gradient (2,) and Hessian (2, 2) in (a, c): means and covariances under p."""
        parts = []
        for _, z, y in blocks(self.head, self.features):
            w, g = self.weight.to(z.device)[y], self.slope.to(z.device)
            log_p = torch.log_softmax(torch.add(c * g + self.offset.to(z.device), z, alpha=a), dim=1)
            own = log_p.gather(1, y[:, None])[:, 0]
            # A class left out has log p = −∞ and weight 0.
            loss = -torch.where(w > 0, w * own, torch.zeros_like(own)).sum()
            p, z = log_p.exp_(), z - z.gather(1, y[:, None])
            pz = p * z
            mean = torch.stack([pz.sum(dim=1), p @ g])
            square = torch.stack([(pz * z).sum(dim=1), pz @ g, p @ g.square()])
            bend = (square - mean[[0, 0, 1]] * mean[[0, 1, 1]]) @ w
            parts.append(torch.cat([torch.stack([loss, mean[0] @ w, (mean[1] - g[y]) @ w]), bend]).cpu())
        found = ranks.added(parts, torch.zeros(6, dtype=torch.float64))
        return float(found[0]), found[1:3], found[[3, 4, 4, 5]].reshape(2, 2)


def _objective(
    head: Head,
    features: Features,
    log_prior: Tensor,
    under: Tensor | None,
    priors: tuple[Normal | None, Normal | None],
) -> _Objective:
    """What `calibrate` minimises; without the masked classes, whose likelihood no scale can better."""
    masked = head.masked.cpu()
    if bool(masked.any()):
        features.require_labelled(head)
        under = (features.counts(head.classes).cpu() if under is None else under.cpu()).double() * ~masked
    share, weight = weighting(head, features, under)
    return _Objective(head, features, -finite_log_prior(log_prior, head), weight, share.log(), priors)


def _minimise(objective: _Objective, start: Tensor) -> tuple[_Point, int]:
    """Newton steps, halved until they descend."""
    point, steps = objective.measure(start), 0
    while steps < STEPS and float(point.gradient.norm()) > TOLERANCE:
        step, size = _newton_step(point), 1.0
        slope = float(point.gradient @ step)
        while True:
            there = objective.measure(point.at + size * step)
            if there.value <= point.value + 1e-4 * size * slope + 1e-15 * abs(point.value):
                break
            size /= 2
            if size < 1e-9:
                return point, steps
        point, steps = there, steps + 1
    return point, steps


def _newton_step(point: _Point) -> Tensor:
    """−H⁻¹∇, at most 2 long; H without its negative part where it has one, nothing along what nothing tells."""
    values, vectors = torch.linalg.eigh(point.hessian)
    if values[0] < 0:
        values, vectors = torch.linalg.eigh(point.curvature)
    inverse = torch.where(values > 1e-12 * values.abs().max(), 1 / values, torch.zeros_like(values))
    step: Tensor = -vectors @ (inverse * (vectors.T @ point.gradient))
    length = max(2.0, float(step.norm()))
    return step * (2 / length)


def _deviations(hessian: Tensor) -> tuple[float, float]:
    """Square roots of the diagonal of H⁻¹, infinite where H does not bound a parameter."""
    values, vectors = torch.linalg.eigh(hessian)
    blind = values <= 1e-12 * values.abs().max()
    inverse = torch.where(blind, torch.zeros_like(values), 1 / values)
    variance = vectors.square() @ inverse
    variance[(vectors[:, blind].abs() > 1e-6).any(dim=1)] = math.inf
    return float(variance[0].sqrt()), float(variance[1].sqrt())
