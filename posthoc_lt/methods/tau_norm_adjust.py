"""tau-normalisation and logit adjustment together: rescaled weights and an offset for frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Line, Sheet
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.methods.method import Method
from posthoc_lt.methods.tau_norm import log_norms

GAMMAS = tuple(step / 5 for step in range(11))
"""The exponents where none is asked for: 0, 0.2, … 2."""

DEVIATION = 0.5
"""Of γ around 0 before validation has spoken: as wide as that of τ, and plain logit adjustment in its middle."""


@dataclass(frozen=True)
class TauNormAdjust(Method):
    """Both at once, ``w'_c = w_c/r_c^γ, b'_c = b_c/r_c^γ − τ log π_c`` with r_c = ‖w_c‖ over its geometric mean.

    Post-hoc vector scaling (Kini 2021, arXiv:2103.01550, scales and shifts logits in the training loss), its scale
    that of τ-normalisation (Kang 2020, arXiv:1910.09217) with the bias scaled too, its shift that of logit
    adjustment (Menon 2021, arXiv:2007.07314). γ = 0 is logit adjustment, τ = 0 τ-normalisation, both 0 the
    untouched head; dividing by the mean norm keeps the unit of the logits, and so the meaning of τ, at every γ.

    Args:
        gamma: the exponent of the norms; None has validation choose from 0, 0.2, … 2 along with τ.

    Raises:
        PosthocError: a class has weights of norm 0 or no train sample, or gamma is not finite.
    """

    paper: ClassVar[str] = "2103.01550"
    formula: ClassVar[str] = "w' = w / r^gamma, b' = b / r^gamma - tau log pi, r = |w| / geometric mean"
    knob: ClassVar[str | None] = "tau"
    default: ClassVar[bool] = False

    gamma: float | None = field(
        default=None, metadata={"help": "Exponent of the norms; by default validation chooses from 0 to 2."}
    )

    def fit(self, head: Head, training: Training) -> Line | Sheet:
        """A line in τ for each γ, or the one for the γ given."""
        if self.gamma is not None and not math.isfinite(self.gamma):
            raise PosthocError(f"gamma = {self.gamma}", "a finite number", "give --gamma 0.5, or leave it out")
        logs = log_norms(head)
        logs = logs - logs.mean()

        def line(gamma: float) -> Line:
            scale = torch.exp(-gamma * logs)
            weight, bias = head.weight.double() * scale[:, None], head.bias.double() * scale
            scaled = Head(weight.to(head.weight.dtype), bias.to(head.bias.dtype), head.has_bias)
            return LogitAdjust().fit(scaled, training)

        if self.gamma is not None:
            return line(self.gamma)
        penalties = tuple((gamma / DEVIATION) ** 2 / 2 for gamma in GAMMAS)
        return Sheet("gamma", GAMMAS, tuple(map(line, GAMMAS)), penalties)
