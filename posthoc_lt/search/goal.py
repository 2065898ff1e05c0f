"""What validation chooses for: a figure, under constraints."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.search.figures import FIGURES, Constraint, Figure, Groups

RULES = ("guarded", "nll", "metric")

GUARD = 2.0
"""How many standard errors below its maximum the metric may lie where the likelihood chooses.

The maximum is that of many noisy values: one standard error refuses choices that are as good
(examples/benchmarks/README.md).
"""


@dataclass(frozen=True, eq=False)
class Goal:
    """How a knob is chosen.

    Args:
        metric: one of `FIGURES`.
        rule: ``guarded``, ``nll`` or ``metric``; see `choose`.
        subject_to: figures that must not fall below their floors.
        groups: class masks, for figures of a group.

    Raises:
        PosthocError: an unknown metric or rule.
    """

    metric: str = "balanced-accuracy"
    rule: str = "guarded"
    subject_to: tuple[Constraint, ...] = ()
    groups: Groups = None

    def __post_init__(self) -> None:
        if self.metric not in FIGURES:
            raise PosthocError(
                f"metric {show(self.metric)!r}", f"one of {listed(FIGURES, 20)}", "give --metric balanced-accuracy"
            )
        if self.rule not in RULES:
            raise PosthocError(
                f"selection rule {show(self.rule)!r}", f"one of {listed(RULES)}", "give --select guarded"
            )

    @property
    def figure(self) -> Figure:
        """The figure that is made large."""
        return FIGURES[self.metric]

    def on(self, labels: Tensor) -> Goal:
        """The goal as far as these samples carry it: without a sample of a group, its figure says nothing.

        Such a group's constraints are dropped, and as the metric balanced accuracy stands in for it.
        """
        present = torch.bincount(labels) > 0

        def carried(name: str) -> bool:
            group = FIGURES[name].group
            return group is None or self.groups is None or bool(self.groups[group][: len(present)][present].any())

        return replace(
            self,
            metric=self.metric if carried(self.metric) else "balanced-accuracy",
            subject_to=tuple(each for each in self.subject_to if carried(each.figure)),
        )

    def weights(self, labels: Tensor) -> Tensor:
        """Sample weights (N,) of the likelihood, summing to 1: alike for plain accuracy, else class-balanced."""
        if self.metric == "accuracy":
            return torch.full((len(labels),), 1.0 / len(labels), dtype=torch.float64)
        counts = torch.bincount(labels)
        return 1.0 / (counts[labels].double() * (counts > 0).sum())
