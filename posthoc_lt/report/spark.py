"""Curves in a line of text, for a terminal: the validation curve of a knob, and classes from rare to frequent."""

from __future__ import annotations

from collections.abc import Sequence

from posthoc_lt.evaluation import Evaluation
from posthoc_lt.report.plots.classes import arrows
from posthoc_lt.report.plots.curve import steps
from posthoc_lt.search import Choice

BARS = "▁▂▃▄▅▆▇█"
"""A character for each height, the lowest first."""

COLUMNS = 56
"""How many characters a curve takes at most."""


def spark(values: Sequence[float], low: float, high: float) -> str:
    """A character a value, its height the place of the value between `low` and `high`.

    >>> spark([0.0, 0.5, 1.0], 0.0, 1.0)
    '▁▅█'
    """
    spread = high - low or 1.0
    return "".join(BARS[min(len(BARS) - 1, max(0, int(len(BARS) * (value - low) / spread)))] for value in values)


def curve_lines(choice: Choice, knob: str) -> list[str]:
    """The exact validation curve, and under it the chosen knob, ``^``, within the 95% set of the best one, ``[ ]``.

    Raises:
        PosthocError: the knob was not chosen on a curve.
    """
    made = steps(choice)
    assert choice.curve is not None  # steps has seen to it
    first, last = made.span
    width = (last - first) / COLUMNS

    def column(at: float) -> int:
        return min(COLUMNS - 1, max(0, int((at - first) / width)))

    values = [choice.curve.at(first + (k + 0.5) * width) for k in range(COLUMNS)]
    values[column(made.chosen)] = choice.curve.at(made.chosen)
    marks = [" "] * COLUMNS
    if made.interval is not None:
        marks[column(made.interval[0])], marks[column(made.interval[1])] = "[", "]"
    marks[column(made.chosen)] = "^"
    low, high = min(values), max(values)
    told = "^ chosen, [ ] the 95% set" if made.interval is not None else "^ chosen"
    return [
        f"{knob} from {first:g} to {last:.3g}, height {100 * low:.1f}% to {100 * high:.1f}%; {told}:",
        spark(values, low, high),
        "".join(marks).rstrip(),
    ]


def class_lines(before: Evaluation, after: Evaluation) -> list[str]:
    """Accuracy before and after from the rarest class to the most frequent; a column is one class or some."""
    made = arrows(before, after)
    order = sorted(range(len(made.counts)), key=made.counts.__getitem__)
    columns = min(len(order), COLUMNS)
    parts = [order[len(order) * k // columns : len(order) * (k + 1) // columns] for k in range(columns)]
    old, new = ([sum(values[c] for c in part) / len(part) for part in parts] for values in (made.before, made.after))
    low, high = min(*old, *new), max(*old, *new)
    what = "each class" if len(order) <= COLUMNS else f"{len(order)} classes in {columns} columns"
    counts = f"{made.counts[order[0]]:.0f} to {made.counts[order[-1]]:.0f} train samples"
    return [
        f"accuracy of {what}, from {counts}; height {100 * low:.1f}% to {100 * high:.1f}%:",
        f"before {spark(old, low, high)}",
        f"after  {spark(new, low, high)}",
    ]
