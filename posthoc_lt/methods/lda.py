"""Linear discriminant analysis: Gaussian classes of one shrunk covariance, equally frequent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Path
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import class_weights
from posthoc_lt.solver import Solution, moments, path

SHRINKAGES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-4)
"""The shrinkages of a path where none is asked for, the strongest first."""


@dataclass(frozen=True)
class LDA(Method):
    """Linear discriminant analysis with equal priors, ``w'_c = S⁻¹μ_c, b'_c = −½ μ_cᵀS⁻¹μ_c``.

    S = (1 − shrinkage)·Σ + shrinkage·tr(Σ)/D·I, with Σ the covariance within classes, pooled over all N samples
    (Friedman 1989; Ledoit and Wolf 2004 shrink alike, but choose the amount by a formula). What all classes
    have in common is taken off. Shrinkage 1 is ncm up to a factor; 0 trusts every direction of Σ, and needs N
    well above D.

    Args:
        shrinkage: from 0 to 1; None fits 12 from 1 to 1e-4.

    Raises:
        PosthocError: no train features, a class without samples, a shrinkage outside [0, 1], samples that do
            not differ within any class, or shrinkage 0 where Σ has no inverse.
    """

    formula: ClassVar[str] = "w' = S^-1 mu, b' = -1/2 mu S^-1 mu, S = shrunk covariance within classes"
    knob: ClassVar[str | None] = "shrinkage"

    shrinkage: float | None = field(
        default=None,
        metadata={"help": "Weight of the identity in the covariance; by default validation chooses from 1 to 1e-4."},
    )

    def fit(self, head: Head, training: Training) -> Path:
        """A head a shrinkage, the strongest first, all from one eigendecomposition."""
        features, shrinkages = training.require(self.name), _shrinkages(self.shrinkage)
        found = moments(features, class_weights(features.counts(head.classes), q=1.0))
        values, vectors = torch.linalg.eigh(found.within)
        values, mean = values.clamp(min=0), found.means.mean(dim=0)
        if values.max().sqrt() <= 1e-12 * found.means.abs().max():
            raise PosthocError(
                "train features that do not differ within any class",
                "more than one sample of some class, not all alike",
                "use ncm, which needs only class means",
            )
        between = (found.means - mean) @ vectors
        solutions = []
        for shrinkage in shrinkages:
            spread = (1 - shrinkage) * values + shrinkage * values.mean()
            if spread.min() <= 1e-12 * spread.max():
                raise PosthocError(
                    f"shrinkage = {shrinkage:g} with features whose covariance within classes has no inverse",
                    "some shrinkage, where samples are few or features depend on each other",
                    "give --shrinkage 0.01, or leave it out and let validation choose",
                )
            weight = between / spread @ vectors.T
            bias = -(between.square() / spread).sum(dim=1) / 2 - weight @ mean
            solutions.append(Solution(weight, bias))
        return path(head, shrinkages, solutions)


def _shrinkages(shrinkage: float | None) -> tuple[float, ...]:
    if shrinkage is None:
        return SHRINKAGES
    if not 0 <= shrinkage <= 1:
        raise PosthocError(
            f"shrinkage = {shrinkage}",
            "a number from 0 to 1",
            "give --shrinkage 0.1, or leave it out and let validation choose",
        )
    return (float(shrinkage),)
