"""What the examples beside it share: the embedded case's features, heads trained on them by any loss, and tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from posthoc_lt import FeatureSet, Head, evaluate, extract, load_features
from posthoc_lt.cli.demo import unpack
from posthoc_lt.evaluation import Evaluation, difference
from posthoc_lt.features import Features

L2 = (1e-2, 1e-3)
"""Penalties to choose from, the strongest first."""


def features_of(file: Path | None) -> FeatureSet:
    """The features of a file that `posthoc-lt extract` wrote, or of the embedded case where there is none."""
    if file is not None:
        return load_features(file)
    with tempfile.TemporaryDirectory() as folder:
        unpack(Path(folder))
        return extract(Path(folder) / "model.pt", Path(folder) / "data")


def fit(
    train: Features,
    classes: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    l2: float,
    prepare: Callable[[nn.Linear], None] = lambda layer: None,
    steps: int = 100,
) -> Head:
    """A head by full-batch L-BFGS: mean loss + l2/2·‖W‖² on standardised features, the bias free of decay.

    `prepare` may change the layer before the first step. All of x is converted at once: fit for examples.
    """
    x, y = train.x.double(), train.labels
    mean, spread = x.mean(dim=0), (x - x.mean(dim=0)).square().mean().sqrt()
    x = (x - mean) / spread
    layer = nn.Linear(train.dimensions, classes, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    prepare(layer)
    optimiser = torch.optim.LBFGS(
        layer.parameters(), max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        value = loss(layer(x), y) + l2 / 2 * layer.weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimiser.step(objective)
    weight = layer.weight.detach() / spread
    return Head(weight, layer.bias.detach() - weight @ mean)


def balanced(head: Head, split: Features, counts: Tensor) -> float:
    """Balanced accuracy in percent."""
    return 100 * evaluate(head, split, counts).balanced_accuracy


def gain(before: Evaluation, after: Evaluation) -> str:
    """The paired difference in balanced accuracy with its 95% interval, in points."""
    found = difference(before, after)
    return f"{100 * found.delta:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, numbers to the right."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print()
