"""Every class's accuracy before and after, against how many train samples it had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_lt.evaluation import Evaluation
from posthoc_lt.metrics import recall
from posthoc_lt.report.plots.style import AFTER, BEFORE, FAINT, MANY_POINTS, headed, new_axes, scale_counts

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
    low, high = before.edges
    for edge, label in ((low, f"few < {low:g}, many > {high:g}"), (high, None)):
        axes.axvline(edge, color=BEFORE, linestyle=":", linewidth=1, label=label)
    axes.set(ylabel=f"accuracy of the class on {split} (%)", ylim=(-3, 103))
    return headed(axes, "each class before and after" if few else "classes before and after: medians, middle halves")


def _draw_each(axes: Axes, made: Arrows) -> None:
    old, new = ([100 * value for value in values] for values in (made.before, made.after))
    axes.vlines(made.counts, old, new, color=FAINT, linewidth=1.5)
    axes.scatter(made.counts, old, color=BEFORE, label="before", zorder=3)
    axes.scatter(made.counts, new, color=AFTER, marker="D", s=25, label="after", zorder=3)


def _draw_bands(axes: Axes, made: Arrows) -> None:
    for values, color, label, style in ((made.before, BEFORE, "before", "--"), (made.after, AFTER, "after", "-")):
        found = band(made.counts, [100 * value for value in values])
        axes.fill_between(found.counts, found.low, found.high, color=color, alpha=0.2, linewidth=0)
        axes.plot(found.counts, found.middle, color=color, linestyle=style, label=label)
