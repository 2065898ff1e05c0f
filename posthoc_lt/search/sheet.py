"""Which line of a sheet the likelihood prefers, each line at its own best knob."""

from __future__ import annotations

from torch import Tensor

from posthoc_lt.family import Sheet
from posthoc_lt.features import Features
from posthoc_lt.search.likelihood import fit_knob


def costs(sheet: Sheet, features: Features, weights: Tensor, bounds: tuple[float, float] | None = None) -> list[float]:
    """Minus the log posterior of every line at its best knob and scale; see `likelihood.fit_knob`.

    The least of them is the joint maximum a posteriori of both knobs, up to the outer knob's few values.

    Args:
        sheet: K lines.
        features: N labelled validation samples.
        weights: (N,) float64, one a sample.
        bounds: the range of the knob; the lines' own by default.
    """
    fitted = (fit_knob(line, features, weights, bounds).objective for line in sheet.lines)
    return [objective + penalty for objective, penalty in zip(fitted, sheet.penalties, strict=True)]
