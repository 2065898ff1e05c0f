"""The exact validation curve of a knob, and the point chosen on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from posthoc_lt.errors import PosthocError
from posthoc_lt.report.plots.style import AFTER, BEFORE, FAINT, headed, new_axes
from posthoc_lt.report.text import metric_name
from posthoc_lt.search import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Steps:
    """The exact validation curve: `values[k]` holds from `edges[k]` to `edges[k + 1]`.

    Args:
        edges, values: of the steps.
        chosen: the knob.
        plateau: around it.
        interval: the confidence set of the best knob; None where validation chose the line itself.
    """

    edges: list[float]
    values: list[float]
    chosen: float
    plateau: tuple[float, float]
    interval: tuple[float, float] | None

    @property
    def span(self) -> tuple[float, float]:
        """What to draw: from the lowest knob to twice what is marked, or to the highest, if that is nearer."""
        marked = max(self.chosen, self.plateau[1], *(self.interval or ()))
        return self.edges[0], min(self.edges[-1], max(1.0, 2 * marked))


def steps(choice: Choice) -> Steps:
    """The numbers of the τ plot.

    Raises:
        PosthocError: the knob was not chosen on a curve.
    """
    if choice.curve is None or choice.knob is None or choice.plateau is None:
        raise PosthocError(
            "a head whose knob was not chosen on a validation curve",
            "logit-adjust or tau-norm, with tau chosen on validation",
            "plot kind='classes' instead",
        )
    return Steps(
        choice.curve.edges.tolist(), choice.curve.values.tolist(), choice.knob, choice.plateau, choice.interval
    )


def plot_curve(choice: Choice, metric: str, method: str, axes: Axes | None = None, *, knob: str = "tau") -> Axes:
    """Draw the exact validation metric against the knob, with the chosen point, its plateau and the 95% set.

    Raises:
        PosthocError: the knob was not chosen on a curve, or matplotlib is missing.
    """
    made = steps(choice)
    axes = axes or new_axes()
    axes.stairs([100 * value for value in made.values], made.edges, baseline=None, color=AFTER, linewidth=1.5)
    if made.interval is not None:
        axes.axvspan(*made.interval, color=BEFORE, alpha=0.12, linewidth=0, label="95% set")
    axes.axvspan(*made.plateau, color=FAINT, alpha=0.3, linewidth=0, label="same validation result")
    axes.axvline(made.chosen, color=BEFORE, linestyle="--", label=f"chosen {made.chosen:.3g} ({choice.decided_by})")
    axes.set(xlabel=r"$\tau$" if knob == "tau" else knob, ylabel=f"{metric_name(metric)} on validation (%)")
    axes.set_xlim(*made.span)
    return headed(axes, f"{method}: exact validation curve")
