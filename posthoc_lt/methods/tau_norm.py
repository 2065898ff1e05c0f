"""tau-normalisation: divide each class's weights by their norm to the power tau."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.family import KeptBias, Power
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method


@dataclass(frozen=True)
class TauNorm(Method):
    """τ-normalisation (Kang 2020, arXiv:1910.09217), ``w'_c = w_c/‖w_c‖^τ``.

    τ = 0 leaves the weights alone (but drops the bias by default, so it is not the untouched head), τ = 1 gives
    every class the same norm, larger τ favours classes of small norm, most often the rare ones.

    Args:
        bias: ``drop`` sets it to 0, as the authors' code does; ``keep`` leaves it; ``scale`` divides it likewise.

    Raises:
        PosthocError: a class has weights of norm 0.
    """

    paper: ClassVar[str] = "1910.09217"
    formula: ClassVar[str] = "w' = w / |w|^tau, b' = 0 (drop), b (keep) or b / |w|^tau (scale)"
    knob: ClassVar[str | None] = "tau"

    bias: Literal["drop", "keep", "scale"] = field(
        default="drop",
        metadata={"help": "What becomes of the bias; the authors' code drops it."},
    )

    def fit(self, head: Head, training: Training) -> Power | KeptBias:
        """The head, and u = log‖w‖."""
        logs = log_norms(head)
        if self.bias == "keep":
            return KeptBias(head, logs)
        if self.bias == "scale":
            return Power(head, logs)
        return Power(replace(head, bias=torch.zeros_like(head.bias)), logs)


def log_norms(head: Head) -> Tensor:
    """log‖w_c‖, (C,) float64.

    Raises:
        PosthocError: a class has weights of norm 0.
    """
    norms: Tensor = torch.linalg.vector_norm(head.weight.double(), dim=1)
    empty = (norms == 0).nonzero().flatten().tolist()
    if empty:
        raise PosthocError(
            f"weights that are all zero for class {listed(empty)}",
            "a norm above 0 to divide by",
            "use logit-adjust or ncm, or check that the head was read from a trained checkpoint",
        )
    return norms.log()
