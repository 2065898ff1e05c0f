"""The rule that turns a validation curve into one knob value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.family import Family, Path, Point
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.curve import TIE, Curve, step_curve
from posthoc_lt.search.intervals import Intervals, winning_intervals
from posthoc_lt.search.likelihood import fit_knob
from posthoc_lt.search.path import pick, profile_path

BOUNDS = (0.0, 4.0)
RULES = ("guarded", "nll", "metric")


def _balanced(labels: Tensor) -> Tensor:
    counts = torch.bincount(labels)
    return 1.0 / (counts[labels].double() * (counts > 0).sum())


def _uniform(labels: Tensor) -> Tensor:
    return torch.full((len(labels),), 1.0 / len(labels), dtype=torch.float64)


METRICS: dict[str, Callable[[Tensor], Tensor]] = {"balanced-accuracy": _balanced, "accuracy": _uniform}
"""From labels (N,) to the weights wᵢ (N,) that make the metric Σ wᵢ·[i right], Σ wᵢ = 1."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A head chosen on validation data, and why.

    Args:
        knob: the chosen value, None where there was nothing to choose.
        head: the head at it.
        decided_by: ``none`` (nothing to choose), ``given``, ``metric``, ``likelihood``, or ``guard``
            where the likelihood's choice lay outside what the metric supports.
        plateau: the stretch of the knob around it on which the validation metric does not change.
        best: the exact maximum of the validation metric, and the plateau on which it is reached.
        curve: the exact validation metric at every knob value.
    """

    knob: float | None
    head: Head
    decided_by: str
    plateau: tuple[float, float] | None = None
    best: tuple[float, tuple[float, float]] | None = None
    curve: Curve | None = None


def choose(
    family: Family,
    val: Features,
    *,
    metric: str = "balanced-accuracy",
    rule: str = "guarded",
    bounds: tuple[float, float] = BOUNDS,
) -> Choice:
    """Choose the knob of a family on validation features.

    Rules: ``metric`` takes the middle of the widest plateau on which F, the exact validation metric,
    is largest. ``nll`` takes the likelihood's knob (`likelihood.fit_knob`). ``guarded`` takes the knob
    nearest to the likelihood's inside {t : F(t) ≥ F* − SE(t)}, SE² = Σ wᵢ²(1[right at t] − 1[right at t*])².

    Args:
        family: what a method was fitted to.
        val: labelled features that the network was not trained on.
        metric: ``balanced-accuracy`` or ``accuracy``.
        rule: ``guarded``, ``nll`` or ``metric``.
        bounds: the range that a continuous knob is searched in.

    Raises:
        PosthocError: an unknown metric or rule, no validation samples, or bounds that hold nothing.
    """
    check_selection(metric, rule)
    _check(val, bounds)
    if isinstance(family, Point):
        return Choice(None, family.head, "none")
    weights = METRICS[metric](val.labels)
    if isinstance(family, Path):
        return _choose_on_path(family, val, weights, rule)
    intervals = winning_intervals(family, val)
    curve = step_curve(intervals, weights, bounds)
    best, (low, high) = curve.maximum()
    everywhere = torch.ones(len(curve.values), dtype=torch.bool)
    optimum = curve.nearest((low + high) / 2, curve.values >= best - TIE)
    if rule == "metric":
        knob, decided_by = optimum, "metric"
    else:
        likely = min(max(fit_knob(family, val, weights).knob, bounds[0]), bounds[1])
        knob, decided_by = curve.nearest(likely, everywhere), "likelihood"
        if rule == "guarded":
            allowed = curve.values >= best - _standard_error(intervals, weights, optimum, bounds) - TIE
            if not allowed[curve.cell(knob)]:
                knob, decided_by = curve.nearest(likely, allowed), "guard"
    return Choice(knob, family.at(knob), decided_by, curve.plateau(knob), (best, (low, high)), curve)


def _standard_error(intervals: Intervals, weights: Tensor, optimum: float, bounds: tuple[float, float]) -> Tensor:
    """SE(t) of F(t) − F(t*) in every cell: a sample counts where its outcome differs from that at t*."""
    squares, right = weights.square(), intervals.right(optimum)
    flips = step_curve(intervals, torch.where(right, -squares, squares), bounds).values
    return (flips + squares[right].sum()).clamp(min=0.0).sqrt()


def _choose_on_path(path: Path, val: Features, weights: Tensor, rule: str) -> Choice:
    profile = profile_path(path, val)
    index, best, decided_by = pick(profile, weights, rule)
    top, value = path.knobs[best], float(weights[profile.right[best]].sum())
    return Choice(path.knobs[index], path.heads[index], decided_by, best=(value, (top, top)))


def check_selection(metric: str, rule: str) -> None:
    """Refuse an unknown metric or rule.

    Raises:
        PosthocError: it is none of `METRICS` or `RULES`.
    """
    if metric not in METRICS:
        raise PosthocError(f"metric {metric!r}", f"one of {listed(METRICS)}", "give --metric balanced-accuracy")
    if rule not in RULES:
        raise PosthocError(f"selection rule {rule!r}", f"one of {listed(RULES)}", "give --select guarded")


def _check(val: Features, bounds: tuple[float, float]) -> None:
    if not len(val):
        raise PosthocError("no validation sample", "at least one", "extract again with a val/ folder that holds images")
    if not bounds[0] < bounds[1]:
        raise PosthocError(
            f"a search from {bounds[0]:g} to {bounds[1]:g}", "a lower bound below the upper", "give --range 0 4"
        )
