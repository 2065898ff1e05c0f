"""Ridge regression onto the classes, every class weighing the same: classifier re-training in closed form."""

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
from posthoc_lt.solver import Solution, is_large, moments, path, penalties
from posthoc_lt.solver.blocks import require_finite

WEAKER = 1e-8
"""The last penalty of its path: squares need weaker ones than logarithms, and here none costs more than another."""


@dataclass(frozen=True)
class Ridge(Method):
    """Class-balanced ridge regression of one-hot labels, ``W' = (X̃ᵀDX̃ + λI)⁻¹X̃ᵀDY, b' = ȳ − W'm``.

    D = diag(1/(C·n_y)), X̃ = X − m with m the mean of the class means, and ȳ = 1/C: the bias is free. λ = l2·σ²,
    σ² the mean variance of a feature under D, as in crt. Large l2: the direction of the class means; small
    l2: least squares. Its scores are near 0 and 1, so that their softmax is no probability.

    Args:
        l2: the penalty in units of the feature variance; None fits 19 from 10 to 1e-8, 10 on large problems.

    Raises:
        PosthocError: no train features, a class without samples, features all alike, or l2 not above 0.
    """

    formula: ClassVar[str] = "W' = (X'DX + lambda I)^-1 X'DY, D = 1/n_y, b' free"
    knob: ClassVar[str | None] = "l2"

    l2: float | None = field(
        default=None,
        metadata={"help": "Penalty, in units of the feature variance; by default validation chooses from 10 to 1e-8."},
    )

    def fit(self, head: Head, training: Training) -> Path:
        """A head a penalty, the strongest first, all from one eigendecomposition."""
        features = training.require(self.name)
        l2 = penalties(self.l2, is_large(features, head.classes), WEAKER)
        found = moments(features, class_weights(features.counts(head.classes), q=0.0))
        mean = found.share @ found.means
        between = found.means - mean
        covariance = found.within + between.T @ (between * found.share[:, None])
        require_finite(covariance)
        unit = covariance.diagonal().mean()
        if unit.sqrt() <= 1e-12 * found.means.abs().max():
            raise PosthocError(
                "train features that are all alike",
                "features that differ from sample to sample",
                "check the preprocessing: the network seems to see the same input every time",
            )
        values, vectors = torch.linalg.eigh(covariance)
        target = (between * found.share[:, None]) @ vectors
        solutions = []
        for penalty in l2:
            weight = target / (values.clamp(min=0) + penalty * unit) @ vectors.T
            solutions.append(Solution(weight, found.share - weight @ mean))
        return path(head, l2, solutions)
