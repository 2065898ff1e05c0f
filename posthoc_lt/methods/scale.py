"""Scaling by frequency: divide each class's logit by a power of its train frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posthoc_lt.family import Power
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import log_prior


@dataclass(frozen=True)
class Scale(Method):
    """Class-dependent temperatures after training (Ye 2020, arXiv:2001.01385), ``w'_c = w_c/π_c^γ, b'_c = b_c/π_c^γ``.

    γ = 0 is the untouched head; larger γ enlarges the logits of rare classes, those below 0 too, which then fall
    further behind. The authors put the temperatures into the training loss and divide by none in the end.

    Raises:
        PosthocError: a class has no train sample, so that its temperature would be 0.
    """

    paper: ClassVar[str] = "2001.01385"
    formula: ClassVar[str] = "w' = w / pi^gamma, b' = b / pi^gamma"
    knob: ClassVar[str | None] = "gamma"

    def fit(self, head: Head, training: Training) -> Power:
        """The untouched head, and u = log π."""
        return Power(head, log_prior(training.counts.to(head.weight.device)))
