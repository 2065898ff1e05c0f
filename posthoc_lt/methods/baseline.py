"""The untouched head, to compare every method with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posthoc_lt.family import Point
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method


@dataclass(frozen=True)
class Baseline(Method):
    """The untouched head, ``W' = W, b' = b``.

    >>> import torch
    >>> from posthoc_lt.methods import METHODS
    >>> METHODS["baseline"]().fit(Head(torch.eye(2), torch.zeros(2)), Training(torch.tensor([9, 1]))).at(None)
    Head(2 classes, 2 dimensions)
    """

    formula: ClassVar[str] = "W' = W, b' = b"
    control: ClassVar[bool] = True

    def fit(self, head: Head, training: Training) -> Point:
        """The head itself."""
        return Point(head)
