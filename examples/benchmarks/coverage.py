"""Whether 95% intervals cover, and whether the paired test keeps its 5%: on heads of real feature sets, and simulated.

A real population is a set's validation pool under two heads, the untouched one and logit adjustment at τ = 1; test
sets are drawn from it with replacement, class by class, so that its own accuracies are the exact truth. A simulated
population is a list of recalls. The paired test is judged under two null hypotheses: the outcomes of the two heads
exchanged at random, sample by sample; and two heads, logit adjustment with a τ too low and one too high, whose
balanced accuracies on the pool are equal while their recalls are not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from feature_sets import add_options, load_sets
from selection import BOUNDS, long_tailed_sizes
from torch import Tensor

import posthoc_lt
from posthoc_lt import METHODS, Features, FeatureSet, Head
from posthoc_lt.features import Training
from posthoc_lt.metrics import Tally, group_classes
from posthoc_lt.search import Goal, step_curve, winning_intervals
from posthoc_lt.stats import accuracy_interval, balanced_interval, paired

SIZES: tuple[int | str, ...] = (1, 2, 3, 5, 20, "long-tailed")
WANTED = (0.93, 0.985)
WANTED_SIZE = 0.06

SIMULATED: dict[str, Tensor] = {
    "10 at 0.7": torch.full((10,), 0.7),
    "10 at 0.97": torch.full((10,), 0.97),
    "10 from 0.95 to 0.2": torch.linspace(0.95, 0.2, 10),
    "100 from 0.95 to 0.2": torch.linspace(0.95, 0.2, 100),
    "100 at 0.99": torch.full((100,), 0.99),
    "100, half of them at 0": torch.tensor([0.9, 0.0]).repeat_interleave(50),
    "1000 from 0.9 to 0": torch.linspace(0.9, 0.0, 1000),
    "1000 at 0.99": torch.full((1000,), 0.99),
    "100 at 0.9, 0.1 by turns": torch.tensor([0.9, 0.1]).repeat(50),
}
"""Recalls by class, the many-shot classes first."""


@dataclass(frozen=True)
class Cell:
    """How often an interval held the truth, or a test rejected a true null hypothesis."""

    population: str
    figure: str
    test: int | str
    samples: int
    truth: float
    share: float


class Population:
    """Samples of C classes on which two heads are right or wrong.

    Args:
        labels: (N,) true classes, every one present.
        right: two tensors (N,) bool, head a's and head b's outcomes.
    """

    def __init__(self, labels: Tensor, right: tuple[Tensor, Tensor]) -> None:
        order = labels.argsort(stable=True)
        self.sizes = torch.bincount(labels)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.right = tuple(outcome[order] for outcome in right)
        self.recall = tuple(torch.bincount(labels, weights=outcome.double()) / self.sizes for outcome in right)

    def draw(self, sizes: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Labels and both outcomes of a test set with `sizes` samples a class, drawn with replacement."""
        labels = torch.arange(len(sizes)).repeat_interleave(sizes)
        place = torch.rand(len(labels), generator=rng, dtype=torch.float64)
        rows = self.starts[labels] + (place * self.sizes[labels]).long()
        a, b = (outcome[rows] for outcome in self.right)
        return labels, a, b


def count(labels: Tensor, right: Tensor, sizes: Tensor) -> Tally:
    """A tally of outcomes alone: no interval reads the predicted classes, for which the true ones stand in."""
    return Tally(torch.bincount(labels[right], minlength=len(sizes)), sizes, sizes)


def share_covered(truth: float, intervals: Sequence[tuple[float, float]]) -> float:
    # Sums in another order differ in their last bits: an interval that ends on the truth holds it.
    return sum(low - 1e-12 <= truth <= high + 1e-12 for low, high in intervals) / len(intervals)


