"""Classifier re-training: the head fitted anew, every class weighing the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from posthoc_lt.family import Path
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import class_weights
from posthoc_lt.solver import fit_logistic, path, penalties


@dataclass(frozen=True)
class CRT(Method):
    """Class-balanced multinomial logistic regression on the train features (Kang 2020, arXiv:1910.09217).

    ``min Σ wᵢ CE(W'xᵢ + b', yᵢ) + (λ/2)‖W'‖²`` with wᵢ = 1/(C·n_y), λ = l2·σ² and σ² the mean variance of a
    feature under the same weights; the bias is free. Solved to its minimum, where the authors take SGD steps
    with class-balanced sampling. Large l2: nearly uniform predictions, in the direction of the class means;
    small l2: the train samples separated, and weights hardly matter.

    Args:
        l2: the penalty in units of the feature variance; None fits 13 from 10 to 1e-5.

    Raises:
        PosthocError: no train features, a class without samples, or l2 not above 0.
    """

    paper: ClassVar[str] = "1910.09217"
    formula: ClassVar[str] = "W', b' = argmin class-balanced CE + l2 penalty on W'"
    knob: ClassVar[str | None] = "l2"

    l2: float | None = field(
        default=None,
        metadata={"help": "Penalty, in units of the feature variance; by default validation chooses from 10 to 1e-5."},
    )

    def fit(self, head: Head, training: Training) -> Path:
        """A head a penalty, the strongest first, with certificates."""
        features, l2 = training.require(self.name), penalties(self.l2)
        weights = class_weights(features.counts(head.classes), q=0.0)
        return path(head, l2, fit_logistic(features, weights, l2))
