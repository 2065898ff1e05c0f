"""Cross-entropy, plain and weighted: what the softmax losses shift, scale or smooth."""

from __future__ import annotations

from torch import Tensor, nn

from posthoc_lt.losses.reduction import Reduction, a_class, reduce, require_labels


def cross_entropy(logits: Tensor, y: Tensor, weight: Tensor | None = None, reduction: Reduction = "mean") -> Tensor:
    """Weighted cross-entropy, ``−v_y log softmax(z)_y``; v = 1/π is the balanced loss.

    The mean is over the batch, ``(1/n) Σ ℓᵢ``; `torch.nn.functional.cross_entropy` divides by Σ v_y instead,
    which lets the weight of a sample depend on its neighbours in the batch.

    Args:
        logits: z, (n, C).
        y: (n,) class indices.
        weight: v, (C,); None weighs all classes 1.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: one weight a class is not what is given, or a label is no class.

    >>> import torch
    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).exp()
    tensor(4.)
    """
    require_labels(y, logits)
    losses = -logits.log_softmax(dim=1).gather(1, y[:, None].long())[:, 0]
    return reduce(losses if weight is None else losses * a_class(weight, logits, "weight")[y], reduction)


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
