"""Class offsets: logit adjustment, and an offset a class learned on validation under a ridge."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Offsets
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.methods.method import Method


@dataclass(frozen=True)
class ClassOffsets(Method):
    """Offsets that need not follow the class frequencies, ``W' = W, b' = b − τ log π + δ``, δ ~ N(0, σ²).

    δ, τ and a temperature are fitted to the class-balanced likelihood of validation, δ under the ridge
    ``‖δ‖²/(2σ²)``; then τ is chosen exactly with δ held. Logit adjustment (Menon 2021, arXiv:2007.07314) is σ = 0,
    large σ fits every class by itself and needs many samples of each. Where heads are judged by cross-fitting, δ
    is learned anew without the samples judged.

    Args:
        deviation: σ, in units of a logit.

    Raises:
        PosthocError: a class has no train sample, or the deviation is not a number from 0.
    """

    paper: ClassVar[str] = "2007.07314"
    formula: ClassVar[str] = "W' = W, b' = b - tau log pi + delta, delta learned on validation under a ridge"
    knob: ClassVar[str | None] = "tau"
    default: ClassVar[bool] = False

    deviation: float = field(
        default=0.5, metadata={"help": "How far an offset is expected to stray; 0 is logit adjustment."}
    )

    def fit(self, head: Head, training: Training) -> Offsets:
        """Logit adjustment's line, and how far offsets may stray from it."""
        if not 0 <= self.deviation < math.inf:
            raise PosthocError(f"deviation = {self.deviation}", "a number from 0", "give --deviation 0.5")
        return Offsets(LogitAdjust().fit(head, training), self.deviation)
