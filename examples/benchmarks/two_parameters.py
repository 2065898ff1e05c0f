"""Do methods of two parameters and more pay? Test balanced accuracy against logit adjustment's, on real feature sets.

Every method is fitted on train once; for each validation size, `--draws` validation sets are drawn from the set's pool,
and every method has its knobs chosen on the same ones by the package's default rule. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from feature_sets import add_options, load_sets
from selection import Mean, draw, long_tailed_sizes, points

import posthoc_lt
from posthoc_lt import METHODS, Features, FeatureSet
from posthoc_lt.family import Family, Line, Path, Sheet
from posthoc_lt.search import choose
from posthoc_lt.search.path import predict

SIZES: tuple[int | str, ...] = (5, 20, "long-tailed")
REFERENCE = "logit-adjust"
PENALTIES = (1.0, 0.1, 0.01)
"""Those that crt and blend choose from here: all 13 of the package's own path would take most of the time."""


def families(features: FeatureSet) -> dict[str, Family]:
    """Fitted methods of one knob, then of two and more, with variants of their options."""

    def fitted(name: str, **options: object) -> Family:
        return METHODS[name](**options).fit(features.head, features.training)

    mixes = tuple(fitted("blend", l2=l2) for l2 in PENALTIES)
    lines = tuple(mix for mix in mixes if isinstance(mix, Line))
    return {
        REFERENCE: fitted(REFERENCE),
        "tau-norm": fitted("tau-norm"),
        "crt": Path(PENALTIES, tuple(line.at(1.0) for line in lines)),
        "tau-norm-adjust": fitted("tau-norm-adjust"),
        "blend": Sheet("l2", PENALTIES, lines, (0.0,) * len(lines)),
        "blend ncm": fitted("blend", other="ncm"),
        "offsets": fitted("offsets"),
        "offsets 0.2": fitted("offsets", deviation=0.2),
        "offsets 1": fitted("offsets", deviation=1.0),
    }


@dataclass(frozen=True)
class Cell:
    """One set and validation size: the reference's test balanced accuracy, and what every other method adds to it."""

    name: str
    validation: int | str
    samples: int
    reference: Mean
    gain: dict[str, Mean]

    def as_json(self) -> dict[str, object]:
        return {**vars(self), "reference": vars(self.reference), "gain": {k: vars(v) for k, v in self.gain.items()}}


def balanced_accuracy(labels: torch.Tensor, predicted: torch.Tensor) -> float:
    right = torch.bincount(labels, weights=(predicted == labels).double())
    size = torch.bincount(labels)
    return float((right / size)[size > 0].mean())


def measure(name: str, features: FeatureSet, draws: int, seed: int) -> list[Cell]:
    """Every cell of one set."""
    pool, test, classes = features.val, features.test, features.head.classes
    assert pool is not None
    assert test is not None
    made = families(features)
    cells = []
    for size in SIZES:
        rng = torch.Generator().manual_seed(seed)
        wanted = [size] * classes if isinstance(size, int) else long_tailed_sizes(features.counts, pool.counts(classes))
        vals = [pool.subset(draw(pool.labels, wanted, rng)) for _ in range(draws)]
        reached = {label: [judge(family, val, test) for val in vals] for label, family in made.items()}
        base = reached.pop(REFERENCE)
        gain = {label: Mean.of([a - b for a, b in zip(each, base, strict=True)]) for label, each in reached.items()}
        cells.append(Cell(name, size, sum(wanted), Mean.of(base), gain))
    return cells


def judge(family: Family, val: Features, test: Features) -> float:
    """Test balanced accuracy of the head that validation chooses."""
    return balanced_accuracy(test.labels, predict(choose(family, val).head, test))


def summarise(cells: Sequence[Cell]) -> dict[str, dict[str, dict[str, float]]]:
    """By method and validation size, the gain averaged over sets, and the sets on which it is a gain or a loss.

    The error is that over sets: what a set not among these may do.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for label in cells[0].gain:
        gains = {size: [cell.gain[label].mean for cell in cells if cell.validation == size] for size in SIZES}
        found[label] = {
            str(size): {**vars(Mean.of(each)), "wins": sum(g > 0 for g in each), "worst": min(each)}
            for size, each in gains.items()
            if each
        }
    return found


def print_table(cells: Sequence[Cell], summary: dict[str, dict[str, dict[str, float]]]) -> None:
    labels = list(cells[0].gain)
    print(f"Test balanced accuracy of {REFERENCE} in %, and points that others add: mean ± standard error over draws")
    print(f"\n{'set':21}{'validation':>12}{REFERENCE:>14}" + "".join(f"{label:>16}" for label in labels))
    for cell in cells:
        size = f"{cell.validation} a class" if isinstance(cell.validation, int) else f"long, {cell.samples}"
        shown = "".join(f"{signed(cell.gain[label]):>16}" for label in labels)
        print(f"{cell.name:21}{size:>12}{points(cell.reference):>14}{shown}")
    print("\nmean over sets ± standard error over sets; below, on how many it gains, and its worst")
    for size in map(str, SIZES):
        means = [summary[label][size] for label in labels]
        print(f"{size:47}" + "".join(f"{signed(Mean(m['mean'], m['se'])):>16}" for m in means))
        wins = (f"{m['wins']} of {len(cells) // len(SIZES)}, {100 * m['worst']:+.2f}" for m in means)
        print(f"{'':47}" + "".join(f"{win:>16}" for win in wins))


def signed(mean: Mean) -> str:
    return f"{100 * mean.mean:+.2f} ± {100 * mean.se:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--draws", type=int, default=20, help="validation sets of each size (default 20)")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    cells: list[Cell] = []
    for name, features in load_sets(options.sets, options.cache).items():
        cells += measure(name, features, options.draws, options.seed)
    summary = summarise(cells)
    if options.json:
        found = {
            "benchmark": "two_parameters",
            "version": posthoc_lt.__version__,
            "draws": options.draws,
            "seed": options.seed,
            "seconds": time.perf_counter() - start,
            "cells": [cell.as_json() for cell in cells],
            "summary": summary,
        }
        print(json.dumps(found, indent=1))
    else:
        print_table(cells, summary)


if __name__ == "__main__":
    main()
