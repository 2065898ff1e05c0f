"""What the head must give up for the tail to gain: every trade between two figures that is worth a look."""

from __future__ import annotations

from dataclasses import dataclass

from posthoc_lt.family import Family
from posthoc_lt.features import Features
from posthoc_lt.search.envelope import walk
from posthoc_lt.search.figures import FIGURES, Groups
from posthoc_lt.search.trace import trace


@dataclass(frozen=True)
class Trade:
    """A stretch of the knob, and the two figures on it.

    Args:
        low, high: the widest cell of the knob that reaches them.
        head, tail: the figures.
    """

    low: float
    high: float
    head: float
    tail: float


def pareto(
    family: Family,
    val: Features,
    groups: Groups,
    bounds: tuple[float, float],
    figures: tuple[str, str] = ("many", "few"),
) -> list[Trade]:
    """The exact Pareto curve of two figures over a continuous knob, from the best head to the best tail.

    Every pair of values that some knob reaches and no knob beats in one figure without losing in the
    other. All cells of the walk are looked at, so none is missed.

    Args:
        family: a family with lines.
        val: labelled features.
        groups: class masks, for the figures of a group.
        bounds: the range of the knob.
        figures: names of two `FIGURES`.

    Raises:
        PosthocError: the family has no lines, or a group has no sample.
    """
    walked = walk(family, val, bounds)
    first, second = (trace(walked, FIGURES[name], groups) for name in figures)
    # Sums that differ in their last bits are one value.
    head, tail = ((curve.values * 1e10).round() / 1e10 for curve in (first, second))
    widths = first.edges.diff()
    order = sorted(range(len(head)), key=lambda k: (-float(head[k]), -float(tail[k]), -float(widths[k])))
    kept: list[Trade] = []
    for cell in order:
        if not kept or float(tail[cell]) > kept[-1].tail:
            low, high = first.edges[cell : cell + 2].tolist()
            kept.append(Trade(low, high, float(head[cell]), float(tail[cell])))
    return kept
