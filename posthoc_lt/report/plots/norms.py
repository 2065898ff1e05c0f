"""How long each class's weight vector is, against its train count: what tau-normalisation was invented to mend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from posthoc_lt.head import Head
from posthoc_lt.report.plots.classes import band
from posthoc_lt.report.plots.style import MANY_POINTS, colors, emphasis, headed, new_axes, scale_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Norms:
    """‖w_c‖ over its mean over classes, classes in order of their train counts.

    Args:
        counts: train samples a class, rising.
        values: a list a head, by name; heads that only move the untouched head's bias are left out.
        names: every head's name.
    """

    counts: list[float]
    values: dict[str, list[float]]
    names: tuple[str, ...]


def norms(heads: Mapping[str, Head], counts: Tensor) -> Norms:
    """The numbers of the norm plot; a head's scale changes no prediction, hence each is set to a mean of 1.

    Args:
        heads: by name, the untouched one first.
        counts: (C,) train samples a class.
    """
    first = next(iter(heads.values()))
    moved = {name: head for name, head in heads.items() if head is first or not head.weight.equal(first.weight)}
    order = torch.argsort(counts.cpu(), stable=True)
    lengths = {name: torch.linalg.vector_norm(head.weight.cpu().double(), dim=1) for name, head in moved.items()}
    values = {name: (length / length.mean().clamp(min=1e-300))[order].tolist() for name, length in lengths.items()}
    return Norms(counts.cpu().double()[order].tolist(), values, tuple(heads))


def plot_norms(
    heads: Mapping[str, Head], counts: Tensor, axes: Axes | None = None, *, chosen: str | None = None
) -> Axes:
    """Draw every head's weight norms against train counts; beyond 150 classes the median of twenty bins.

    Args:
        heads: by name, the untouched one first.
        counts: (C,) train samples a class.
        axes: where to draw; a new figure by default.
        chosen: the name of the head to emphasise.

    Raises:
        PosthocError: matplotlib is missing.
    """
    made = norms(heads, counts)
    axes = axes or new_axes()
    color = colors(made.names)
    for name, values in made.values.items():
        style = emphasis(name, chosen)
        if len(made.counts) > MANY_POINTS:
            found = band(made.counts, values)
            axes.plot(found.counts, found.middle, color=color[name], label=name, **style)
        else:
            axes.plot(made.counts, values, color=color[name], marker="o", markersize=3, label=name, **style)
    scale_counts(axes, made.counts)
    axes.set(ylabel="norm of the class's weights / mean norm")
    return headed(axes, "weight norm against class size")
