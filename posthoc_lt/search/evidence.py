"""What validation samples say of every knob value of a family: the metric, its error, the constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_lt.columns import blocks, computed, picked
from posthoc_lt.family import Continuous, KeptBias
from posthoc_lt.features import Features
from posthoc_lt.search.curve import Curve, step_curve
from posthoc_lt.search.envelope import Walk, walk
from posthoc_lt.search.figures import sample_weight
from posthoc_lt.search.goal import Goal
from posthoc_lt.search.intervals import Intervals, winning_intervals
from posthoc_lt.search.trace import spread, trace


@dataclass(frozen=True, eq=False)
class Judgement:
    """The metric in every cell, its standard error against any one cell, and by how much the constraints are met."""

    curve: Curve
    error: Callable[[float], Tensor]
    slack: Tensor


@dataclass(frozen=True, eq=False)
class Evidence:
    """Validation samples followed over the knob, so that any part of them can be judged without another pass.

    Args:
        seen: where each sample is right, or its every prediction.
        labels: (N,).
        classes: C.
        bounds: the range of the knob.
    """

    seen: Intervals | Walk
    labels: Tensor
    classes: int
    bounds: tuple[float, float]

    def subset(self, kept: Tensor) -> Evidence:
        """That of the samples that a mask (N,) keeps."""
        (labels,) = picked(kept, self.labels)
        return replace(self, seen=self.seen.subset(kept), labels=labels)

    def judge(self, goal: Goal) -> Judgement:
        """What the samples make of a goal; see `gather` for which goals."""
        if isinstance(self.seen, Intervals):
            return self._add_up(self.seen, goal)
        walked = self.seen
        curve = trace(walked, goal.figure, goal.groups)
        slack = torch.zeros_like(curve.values)
        for constraint in goal.subject_to:
            reached = trace(walked, goal.named(constraint.figure), goal.groups).values
            slack = torch.minimum(slack, reached - constraint.floor)
        return Judgement(curve, lambda knob: spread(walked, goal.figure, knob, goal.groups), slack)

    def _add_up(self, intervals: Intervals, goal: Goal) -> Judgement:
        weights = sample_weight(goal.figure, self.labels, self.classes, goal.groups)
        curve = step_curve(intervals, weights, self.bounds)

        def error(knob: float) -> Tensor:
            right, here = intervals.right(knob), torch.zeros((), dtype=torch.float64)
            for rows in blocks(len(weights)):
                here += weights[rows][right[rows]].square().sum()

            def signed(rows: slice) -> Tensor:
                squares = weights[rows].square()
                return torch.where(right[rows], -squares, squares)

            flips = step_curve(intervals, computed(len(weights), signed), self.bounds).values
            return (flips + here).clamp(min=0.0).sqrt()

        return Judgement(curve, error, torch.zeros_like(curve.values))


def gather(family: Continuous, val: Features, goal: Goal, bounds: tuple[float, float]) -> Evidence:
    """One pass over the features gathers what the goal takes.

    Intervals where the metric is a sum over samples, which cost less; else, and under constraints, the full walk.
    """
    simple = goal.figure.is_sum and not goal.subject_to and not isinstance(family, KeptBias)
    seen = winning_intervals(family, val) if simple else walk(family, val, bounds)
    return Evidence(seen, val.labels, family.at(bounds[0]).classes, bounds)
