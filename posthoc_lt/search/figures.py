"""Figures of the confusion counts that validation can choose by, each as sums over classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from posthoc_lt.choices import GROUPS, METRICS
from posthoc_lt.columns import blocks, computed
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.metrics import counted

Groups: TypeAlias = "dict[str, Tensor] | None"
"""The classes of ``many``, ``medium`` and ``few``, each (C,) bool, where they are known."""

Terms = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From right, actual and predicted counts (…) to the terms (…, K) of a class that has samples."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure ``finish(Σ_c v_c·terms(right_c, actual_c, predicted_c) / Σ_c v_c)`` over classes with samples.

    Args:
        terms: a class's K terms.
        finish: from the K means (…, K) to the figure (…).
        group: ``many``, ``medium`` or ``few`` where only those classes count.
        weigh: whether a class counts by its samples (as in plain accuracy) instead of once.
        weight: (C,) how much each class counts, where that is given; v is 1 by default.
        least: whether the least of the classes' terms takes the place of their mean.
        worth: (C, C) what a sample of the row's class is worth where it is predicted as the column's; a class then
            has the mean worth of its samples as its one term.
    """

    terms: Terms
    finish: Callable[[Tensor], Tensor] = lambda means: means[..., 0]
    group: str | None = None
    weigh: bool = False
    weight: Tensor | None = None
    least: bool = False
    worth: Tensor | None = None

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum over samples, each of a fixed worth where it is right."""
        return self.terms is _recall and not self.least and self.worth is None


def _recall(right: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
    return (right / actual)[..., None]


def _f1(right: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
    return (2 * right / (actual + predicted))[..., None]


def _zeros_and(transform: Callable[[Tensor], Tensor], right: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
    """Whether the recall is 0, and its transform where it is not: an infinity would spoil every later sum."""
    none = right == 0
    recall = torch.where(none, 1.0, right / actual)
    return torch.stack([none.double(), transform(recall)], dim=-1)


def _unless_zero(finish: Callable[[Tensor], Tensor], means: Tensor) -> Tensor:
    return torch.where(means[..., 0] > 1e-9, 0.0, finish(means[..., 1]))


_IN_ORDER = (
    Figure(_recall),
    Figure(_recall, weigh=True),
    Figure(_recall),
    Figure(_recall, weigh=True),
    Figure(_f1),
    Figure(partial(_zeros_and, torch.log), partial(_unless_zero, torch.exp)),
    Figure(partial(_zeros_and, torch.reciprocal), partial(_unless_zero, torch.reciprocal)),
    Figure(_recall, least=True),
    *(Figure(_recall, group=group) for group in GROUPS),
)

FIGURES: dict[str, Figure] = dict(zip(METRICS, _IN_ORDER, strict=True))
"""By name: the mean recall (balanced accuracy), plain accuracy, the mean recall under given class weights, the mean
`posthoc_lt.metrics.utility` of samples under given costs (0 for right and 1 for wrong make it plain accuracy), the mean
F1, the geometric and the harmonic mean of recalls (0 as soon as one class is never right), the least recall, and the
mean recall within a group of classes."""


@dataclass(frozen=True)
class Constraint:
    """A figure that must not fall below a floor, such as ``many>=0.60``."""

    figure: str
    floor: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read ``FIGURE>=NUMBER``; the number is a fraction of 1.

        Raises:
            PosthocError: it has another form, or names no figure.

        >>> Constraint.parse("many>=0.6")
        Constraint(figure='many', floor=0.6)
        """
        name, sign, floor = text.partition(">=")
        try:
            value = float(floor)
        except ValueError:
            value = float("nan")
        if not sign or name.strip() not in FIGURES or not 0 <= value <= 1:
            raise PosthocError(
                f"constraint {show(text)!r}",
                f"FIGURE>=NUMBER with a number from 0 to 1 and one of {listed(FIGURES, 20)}",
                "give --subject-to 'many>=0.60'",
            )
        return cls(name.strip(), value)


def class_weight(figure: Figure, actual: Tensor, groups: Groups) -> Tensor:
    """What a class's terms weigh, (C,) float64, summing to 1 over classes with samples.

    Raises:
        PosthocError: the figure is that of a group that has no sample, groups are not known, or no class that
            has a sample weighs anything.
    """
    members = actual > 0
    if figure.group is not None:
        if groups is None or not bool((members & groups[figure.group]).any()):
            raise PosthocError(
                f"validation without a sample of the {figure.group}-shot classes",
                "at least one",
                "choose by another figure, or move the edges with --groups",
            )
        members = members & groups[figure.group]
    weight = members.double() * (actual if figure.weigh else 1)
    if figure.weight is not None:
        weight = weight * figure.weight
    if not bool(weight.any()):
        raise PosthocError(
            "class weights that are 0 for every class with a validation sample",
            "a weight above 0 for one of them",
            "correct --class-weight",
        )
    return weight / weight.sum()


