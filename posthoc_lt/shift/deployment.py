"""The class frequencies of a deployment, from its unlabelled samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.shift.logits import float64_logits

REGULARISED_PAST = 100
"""Classes past which an estimate is regularised where no concentration is asked for."""
CONCENTRATION = 1.5
"""Half a sample a class beforehand: Jeffreys' prior in log shares (MacKay 1998)."""
TOLERANCE = 1e-7
PASSES = 200
EM_FIRST = 3
SHARES = (1.0, 0.25, 0.0)


class Calibrated(Protocol):
    """What a calibration tells: p(x|y) ∝ exp(scale · z_y − prior_strength · log π_y)."""

    @property
    def scale(self) -> float:
        """The factor a on the logits."""

    @property
    def prior_strength(self) -> float:
        """How much c of the train prior the logits hold."""


@dataclass(frozen=True, eq=False)
class EstimatedPrior:
    """The class frequencies of unlabelled samples, and how far they are known.

    Args:
        prior: (C,) float64, summing to 1.
        low, high: (C,) the interval of each share alone.
        identifiable: (C,) bool, False for classes that the samples cannot tell from others (or among which
            they are too few), whose shares then come from the regularisation.
        concentration: of the Dirichlet prior; 1 is none.
        samples: N.
        gap: by how many nats at most a better prior could beat this one: 0 at the exact optimum.
        residual: the largest change of a share that one more EM step would make: 0 at its fixed point.
        objectives: log-likelihood plus log Dirichlet prior, up to a constant, at the start and after each step.
    """

    prior: Tensor
    low: Tensor
    high: Tensor
    identifiable: Tensor
    concentration: float
    samples: int
    gap: float
    residual: float
    objectives: tuple[float, ...]

    @property
    def converged(self) -> bool:
        """Whether `gap` is within the tolerance."""
        return self.gap <= TOLERANCE


def estimate_prior(
    head: Head,
    features: Features,
    log_prior: Tensor,
    *,
    calibration: Calibrated,
    concentration: float | None = None,
    level: float = 0.95,
    variance: Tensor | None = None,
) -> EstimatedPrior:
    """The class frequencies ρ under which unlabelled features were drawn, p(x|y) being as it was.

    Maximises ``Σᵢ log Σ_y ρ_y L_y(xᵢ) + (κ − 1) Σ_y log ρ_y`` with L_y(x) = exp(a z_y − c log π_y), the
    likelihoods of *calibrated* posteriors; without calibration the estimate is not even consistent (Garg 2020,
    arXiv:2003.07554). The optimum is the fixed point of the EM of Saerens 2002 (Neural Computation 14), reached
    by Newton steps on the simplex (Kim 2018, arXiv:1806.01412), with an EM step where they do not climb.
    κ = 1 is maximum likelihood; larger κ draws the shares towards 1/C, which they reach without information.

    The interval solves (ρ̂ − ρ)² = z²(A + ρ(1 − ρ)/N): Wilson's, plus the variance A that confusion of classes
    adds, plus `variance`. A is from the observed information on the simplex at the estimate, with the complete-data
    information for classes that no sample resembles; for κ > 1 a Newton step on the likelihood alone first takes the
    pull towards 1/C out of the interval's middle. The interval holds the error of the calibration where `variance`
    tells it, and not that of p(x|y) having changed after all.

    Some ten passes, each of N·C·(D + C) multiplications; memory for a few C×C matrices.

    Args:
        head: the head that `calibration` was fitted for.
        features: N samples; labels are not looked at.
        log_prior: log π, (C,), as given to the calibration.
        calibration: scale a and prior strength c, as `posthoc_lt.calibration.calibrate` fits them.
        concentration: κ ≥ 1; by default 1 up to 100 classes, 1.5 past them.
        level: of the interval, between 0 and 1.
        variance: (C,) of each share, for what is uncertain beside the samples; none by default.

    Raises:
        PosthocError: shapes or options do not fit, features are not finite, there is no sample, or, with κ = 1,
            shares are not identifiable: fewer samples than classes, or classes whose posteriors are proportional.
    """
    kappa = (CONCENTRATION if head.classes > REGULARISED_PAST else 1.0) if concentration is None else concentration
    _check(head, features, log_prior, kappa, level)
    likelihood = _Likelihood(head, features, log_prior.double(), calibration, kappa - 1)
    return _judge(likelihood, *_maximise(likelihood), level, variance)