def cover_real(
    name: str, size: int | str, people: Population, sizes: Tensor, counts: Tensor, draws: int, rng: torch.Generator
) -> Iterator[Cell]:
    """Coverage of every interval at one test size of a real population."""
    few = group_classes(counts)["few"]
    a, b = people.recall
    samples, present = int(sizes.sum()), sizes > 0
    truths = {
        "balanced accuracy": float(a[present].mean()),
        "balanced accuracy, adjusted": float(b[present].mean()),
        "accuracy, adjusted": float((b * sizes).sum() / samples),
        "paired difference": float((b - a)[present].mean()),
    }
    if few.any():
        truths["few-shot, adjusted"] = float(b[few].mean())
    found: dict[str, list[tuple[float, float]]] = {figure: [] for figure in truths}
    for _ in range(draws):
        labels, right_a, right_b = people.draw(sizes, rng)
        adjusted, difference = count(labels, right_b, sizes), paired(labels, right_a, right_b, len(sizes))
        found["balanced accuracy"].append(balanced_interval(count(labels, right_a, sizes), counts=counts))
        found["balanced accuracy, adjusted"].append(balanced_interval(adjusted, counts=counts))
        found["accuracy, adjusted"].append(accuracy_interval(adjusted))
        found["paired difference"].append((difference.low, difference.high))
        if few.any():
            found["few-shot, adjusted"].append(balanced_interval(adjusted, weight=few, counts=counts))
    for figure, truth in truths.items():
        yield Cell(name, figure, size, samples, truth, share_covered(truth, found[figure]))


def cover_simulated(name: str, size: int | str, draws: int, rng: torch.Generator) -> Cell:
    """Coverage of the interval of balanced accuracy where every class's recall is known."""
    recall = SIMULATED[name].double()
    sizes = torch.full((len(recall),), size) if isinstance(size, int) else profile(len(recall))
    trials = torch.distributions.Binomial(sizes.double(), recall)
    torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
    drawn = trials.sample((draws,))  # type: ignore[no-untyped-call]
    intervals = [balanced_interval(Tally(right.long(), sizes, sizes)) for right in drawn]
    truth = float(recall.mean())
    return Cell(name, "balanced accuracy", size, int(sizes.sum()), truth, share_covered(truth, intervals))


def profile(classes: int) -> Tensor:
    """A long-tailed test: 100 samples to 1, falling exponentially."""
    return torch.logspace(2, 0, classes, dtype=torch.float64).round().long()


def rejected(people: Population, sizes: Tensor, exchange: bool, draws: int, rng: torch.Generator) -> float:
    """How often the paired test finds a difference at 5%."""
    found = 0
    for _ in range(draws):
        labels, a, b = people.draw(sizes, rng)
        if exchange:
            swap = torch.rand(len(a), generator=rng) < 0.5
            a, b = torch.where(swap, b, a), torch.where(swap, a, b)
        found += paired(labels, a, b, len(sizes)).p < 0.05
    return found / draws


def equals(features: FeatureSet, pool: Features) -> tuple[Head, Head]:
    """Two heads of logit adjustment on either side of the best τ, equally good on the pool.

    Their accuracy lies half way between the best and that of the better end of the range.
    """
    family = METHODS["logit-adjust"]().fit(features.head, Training(features.counts))
    curve = step_curve(winning_intervals(family, pool), Goal().weights(pool.labels), BOUNDS)
    values, best = curve.values, int(curve.values.argmax())
    level = float(values[best] + max(values[0], values[-1])) / 2
    low = int((values[:best] <= level).nonzero()[-1])
    high = best + int((values[best:] <= level).nonzero()[0])
    return tuple(family.at(float(curve.edges[k : k + 2].mean())) for k in (low, high))  # type: ignore[return-value]


def populate(features: FeatureSet, pool: Features, heads: tuple[Head, Head]) -> Population:
    a, b = (posthoc_lt.evaluate(head, pool, features.counts).right for head in heads)
    return Population(pool.labels, (a, b))


