"""Which plot of a result shows what."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.evaluation import Evaluation
from posthoc_lt.family import Continuous
from posthoc_lt.report.plots import (
    frontiers,
    plot_classes,
    plot_confusion,
    plot_curve,
    plot_norms,
    plot_pareto,
    plot_reliability,
)
from posthoc_lt.search import pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from posthoc_lt.pipeline.result import Result


def draw(result: Result, kind: str, axes: Axes | None = None) -> Axes:
    """Draw one of `KINDS` on matplotlib axes, new ones by default.

    Raises:
        PosthocError: there is no such kind, the result holds nothing to draw it from, or matplotlib is missing.
    """
    if kind not in _DRAW:
        raise PosthocError(f"a plot of {show(kind)!r}", "one of " + ", ".join(KINDS), "call plot() for the first look")
    return _DRAW[kind](result, axes)


def drawable(result: Result) -> list[str]:
    """The kinds that the result holds something to draw from."""
    before, after = compared(result)
    there = {
        "tau": result.chosen.choice.curve is not None,
        "pareto": all(before.group(group) is not None for group in ("many", "few")),
        "confusion": bool((before.predicted != after.predicted).any()),
    }
    return [kind for kind in KINDS if there.get(kind, True)]


def compared(result: Result) -> tuple[Evaluation, Evaluation]:
    """The untouched and the chosen head on the split that the table shows."""
    split = result.comparison.split
    before, after = (getattr(each, split) for each in (result.fitted[0], result.chosen))
    return before, after


def _tau(result: Result, axes: Axes | None) -> Axes:
    chosen = result.chosen
    metric = result.selection.goal_of(chosen.method, result.features).metric
    return plot_curve(chosen.choice, metric, result.method, axes, knob=chosen.method.knob or "tau")


def _classes(result: Result, axes: Axes | None) -> Axes:
    return plot_classes(*compared(result), result.comparison.split, axes)


def _norms(result: Result, axes: Axes | None) -> Axes:
    heads = {each.label: each.head for each in result.fitted}
    return plot_norms(heads, result.features.counts, axes, chosen=result.chosen.label)


def _pareto(result: Result, axes: Axes | None) -> Axes:
    val, goal = result.features.val, result.selection.goal(result.features)
    assert val is not None  # rebalance does not start without it
    judged = {each.label: each.val for each in result.fitted if each.val is not None}
    curves = {
        each.label: pareto(each.family, val, goal.groups, each.family.bounds)
        for each in result.fitted
        if isinstance(each.family, Continuous)
    }
    return plot_pareto(frontiers(curves, judged), axes, chosen=result.chosen.label)


def _reliability(result: Result, axes: Axes | None) -> Axes:
    return plot_reliability(*compared(result), result.comparison.split, axes)


def _confusion(result: Result, axes: Axes | None) -> Axes:
    return plot_confusion(*compared(result), result.features.classes, result.comparison.split, axes)


_DRAW: dict[str, Callable[[Result, Axes | None], Axes]] = {
    "tau": _tau,
    "classes": _classes,
    "norms": _norms,
    "pareto": _pareto,
    "reliability": _reliability,
    "confusion": _confusion,
}

KINDS = tuple(_DRAW)
"""What can be drawn of a result."""
