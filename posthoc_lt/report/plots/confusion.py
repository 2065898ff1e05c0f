"""Which mistakes went and which came: the confusions whose number changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_lt.evaluation import Evaluation
from posthoc_lt.report.plots.style import AFTER, BEFORE, WORSE, headed, new_axes, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOP = 12


@dataclass(frozen=True)
class Change:
    """Samples of class `true` predicted as `predicted`, before and after."""

    true: int
    predicted: int
    before: int
    after: int


def confusion_changes(before: Evaluation, after: Evaluation, top: int = TOP) -> list[Change]:
    """The mistakes whose number changed most, the largest change first; no (C, C) matrix is made."""
    cells, old = _mistakes(before)
    others, new = _mistakes(after)
    every = torch.cat([cells, others]).unique()  # type: ignore[no-untyped-call]
    one, two = torch.zeros_like(every), torch.zeros_like(every)
    one[torch.searchsorted(every, cells)], two[torch.searchsorted(every, others)] = old, new
    order = (two - one).abs().argsort(descending=True, stable=True)[:top]
    classes = before.classes
    return [
        Change(cell // classes, cell % classes, was, now)
        for cell, was, now in zip(every[order].tolist(), one[order].tolist(), two[order].tolist(), strict=True)
        if was != now
    ]


def _mistakes(seen: Evaluation) -> tuple[Tensor, Tensor]:
    wrong = ~seen.right
    cells = seen.labels[wrong] * seen.classes + seen.predicted[wrong]
    found: tuple[Tensor, Tensor] = cells.unique(return_counts=True)  # type: ignore[no-untyped-call]
    return found


def plot_confusion(
    before: Evaluation, after: Evaluation, classes: Sequence[str], split: str, axes: Axes | None = None
) -> Axes:
    """Draw the mistakes that changed most as bars: to the left those that went, to the right those that came.

    Raises:
        PosthocError: matplotlib is missing.
    """
    axes = axes or new_axes()
    made = confusion_changes(before, after)[::-1]
    moved = [change.after - change.before for change in made]
    axes.barh(range(len(made)), moved, color=[AFTER if change < 0 else WORSE for change in moved])
    names = [f"{printable(classes[c.true])} → {printable(classes[c.predicted])}" for c in made]
    axes.set_yticks(range(len(made)), names)
    axes.axvline(0, color=BEFORE, linewidth=1)
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel=f"change in their number on {split}")
    return headed(axes, "mistakes that went (left) and came (right)")
