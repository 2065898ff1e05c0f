"""Networks with the same tensors that compute differently, as users' own code: `pooled:maximum`, `pooled:average`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Pooled(nn.Module):
    """Two convolutions, each followed by pooling, and a head.

    Args:
        pool: the pooling.
        classes: C.
    """

    def __init__(self, pool: Callable[[int], nn.Module], classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.pool = pool(4)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.first(x)))
        logits: Tensor = self.fc(self.pool(torch.relu(self.second(x))).flatten(1))
        return logits


def maximum() -> nn.Module:
    """With the largest of each square."""
    return Pooled(nn.MaxPool2d)


def average() -> nn.Module:
    """With the mean of each square."""
    return Pooled(nn.AvgPool2d)


class Strided(nn.Module):
    """The mean of each square, computed as a convolution."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.full((x.shape[1], 1, self.side, self.side), 1 / self.side**2)
        return nn.functional.conv2d(x, weight, stride=self.side, groups=x.shape[1])


def strided() -> nn.Module:
    """As `average` up to rounding, by other operations."""
    return Pooled(Strided)


def much_wider() -> nn.Module:
    """Its pooling leaves nothing of small images."""
    return Pooled(lambda side: nn.MaxPool2d(8 * side))
