"""The vector-scaling loss: logit adjustment, and a temperature a class besides."""

from __future__ import annotations

from torch import Tensor, nn

from posthoc_lt.losses.cross_entropy import cross_entropy
from posthoc_lt.losses.reduction import Reduction, a_class


def vector_scaling(
    logits: Tensor,
    y: Tensor,
    log_prior: Tensor,
    tau: float = 1.0,
    gamma: float = 0.15,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """VS loss (Kini 2021, arXiv:2103.01550), ``−v_y log softmax(Δ∘z + τ log π)_y``, ``Δ_c = (n_c/n_max)^γ``.

    γ = 0 is `logit_adjusted`, which τ = 0 then turns into cross-entropy; τ = 0 alone leaves the class-dependent
    temperatures of Ye 2020 (arXiv:2001.01385). Additive shifts act early in training, factors late, once
    the train samples are fitted. Predict with z itself.

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        log_prior: log π, (C,), as `posthoc_lt.priors.log_prior` gives it.
        tau: τ.
        gamma: γ.
        weight: v, (C,); None weighs all classes 1.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: not one number a class, or a label that is no class.

    >>> import torch
    >>> vector_scaling(torch.ones(1, 2), torch.tensor([1]), torch.tensor([0.8, 0.2]).log(), tau=0.0, gamma=0.5)
    tensor(0.9741)
    """
    log_pi = a_class(log_prior, logits, "log prior")
    factors = (gamma * (log_pi - log_pi.max())).exp()
    return cross_entropy(factors * logits + tau * log_pi, y, weight, reduction)


class VectorScaling(nn.Module):
    """`vector_scaling` as a module; `log_prior` and `weight` move with it and are saved with it."""

    def __init__(
        self,
        log_prior: Tensor,
        tau: float = 1.0,
        gamma: float = 0.15,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.log_prior: Tensor
        self.weight: Tensor | None
        self.register_buffer("log_prior", log_prior)
        self.register_buffer("weight", weight)
        self.tau, self.gamma, self.reduction = tau, gamma, reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return vector_scaling(logits, y, self.log_prior, self.tau, self.gamma, self.weight, self.reduction)
