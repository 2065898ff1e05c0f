"""What the head must give up for the tail to gain: every trade between two figures that is worth a look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from posthoc_lt.family import Family, Offsets, Sheet
from posthoc_lt.features import Features
from posthoc_lt.search.envelope import walk
from posthoc_lt.search.figures import FIGURES, Groups
from posthoc_lt.search.goal import Goal
from posthoc_lt.search.offsets import learn_offsets
from posthoc_lt.search.trace import trace


@dataclass(frozen=True)
class Trade:
    """A stretch of the knob, and the two figures on it.

    Args:
        low, high: the widest cell of the knob that reaches them.
        head, tail: the figures.
        outer: the value of the outer knob by name, where the family has one.
    """

    low: float
    high: float
    head: float
    tail: float
    outer: Mapping[str, float] = field(default_factory=dict)


def pareto(
    family: Family,
    val: Features,
    groups: Groups,
    bounds: tuple[float, float],
    figures: tuple[str, str] = ("many", "few"),
) -> list[Trade]:
    """The exact Pareto curve of two figures over a continuous knob, from the best head to the best tail.

    Every pair of values that some knob reaches and no knob beats in one figure without losing in the
    other. All cells of the walk are looked at, so none is missed; of a `Sheet` those of all its lines, of an
    `Offsets` those of the line that the likelihood prefers.

    Args:
        family: a family with lines.
        val: labelled features.
        groups: class masks, for the figures of a group.
        bounds: the range of the knob.
        figures: names of two `FIGURES`.

    Raises:
        PosthocError: the family has no lines, or a group has no sample.
    """
    if isinstance(family, Sheet):
        return _unbeaten(
            replace(trade, outer={family.name: outer})
            for outer, line in zip(family.values, family.lines, strict=True)
            for trade in pareto(line, val, groups, bounds, figures)
        )
    if isinstance(family, Offsets):
        family = learn_offsets(family, val, Goal().weights(val.labels), bounds)
    walked = walk(family, val, bounds)
    first, second = (trace(walked, FIGURES[name], groups) for name in figures)
    # Sums that differ in their last bits are one value.
    head, tail = (((curve.values * 1e10).round() / 1e10).tolist() for curve in (first, second))
    edges = first.edges.tolist()
    return _unbeaten(map(Trade, edges[:-1], edges[1:], head, tail))


def _unbeaten(trades: Iterable[Trade]) -> list[Trade]:
    """Those that no other beats in one figure without losing in the other; of equal ones the widest."""
    kept: list[Trade] = []
    for trade in sorted(trades, key=lambda each: (-each.head, -each.tail, each.low - each.high)):
        if not kept or trade.tail > kept[-1].tail:
            kept.append(trade)
    return kept
