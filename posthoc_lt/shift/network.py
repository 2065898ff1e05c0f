"""The prior that a network has made its own."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.shift.logits import float64_logits


def model_prior(head: Head, features: Features) -> Tensor:
    """The effective prior of a network: the class frequencies that its own predictions reproduce on average.

    ``π = Mᵀπ`` with M_cy the mean softmax of class y over the samples of class c: the eigenvector of Zhu 2023
    (arXiv:2310.08106, third version). A network that holds the posteriors of some prior has exactly that one,
    whatever the frequencies of `features`. The mean softmax itself (Bhat 2025, arXiv:2412.16540) is the prior
    only on samples drawn with it, and on balanced ones nears 1/C as the classes separate, whatever the prior.
    To be fed to logit adjustment in the place of train frequencies.

    Args:
        head: the head; scaled by a calibration first if its confidence is not to be trusted.
        features: labelled samples of every class that the network was *not* trained on. Memorised ones
            are never confused, and say nothing.

    Returns:
        (C,) float64, summing to 1. Takes memory for 2·C² numbers.

    Raises:
        PosthocError: a class has no sample, features are not finite, or the network never confuses some classes.

    >>> head = Head(torch.zeros(2, 1), torch.tensor([0.75, 0.25]).log())
    >>> model_prior(head, Features(torch.zeros(2, 1), torch.tensor([0, 1])))
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    counts = features.counts(head.classes)
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise PosthocError(
            f"no sample of class {listed(empty)}", "labelled samples of every class", "take the train counts as prior"
        )
    labels = features.labels
    mean = torch.zeros(head.classes, head.classes, dtype=torch.float64)
    for rows, logits in float64_logits(head, features):
        mean.index_add_(0, labels[rows].cpu(), torch.softmax(logits, dim=1).cpu())
    mean = ranks.total(mean)
    if not bool(mean.isfinite().all()):
        raise PosthocError("features with NaN or infinite values", "finite features", "extract them again in float32")
    return _stationary(mean / counts[:, None].cpu())


def _stationary(matrix: Tensor) -> Tensor:
    """π = Mᵀπ of a stochastic matrix, by elimination without subtraction (Grassmann, Taksar and Heyman 1985).

    Every share keeps its relative accuracy, however rare the class.
    """
    a = matrix.clone()
    for k in range(len(a) - 1, 0, -1):
        leave = a[k, :k].sum()
        if not leave > 0:
            raise PosthocError(
                f"a network that never takes class {k} for one of those before it",
                "predictions that confuse the classes at least a little",
                "give validation samples instead of train samples, or take the train counts as prior",
            )
        a[:k, k] /= leave
        a[:k, :k].addr_(a[:k, k], a[k, :k])
    prior = torch.ones(len(a), dtype=torch.float64)
    for k in range(1, len(a)):
        prior[k] = prior[:k] @ a[:k, k]
        prior[: k + 1] /= prior[: k + 1].sum()
    return prior
