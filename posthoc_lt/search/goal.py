"""What validation chooses for: a figure, under constraints."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_lt.choices import RULES, UTILITY, WEIGHTED
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.metrics import utility
from posthoc_lt.search.figures import FIGURES, Constraint, Figure, Groups, sample_weight

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
        rule: ``guarded``, ``nll``, ``metric`` or ``cross-fit``; see `choose`.
        subject_to: figures that must not fall below their floors.
        groups: class masks, for figures of a group.
        class_weight: (C,) numbers >= 0, how much each class counts in ``weighted-accuracy``; so in ``utility`` too,
            where by default each sample counts alike.
        cost: (C, C) numbers >= 0, what a sample of the row's class costs where it is predicted as the column's, for
            ``utility``.
        seed: of the halves that ``cross-fit`` chooses on.

    Raises:
        PosthocError: an unknown metric or rule, a weighted accuracy without weights, or a utility without costs.
    """

    metric: str = "balanced-accuracy"
    rule: str = "guarded"
    subject_to: tuple[Constraint, ...] = ()
    groups: Groups = None
    class_weight: Tensor | None = None
    cost: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in FIGURES:
            raise PosthocError(
                f"metric {show(self.metric)!r}", f"one of {listed(FIGURES, 20)}", "give --metric balanced-accuracy"
            )
        if self.rule not in RULES:
            raise PosthocError(
                f"selection rule {show(self.rule)!r}", f"one of {listed(RULES)}", "give --select guarded"
            )
        if self.cost is not None:
            utility(self.cost)
        elif self.costed:
            raise PosthocError(
                f"{UTILITY} without costs",
                "what each mistake costs, a row and a column a class",
                "give --cost FILE, or cost=[[0, 1], [5, 0]] in Python",
            )
        if self.class_weight is None:
            if self.weighted:
                raise PosthocError(
                    f"{WEIGHTED} without class weights",
                    "how much each class counts, one number >= 0 a class",
                    "give --class-weight FILE, or class_weight=[...] in Python",
                )
        elif not bool((self.class_weight.isfinite() & (self.class_weight >= 0)).all() and self.class_weight.any()):
            raise PosthocError(
                f"class weights {listed(f'{each:g}' for each in self.class_weight.tolist())}",
                "numbers >= 0, one a class, not all 0",
                "correct --class-weight",
            )

    @property
    def weighted(self) -> bool:
        """Whether the metric or a constraint takes class weights."""
        return WEIGHTED in self._names

    @property
    def costed(self) -> bool:
        """Whether the metric or a constraint takes costs."""
        return UTILITY in self._names

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.metric, *(each.figure for each in self.subject_to))

    @property
    def figure(self) -> Figure:
        """The figure that is made large."""
        return self.named(self.metric)

    def named(self, name: str) -> Figure:
        """A figure by its name, with the goal's class weights and costs where it takes them."""
        figure = FIGURES[name]
        if name == UTILITY and self.cost is not None:
            alike = self.class_weight is None
            return replace(figure, worth=utility(self.cost), weight=self.class_weight, weigh=alike)
        return replace(figure, weight=self.class_weight) if name == WEIGHTED else figure

    def on(self, labels: Tensor) -> Goal:
        """The goal as far as these samples carry it: without a sample of a group, its figure says nothing.

        Such a group's constraints are dropped, and as the metric balanced accuracy stands in for it; so it does where
        no class that has a sample weighs anything.
        """
        present = torch.bincount(labels) > 0

        def carried(name: str) -> bool:
            figure = self.named(name)
            counting = figure.weight if figure.group is None or self.groups is None else self.groups[figure.group]
            return counting is None or bool(counting[: len(present)][present].any())

        return replace(
            self,
            metric=self.metric if carried(self.metric) else "balanced-accuracy",
            subject_to=tuple(each for each in self.subject_to if carried(each.figure)),
        )

    def weights(self, labels: Tensor) -> Tensor:
        """Sample weights (N,) of the likelihood, summing to 1.

        Alike for plain accuracy, as the metric has it for the weighted one and for utility, else class-balanced: the
        likelihood of one group alone would have the others unlearned.
        """
        own = self.metric in ("accuracy", WEIGHTED, UTILITY)
        figure = self.figure if own else FIGURES["balanced-accuracy"]
        classes = int(labels.max()) + 1 if figure.weight is None else len(figure.weight)
        return sample_weight(figure, labels, classes)