def measure(name: str, features: FeatureSet, draws: int, rng: torch.Generator) -> tuple[list[Cell], list[Cell]]:
    """Coverage and size on one real feature set."""
    pool, classes = features.val, features.head.classes
    assert pool is not None
    adjusted = METHODS["logit-adjust"]().fit(features.head, Training(features.counts)).at(1.0)
    people = populate(features, pool, (features.head, adjusted))
    level = populate(features, pool, equals(features, pool))
    intervals: list[Cell] = []
    tests: list[Cell] = []
    for size in SIZES:
        wanted = [size] * classes if isinstance(size, int) else long_tailed_sizes(features.counts, pool.counts(classes))
        sizes = torch.tensor(wanted)
        intervals += cover_real(name, size, people, sizes, features.counts, draws, rng)
        gap = float((level.recall[1] - level.recall[0]).mean())
        for null, population, exchange in (("exchanged", people, True), ("equal", level, False)):
            found = rejected(population, sizes, exchange, draws, rng)
            tests.append(Cell(name, null, size, sum(wanted), 0.0 if exchange else gap, found))
    return intervals, tests


def summarise(intervals: Sequence[Cell], tests: Sequence[Cell], draws: int) -> dict[str, object]:
    """Range and shortcomings, counting only what lies outside by more than twice the benchmark's own error."""
    slack = 2 * (0.95 * 0.05 / draws) ** 0.5
    low, high = WANTED
    balanced = [cell for cell in intervals if cell.figure.startswith("balanced")]
    return {
        "wanted": WANTED,
        "balanced": [min(cell.share for cell in balanced), max(cell.share for cell in balanced)],
        "outside": [vars(cell) for cell in intervals if not low - slack <= cell.share <= high + slack],
        "wanted_size": WANTED_SIZE,
        "size": max(cell.share for cell in tests),
        "too_large": [vars(cell) for cell in tests if cell.share > WANTED_SIZE + slack],
    }


def print_table(title: str, cells: Sequence[Cell], fits: Callable[[float], bool]) -> None:
    """One row a population and figure, one column a test size; a star where the share is not as wanted."""
    print(f"{title}\n\n{'population':24}{'':30}" + "".join(f"{size!s:>13}" for size in SIZES))
    rows: dict[tuple[str, str], dict[int | str, float]] = {}
    for cell in cells:
        rows.setdefault((cell.population, cell.figure), {})[cell.test] = cell.share
    for (population, figure), shares in rows.items():
        shown = "".join(f"{f'{100 * shares[size]:.1f}' + ' *'[not fits(shares[size])]:>13}" for size in SIZES)
        print(f"{population:24}{figure:30}{shown}")
    print()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--draws", type=int, default=2000, help="test sets of each kind (default 2000)")
    options = parser.parse_args(arguments)
    start, rng = time.perf_counter(), torch.Generator().manual_seed(options.seed)
    draws = options.draws
    intervals = [cover_simulated(name, size, draws, rng) for name in SIMULATED for size in SIZES]
    tests: list[Cell] = []
    for name, features in load_sets(options.sets, options.cache).items():
        covered, sized = measure(name, features, draws, rng)
        intervals, tests = intervals + covered, tests + sized
    summary = summarise(intervals, tests, draws)
    if options.json:
        found = {
            "benchmark": "coverage",
            "version": posthoc_lt.__version__,
            "draws": draws,
            "seed": options.seed,
            "seconds": time.perf_counter() - start,
            "coverage": [vars(cell) for cell in intervals],
            "size": [vars(cell) for cell in tests],
            "summary": summary,
        }
        print(json.dumps(found, indent=1))
        return
    low, high = WANTED
    print_table("Coverage of 95% intervals, in %, by test samples a class", intervals, lambda s: low <= s <= high)
    print_table("Size of the paired test at 5%, in %", tests, lambda share: share <= WANTED_SIZE)


if __name__ == "__main__":
    main()
