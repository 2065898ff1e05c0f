"""Logit adjustment: subtract tau times the log class frequencies from the logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from posthoc_lt.family import Line
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import log_prior


@dataclass(frozen=True)
class LogitAdjust(Method):
    """Post-hoc logit adjustment (Menon 2021, arXiv:2007.07314), ``b' = b − τ log π``, π_c = n_c/N.

    τ = 0 is the untouched head, τ = 1 turns calibrated posteriors under π into those under equal class
    frequencies, larger τ favours rare classes beyond that.

    Args:
        target: the class frequencies to be right under. ``uniform`` adjusts as above; under ``train`` there is
            nothing to adjust, and the head stays as it is whatever τ.

    Raises:
        PosthocError: a class has no train sample, so that its adjustment would be infinite.
    """

    paper: ClassVar[str] = "2007.07314"
    formula: ClassVar[str] = "W' = W, b' = b - tau log pi"
    knob: ClassVar[str | None] = "tau"

    target: Literal["uniform", "train"] = field(
        default="uniform",
        metadata={"help": "Class frequencies to be right under: all equal, or those of train (no change)."},
    )

    def fit(self, head: Head, training: Training) -> Line:
        """The untouched head, and −log π in the direction of τ."""
        shift = -log_prior(training.counts.to(head.weight.device))
        if self.target == "train":
            shift = torch.zeros_like(shift)
        return Line(head, Head(head.weight.new_zeros(head.weight.shape, dtype=torch.float64), shift, head.has_bias))
