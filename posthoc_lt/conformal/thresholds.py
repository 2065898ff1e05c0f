"""Thresholds on a class's probability, and what they guarantee."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.choices import KINDS
from posthoc_lt.conformal.scores import blocks, identity
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.features import Features
from posthoc_lt.head import Head


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Which classes enter a prediction set: class y where ``p(y|x) ≥ floor_y`` (over its prevalence, if there is one).

    Args:
        floor: (C,) float64 ≥ 0; 0 always lets the class in. In terms of the usual score 1 − p, the threshold is
            1 − floor.
        kind: one of `KINDS`.
        alpha: the share of samples that sets may miss.
        weight: of the class's own quantile, for ``interpolated``; 0 otherwise.
        supported: (C,) bool, False (n/a) for classes with fewer than 1/α − 1 samples, which have no quantile of
            their own.
        samples: (C,) int64, the samples that thresholds were taken from.
        prevalence: (C,) float64 for ``prevalence``, else None.
        head: checksums of the head that they belong to.
    """

    floor: Tensor
    kind: str
    alpha: float
    weight: float
    supported: Tensor
    samples: Tensor
    prevalence: Tensor | None
    head: str

    def __repr__(self) -> str:
        lacking = int((~self.supported).sum())
        return f"Thresholds({self.kind}, alpha={self.alpha:g}, {len(self.floor)} classes, n/a for {lacking})"


def fit_thresholds(
    head: Head,
    features: Features,
    kind: str = "classwise",
    *,
    alpha: float = 0.1,
    weight: float = 0.5,
    prevalence: Tensor | None = None,
) -> Thresholds:
    """Thresholds under which sets miss the true class of at most a share α of new samples.

    The score is p(y|x), the softmax of `head` (1 − p is LAC of Sadinle 2019, arXiv:1609.00451). Of n scores of true
    classes the ⌊α(n + 1)⌋-th smallest is the floor, so that a new one reaches it with probability 1 − α to
    1 − α + 1/(n + 1); with n < 1/α − 1 there is none, and the floor is 0.

    Args:
        head: the probability head, by preference; coverage holds with any.
        features: N labelled samples that neither the network was trained nor the head chosen on.
        kind: one of `KINDS`, which says what each does and covers.
        alpha: α, between 0 and 1.
        weight: of the class's own floor, 0 … 1, for ``interpolated``.
        prevalence: (C,) > 0, in any unit, the label distribution that the softmax of `head` is for (that of train
            for an untouched head), for ``prevalence``.

    Raises:
        PosthocError: an option or a shape does not fit, features are not finite, or there is no sample.

    >>> val = Features(torch.zeros(9, 1), torch.tensor([0] * 9))
    >>> fit_thresholds(Head(torch.zeros(2, 1), torch.zeros(2)), val).floor
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    _check_options(kind, alpha, weight)
    features.require_labelled(head)
    ratio = _prevalence(head, prevalence) if kind == "prevalence" else None
    labels, scores = features.labels.cpu(), _own_scores(head, features, ratio)
    counts = features.counts(head.classes).cpu()
    overall = torch.full((head.classes,), _floor(scores, alpha), dtype=torch.float64)
    share = {"classwise": 1.0, "interpolated": weight}.get(kind, 0.0)
    own_floor = _class_floors(scores, labels, head.classes, alpha) if share else overall
    behind = counts if share else counts.sum().expand(head.classes)
    return Thresholds(
        floor=share * own_floor + (1 - share) * overall,
        kind=kind,
        alpha=alpha,
        weight=weight if kind == "interpolated" else 0.0,
        supported=torch.tensor([_rank(n, alpha) > 0 for n in behind.tolist()]),
        samples=counts,
        prevalence=ratio,
        head=identity(head),
    )


def _own_scores(head: Head, features: Features, ratio: Tensor | None) -> Tensor:
    """What each sample's true class scores, (N,) float64: p(y|x), over its prevalence where there is a `ratio`."""
    scores = torch.zeros(len(features), dtype=torch.float64)
    for rows, conformity in blocks(head, features, ratio):
        own = features.labels[rows, None].to(conformity.device)
        scores[rows] = conformity.gather(1, own)[:, 0].cpu()
    return ranks.total(scores)


def _rank(samples: int, alpha: float) -> int:
    """⌊α(n + 1)⌋, α taken as the decimal that it is written as: 0.29 · 100 is 29, not 28.999."""
    return math.floor(Fraction(str(alpha)) * (samples + 1))


def _floor(scores: Tensor, alpha: float) -> float:
    rank = _rank(len(scores), alpha)
    return float(scores.kthvalue(rank).values) if rank else 0.0


def _class_floors(scores: Tensor, labels: Tensor, classes: int, alpha: float) -> Tensor:
    order = labels.argsort()
    parts = torch.split(scores[order], torch.bincount(labels, minlength=classes).tolist())
    return torch.tensor([_floor(part, alpha) for part in parts], dtype=torch.float64)


def _prevalence(head: Head, prevalence: Tensor | None) -> Tensor:
    if prevalence is None or prevalence.shape != (head.classes,):
        raise PosthocError(
            "no prevalence" if prevalence is None else f"a prevalence of shape {tuple(prevalence.shape)}",
            f"the frequency of each of the {head.classes} classes, which prevalence-adjusted sets divide by",
            "give the train counts, or use interpolated sets, which need none",
        )
    values = prevalence.detach().cpu().double()
    bad = (~(values > 0) | ~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise PosthocError(
            f"a prevalence of class {listed(bad)} that is not a positive number",
            "a positive frequency a class",
            "smooth the counts of classes without a train sample",
        )
    return values / values.sum()


def _check_options(kind: str, alpha: float, weight: float) -> None:
    if kind not in KINDS:
        raise PosthocError(f"sets of kind {show(kind)!r}", f"one of {', '.join(KINDS)}", "give classwise")
    if not 0 < alpha < 1:
        raise PosthocError(f"alpha = {alpha}", "a number between 0 and 1", "give 0.1, for sets that cover 90%")
    if not 0 <= weight <= 1:
        raise PosthocError(f"weight = {weight}", "a number from 0 to 1", "give 0.5")
