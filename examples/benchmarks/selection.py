"""What each rule of choosing τ costs: balanced test accuracy lost against the best τ there is, on real feature sets.

For every set, method and validation size, `--draws` validation sets are drawn from the set's pool; every rule chooses
τ on the same ones. Regret is the exact maximum over τ in [0, 4] of the test accuracy, minus that at the τ chosen.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from feature_sets import add_options, load_sets
from torch import Tensor

import posthoc_lt
from posthoc_lt import METHODS, Features, FeatureSet
from posthoc_lt.family import Line, Power
from posthoc_lt.features import Training
from posthoc_lt.search import Goal, choose, step_curve, winning_intervals

METHODS_COMPARED = ("logit-adjust", "tau-norm")
BOUNDS = (0.0, 4.0)
GRID = tuple(step / 10 for step in range(21))
SIZES: tuple[int | str, ...] = (1, 3, 5, 20, "long-tailed")
SMALL = (1, 3, 5)

Family = Line | Power


def grid(family: Family, val: Features) -> float:
    """The first of 21 values from 0 to 2 whose validation accuracy is highest, as the public codes' tables read."""
    weights, intervals = Goal().weights(val.labels), winning_intervals(family, val)
    values = [float(weights[intervals.right(tau)].sum()) for tau in GRID]
    # Sums of the same value in another order may differ in their last bits: they are still equal.
    return GRID[next(k for k, value in enumerate(values) if value >= max(values) - 1e-11)]


def by_rule(rule: str) -> Callable[[Family, Features], float]:
    """The package's own choice by `rule`."""

    def chosen(family: Family, val: Features) -> float:
        knob = choose(family, val, Goal(rule=rule), bounds=BOUNDS).knob
        assert knob is not None
        return knob

    return chosen


RULES: dict[str, Callable[[Family, Features], float]] = {
    "guarded": by_rule("guarded"),
    "nll": by_rule("nll"),
    "metric": by_rule("metric"),
    "cross-fit": by_rule("cross-fit"),
    "grid": grid,
    "tau=1": lambda family, val: 1.0,
}


@dataclass(frozen=True)
class Mean:
    """A mean of draws and its standard error."""

    mean: float
    se: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), float(error))


@dataclass(frozen=True)
class Cell:
    """One set, method and validation size: regrets by rule, and by how much guarded's exceeds the grid's.

    `excess` is paired by draw, its error over draws alone. `test_error` is what the finite test set adds: the standard
    error, over test samples, of the same mean difference.
    """

    name: str
    method: str
    validation: int | str
    samples: int
    oracle: float
    regret: dict[str, Mean]
    excess: Mean
    test_error: float

    def above(self, with_test: bool) -> bool:
        """Whether the excess is more than its standard error."""
        return self.excess.mean > math.hypot(self.excess.se, self.test_error if with_test else 0.0)

    def as_json(self) -> dict[str, object]:
        regret = {rule: vars(mean) for rule, mean in self.regret.items()}
        return {**vars(self), "regret": regret, "excess": vars(self.excess)}


class Truth:
    """The test split under one family: its accuracy at every τ, and its samples."""

    def __init__(self, family: Family, test: Features) -> None:
        self.labels = test.labels
        self.weights = Goal().weights(test.labels)
        self.intervals = winning_intervals(family, test)
        self.curve = step_curve(self.intervals, self.weights, BOUNDS)
        self.best = float(self.curve.values.max())

    def regrets(self, taus: Sequence[float]) -> list[float]:
        return [self.best - self.curve.at(tau) for tau in taus]

    def error(self, taus: Sequence[float], others: Sequence[float]) -> float:
        """Standard error over test samples, drawn class by class, of the mean accuracy at `taus` minus `others`."""
        gain = torch.zeros(len(self.labels), dtype=torch.float64)
        for tau, other in zip(taus, others, strict=True):
            gain += (self.intervals.right(tau).double() - self.intervals.right(other).double()) / len(taus)
        size = torch.bincount(self.labels).double()
        mean = torch.bincount(self.labels, weights=gain) / size.clamp(min=1)
        spread = (self.weights * (gain - mean[self.labels])).square() * (size / (size - 1).clamp(min=1))[self.labels]
        return float(spread.sum().sqrt())


def long_tailed_sizes(counts: Tensor, pool: Tensor) -> list[int]:
    """A fifth of train, rounded up, so that every class keeps a sample; less, where the pool holds no fifth."""
    share = min(0.2, float((pool / counts).min()))
    return [math.ceil(share * count - 1e-9) for count in counts.tolist()]


