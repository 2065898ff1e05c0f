"""The head fitted anew without rebalancing: the control for crt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from posthoc_lt.family import Path
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import class_weights
from posthoc_lt.solver import Certified, Solution, is_large, penalties, solved_path, trace_logistic


@dataclass(frozen=True)
class Refit(Method):
    """Multinomial logistic regression on the train features, every sample alike.

    ``min (1/N) Σ CE(W'xᵢ + b', yᵢ) + (λ/2)‖W'‖²``, λ = l2·σ², σ² the mean variance of a feature; the bias is
    free. Large l2: nearly the class frequencies alone; small l2: the train samples separated.
    Without this row, a head that is merely better regularised would pass for a rebalanced one.

    Args:
        l2: the penalty in units of the feature variance; None fits 13 from 10 to 1e-5, 7 on large problems.

    Raises:
        PosthocError: no train features, a class without samples, or l2 not above 0.
    """

    formula: ClassVar[str] = "W', b' = argmin mean CE + l2 penalty on W'"
    knob: ClassVar[str | None] = "l2"
    control: ClassVar[bool] = True

    l2: float | None = field(
        default=None,
        metadata={"help": "Penalty, in units of the feature variance; by default validation chooses from 10 to 1e-5."},
    )

    def fit(self, head: Head, training: Training) -> Path:
        """A head a penalty, the strongest first, with certificates."""
        features = training.require(self.name)
        l2 = penalties(self.l2, is_large(features, head.classes))
        weights = class_weights(features.counts(head.classes), q=1.0)

        def solve(l2: Sequence[float], start: Solution | None) -> Iterator[Certified]:
            return trace_logistic(features, weights, l2, start, draft=len(l2) > 1)

        return solved_path(head, l2, solve)
