"""Label-aware smoothing: the surer a class is for its many samples, the more its labels are smoothed."""

from __future__ import annotations

import math

from torch import Tensor, nn

from posthoc_lt.errors import PosthocError
from posthoc_lt.losses.reduction import Reduction, a_class, reduce, require_labels


def label_aware_smoothing(
    logits: Tensor,
    y: Tensor,
    log_prior: Tensor,
    head: float = 0.3,
    tail: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Label-aware smoothing (MiSLAS, Zhong 2021, arXiv:2104.00466), ``−(1−ε_y) log p_y − ε_y Σ_{c≠y} log p_c/(C−1)``.

    ``ε_c = ε_K + (ε_1 − ε_K) sin(π(n_c − n_K)/(2(n_1 − n_K)))``, n_1 the largest count and n_K the smallest; where
    all are alike, ε_K. ``head = tail = 0`` is cross-entropy. The authors' code spreads ε_y over all C classes,
    the true one too: its ε is ours times C/(C − 1).

    Args:
        logits: z, (n, C ≥ 2), p their softmax.
        y: (n,) class indices.
        log_prior: log π, (C,), as `posthoc_lt.priors.log_prior` gives it.
        head: ε_1, of the most frequent class, in 0 … 1.
        tail: ε_K, of the rarest, in 0 … 1.
        reduction: ``mean``, ``sum`` or ``none``.

    Raises:
        PosthocError: not one prior a class, a single class, a label that is no class, or an ε outside 0 … 1.

    >>> import torch
    >>> label_aware_smoothing(torch.zeros(1, 4), torch.tensor([2]), torch.tensor([0.4, 0.3, 0.2, 0.1]).log()).exp()
    tensor(4.)
    """
    _check(head, tail)
    require_labels(y, logits)
    log_pi = a_class(log_prior, logits, "log prior")
    if len(log_pi) < 2:
        raise PosthocError("logits of a single class", "two classes or more", "leave smoothing out")
    prior = log_pi.exp()
    spread = prior.max() - prior.min()
    rank = (prior - prior.min()) / spread.where(spread > 0, 1.0)
    smoothing = (tail + (head - tail) * (rank * (math.pi / 2)).sin())[y]
    log_p = logits.log_softmax(dim=1)
    own = log_p.gather(1, y[:, None].long())[:, 0]
    # Each of the others' share is taken off the sum over all, the true class's as well.
    share = smoothing / (len(prior) - 1)
    return reduce(-(1 - smoothing - share) * own - share * log_p.sum(dim=1), reduction)


class LabelAwareSmoothing(nn.Module):
    """`label_aware_smoothing` as a module; `log_prior` moves with it and is saved with it."""

    def __init__(self, log_prior: Tensor, head: float = 0.3, tail: float = 0.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        _check(head, tail)
        self.log_prior: Tensor
        self.register_buffer("log_prior", log_prior)
        self.head, self.tail, self.reduction = head, tail, reduction

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (n, C) for labels (n,)."""
        return label_aware_smoothing(logits, y, self.log_prior, self.head, self.tail, self.reduction)


def _check(head: float, tail: float) -> None:
    if not (0 <= head <= 1 and 0 <= tail <= 1):
        raise PosthocError(
            f"smoothing of {head} for the head and {tail} for the tail", "numbers from 0 to 1", "give 0.3 and 0"
        )
