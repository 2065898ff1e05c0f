"""How well probabilities hold: likelihood, Brier score, calibration error, and who is too sure of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.calibration.samples import blocks, weighting
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.metrics import EDGES, expected_calibration_error, group_classes

BINS = 15


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """How well probabilities hold, every figure an average under one label distribution.

    Args:
        nll: mean −log p(y|x), in nats.
        brier: mean Σ_k (p_k − 1[k = y])², 0 … 2.
        ece: expected calibration error of the predicted class, 15 bins of equal mass.
        gap: mean confidence minus accuracy; above 0 is too sure.
        groups: the same gap among the samples of ``many``, ``medium`` and ``few``; None for a group without any.
        missing: the classes without a sample, which take no part.
    """

    nll: float
    brier: float
    ece: float
    gap: float
    groups: Mapping[str, float | None]
    missing: tuple[int, ...]


def calibration_report(
    head: Head,
    features: Features,
    counts: Tensor,
    edges: tuple[float, float] = EDGES,
    *,
    under: Tensor | None = None,
) -> CalibrationReport:
    """NLL, Brier score, ECE and signed confidence gaps of the softmax of `head`.

    With `under`, a sample weighs under_y/n_y, so that every figure is that of a population with these label
    frequencies; judge there a head made for it (`probability_head` with the same `deploy_prior`). Equal
    frequencies weigh classes alike, as balanced accuracy does. Weighted bins are of exactly equal mass, a sample on
    an edge being shared out; without weights ECE is `posthoc_lt.metrics.expected_calibration_error`.

    Args:
        head: the head whose softmax is judged.
        features: N labelled samples.
        counts: (C,) *train* samples a class, which make the groups.
        edges: the lowest and the highest train count of the medium group.
        under: (C,) ≥ 0, in any unit; None for the frequencies of `features`.

    Raises:
        PosthocError: shapes do not fit, features are not finite, or no sample carries weight.

    >>> sure = Head(1000 * torch.eye(2), torch.zeros(2))
    >>> report = calibration_report(sure, Features(torch.eye(2), torch.tensor([0, 0])), torch.tensor([500, 5]))
    >>> report.gap, report.brier, report.missing
    (0.5, 1.0, (1,))
    """
    _, weight = weighting(head, features, under)
    labels = features.labels.cpu()
    scores, sample = _scores(head, features), weight[labels]
    excess = scores.confidence - scores.right
    if under is None:
        ece = expected_calibration_error(scores.confidence, scores.right)
    else:
        ece = weighted_calibration_error(scores.confidence, scores.right, sample)
    groups = {name: mask.cpu()[labels] for name, mask in group_classes(counts, edges).items()}
    return CalibrationReport(
        nll=float(sample @ scores.nll),
        brier=float(sample @ scores.brier),
        ece=ece,
        gap=float(sample @ excess),
        groups={name: _mean(excess[mask], sample[mask]) for name, mask in groups.items()},
        missing=tuple((features.counts(head.classes) == 0).nonzero().flatten().tolist()),
    )


class _Scores(NamedTuple):
    """What each sample adds to the report, (N,) float64 on the CPU."""

    right: Tensor
    confidence: Tensor
    nll: Tensor
    brier: Tensor


def _scores(head: Head, features: Features) -> _Scores:
    found = _Scores(*(torch.zeros(len(features), dtype=torch.float64) for _ in _Scores._fields))
    for rows, z, y in blocks(head, features):
        log_p, best = z.log_softmax(dim=1), z.argmax(dim=1)
        p = log_p.exp()
        own = p.gather(1, y[:, None])[:, 0]
        found.right[rows] = (best == y).double().cpu()
        found.confidence[rows] = p.gather(1, best[:, None])[:, 0].cpu()
        found.nll[rows] = -log_p.gather(1, y[:, None])[:, 0].cpu()
        # (1 − own)² + Σ_{k≠y} p_k², without the digits that 1 − 2·own + Σp² would lose.
        found.brier[rows] = ((1 - own).square() + (p.square().sum(dim=1) - own.square()).clamp(min=0)).cpu()
    return _Scores(*map(ranks.total, found))


def weighted_calibration_error(confidence: Tensor, right: Tensor, weight: Tensor, bins: int = BINS) -> float:
    """Σ_b |Σ_{i in b} wᵢ(rightᵢ − confidenceᵢ)| / Σw over bins of equal weight, in order of confidence.

    The running sum of wᵢ(rightᵢ − confidenceᵢ) is a broken line over the running weight, samples of equal
    confidence making one piece; its rises between the edges k/bins are the bins. With equal weights and a number of
    samples that `bins` divides, this is `posthoc_lt.metrics.expected_calibration_error`.

    Args:
        confidence: (N,) probability given to the predicted class.
        right: (N,) whether the prediction was right.
        weight: (N,) ≥ 0, not all 0.
        bins: how many bins, at least 1.

    >>> half = torch.tensor([0.5, 0.5])
    >>> round(weighted_calibration_error(half, torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0])), 6)
    0.25
    """
    counted = weight > 0
    confidence, right, weight = (v[counted].double() for v in (confidence, right, weight))
    values, tie = torch.unique(confidence, return_inverse=True)
    mass = torch.bincount(tie, weights=weight)
    rise = torch.bincount(tie, weights=weight * right) - mass * values
    zero = mass.new_zeros(1)
    at, line = torch.cat([zero, mass.cumsum(0)]), torch.cat([zero, rise.cumsum(0)])
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64) * at[-1]
    piece = torch.searchsorted(at[1:-1].contiguous(), edges)
    share = ((edges - at[piece]) / mass[piece]).clamp(0, 1)
    heights = line[piece] + share * rise[piece]
    return float(heights.diff().abs().sum() / at[-1])


def _mean(values: Tensor, weight: Tensor) -> float | None:
    total = float(weight.sum())
    return float(weight @ values) / total if total > 0 else None