def _judge(
    likelihood: _Likelihood, point: _Point, objectives: tuple[float, ...], level: float, variance: Tensor | None
) -> EstimatedPrior:
    """What the optimum is worth: intervals, what the samples tell, and how far it was reached.

    Raises:
        PosthocError: without regularisation, the samples do not tell some shares apart.
    """
    samples, regularised = len(likelihood.features), likelihood.extra > 0
    identifiable = _identifiable(point, samples)
    if not regularised and not bool(identifiable.all()):
        confused = (~identifiable).nonzero().flatten().tolist()
        raise PosthocError(
            f"{samples} unlabelled samples that do not tell the shares of class {listed(confused)} apart",
            "more samples than classes, and classes whose posteriors differ",
            "give more samples, or the target prior itself in a file, or a concentration above 1, say 1.5",
        )
    more = torch.zeros_like(point.prior) if variance is None else variance.to(point.prior)
    low, high = _interval(point, samples, regularised, NormalDist().inv_cdf((1 + level) / 2), more)
    return EstimatedPrior(
        prior=point.prior.cpu(),
        low=low.cpu(),
        high=high.cpu(),
        identifiable=identifiable.cpu(),
        concentration=1 + likelihood.extra,
        samples=samples,
        gap=likelihood.gap(point),
        residual=float((likelihood.em_step(point) - point.prior).abs().max()),
        objectives=objectives,
    )


class _Point(NamedTuple):
    """A prior ρ (C,), the objective there, and g = (1/N) Σ L_y/m, J = Σ (L/m)(L/m)ᵀ with m = Σ ρ_y L_y."""

    prior: Tensor
    objective: float
    ratio: Tensor
    information: Tensor


@dataclass(frozen=True, eq=False)
class _Likelihood:
    """Passes over the samples; `extra` is κ − 1, the samples a class that regularisation adds."""

    head: Head
    features: Features
    log_prior: Tensor
    calibration: Calibrated
    extra: float

    def measure(self, prior: Tensor) -> _Point:
        parts, information = [], prior.new_zeros(len(prior), len(prior))
        offset = -self.calibration.prior_strength * self.log_prior.to(prior.device)
        for _, logits in float64_logits(self.head, self.features):
            likelihood = torch.softmax(self.calibration.scale * logits + offset, dim=1)
            mixed = likelihood @ prior
            likelihood /= mixed[:, None]
            parts.append(torch.cat([likelihood.sum(dim=0), mixed.log().sum()[None]]))
            information.addmm_(likelihood.T, likelihood)
        found, information = ranks.added(parts, prior.new_zeros(len(prior) + 1)), ranks.total(information)
        ratio, objective = found[:-1], float(found[-1])
        if self.extra:
            objective += self.extra * float(prior.log().sum())
        return _Point(prior, objective, ratio / len(self.features), information)

    def em_step(self, point: _Point) -> Tensor:
        """ρ_y ← (Σᵢ r_iy + κ − 1)/(N + C(κ − 1)), r the posteriors under ρ: never climbs down."""
        n = len(self.features)
        return (n * point.prior * point.ratio + self.extra) / (n + len(point.prior) * self.extra)

    def gradient(self, point: _Point) -> Tensor:
        added = self.extra / point.prior if self.extra else 0.0
        return len(self.features) * point.ratio + added

    def gap(self, point: _Point) -> float:
        """A bound on what concavity leaves to win: max_y ∂_y − Σ ρ_y ∂_y, and ∞ off the domain."""
        gradient = self.gradient(point)
        gap = float(gradient.max() - gradient @ point.prior)
        return gap if math.isfinite(gap) and math.isfinite(point.objective) else math.inf

    def newton_point(self, point: _Point) -> Tensor:
        """The maximum over ρ ≥ 0 of the second-order model, normalised.

        With the constraint Σρ = 1 as a price N + C(κ − 1) a unit, H q = 2∂ − price, for H ρ = ∂. A proximal
        ridge leaves shares that nothing tells apart as they are.
        """
        hessian, price = point.information.clone(), len(self.features) + len(point.prior) * self.extra
        if self.extra:
            hessian.diagonal().add_(self.extra / point.prior.square())
        ridge = 1e-9 * float(hessian.diagonal().mean())
        hessian.diagonal().add_(ridge)
        target = 2 * self.gradient(point) - price + ridge * point.prior
        if self.extra:
            found: Tensor = torch.linalg.solve(hessian, target).maximum(0.1 * point.prior)
        else:
            found = _solve_positive(hessian, target)
        return found / found.sum()


