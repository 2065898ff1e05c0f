"""Figures of the confusion counts that validation can choose by, each as sums over classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.metrics import GROUPS

Groups: TypeAlias = "dict[str, Tensor] | None"
"""The classes of ``many``, ``medium`` and ``few``, each (C,) bool, where they are known."""

Terms = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From right, actual and predicted counts (…) to the terms (…, K) of a class that has samples."""


@dataclass(frozen=True)
class Figure:
    """A figure ``finish(Σ_c terms(right_c, actual_c, predicted_c) / Σ_c 1)`` over classes with samples.

    Args:
        terms: a class's K terms.
        finish: from the K means (…, K) to the figure (…).
        group: ``many``, ``medium`` or ``few`` where only those classes count.
        weigh: whether a class counts by its samples (as in plain accuracy) instead of once.
    """

    terms: Terms
    finish: Callable[[Tensor], Tensor] = lambda means: means[..., 0]
    group: str | None = None
    weigh: bool = False


def _recall(right: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
    return (right / actual)[..., None]


def _f1(right: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
    return (2 * right / (actual + predicted))[..., None]


def _zeros_and(transform: Callable[[Tensor], Tensor]) -> Terms:
    """Whether the recall is 0, and its transform where it is not: an infinity would spoil every later sum."""

    def terms(right: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
        none = right == 0
        recall = torch.where(none, 1.0, right / actual)
        return torch.stack([none.double(), transform(recall)], dim=-1)

    return terms


def _unless_zero(finish: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda means: torch.where(means[..., 0] > 1e-9, 0.0, finish(means[..., 1]))


FIGURES: dict[str, Figure] = {
    "balanced-accuracy": Figure(_recall),
    "accuracy": Figure(_recall, weigh=True),
    "macro-f1": Figure(_f1),
    "g-mean": Figure(_zeros_and(torch.log), _unless_zero(torch.exp)),
    "harmonic-mean": Figure(_zeros_and(torch.reciprocal), _unless_zero(torch.reciprocal)),
    **{group: Figure(_recall, group=group) for group in GROUPS},
}
"""By name: the mean recall (balanced accuracy), plain accuracy, the mean F1, the geometric and the harmonic mean of
recalls (0 as soon as one class is never right), and the mean recall within a group of classes."""


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
        PosthocError: the figure is that of a group that has no sample, or groups are not known.
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
    return weight / weight.sum()


def value(figure: Figure, labels: Tensor, predicted: Tensor, classes: int, groups: Groups = None) -> float:
    """The figure of some predictions (N,)."""
    return float(_at(figure, *_counts(labels, predicted, classes), groups))


def influence(figure: Figure, labels: Tensor, predicted: Tensor, classes: int, groups: Groups = None) -> Influence:
    """How the figure answers to a sample being predicted otherwise, linearised at these predictions."""
    right, actual, chosen = _counts(labels, predicted, classes)
    right, chosen = right.double().requires_grad_(), chosen.double().requires_grad_()
    made = _at(figure, right, actual, chosen, groups)
    by_right, by_chosen = torch.autograd.grad(made, (right, chosen), materialize_grads=True)
    return Influence(by_right, by_chosen)


@dataclass(frozen=True, eq=False)
class Influence:
    """The derivative of a figure by every class's right and by its predicted samples, each (C,)."""

    by_right: Tensor
    by_predicted: Tensor

    def of(self, labels: Tensor, predicted: Tensor) -> Tensor:
        """What samples of `labels` add to the figure when they are predicted as `predicted`; shapes broadcast."""
        return self.by_predicted[predicted] + torch.where(predicted == labels, self.by_right[labels], 0.0)


def _counts(labels: Tensor, predicted: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    hits = labels[labels == predicted]
    right, actual, chosen = (torch.bincount(each, minlength=classes) for each in (hits, labels, predicted))
    return right, actual, chosen


def _at(figure: Figure, right: Tensor, actual: Tensor, predicted: Tensor, groups: Groups) -> Tensor:
    weight = class_weight(figure, actual, groups)
    return figure.finish((class_terms(figure, right, actual, predicted) * weight[:, None]).sum(dim=0))


def class_terms(figure: Figure, right: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
    """The terms (…, K) of classes with these counts (…); 0 for a class without samples, which weighs nothing."""
    terms = figure.terms(right.double(), actual.clamp(min=1).double(), predicted.double())
    return torch.where((actual > 0)[..., None], terms, 0.0)
