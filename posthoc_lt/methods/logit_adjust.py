"""Logit adjustment: subtract tau times the log class frequencies from the logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posthoc_lt.family import Line
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import Prior, Shares, Target, ZeroCount, log_prior

BAYES = (1.0, 0.5)
"""Mean and deviation of τ under a target of its own; what was measured for equal frequencies does not speak of it."""


@dataclass(frozen=True)
class LogitAdjust(Method):
    """Post-hoc logit adjustment (Menon 2021, arXiv:2007.07314), ``b' = b − τ log π + log π_target``.

    At τ = 1 calibrated posteriors under π become those under π_target (Bayes' rule), larger τ favours rare classes
    beyond that. The target is added whole, whatever τ; equal frequencies add nothing, so that τ = 0 is then the
    untouched head, and for the target ``train`` the untouched head is τ = 1. Where logits are not calibrated, the
    target wants a weight of its own: `posthoc_lt.calibration.probability_head` gives it that.

    Args:
        prior: π, the class frequencies that the logits hold: those of train, or none (``uniform``, for a head that
            is balanced already), or others, such as the network's own (`posthoc_lt.shift.model_prior`).
        target_prior: π_target, the class frequencies to be right under.
        zero_count: for a class without a train sample: ``refuse`` where its frequency is needed; ``smooth`` counts
            half a sample more for every class; ``mask`` takes it out of the head, never to be predicted.

    Raises:
        PosthocError: a class has no train sample and may have none, or frequencies are not one a class.
    """

    paper: ClassVar[str] = "2007.07314"
    formula: ClassVar[str] = "W' = W, b' = b - tau log pi + log target"
    knob: ClassVar[str | None] = "tau"

    prior: Prior = field(
        default="counts",
        metadata={"help": "Class frequencies to take off: those of train, or all equal (nothing to take off)."},
    )
    target_prior: Target = field(
        default="uniform",
        metadata={"help": "Class frequencies to be right under: all equal, or those of train."},
    )
    zero_count: ZeroCount = field(
        default="refuse",
        metadata={"help": "A class without a train sample: an error, never predicted, or half a sample more for all."},
    )

    def fit(self, head: Head, training: Training) -> Line:
        """The head with its target put on, and −log π in the direction of τ."""
        counts = training.counts.to(head.weight.device)
        masked = (counts == 0) & (self.zero_count == "mask")
        shift = -self._log(self.prior, counts).masked_fill(masked, 0.0)
        direction = Head(head.weight.new_zeros(head.weight.shape, dtype=torch.float64), shift, head.has_bias)
        if self.target_prior == "uniform":  # its logarithm, the same for all classes, changes no prediction
            return Line(head.masking(masked), direction)
        bias = head.bias.double() + self._log(self.target_prior, counts)
        origin = Head(head.weight, bias.to(head.bias.dtype), head.has_bias)
        return Line(origin.masking(masked), direction, prior=BAYES)

    def target(self, training: Training) -> Tensor | None:
        """π_target (C,), 0 for masked classes; None where it is uniform."""
        if self.target_prior == "uniform":
            return None
        shares = self._log(self.target_prior, training.counts).exp()
        if self.zero_count == "mask":
            shares = shares.masked_fill(training.counts == 0, 0.0)
        return shares / shares.sum()

    def _log(self, frequencies: str | Shares, counts: Tensor) -> Tensor:
        """Log frequencies (C,), float64, where the counts are."""
        if isinstance(frequencies, Shares):
            return frequencies.log(len(counts)).to(counts.device)
        if frequencies == "uniform":
            return torch.full((len(counts),), 1 / len(counts), dtype=torch.float64, device=counts.device).log()
        return log_prior(counts, self.zero_count)