def _maximise(likelihood: _Likelihood) -> tuple[_Point, tuple[float, ...]]:
    """Climb from equal shares to the optimum; the objectives on the way never fall."""
    device, classes = likelihood.features.device, likelihood.head.classes
    start = torch.full((classes,), 1 / classes, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    point = likelihood.measure(start)
    if not math.isfinite(point.objective):
        raise PosthocError(
            "features with NaN or infinite values", "finite features", "extract them again, in float32 if in half"
        )
    objectives, passes = [point.objective], 1
    while likelihood.gap(point) > TOLERANCE and passes < PASSES:
        step = likelihood.newton_point(point) - point.prior
        for share in SHARES if passes > EM_FIRST else (0.0,):
            there = point.prior + share * step if share else likelihood.em_step(point)
            trial, passes = likelihood.measure(there), passes + 1
            # Near the optimum a rise drowns in rounding, and the bound on what is left to win vouches for it.
            level = trial.objective >= point.objective - 1e-13 * abs(point.objective)
            if trial.objective > point.objective or (level and likelihood.gap(trial) < likelihood.gap(point)):
                break
        else:
            break
        point = trial
        objectives.append(point.objective)
    return point, tuple(objectives)


def _solve_positive(matrix: Tensor, target: Tensor) -> Tensor:
    """The minimum over q ≥ 0 of ½ qᵀHq − qᵀt by block pivoting (Kim and Park 2011)."""
    free, q = torch.ones_like(target, dtype=torch.bool), torch.zeros_like(target)
    for _ in range(30):
        index = free.nonzero().flatten()
        q = torch.zeros_like(target)
        q[index] = torch.linalg.solve(matrix[index][:, index], target[index])
        slope = matrix @ q - target
        wrong = torch.where(free, q < 0, slope < -1e-9 * target.abs().max())
        if not bool(wrong.any()):
            break
        free = free ^ wrong
    return q.clamp(min=0)


def _seen(point: _Point) -> Tensor:
    """(C,) bool: g ≥ ½, classes to which the samples give half of the share that they have at least.

    At a maximum of the likelihood g = 1 where ρ_y > 0; a class without any sample like it has g near 0.
    """
    return point.ratio >= 0.5


def _identifiable(point: _Point, samples: int) -> Tensor:
    """(C,) bool: whether the samples alone fix a class's share, or show that it has next to none.

    The columns L_y/m of the classes that are seen at all (g ≥ ½; it is 1 where ρ_y > 0 at a likelihood's
    maximum) must not depend on each other: a combination of them, each of length 1, whose square is below
    1/N is known less well than from one labelled sample.
    """
    found = torch.ones_like(point.prior, dtype=torch.bool)
    seen = _seen(point).nonzero().flatten()
    block = point.information[seen][:, seen]
    length = block.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(block / length[:, None] / length)
    part = vectors[:, samples * values < 1].square().sum(dim=1)
    if len(part) and float(part.max()) > 0:
        found[seen[part >= part.max() / 2]] = False
    return found


def _interval(point: _Point, samples: int, pulled: bool, z: float, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The score interval of each share; `pulled` where a Dirichlet prior has moved the estimate, `variance` on top."""
    floor = point.prior.clamp(min=0.5 / samples)
    matrix = point.information.clone()
    # What the samples would hold on classes that they lack: it makes the complete-data variance the floor.
    matrix.diagonal().add_(torch.where(_seen(point), 0.0, samples / floor))
    matrix.diagonal().add_(1e-12 * matrix.diagonal() + 1e-12)
    inverse = torch.linalg.inv(matrix)
    row = inverse.sum(dim=1)
    covariance = inverse - torch.outer(row, row) / row.sum()
    middle = point.prior
    if pulled:
        middle = (middle + samples * covariance @ point.ratio).clamp(0, 1)
    confusion = (covariance.diagonal() - (floor - floor.square() / floor.sum()) / samples).clamp(min=0) + variance
    a = 1 + z * z / samples
    b = middle + z * z / (2 * samples)
    reach = (b.square() - a * (middle.square() - z * z * confusion)).clamp(min=0).sqrt()
    return ((b - reach) / a).clamp(min=0).minimum(point.prior), ((b + reach) / a).clamp(max=1).maximum(point.prior)


def _check(head: Head, features: Features, log_prior: Tensor, kappa: float, level: float) -> None:
    if not len(features):
        raise PosthocError("no unlabelled sample", "samples of the deployment", "give some, or the target prior itself")
    features.require_fit(head)
    if log_prior.shape != (head.classes,) or not bool(log_prior.isfinite().all()):
        raise PosthocError(
            f"a log prior of shape {tuple(log_prior.shape)}, or not finite",
            f"one finite number for each of the {head.classes} classes",
            "smooth the counts of classes without a train sample, or take these classes out of the head",
        )
    if not 1 <= kappa < math.inf:
        raise PosthocError(f"concentration {kappa}", "a number from 1", f"give 1, or {CONCENTRATION} to regularise")
    if not 0 < level < 1:
        raise PosthocError(f"confidence level {level}", "a number between 0 and 1", "give 0.95")
