"""What the head classes give for what the tail classes get: every trade that a knob offers, and where methods lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posthoc_lt.evaluation import Evaluation
from posthoc_lt.report.plots.style import BEFORE, colors, headed, new_axes
from posthoc_lt.search import Trade

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Frontiers:
    """Many-shot against few-shot accuracy on validation.

    Args:
        curves: the exact Pareto curve of each method with a continuous knob, (many, few) pairs.
        points: (many, few) of each method's chosen head.
    """

    curves: dict[str, list[tuple[float, float]]]
    points: dict[str, tuple[float, float]]


def frontiers(curves: Mapping[str, Sequence[Trade]], judged: Mapping[str, Evaluation]) -> Frontiers:
    """The numbers of the Pareto plot; methods without a sample in either group are left out."""
    both = {name: (seen.group("many"), seen.group("few")) for name, seen in judged.items()}
    return Frontiers(
        {name: [(each.head, each.tail) for each in trades] for name, trades in curves.items()},
        {name: (many, few) for name, (many, few) in both.items() if many is not None and few is not None},
    )


def plot_pareto(made: Frontiers, axes: Axes | None = None, *, chosen: str | None = None) -> Axes:
    """Draw every trade of many-shot against few-shot accuracy on validation, and each method's head among them.

    Args:
        made: the numbers.
        axes: where to draw; a new figure by default.
        chosen: the name of the method whose point is filled.

    Raises:
        PosthocError: matplotlib is missing.
    """
    axes = axes or new_axes()
    color = colors(made.points)
    for name, pairs in made.curves.items():
        heads, tails = ([100 * value for value in values] for values in zip(*pairs, strict=True))
        axes.step(heads, tails, where="post", color=color.get(name, BEFORE), linewidth=1.2, alpha=0.7)
    style: dict[str, Any] = {"markeredgewidth": 1.8, "linestyle": "none"}
    for number, (name, (many, few)) in enumerate(made.points.items()):
        marker = "osD^vP*Xh<>"[number % 11]
        # Hollow, since heads may lie on one point.
        own: dict[str, Any] = {"markersize": 11} if name == chosen else {"markersize": 8, "markerfacecolor": "none"}
        axes.plot(100 * many, 100 * few, marker, color=color[name], label=name, **style, **own)
    axes.set(xlabel="many-shot accuracy on validation (%)", ylabel="few-shot accuracy on validation (%)")
    return headed(axes, "what the head gives for what the tail gets")
