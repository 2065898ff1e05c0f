"""What predictions are worth, class by class: a class without samples is left out, never counted as 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.choices import GROUPS as GROUPS
from posthoc_lt.columns import blocks, computed
from posthoc_lt.errors import PosthocError

EDGES = (20, 100)
"""Train counts between few and medium, and between medium and many (Liu 2019, arXiv:1904.05160)."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Samples counted by class: all that accuracy, recall and F1 need.

    Args:
        right: (C,) int64, samples of the class that were predicted as it.
        actual: (C,) int64, samples of the class.
        predicted: (C,) int64, samples predicted as the class.
    """

    right: Tensor
    actual: Tensor
    predicted: Tensor

    @property
    def present(self) -> Tensor:
        """(C,) bool, the classes that have a sample."""
        return self.actual > 0

    @property
    def total(self) -> int:
        """N, the number of samples."""
        return int(self.actual.sum())


def tally(labels: Tensor, predicted: Tensor, classes: int) -> Tally:
    """Count labels and predictions, both (N,) with values 0 … C-1, by class.

    Raises:
        PosthocError: there is no sample, lengths differ, or a value names no class.

    >>> tally(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).right
    tensor([1, 1])
    """
    if labels.shape != predicted.shape or labels.ndim != 1 or not len(labels):
        raise PosthocError(
            f"labels of shape {tuple(labels.shape)} with predictions of shape {tuple(predicted.shape)}",
            "one label and one prediction a sample, and at least one sample",
            "check that the split is not empty and that both come from the same split",
        )
    for what, values in (("label", labels), ("prediction", predicted)):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= classes:
            raise PosthocError(
                f"{what} {low if low < 0 else high} for {classes} classes",
                f"{what}s from 0 to {classes - 1}",
                "give data with the classes that the head has, in their order",
            )
    return Tally(*counted(labels, predicted, classes))


def counted(labels: Tensor, predicted: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every class's right, actual and predicted samples, each (C,), of any number of samples, known to fit."""
    labels, predicted = labels.cpu(), predicted.cpu()
    right = torch.zeros(classes, dtype=torch.int64)
    for rows in blocks(len(labels)):
        right += torch.bincount(labels[rows][labels[rows] == predicted[rows]], minlength=classes)
    return right, torch.bincount(labels, minlength=classes), torch.bincount(predicted, minlength=classes)


def accuracy(tally: Tally) -> float:
    """The share of samples predicted right, every sample weighing the same (micro)."""
    return int(tally.right.sum()) / tally.total


def recall(tally: Tally) -> Tensor:
    """The share of each class's samples predicted right, (C,) float64; NaN for a class without samples."""
    return tally.right.double() / tally.actual.double()


def balanced_accuracy(tally: Tally) -> float:
    """The mean recall of the classes that have a sample, every class weighing the same (macro).

    >>> balanced_accuracy(tally(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 2]), 3))
    0.5
    """
    return float(recall(tally)[tally.present].mean())


def macro_f1(tally: Tally) -> float:
    """The mean over classes that have a sample of F1 = 2·right / (actual + predicted).

    A class that is predicted but has no sample adds no term of its own; its wrong predictions count
    against the classes they were taken from, by recall. This is scikit-learn's
    ``f1_score(y, predicted, labels=np.unique(y), average="macro")``.
    """
    f1 = 2 * tally.right.double() / (tally.actual + tally.predicted).double()
    return float(f1[tally.present].mean())


def worst_class(tally: Tally) -> float:
    """The lowest recall of a class that has a sample."""
    return float(recall(tally)[tally.present].min())


