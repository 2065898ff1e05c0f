"""Every class's accuracy before and after, against how many train samples it had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_lt.evaluation import Evaluation
from posthoc_lt.metrics import recall
from posthoc_lt.report.plots.style import AFTER, BEFORE, MANY_POINTS, WORSE, headed, new_axes, scale_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 20


@dataclass(frozen=True)
class Arrows:
    """Each class's accuracy before and after, against its train count; classes without a sample left out."""

    counts: list[float]
    before: list[float]
    after: list[float]


@dataclass(frozen=True)
class Band:
    """Values summed up over classes of like train count: the middle one and the middle half."""

    counts: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


def arrows(before: Evaluation, after: Evaluation) -> Arrows:
    """The numbers of the class plot."""
    seen = before.tally.present
    columns = (before.counts.double(), recall(before.tally), recall(after.tally))
    return Arrows(*(column[seen].tolist() for column in columns))


def band(counts: list[float], values: list[float], bins: int = BINS) -> Band:
    """Median and quartiles of values over equally many classes a bin, in order of train count.

    >>> band([1, 2, 30, 40], [0.0, 1.0, 0.5, 0.5], bins=2).middle
    [0.5, 0.5]
    """
    size, value = torch.tensor(counts, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    order = torch.argsort(size, stable=True)
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)

    def of(part: Tensor) -> list[float]:
        return [float(size[part].median()), *torch.quantile(value[part], quartiles).tolist()]

    at, low, middle, high = zip(*(of(part) for part in order.tensor_split(bins) if len(part)), strict=True)
    return Band(list(at), list(middle), list(low), list(high))


def plot_classes(before: Evaluation, after: Evaluation, split: str, axes: Axes | None = None) -> Axes:
    """Draw every class's accuracy before and after against its train count, and the edges of the groups.

    Beyond 150 classes, medians and quartiles of twenty bins of classes take the place of the classes.

    Raises:
        PosthocError: matplotlib is missing.
    """
    made = arrows(before, after)
    axes = axes or new_axes()
    few = len(made.counts) <= MANY_POINTS
    (_draw_each if few else _draw_bands)(axes, made)
    scale_counts(axes, made.counts)
    axes.set(ylabel=f"accuracy of the class on {split} (%)", ylim=(-3, 112), yticks=range(0, 101, 20))
    _draw_groups(axes, before.edges)
    return headed(axes, "each class before and after" if few else "classes before and after: medians, middle halves")


def _draw_each(axes: Axes, made: Arrows) -> None:
    """From a ring an arrow up or down; a class that stays has its ring alone."""
    old, new = ([100 * value for value in values] for values in (made.before, made.after))
    rose, fell = ([k for k in range(len(old)) if sign * (new[k] - old[k]) > 0] for sign in (1, -1))
    for moved, color in ((rose, AFTER), (fell, WORSE)):
        at, start, end = ([values[k] for k in moved] for values in (made.counts, old, new))
        axes.vlines(at, start, end, color=color, linewidth=1.5)
    axes.scatter(made.counts, old, facecolors="none", edgecolors=BEFORE, label="before", zorder=3)
    for moved, color, marker, label in ((rose, AFTER, "^", "after, better"), (fell, WORSE, "v", "after, worse")):
        axes.scatter(
            [made.counts[k] for k in moved], [new[k] for k in moved], color=color, marker=marker, label=label, zorder=4
        )


def _draw_groups(axes: Axes, edges: tuple[float, float]) -> None:
    """Bands of the few-shot and the many-shot classes, and the names of the groups in what is visible of them."""
    left, right = axes.get_xlim()
    low, high = edges
    scale = axes.xaxis.get_transform()
    for name, start, end in ((f"few < {low:g}", left, low), ("medium", low, high), (f"many > {high:g}", high, right)):
        start, end = max(start, left), min(end, right)
        if start >= end:
            continue
        if name != "medium":
            axes.axvspan(start, end, color=BEFORE, alpha=0.1, linewidth=0)
        middle = scale.inverted().transform([scale.transform([start, end]).mean()])[0]
        axes.text(middle, 105, name, ha="center", fontsize=9, clip_on=True)


def _draw_bands(axes: Axes, made: Arrows) -> None:
    for values, color, label, style in ((made.before, BEFORE, "before", "--"), (made.after, AFTER, "after", "-")):
        found = band(made.counts, [100 * value for value in values])
        axes.fill_between(found.counts, found.low, found.high, color=color, alpha=0.2, linewidth=0)
        axes.plot(found.counts, found.middle, color=color, linestyle=style, label=label)
