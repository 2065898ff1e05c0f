"""The pairwise-margin family: one loss whose margins and weights give most of the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posthoc_lt.errors import PosthocError
from posthoc_lt.losses.cross_entropy import cross_entropy
from posthoc_lt.losses.reduction import Reduction, require_labels


def pairwise_margin(
    logits: Tensor, y: Tensor, margin: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Pairwise-margin loss (Menon 2021, arXiv:2007.07314), ``α_y log(1 + Σ_{c≠y} exp(Δ_yc + z_c − z_y))``.

    Δ_yc is by how much z_y must exceed z_c to count as much as an equal score would in cross-entropy. Its members:

    - Δ = 0: `cross_entropy`, α its weight; α = 1/π the balanced loss.
    - Δ_yc = τ log(π_c/π_y): `logit_adjusted`; at τ = 1, α = 1 balanced softmax.
    - Δ_yc = τ log π_c: `equalised`.
    - Δ_yc = m_y ∝ π_y^(−1/4): `ldam` at scale 1.

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        margin: Δ, (C, C), a row a true class; its diagonal is not used.
        weight: α, (C,); None weighs all classes 1.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: shapes do not fit, or a label is no class.

    >>> pairwise_margin(torch.zeros(1, 2), torch.tensor([0]), torch.ones(2, 2).log1p()).exp()
    tensor(3.)
    """
    require_labels(y, logits)
    classes = logits.shape[1]
    if margin.shape != (classes, classes):
        raise PosthocError(
            f"margins of shape {tuple(margin.shape)} for logits of shape {tuple(logits.shape)}",
            "logits (samples, classes) and one margin a pair of classes",
            "give a (classes, classes) matrix, a row a true class",
        )
    own = torch.eye(classes, dtype=torch.bool, device=logits.device)
    return cross_entropy(logits + margin.to(logits).masked_fill(own, 0.0)[y], y, weight, reduction)


class PairwiseMargin(nn.Module):
    """`pairwise_margin` as a module; `margin` and `weight` move with it and are saved with it."""

    def __init__(self, margin: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.margin: Tensor
        self.weight: Tensor | None
        self.register_buffer("margin", margin)
        self.register_buffer("weight", weight)
        self.reduction = reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return pairwise_margin(logits, y, self.margin, self.weight, self.reduction)
