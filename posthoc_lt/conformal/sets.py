"""Prediction sets, and what they cover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.conformal.scores import blocks, conformity_of
from posthoc_lt.conformal.thresholds import Thresholds
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.metrics import EDGES, Tally, accuracy, balanced_accuracy, group_accuracy, group_classes, recall


def prediction_sets(head: Head, thresholds: Thresholds, x: Tensor) -> Tensor:
    """Which classes are in the set of each sample, (N, C) bool for features (N, D); for one chunk at a time.

    A set may be empty: no class reaches its floor. That counts towards α.

    Raises:
        PosthocError: head and thresholds have different numbers of classes, or x is not finite.
    """
    _check_classes(head, thresholds)
    conformity = conformity_of(head, x, thresholds.prevalence)
    return conformity >= thresholds.floor.to(conformity.device)


@dataclass(frozen=True, eq=False)
class SetReport:
    """What prediction sets cover, and at what size.

    Args:
        tally: `right` the samples whose set holds their class, `predicted` the sets that hold each class: so that
            every interval made for accuracy is one for coverage.
        groups: ``many``, ``medium``, ``few``, each (C,) bool.
        size: the mean number of classes in a set.
        sizes: (C,) float64, the same over the samples of each class; NaN for a class without any.
        empty: the share of sets without a class.
    """

    tally: Tally
    groups: Mapping[str, Tensor] = field(repr=False)
    size: float
    sizes: Tensor
    empty: float

    @property
    def coverage(self) -> float:
        """The share of samples whose set holds their class."""
        return accuracy(self.tally)

    @property
    def class_coverage(self) -> Tensor:
        """The same for each class, (C,) float64; NaN for a class without samples."""
        return recall(self.tally)

    @property
    def macro_coverage(self) -> float:
        """The mean of `class_coverage` over classes that have a sample."""
        return balanced_accuracy(self.tally)

    @property
    def group_coverage(self) -> dict[str, float | None]:
        """The mean of `class_coverage` within many, medium and few; None for a group without samples."""
        return {name: group_accuracy(self.tally, mask) for name, mask in self.groups.items()}


def evaluate_sets(
    head: Head, thresholds: Thresholds, features: Features, counts: Tensor, edges: tuple[float, float] = EDGES
) -> SetReport:
    """Coverage and size of the prediction sets of labelled samples that thresholds were not taken from.

    Args:
        head: the head that the thresholds belong to.
        thresholds: as `fit_thresholds` gives them.
        features: N labelled samples.
        counts: (C,) *train* samples a class, which make the groups.
        edges: the lowest and the highest train count of the medium group.

    Raises:
        PosthocError: shapes do not fit, features are not finite, or there is no sample.
    """
    features.require_labelled(head)
    _check_classes(head, thresholds)
    groups = {name: mask.cpu() for name, mask in group_classes(counts, edges).items()}
    labels, actual = features.labels.cpu(), features.counts(head.classes).cpu()
    held = torch.zeros(head.classes, dtype=torch.int64)
    covered, size = (torch.zeros(len(features), dtype=torch.int64) for _ in range(2))
    for rows, conformity in blocks(head, features, thresholds.prevalence):
        sets = conformity >= thresholds.floor.to(conformity.device)
        held += sets.sum(dim=0).cpu()
        size[rows] = sets.sum(dim=1).cpu()
        covered[rows] = sets.gather(1, labels[rows, None].to(sets.device))[:, 0].cpu().long()
    held, covered, size = map(ranks.total, (held, covered, size))
    right = torch.bincount(labels[covered > 0], minlength=head.classes)
    sizes = torch.bincount(labels, weights=size, minlength=head.classes) / actual
    return SetReport(
        tally=Tally(right, actual, held),
        groups=groups,
        size=float(size.double().mean()),
        sizes=sizes,
        empty=float((size == 0).double().mean()),
    )


def _check_classes(head: Head, thresholds: Thresholds) -> None:
    if len(thresholds.floor) != head.classes:
        raise PosthocError(
            f"thresholds of {len(thresholds.floor)} classes for a head of {head.classes}",
            "the thresholds of this head",
            "fit them again, on this head",
        )