def sample_weight(figure: Figure, labels: Tensor, classes: int, groups: Groups = None) -> Tensor:
    """What each sample (N,) adds to a figure that `is_sum` where it is right."""
    actual = torch.bincount(labels, minlength=classes)
    weight = class_weight(figure, actual, groups) / actual.clamp(min=1)
    return computed(len(labels), lambda rows: weight[labels[rows]])


def value(figure: Figure, labels: Tensor, predicted: Tensor, classes: int, groups: Groups = None) -> float:
    """The figure of some predictions (N,)."""
    if figure.worth is not None:
        worth = _pairs(figure, labels, classes, groups)
        return sum(float(worth[labels[rows], predicted[rows]].sum()) for rows in blocks(len(labels)))
    return float(_at(figure, *counted(labels, predicted, classes), groups))


def paired_error(
    figure: Figure, labels: Tensor, predicted: Iterable[Tensor], reference: Tensor, classes: int, groups: Groups = None
) -> Tensor:
    """The standard error (K,) of the figure of each of K predictions (N,) minus that of `reference` (N,).

    SE² = Σ (vᵢ − vᵢ*)² over samples, v the `influence` of a sample. The least of the classes answers to one class
    alone, and which one it is may change: its SE is that of the class whose recall moved most surely, an upper bound,
    max_c √m_c/n_c with m_c samples of class c right in one and wrong in the other.
    """
    if not figure.least:
        weigh = influence(figure, labels, reference, classes, groups)

        def change(row: Tensor, rows: slice) -> float:
            own = labels[rows]
            return float((weigh.of(own, row[rows]) - weigh.of(own, reference[rows])).square().sum())

        squares = [sum(change(row, rows) for rows in blocks(len(labels))) for row in predicted]
        return torch.tensor(squares, dtype=torch.float64).sqrt()
    actual = torch.bincount(labels, minlength=classes)

    def moved(row: Tensor, rows: slice) -> Tensor:
        own = labels[rows]
        return torch.bincount(own[(row[rows] == own) != (reference[rows] == own)], minlength=classes)

    counts = [sum((moved(row, rows) for rows in blocks(len(labels))), torch.zeros_like(actual)) for row in predicted]
    return (torch.stack(counts).double().sqrt() / actual)[:, class_weight(figure, actual, groups) > 0].amax(dim=1)


def influence(figure: Figure, labels: Tensor, predicted: Tensor, classes: int, groups: Groups = None) -> Influence:
    """How the figure answers to a sample being predicted otherwise, linearised at these predictions."""
    if figure.worth is not None:
        return Influence(by_pair=_pairs(figure, labels, classes, groups))
    right, actual, chosen = counted(labels, predicted, classes)
    right, chosen = right.double().requires_grad_(), chosen.double().requires_grad_()
    made = _at(figure, right, actual, chosen, groups)
    by_right, by_chosen = torch.autograd.grad(made, (right, chosen), materialize_grads=True)
    return Influence(by_right, by_chosen)


_NOTHING = torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Influence:
    """The derivative of a figure by every class's right and by its predicted samples, each (C,), or by their pair."""

    by_right: Tensor = _NOTHING
    by_predicted: Tensor = _NOTHING
    by_pair: Tensor | None = None

    def of(self, labels: Tensor, predicted: Tensor) -> Tensor:
        """What samples of `labels` add to the figure when they are predicted as `predicted`; shapes broadcast."""
        if self.by_pair is not None:
            return self.by_pair[labels, predicted]
        return self.by_predicted[predicted] + torch.where(predicted == labels, self.by_right[labels], 0.0)


def _pairs(figure: Figure, labels: Tensor, classes: int, groups: Groups) -> Tensor:
    """What one sample of the row's class adds to a figure with a `worth` where it is predicted as the column's."""
    assert figure.worth is not None
    actual = torch.bincount(labels, minlength=classes)
    return (class_weight(figure, actual, groups) / actual.clamp(min=1))[:, None] * figure.worth


def _at(figure: Figure, right: Tensor, actual: Tensor, predicted: Tensor, groups: Groups) -> Tensor:
    weight, terms = class_weight(figure, actual, groups), class_terms(figure, right, actual, predicted)
    if figure.least:
        return figure.finish(terms[weight > 0].amin(dim=0))
    return figure.finish((terms * weight[:, None]).sum(dim=0))


def class_terms(figure: Figure, right: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
    """The terms (…, K) of classes with these counts (…); 0 for a class without samples, which weighs nothing."""
    terms = figure.terms(right.double(), actual.clamp(min=1).double(), predicted.double())
    return torch.where((actual > 0)[..., None], terms, 0.0)
