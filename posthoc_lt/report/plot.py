"""Plots, their numbers prepared apart from their drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from posthoc_lt.errors import PosthocError
from posthoc_lt.evaluation import Evaluation
from posthoc_lt.metrics import recall
from posthoc_lt.search import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER, FAINT = "#777777", "#0072b2", "#56b4e9"  # Okabe and Ito's palette: colour-blind safe


@dataclass(frozen=True)
class Steps:
    """The exact validation curve: `values[k]` holds from `edges[k]` to `edges[k + 1]`."""

    edges: list[float]
    values: list[float]
    chosen: float
    plateau: tuple[float, float]


@dataclass(frozen=True)
class Arrows:
    """Each class's accuracy before and after, against its train count; classes without a sample left out."""

    counts: list[float]
    before: list[float]
    after: list[float]


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
    return Steps(choice.curve.edges.tolist(), choice.curve.values.tolist(), choice.knob, choice.plateau)


def arrows(before: Evaluation, after: Evaluation) -> Arrows:
    """The numbers of the class plot."""
    seen = before.tally.present
    columns = (before.counts.double(), recall(before.tally), recall(after.tally))
    return Arrows(*(column[seen].tolist() for column in columns))


def plot_curve(choice: Choice, metric: str, method: str, axes: Axes | None = None) -> Axes:
    """Draw the exact validation metric against the knob, with the chosen point and its plateau."""
    made = steps(choice)
    axes = axes or _new_axes()
    axes.stairs([100 * value for value in made.values], made.edges, baseline=None, color=AFTER)
    axes.axvspan(*made.plateau, color=FAINT, alpha=0.3, label="same validation result")
    axes.axvline(made.chosen, color=BEFORE, linestyle="--", label=f"chosen {made.chosen:.3g} ({choice.decided_by})")
    axes.set(xlabel=r"$\tau$", ylabel=f"validation {metric.replace('-', ' ')} (%)", title=method)
    axes.set_xlim(made.edges[0], made.edges[-1])
    axes.legend()
    return axes


def plot_classes(before: Evaluation, after: Evaluation, split: str, axes: Axes | None = None) -> Axes:
    """Draw every class's accuracy before and after against its train count, an arrow a class."""
    made = arrows(before, after)
    axes = axes or _new_axes()
    for count, start, stop in zip(made.counts, made.before, made.after, strict=True):
        axes.annotate("", (count, 100 * stop), (count, 100 * start), arrowprops={"arrowstyle": "->", "color": FAINT})
    axes.scatter(made.counts, [100 * v for v in made.before], color=BEFORE, label="before", zorder=3)
    axes.scatter(made.counts, [100 * v for v in made.after], color=AFTER, marker="D", label="after", zorder=3)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="train samples of the class", ylabel=f"{split} accuracy of the class (%)", ylim=(-3, 103))
    axes.legend()
    return axes


def _new_axes() -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise PosthocError("no matplotlib", "the extra for plots", "pip install 'posthoc-lt[plot]'") from None
    return pyplot.subplots(layout="constrained")[1]