def draw(labels: Tensor, sizes: Sequence[int], rng: torch.Generator) -> Tensor:
    """Rows of a validation set, `sizes` a class, without replacement."""
    shuffled = torch.randperm(len(labels), generator=rng)
    return torch.cat([shuffled[labels[shuffled] == c][:size] for c, size in enumerate(sizes)])


def measure(name: str, features: FeatureSet, draws: int, seed: int) -> list[Cell]:
    """Every cell of one set."""
    pool, test, classes = features.val, features.test, features.head.classes
    assert pool is not None
    assert test is not None
    families: dict[str, Family] = {
        method: METHODS[method]().fit(features.head, Training(features.counts))  # type: ignore[misc]
        for method in METHODS_COMPARED
    }
    truths = {method: Truth(family, test) for method, family in families.items()}
    cells = []
    for size in SIZES:
        rng = torch.Generator().manual_seed(seed)
        wanted = [size] * classes if isinstance(size, int) else long_tailed_sizes(features.counts, pool.counts(classes))
        vals = [pool.subset(draw(pool.labels, wanted, rng)) for _ in range(draws)]
        for method, family in families.items():
            truth = truths[method]
            taus = {rule: [chosen(family, val) for val in vals] for rule, chosen in RULES.items()}
            regrets = {rule: truth.regrets(values) for rule, values in taus.items()}
            excess = Mean.of([a - b for a, b in zip(regrets["guarded"], regrets["grid"], strict=True)])
            means = {rule: Mean.of(values) for rule, values in regrets.items()}
            error = truth.error(taus["grid"], taus["guarded"])
            cells.append(Cell(name, method, size, sum(wanted), truth.best, means, excess, error))
    return cells


def summarise(cells: Sequence[Cell]) -> dict[str, object]:
    """Mean regret by rule over the small balanced validation sets, and where guarded does worse than the grid."""
    small = [cell for cell in cells if cell.validation in SMALL]
    mean = {rule: float(np.mean([cell.regret[rule].mean for cell in small])) for rule in RULES}
    above, clearly = (
        [f"{cell.name} {cell.method} {cell.validation}" for cell in cells if cell.above(with_test)]
        for with_test in (False, True)
    )
    return {
        "validation": list(SMALL),
        "mean_regret": mean,
        "guarded_over_grid": mean["guarded"] / mean["grid"] if mean["grid"] else None,
        "at_most_half": mean["guarded"] <= 0.5 * mean["grid"],
        "above_grid": above,
        "above_grid_with_test_error": clearly,
    }


def print_table(cells: Sequence[Cell], summary: dict[str, object]) -> None:
    print("Regret in points of balanced test accuracy: mean ± standard error over draws\n")
    print(f"{'set':21}{'method':13}{'validation':>13}{'oracle':>8}" + "".join(f"{rule:>13}" for rule in RULES))
    for cell in cells:
        size = f"{cell.validation} a class" if isinstance(cell.validation, int) else f"long, {cell.samples}"
        shown = "".join(f"{points(mean):>13}" for mean in cell.regret.values())
        print(f"{cell.name:21}{cell.method:13}{size:>13}{100 * cell.oracle:8.2f}{shown}")
    mean = summary["mean_regret"]
    assert isinstance(mean, dict)
    print(f"\n{'mean over 1, 3 and 5 a class':55}" + "".join(f"{f'{100 * v:.2f}':>13}" for v in mean.values()))
    print(f"guarded / grid: {summary['guarded_over_grid']:.2f} (wanted: at most 0.50)")
    print(
        "\nguarded above the grid by more than the standard error over draws (in brackets: with that of the test set)"
    )
    for cell in cells:
        if cell.above(False):
            both = math.hypot(cell.excess.se, cell.test_error)
            within = "" if cell.above(True) else ", within it"
            name = f"{cell.name} {cell.method} {cell.validation}"
            print(f"  {name:44}+{points(cell.excess)} ({100 * both:.2f}{within})")


def points(mean: Mean) -> str:
    return f"{100 * mean.mean:.2f} ± {100 * mean.se:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--draws", type=int, default=50, help="validation sets of each size (default 50)")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    cells: list[Cell] = []
    for name, features in load_sets(options.sets, options.cache).items():
        cells += measure(name, features, options.draws, options.seed)
    summary = summarise(cells)
    if options.json:
        found = {
            "benchmark": "selection",
            "version": posthoc_lt.__version__,
            "draws": options.draws,
            "seed": options.seed,
            "bounds": BOUNDS,
            "seconds": time.perf_counter() - start,
            "cells": [cell.as_json() for cell in cells],
            "summary": summary,
        }
        print(json.dumps(found, indent=1))
    else:
        print_table(cells, summary)


if __name__ == "__main__":
    main()
