"""Affine calibration of the logits: one factor and one offset a class, learned with every class weighing the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from posthoc_lt.family import Path
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import class_weights
from posthoc_lt.solver import Certified, Solution, is_large, penalties, solved_path, trace_scaling


@dataclass(frozen=True)
class Affine(Method):
    """Margin calibration (MARC, Wang 2022, arXiv:2112.07225), ``w'_c = ω_c w_c, b'_c = ω_c b_c + β_c``.

    ``min Σ wᵢ CE(ω∘(Wxᵢ + b) + β, yᵢ) + (l2/2)(‖ω − 1‖² + ‖β‖²)`` with wᵢ = 1/(C·n_y). The authors multiply
    β_c by ‖w_c‖ and take SGD steps from ω = 1, β = 0; here that start is what the penalty draws to, and the
    minimum is found. Large l2: the untouched head; small l2: the factors and offsets that fit the train samples
    best. DisAlign (Zhang 2021, arXiv:2103.16370) with a constant confidence has the same form.

    Args:
        l2: the penalty; None fits 13 from 10 to 1e-5, 7 on large problems.

    Raises:
        PosthocError: no train features, a class without samples, or l2 not above 0.
    """

    paper: ClassVar[str] = "2112.07225"
    formula: ClassVar[str] = "w' = omega w, b' = omega b + beta, both = argmin class-balanced CE + l2 penalty"
    knob: ClassVar[str | None] = "l2"

    l2: float | None = field(
        default=None,
        metadata={"help": "Penalty on leaving the untouched head; by default validation chooses from 10 to 1e-5."},
    )

    def fit(self, head: Head, training: Training) -> Path:
        """A head a penalty, the strongest first, with certificates."""
        features = training.require(self.name)
        l2 = penalties(self.l2, is_large(features, head.classes))
        weights = class_weights(features.counts(head.classes), q=0.0)
        centre = torch.tensor([1.0, 0.0]).repeat(head.classes, 1)

        def solve(l2: Sequence[float], start: Solution | None) -> Iterator[Certified]:
            return trace_scaling(head, features, weights, l2, centre, start, draft=len(l2) > 1)

        return solved_path(head, l2, solve)
