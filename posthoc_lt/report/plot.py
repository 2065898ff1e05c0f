"""Plots, their numbers prepared apart from their drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from posthoc_lt.errors import PosthocError
from posthoc_lt.evaluation import Evaluation
from posthoc_lt.metrics import recall
from posthoc_lt.report.text import metric_name
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


def plot_curve(choice: Choice, metric: str, method: str, axes: Axes | None = None, *, knob: str = "tau") -> Axes:
    """Draw the exact validation metric against the knob, with the chosen point and its plateau.

    Raises:
        PosthocError: the knob was not chosen on a curve, or matplotlib is missing.
    """
    made = steps(choice)
    axes = axes or _new_axes()
    axes.stairs([100 * value for value in made.values], made.edges, baseline=None, color=AFTER, linewidth=1.5)
    axes.axvspan(*made.plateau, color=FAINT, alpha=0.3, linewidth=0, label="same validation result")
    axes.axvline(made.chosen, color=BEFORE, linestyle="--", label=f"chosen {made.chosen:.3g} ({choice.decided_by})")
    axes.set(xlabel=r"$\tau$" if knob == "tau" else knob, ylabel=f"{metric_name(metric)} on validation (%)")
    axes.set_xlim(made.edges[0], made.edges[-1])
    return _headed(axes, f"{method}: exact validation curve")


def plot_classes(before: Evaluation, after: Evaluation, split: str, axes: Axes | None = None) -> Axes:
    """Draw every class's accuracy before and after against its train count, and the edges of the groups.

    Raises:
        PosthocError: matplotlib is missing.
    """
    made = arrows(before, after)
    axes = axes or _new_axes()
    old, new = ([100 * value for value in values] for values in (made.before, made.after))
    axes.vlines(made.counts, old, new, color=FAINT, linewidth=1.5)
    axes.scatter(made.counts, old, color=BEFORE, label="before", zorder=3)
    axes.scatter(made.counts, new, color=AFTER, marker="D", s=25, label="after", zorder=3)
    _scale_counts(axes, made.counts)
    low, high = before.edges
    for edge, label in ((low, f"few < {low:g}, many > {high:g}"), (high, None)):
        axes.axvline(edge, color=BEFORE, linestyle=":", linewidth=1, label=label)
    axes.set(xlabel="train samples of the class", ylabel=f"accuracy of the class on {split} (%)", ylim=(-3, 103))
    return _headed(axes, "each class before and after")


def _scale_counts(axes: Axes, counts: list[float]) -> None:
    """A logarithmic axis that has a place for 0, its ticks in plain numbers."""
    low, high = min(counts), max(counts)
    digits = (1, 2, 5) if high < 1000 * max(low, 1) else (1,)
    ticks = [digit * 10.0**power for power in range(-1, 13) for digit in digits]
    inside = [0.0] * (low == 0) + [tick for tick in ticks if max(low, 1) <= tick <= high]
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.3 if low == 0 else low / 1.3, 1.3 * max(high, 1))
    axes.set_xticks(inside or [low], [f"{tick:.0f}" for tick in inside or [low]])
    axes.minorticks_off()


def _headed(axes: Axes, title: str) -> Axes:
    """The legend above the axes, where it hides nothing, and the title above the legend."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    axes.set_title(title, pad=28)
    return axes


def _new_axes() -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError:
        raise PosthocError("no matplotlib", "the extra for plots", "pip install 'posthoc-lt[plot]'") from None
    return pyplot.subplots(layout="constrained")[1]
