"""The rule that turns exact validation curves into one knob value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Family, KeptBias, Line, Path, Point, Power
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.curve import TIE, Curve, step_curve
from posthoc_lt.search.envelope import walk
from posthoc_lt.search.figures import FIGURES, value
from posthoc_lt.search.goal import GUARD, Goal
from posthoc_lt.search.intervals import winning_intervals
from posthoc_lt.search.likelihood import fit_knob
from posthoc_lt.search.path import Profile, pick, predict, profile_path
from posthoc_lt.search.trace import spread, trace

BOUNDS = (0.0, 4.0)
_SUMS_OF_SAMPLES = ("balanced-accuracy", "accuracy")


@dataclass(frozen=True, eq=False)
class Choice:
    """A head chosen on validation data, and why.

    Args:
        knob: the chosen value, None where there was nothing to choose.
        head: the head at it.
        decided_by: ``none`` (nothing to choose), ``given``, ``metric``, ``likelihood``, ``guard``
            where the likelihood's choice lay outside what the metric, or a constraint, supports,
            ``label-free``, or ``untuned``.
        plateau: the stretch of the knob around it on which the validation metric does not change.
        best: the maximum of the validation metric (under the constraints), and where it is reached.
        curve: the exact validation metric at every knob value.
    """

    knob: float | None
    head: Head
    decided_by: str
    plateau: tuple[float, float] | None = None
    best: tuple[float, tuple[float, float]] | None = None
    curve: Curve | None = None


@dataclass(frozen=True, eq=False)
class _Judgement:
    """The metric in every cell, its standard error against any one cell, and by how much the constraints are met."""

    curve: Curve
    error: Callable[[float], Tensor]
    slack: Tensor


def choose(
    family: Family,
    val: Features,
    goal: Goal | None = None,
    *,
    bounds: tuple[float, float] = BOUNDS,
    strict: bool = True,
) -> Choice:
    """Choose the knob of a family on validation features.

    Rules: ``metric`` takes the middle of the widest plateau on which F, the exact validation metric,
    is largest. ``nll`` takes the likelihood's knob (`likelihood.fit_knob`). ``guarded`` takes the knob
    nearest to the likelihood's inside {t : F(t) ≥ F* − 2·SE(t)}, SE² = Σ wᵢ²(1[right at t] − 1[right at t*])²
    (linearised for metrics that are no sums over samples). All stay within the constraints.

    Args:
        family: what a method was fitted to.
        val: labelled features that the network was not trained on.
        goal: the metric, the rule and the constraints.
        bounds: the range that a continuous knob is searched in.
        strict: whether constraints that no knob meets are an error; else the least violation is taken.

    Raises:
        PosthocError: no validation samples, bounds that hold nothing, or constraints that nothing meets.
    """
    goal = goal or Goal()
    _check(val, bounds)
    if isinstance(family, Point):
        return _choose_point(family, val, goal, strict)
    if isinstance(family, Path):
        return _choose_on_path(family, val, goal, strict)
    judged = _judge(family, val, goal, bounds)
    curve, inside = judged.curve, _inside(judged.slack, goal, strict)
    best, (low, high) = curve.maximum(inside)
    optimum = curve.nearest((low + high) / 2, inside & (curve.values >= best - TIE))
    if goal.rule == "metric":
        knob, decided_by = optimum, "metric"
    else:
        supported = inside
        if goal.rule == "guarded":
            supported = inside & (curve.values >= best - GUARD * judged.error(optimum) - TIE)
        likely = min(max(fit_knob(family, val, goal.weights(val.labels)).knob, bounds[0]), bounds[1])
        knob = curve.nearest(likely, supported)
        decided_by = "likelihood" if supported[curve.cell(likely)] else "guard"
    return Choice(knob, family.at(knob), decided_by, curve.plateau(knob), (best, (low, high)), curve)


def _judge(family: Line | Power | KeptBias, val: Features, goal: Goal, bounds: tuple[float, float]) -> _Judgement:
    """Intervals where the metric is a sum over samples, which takes one pass less time; else the full walk."""
    if goal.metric in _SUMS_OF_SAMPLES and not goal.subject_to and not isinstance(family, KeptBias):
        intervals, weights = winning_intervals(family, val), goal.weights(val.labels)
        curve = step_curve(intervals, weights, bounds)

        def by_intervals(knob: float) -> Tensor:
            squares, right = weights.square(), intervals.right(knob)
            flips = step_curve(intervals, torch.where(right, -squares, squares), bounds).values
            return (flips + squares[right].sum()).clamp(min=0.0).sqrt()

        return _Judgement(curve, by_intervals, torch.zeros_like(curve.values))
    walked = walk(family, val, bounds)
    curve = trace(walked, goal.figure, goal.groups)
    slack = torch.zeros_like(curve.values)
    for constraint in goal.subject_to:
        slack = torch.minimum(slack, trace(walked, FIGURES[constraint.figure], goal.groups).values - constraint.floor)
    return _Judgement(curve, lambda knob: spread(walked, goal.figure, knob, goal.groups), slack)


def _choose_point(point: Point, val: Features, goal: Goal, strict: bool) -> Choice:
    if goal.subject_to:
        predicted = predict(point.head, val)
        _inside(_slack(predicted[None], val.labels, point.head.classes, goal), goal, strict)
    return Choice(None, point.head, "none")


def _choose_on_path(path: Path, val: Features, goal: Goal, strict: bool) -> Choice:
    profile = profile_path(path, val)
    inside = _inside(_slack(profile.predicted, val.labels, profile.classes, goal), goal, strict)
    index, best, decided_by = pick(profile, val.labels, goal, inside)
    reached = value(goal.figure, val.labels, profile.predicted[best], profile.classes, goal.groups)
    top = path.knobs[best]
    return Choice(path.knobs[index], path.heads[index], decided_by, best=(reached, (top, top)))


def choose_index(profile: Profile, labels: Tensor, goal: Goal) -> int:
    """The head of a profiled path that `choose` would take, the least violation where no head meets the constraints."""
    inside = _inside(_slack(profile.predicted, labels, profile.classes, goal), goal, strict=False)
    return pick(profile, labels, goal, inside)[0]


def misses(goal: Goal, labels: Tensor, predicted: Tensor, classes: int) -> float:
    """By how much predictions (N,) miss the constraints; 0 where they meet them."""
    short = -float(_slack(predicted[None], labels, classes, goal)[0])
    return short if short > TIE else 0.0


def _slack(predicted: Tensor, labels: Tensor, classes: int, goal: Goal) -> Tensor:
    """By how much each row of predictions (K, N) clears the constraints; at most 0."""
    slack = torch.zeros(len(predicted), dtype=torch.float64)
    for constraint in goal.subject_to:
        figure = FIGURES[constraint.figure]
        figures = [value(figure, labels, row, classes, goal.groups) for row in predicted]
        slack = torch.minimum(slack, torch.tensor(figures, dtype=torch.float64) - constraint.floor)
    return slack


def _inside(slack: Tensor, goal: Goal, strict: bool) -> Tensor:
    """Which cells meet the constraints; where none does, an error or those that miss by least."""
    if bool((slack >= -TIE).any()):
        return slack >= -TIE
    if strict:
        wanted = " and ".join(f"{each.figure}>={each.floor:g}" for each in goal.subject_to)
        raise PosthocError(
            f"--subject-to {wanted}, which no head of this method meets on validation (the nearest misses by "
            f"{-float(slack.max()):.3f})",
            "floors that can be reached together",
            "give a lower floor, or another method",
        )
    return slack >= slack.max() - TIE


def _check(val: Features, bounds: tuple[float, float]) -> None:
    if not len(val):
        raise PosthocError("no validation sample", "at least one", "extract again with a val/ folder that holds images")
    if not bounds[0] < bounds[1]:
        raise PosthocError(
            f"a search from {bounds[0]:g} to {bounds[1]:g}", "a lower bound below the upper", "give bounds=(0, 4)"
        )
