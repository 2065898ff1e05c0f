"""What heads are judged by: balanced accuracy, accuracy under other class frequencies, or what mistakes cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from posthoc_lt.columns import computed
from posthoc_lt.metrics import utility
from posthoc_lt.stats import LEVEL, Paired, class_shares, mean_interval, paired


@dataclass(frozen=True, eq=False)
class Yardstick:
    """The mean worth of predictions, ``Σ_c v_c · mean of u(y, ŷ) over the samples of class c``, v over classes present.

    Args:
        target: (C,) the class frequencies v; without them every class counts alike, or with costs every sample.
        cost: (C, C) what a sample of the row's class costs where it is predicted as the column's, and so
            u = `posthoc_lt.metrics.utility`; without it u is 1 for right and 0 for wrong.

    Raises:
        PosthocError: costs that are no square of numbers >= 0.
    """

    target: Tensor | None = None
    cost: Tensor | None = None

    def __post_init__(self) -> None:
        _ = self._utility

    @property
    def name(self) -> str:
        """In words."""
        what = "utility" if self.cost is not None else "balanced accuracy" if self.target is None else "accuracy"
        return what + " under the target prior" * (self.target is not None)

    @property
    def told(self) -> str:
        """In words, and how costs become utility."""
        return self.name + ("" if self.cost is None else f", 1 - cost/{float(self.cost.max()):g}")

    @property
    def short(self) -> str:
        """As a column's heading."""
        return "utility" if self.cost is not None else "balanced" if self.target is None else "on target"

    @property
    def key(self) -> str:
        """As a key of JSON."""
        return "utility" if self.cost is not None else "balanced_accuracy" if self.target is None else "target_accuracy"

    def score(self, labels: Tensor, predicted: Tensor, classes: int) -> float:
        """The mean worth of predictions (N,)."""
        size = torch.bincount(labels, minlength=classes)
        total = torch.bincount(labels, weights=self.worth(labels, predicted), minlength=classes)
        return float((class_shares(size, self._weight(size)) * total / size.clamp(min=1)).sum())

    def interval(
        self, labels: Tensor, predicted: Tensor, classes: int, counts: Tensor | None = None, level: float = LEVEL
    ) -> tuple[float, float]:
        """Its interval; see `posthoc_lt.stats.mean_interval`."""
        weight = self._weight(torch.bincount(labels, minlength=classes))
        return mean_interval(labels, self.worth(labels, predicted), classes, level, weight, counts)

    def difference(self, labels: Tensor, before: Tensor, after: Tensor, classes: int, level: float = LEVEL) -> Paired:
        """What predictions `after` (N,) are worth more than those `before`; see `posthoc_lt.stats.paired`."""
        a, b = (self.worth(labels, predicted) for predicted in (before, after))
        return paired(labels, a, b, classes, self._weight(torch.bincount(labels, minlength=classes)), level)

    def record(self, score: float, interval: tuple[float, float]) -> dict[str, object]:
        """A score and its interval for JSON, with the mean cost that it stands for."""
        found: dict[str, object] = {self.key: score, f"{self.key}_ci": list(interval)}
        if self.cost is not None:
            found |= {"cost": self.mean_cost(score), "cost_ci": [self.mean_cost(end) for end in reversed(interval)]}
        return found

    def mean_cost(self, score: float) -> float:
        """What predictions of this score cost on average."""
        return 0.0 if self.cost is None else (1 - score) * float(self.cost.max())

    def worth(self, labels: Tensor, predicted: Tensor) -> Tensor:
        """What every prediction is worth, u, (N,) float64."""
        utility = self._utility
        if utility is None:
            return computed(len(labels), lambda rows: (labels[rows] == predicted[rows]).double())
        return computed(len(labels), lambda rows: utility[labels[rows], predicted[rows]])

    @cached_property
    def _utility(self) -> Tensor | None:
        return None if self.cost is None else utility(self.cost)

    def _weight(self, size: Tensor) -> Tensor | None:
        return size if self.target is None and self.cost is not None else self.target


BALANCED = Yardstick()
"""Balanced accuracy."""
