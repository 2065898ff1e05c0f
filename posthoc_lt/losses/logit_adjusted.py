"""Logit-adjusted cross-entropy, of which balanced softmax is the case of tau = 1."""

from __future__ import annotations

from torch import Tensor, nn

from posthoc_lt.losses.cross_entropy import cross_entropy
from posthoc_lt.losses.reduction import Reduction, a_class


def logit_adjusted(
    logits: Tensor, y: Tensor, log_prior: Tensor, tau: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Logit-adjusted cross-entropy (Menon 2021, arXiv:2007.07314), ``−log softmax(z + τ log π)_y``.

    τ = 0 is plain cross-entropy, τ = 1 balanced softmax (Ren 2020, arXiv:2007.10740). Predict with z itself.

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        log_prior: log π, (C,), as `posthoc_lt.priors.log_prior` gives it.
        tau: τ.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: one prior a class is not what is given, or a label is no class.

    >>> import torch
    >>> logit_adjusted(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0.9, 0.1]).log()).neg().exp()
    tensor(0.1000)
    """
    return cross_entropy(logits + tau * a_class(log_prior, logits, "log prior"), y, reduction=reduction)


class LogitAdjusted(nn.Module):
    """`logit_adjusted` as a module; `log_prior` moves with it and is saved with it."""

    def __init__(self, log_prior: Tensor, tau: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.log_prior: Tensor
        self.register_buffer("log_prior", log_prior)
        self.tau, self.reduction = tau, reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return logit_adjusted(logits, y, self.log_prior, self.tau, self.reduction)
