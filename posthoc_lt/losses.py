"""Losses for imbalanced classes, for any training loop: functions, and the same as modules.

They take class weights and log priors as tensors, which `posthoc_lt.priors` makes from class counts:

>>> from posthoc_lt.priors import effective_number_weights, log_prior
>>> counts = torch.tensor([90, 10])
>>> adjusted = LogitAdjusted(log_prior(counts))
>>> focal = ClassBalanced(effective_number_weights(counts, beta=0.99), kind="focal")
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from posthoc_lt.errors import PosthocError

Reduction: TypeAlias = Literal["mean", "sum", "none"]
Kind: TypeAlias = Literal["softmax", "sigmoid", "focal"]


def cross_entropy(logits: Tensor, y: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """Weighted cross-entropy, ``−v_y log softmax(z)_y``.

    The mean is over the batch, ``(1/n) Σ ℓᵢ``; `torch.nn.functional.cross_entropy` divides by Σ v_y instead,
    which lets the weight of a sample depend on its neighbours in the batch.

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        weight: v, (C,); None weighs all classes 1.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: one weight a class is not what is given.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor(4.)
    """
    losses = functional.cross_entropy(logits, y, reduction="none")
    return _reduce(losses if weight is None else losses * _a_class(weight, logits, "weight")[y], reduction)


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
        PosthocError: one prior a class is not what is given.

    >>> logit_adjusted(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0.9, 0.1]).log()).neg().exp()
    tensor(0.1000)
    """
    return cross_entropy(logits + tau * _a_class(log_prior, logits, "log prior"), y, reduction=reduction)


def class_balanced(
    logits: Tensor,
    y: Tensor,
    weight: Tensor,
    kind: Kind = "softmax",
    gamma: float = 2.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Class-balanced loss (Cui 2019, arXiv:1901.05555), ``v_y ℓ(z, y)`` with one of three ℓ.

    ``softmax``: cross-entropy. ``sigmoid``: ``−Σ_c log σ(±z_c)``, + where c = y: C binary problems.
    ``focal``: ``−Σ_c (1 − σ(±z_c))^γ log σ(±z_c)`` (Lin 2017, arXiv:1708.02002), which γ = 0 turns into
    ``sigmoid`` and large γ into a loss of the hard cases alone. The mean is over the batch, not over classes.
    For the latter two the authors start the last layer's bias at −log(C − 1), free of weight decay.

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        weight: v, (C,), as `posthoc_lt.priors.effective_number_weights` gives it.
        kind: ``softmax``, ``sigmoid`` or ``focal``.
        gamma: γ ≥ 0, for ``focal``.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: one weight a class is not what is given, γ < 0, or there is no such kind.

    >>> class_balanced(torch.zeros(1, 3), torch.tensor([0]), torch.ones(3), kind="sigmoid").neg().exp()
    tensor(0.1250)
    """
    _check(kind, gamma)
    if kind == "softmax":
        return cross_entropy(logits, y, weight, reduction)
    toward = torch.where(functional.one_hot(y, logits.shape[1]).bool(), logits, -logits)
    losses = -functional.logsigmoid(toward)
    if kind == "focal":
        # (1 − σ(t))^γ as exp(γ log σ(−t)): exact, and differentiable, where 1 − σ(t) rounds to 0.
        losses = losses * torch.exp(gamma * functional.logsigmoid(-toward))
    return _reduce(losses.sum(dim=1) * _a_class(weight, logits, "weight")[y], reduction)


class CrossEntropy(nn.Module):
    """`cross_entropy` as a module; `weight` moves with it and is saved with it."""

    def __init__(self, weight: Tensor | None = None, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.reduction = reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return cross_entropy(logits, y, self.weight, self.reduction)


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


class ClassBalanced(nn.Module):
    """`class_balanced` as a module; `weight` moves with it and is saved with it."""

    def __init__(
        self, weight: Tensor, kind: Kind = "softmax", gamma: float = 2.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        _check(kind, gamma)
        self.weight: Tensor
        self.register_buffer("weight", weight)
        self.kind, self.gamma, self.reduction = kind, gamma, reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return class_balanced(logits, y, self.weight, self.kind, self.gamma, self.reduction)


def _a_class(vector: Tensor, logits: Tensor, what: str) -> Tensor:
    """One number a class, in the logits' dtype and place."""
    if vector.shape != logits.shape[1:]:
        raise PosthocError(
            f"a {what} of shape {tuple(vector.shape)} for logits of shape {tuple(logits.shape)}",
            "logits (samples, classes) and one number a class",
            "make it from the counts of all classes, in the order of the logits",
        )
    return vector.to(logits)


def _check(kind: str, gamma: float) -> None:
    if kind not in ("softmax", "sigmoid", "focal"):
        raise PosthocError(f"loss kind {kind!r}", "softmax, sigmoid or focal", "correct its name")
    if not gamma >= 0:
        raise PosthocError(f"gamma = {gamma}", "a number >= 0", "give 2.0, or 0 for the sigmoid loss")


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise PosthocError(f"reduction {reduction!r}", "mean, sum or none", "correct its name")
    return losses.sum() if reduction == "sum" else losses.mean()