def utility(cost: Tensor) -> Tensor:
    """What each prediction is worth, ``1 − cost/max cost``: 1 where it costs nothing, 0 for the dearest mistake.

    Args:
        cost: (C, C) numbers >= 0, of a sample of the row's class predicted as the column's.

    Raises:
        PosthocError: no square, a number that is negative or not finite, or nothing that costs.

    >>> utility(torch.tensor([[0.0, 1.0], [4.0, 0.0]]))
    tensor([[1.0000, 0.7500],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    square = cost.ndim == 2 and cost.shape[0] == cost.shape[1]
    if not square or not bool((cost.isfinite() & (cost >= 0)).all() and cost.any()):
        raise PosthocError(
            f"costs of shape {tuple(cost.shape)}" + ", negative, not finite, or all 0" * square,
            "a row and a column a class: what a sample of the row's class costs where it is predicted as the column's, "
            "numbers >= 0, not all 0",
            "correct --cost",
        )
    return 1 - cost.double() / cost.double().max()


def group_accuracy(tally: Tally, mask: Tensor) -> float | None:
    """The mean recall within a group of classes, `mask` (C,) bool; None where none of them has a sample."""
    members = mask & tally.present
    return float(recall(tally)[members].mean()) if bool(members.any()) else None


def group_classes(counts: Tensor, edges: tuple[float, float] = EDGES) -> dict[str, Tensor]:
    """Split classes by their **train** samples: many > 100, medium 20 to 100 inclusive, few < 20.

    Args:
        counts: (C,) train samples a class.
        edges: the lowest and the highest count of the medium group; both 0 puts every seen class into many.

    Returns:
        dict: ``many``, ``medium``, ``few``, in this order, each (C,) bool; together they cover each class once.

    Raises:
        PosthocError: the edges are no pair of numbers 0 <= low <= high.

    >>> {name: mask.tolist() for name, mask in group_classes(torch.tensor([101, 20, 19])).items()}
    {'many': [True, False, False], 'medium': [False, True, False], 'few': [False, False, True]}
    """
    low, high = edges if len(edges) == 2 else (math.nan, math.nan)
    if not 0 <= low <= high < math.inf:
        raise PosthocError(
            f"group edges {', '.join(str(edge) for edge in edges)}",
            "two train counts, the lowest and the highest of the medium group, the lowest first and not below 0",
            f"give {EDGES[0]} and {EDGES[1]}, the usual ones",
        )
    return {"many": counts > high, "medium": (counts >= low) & (counts <= high), "few": counts < low}


def expected_calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Equal-mass calibration error, Σ_b n_b/N · |accuracy_b − mean confidence_b| (Nixon 2019, arXiv:1904.01685).

    Bins are ``numpy.array_split`` of the samples in order of confidence: the first N mod `bins` of them hold
    one sample more, and with fewer samples than bins each sample is its own. Samples of equal confidence
    share the mean of their rightness, so a bin edge among them favours none and their order does not matter.
    0 is perfectly calibrated, 1 is always sure and always wrong.

    Args:
        confidence: (N,) probability given to the predicted class.
        right: (N,) whether the prediction was right.
        bins: how many bins, at least 1.

    Raises:
        PosthocError: there is no sample, shapes differ, or there is no bin.

    >>> expected_calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([True, True, True, False]))
    0.0
    """
    if confidence.shape != right.shape or not len(confidence) or bins < 1:
        raise PosthocError(
            f"{tuple(confidence.shape)} confidences, {tuple(right.shape)} outcomes and {bins} bins",
            "one confidence and one outcome a sample, at least one sample and one bin",
            "give the confidences and outcomes of one split that is not empty",
        )
    confidence, right, samples = confidence.cpu(), right.cpu(), len(confidence)
    size, more = divmod(samples, bins)
    starts = torch.tensor([k * size + min(k, more) for k in range(1, bins)], dtype=torch.int64)
    starts = starts[starts < samples]
    ordered = computed(samples, lambda rows: confidence[rows].double())
    ordered.numpy().partition(starts.numpy())
    edges, edge = torch.unique(ordered[starts], return_inverse=True)
    # Sums over the samples below the first edge, on it, between it and the second, on that, and so on.
    copies, gaps = torch.zeros(2, 2 * len(edges) + 1, dtype=torch.float64)
    for rows in blocks(samples):
        values = confidence[rows].double()
        place = torch.searchsorted(edges, values)
        place = 2 * place + (torch.cat([edges, edges.new_tensor([torch.inf])])[place] == values)
        copies += torch.bincount(place, minlength=len(copies))
        gaps += torch.bincount(place, right[rows].double() - values, len(gaps))
    on = 2 * edge + 1
    before, gap_before = (each.cumsum(0)[on - 1] for each in (copies, gaps))
    gap = torch.cat([gaps.new_zeros(1), gap_before + (starts - before) / copies[on] * gaps[on], gaps.sum()[None]])
    return float(gap.diff().abs().sum()) / samples
