"""Label-distribution-aware margins: rare classes must win by more."""

from __future__ import annotations

from torch import Tensor, nn

from posthoc_lt.errors import PosthocError
from posthoc_lt.losses.cross_entropy import cross_entropy
from posthoc_lt.losses.reduction import Reduction, a_class, require_labels


def ldam(
    logits: Tensor,
    y: Tensor,
    log_prior: Tensor,
    margin: float = 0.5,
    scale: float = 30.0,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """LDAM loss (Cao 2019, arXiv:1906.07413), ``−v_y log softmax(s·(z − m_y e_y))_y``, ``m_c ∝ n_c^(−1/4)``.

    The margins are scaled so that the rarest class has `margin`, 0 of which is cross-entropy of s·z. Meant for
    the cosines of a normalised head, −1 … 1, which the scale s spreads; for plain logits give ``scale=1``.
    The authors defer the weights (effective numbers, β = 0.9999) to the last fifth of training: DRW.

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        log_prior: log π, (C,), as `posthoc_lt.priors.log_prior` gives it.
        margin: the largest margin, >= 0.
        scale: s > 0.
        weight: v, (C,); None weighs all classes 1.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: not one number a class, a label that is no class, a margin below 0 or a scale not above.

    >>> import torch
    >>> ldam(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0.9, 0.1]).log(), margin=1.0, scale=1.0)
    tensor(1.3133)
    """
    _check(margin, scale)
    require_labels(y, logits)
    log_pi = a_class(log_prior, logits, "log prior")
    margins = margin * ((log_pi.min() - log_pi) / 4).exp()
    label = y[:, None].long()
    return cross_entropy(scale * logits.scatter_add(1, label, -margins[label]), y, weight, reduction)


class LDAM(nn.Module):
    """`ldam` as a module; `log_prior` and `weight` move with it and are saved with it."""

    def __init__(
        self,
        log_prior: Tensor,
        margin: float = 0.5,
        scale: float = 30.0,
        weight: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        _check(margin, scale)
        self.log_prior: Tensor
        self.weight: Tensor | None
        self.register_buffer("log_prior", log_prior)
        self.register_buffer("weight", weight)
        self.margin, self.scale, self.reduction = margin, scale, reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return ldam(logits, y, self.log_prior, self.margin, self.scale, self.weight, self.reduction)


def _check(margin: float, scale: float) -> None:
    if not margin >= 0:
        raise PosthocError(f"margin = {margin}", "a number >= 0", "give 0.5, or 0 for no margin")
    if not scale > 0:
        raise PosthocError(f"scale = {scale}", "a number above 0", "give 30 for a cosine head, 1 for plain logits")
