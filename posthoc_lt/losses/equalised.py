"""The equalised loss: rare classes are spared as negatives of the others."""

from __future__ import annotations

from torch import Tensor, nn

from posthoc_lt.losses.cross_entropy import cross_entropy
from posthoc_lt.losses.reduction import Reduction, a_class, require_labels


def equalised(logits: Tensor, y: Tensor, log_prior: Tensor, tau: float = 1.0, reduction: Reduction = "mean") -> Tensor:
    """Equalised loss (Tan 2020, arXiv:2003.05176), ``log(1 + Σ_{c≠y} π_c^τ exp(z_c − z_y))``.

    In the form of Menon 2021 (arXiv:2007.07314, §2.2), smooth in the frequencies; Tan's own drops the negatives
    below a frequency at random. τ = 0 is plain cross-entropy; large τ lets only the most frequent classes push.

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        log_prior: log π, (C,), as `posthoc_lt.priors.log_prior` gives it.
        tau: τ.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: one prior a class is not what is given, or a label is no class.

    >>> import torch
    >>> equalised(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0.5, 0.5]).log()).exp()
    tensor(1.5000)
    """
    require_labels(y, logits)
    shift = (tau * a_class(log_prior, logits, "log prior")).expand_as(logits)
    return cross_entropy(logits + shift.scatter(1, y[:, None].long(), 0.0), y, reduction=reduction)


class Equalised(nn.Module):
    """`equalised` as a module; `log_prior` moves with it and is saved with it."""

    def __init__(self, log_prior: Tensor, tau: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.log_prior: Tensor
        self.register_buffer("log_prior", log_prior)
        self.tau, self.reduction = tau, reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return equalised(logits, y, self.log_prior, self.tau, self.reduction)
