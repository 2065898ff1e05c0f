"""Whether confidence can be believed: accuracy against confidence, and who is too sure of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from posthoc_lt.evaluation import Evaluation
from posthoc_lt.metrics import GROUPS
from posthoc_lt.report.plots.style import AFTER, BEFORE, headed, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Mean confidence and accuracy of bins of equally many samples, and confidence minus accuracy by group.

    Args:
        confidence, accuracy: a value a bin, from the least to the most confident.
        gaps: of ``many``, ``medium`` and ``few``, over their samples; None without one.
    """

    confidence: list[float]
    accuracy: list[float]
    gaps: dict[str, float | None]


def reliability(seen: Evaluation, bins: int = BINS) -> Reliability:
    """The numbers of the reliability plot, in the equal-mass bins of the expected calibration error."""
    order = seen.confidence.argsort(stable=True)
    parts = [part for part in order.tensor_split(bins) if len(part)]
    right = seen.right.double()
    excess = seen.confidence - right
    of_group = {name: excess[seen.groups[name][seen.labels]] for name in GROUPS}
    return Reliability(
        [float(seen.confidence[part].mean()) for part in parts],
        [float(right[part].mean()) for part in parts],
        {name: float(values.mean()) if len(values) else None for name, values in of_group.items()},
    )


def plot_reliability(before: Evaluation, after: Evaluation, split: str, axes: Axes | None = None) -> Axes:
    """Draw accuracy against confidence, before and after; points under the diagonal are too sure.

    Raises:
        PosthocError: matplotlib is missing.
    """
    axes = axes or new_axes()
    axes.plot([0, 100], [0, 100], color=BEFORE, linestyle=":", linewidth=1, label="confidence = accuracy")
    for seen, color, label, style in ((before, BEFORE, "before", "o--"), (after, AFTER, "after", "D-")):
        made = reliability(seen)
        confidence, accuracy = ([100 * value for value in values] for values in (made.confidence, made.accuracy))
        axes.plot(confidence, accuracy, style, color=color, markersize=5, label=label)
    axes.set(xlim=(-3, 103), ylim=(-3, 103), xlabel="confidence (%)", ylabel=f"accuracy on {split} (%)")
    return headed(axes, "can its confidence be believed?")
