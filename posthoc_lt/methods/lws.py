"""Learnable weight scaling: one factor a class, learned with every class weighing the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from posthoc_lt.family import Path
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import class_weights
from posthoc_lt.recipe import LWS_SCHEDULE, sgd_scales
from posthoc_lt.solver import Certified, Solution, is_large, path, penalties, solved_path, trace_scaling


@dataclass(frozen=True)
class LWS(Method):
    """Learnable weight scaling (Kang 2020, arXiv:1910.09217), ``w'_c = s_c w_c, b'_c = s_c b_c``.

    ``min Σ wᵢ CE(s∘(Wxᵢ + b), yᵢ) + (l2/2)‖s‖²`` over s (C,), with wᵢ = 1/(C·n_y): the bias scaled too and s
    decayed towards 0, as in the authors' code. Solved to its minimum, which does not depend on their start
    s = 1. Large l2: s near 0, uniform probabilities, decided by which classes the samples ask to scale most;
    small l2: the factors that fit the train samples best. A factor may be negative.

    Args:
        l2: the weight decay; None fits 13 from 10 to 1e-5, 7 on large problems.
        recipe: ``convex``, or ``paper``: the authors' SGD on cached features (`posthoc_lt.recipe.sgd_scales`), with
            l2 its weight decay, 5e-4 by default.

    Raises:
        PosthocError: no train features, a class without samples, or l2 not above 0.
    """

    paper: ClassVar[str] = "1910.09217"
    formula: ClassVar[str] = "w' = s w, b' = s b, s = argmin class-balanced CE + l2 penalty on s"
    knob: ClassVar[str | None] = "l2"

    l2: float | None = field(
        default=None, metadata={"help": "Weight decay of the factors; by default validation chooses from 10 to 1e-5."}
    )

    recipe: Literal["convex", "paper"] = field(
        default="convex", metadata={"help": "Solve to the minimum, or take the authors' SGD steps with decay --l2."}
    )

    def fit(self, head: Head, training: Training) -> Path:
        """A head a penalty, the strongest first, with certificates; by the paper's recipe a single one."""
        features = training.require(self.name)
        l2 = penalties(self.l2, is_large(features, head.classes))
        if self.recipe == "paper":
            decay = LWS_SCHEDULE.weight_decay if self.l2 is None else l2[0]
            found = sgd_scales(features, head, schedule=replace(LWS_SCHEDULE, weight_decay=decay))
            return path(head, (decay,), (Solution(found.weight, found.bias),))
        weights, centre = class_weights(features.counts(head.classes), q=0.0), torch.zeros(head.classes, 1)

        def solve(l2: Sequence[float], start: Solution | None) -> Iterator[Certified]:
            return trace_scaling(head, features, weights, l2, centre, start, draft=len(l2) > 1)

        return solved_path(head, l2, solve)
