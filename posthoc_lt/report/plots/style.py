"""One look for every plot: colours that the colour-blind tell apart, axes of train counts, legends beside the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from posthoc_lt.errors import PosthocError, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEFORE, AFTER, WORSE, FAINT = "#777777", "#0072b2", "#d55e00", "#56b4e9"
"""The untouched head, the rebalanced one, what it loses, and what only accompanies; from Okabe and Ito's palette."""

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#882255", "#44aa99", "#aa4499")
"""Colours of methods beside each other."""

MANY_POINTS = 150
"""So many classes are drawn one by one; more are summed up, lest points hide each other."""


def colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each method, the baseline's grey; the same in every plot of the same methods."""
    others = [name for name in names if name != "baseline"]
    return {"baseline": BEFORE, **{name: LINES[k % len(LINES)] for k, name in enumerate(others)}}


def emphasis(name: str, chosen: str | None) -> dict[str, Any]:
    """How strongly to draw one method among others: the untouched head dashed, the chosen one in front."""
    if name == "baseline":
        return {"linestyle": "--", "linewidth": 2, "zorder": 3}
    return (
        {"linewidth": 2.5, "zorder": 4} if name == chosen else {"linewidth": 1, "alpha": 1 if chosen is None else 0.5}
    )


def new_axes() -> Axes:
    """Axes of a figure of their own.

    Raises:
        PosthocError: matplotlib is missing.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise PosthocError("no matplotlib", "the extra for plots", "pip install 'posthoc-lt[plot]'") from None
    return pyplot.subplots(layout="constrained")[1]


def headed(axes: Axes, title: str) -> Axes:
    """The legend above the axes, where it hides nothing, and the title above the legend."""
    labels = axes.get_legend_handles_labels()[1]
    figure = axes.get_figure(root=True)
    columns = _columns([len(label) for label in labels], 11 * figure.get_figwidth() if figure else 0)
    if labels:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)
    rows = -(-len(labels) // columns)
    axes.set_title(title, pad=10 + 18 * rows)
    return axes


def _columns(lengths: list[int], room: float) -> int:
    """In how many columns a legend of labels of these lengths fits into the room, in characters; four at most."""

    def width(columns: int) -> int:
        rows = -(-len(lengths) // columns)
        return sum(max(lengths[start : start + rows]) + 5 for start in range(0, len(lengths), rows))

    return next((columns for columns in (4, 3, 2) if lengths and width(columns) <= room), 1)


def scale_counts(axes: Axes, counts: list[float]) -> None:
    """A logarithmic axis of train counts that has a place for 0, its ticks in plain numbers."""
    low, high = min(counts), max(counts)
    digits = (1, 2, 5) if high < 1000 * max(low, 1) else (1,)
    ticks = [digit * 10.0**power for power in range(-1, 13) for digit in digits]
    inside = [0.0] * (low == 0) + [tick for tick in ticks if max(low, 1) <= tick <= high]
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.3 if low == 0 else low / 1.3, 1.3 * max(high, 1))
    axes.set_xticks(inside or [low], [f"{tick:.0f}" for tick in inside or [low]])
    axes.minorticks_off()
    axes.set_xlabel("train samples of the class")


def printable(name: str, limit: int = 24) -> str:
    """A class name as the font can draw it: what it has no glyph for becomes □, and dollars stay dollars."""
    from matplotlib.font_manager import findfont, get_font

    glyphs = get_font(findfont("sans")).get_charmap()
    drawn = "".join(c if ord(c) in glyphs else "□" for c in show(name, limit))
    return drawn.replace("$", r"\$")
