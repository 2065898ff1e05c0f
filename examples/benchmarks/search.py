"""What the exact search costs, against one matrix product and a grid that recomputes logits.

python examples/benchmarks/search.py [--samples 20000 --dimensions 2048 --classes 1000] [--json]

Every time is the median of `--repeats` runs after one to warm up, in this one process; memory is the
peak of the process above what it held when the inputs were in place.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from posthoc_lt.family import KeptBias, Line, Power
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search import FIGURES, step_curve, winning_intervals
from posthoc_lt.search.envelope import walk
from posthoc_lt.search.trace import trace

BOUNDS = (0.0, 4.0)


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """The median time of `run` after one warm-up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory(run: Callable[[], object]) -> float:
    """How far the process's resident memory rises above its present level while `run` runs, in MB (Linux)."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present

    def read(field: str) -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024

    before = read("VmRSS")
    run()
    return read("VmHWM") - before


def grid_search(x: torch.Tensor, head: Head, y: torch.Tensor, log_prior: torch.Tensor, points: int = 21) -> float:
    """The reference codes' way: logits anew at every grid point, balanced accuracy, the best point."""
    best, knob = -1.0, 0.0
    counts = torch.bincount(y, minlength=head.classes)
    for tau in torch.linspace(0, 2, points).tolist():
        right = (x @ head.weight.T - tau * log_prior).argmax(dim=1) == y
        recall = torch.bincount(y[right], minlength=head.classes) / counts.clamp(min=1)
        score = float(recall[counts > 0].mean())
        if score > best:
            best, knob = score, tau
    return knob


def measure(samples: int, dimensions: int, classes: int, repeats: int) -> dict[str, float]:
    """Times relative to one float32 ``X @ W.T`` of the same size, and memory in MB."""
    torch.manual_seed(0)
    x = torch.randn(samples, dimensions)
    y = torch.randint(0, classes, (samples,))
    weight = torch.randn(classes, dimensions) / dimensions**0.5
    counts = torch.logspace(3, 0.7, classes).double()
    log_prior = (counts / counts.sum()).log()
    head, features = Head(weight, torch.zeros(classes)), Features(x, y)
    weights = torch.full((samples,), 1 / samples, dtype=torch.float64)
    norms = weight.double().norm(dim=1).log()
    adjust = Line(head, Head(torch.zeros(classes, dimensions).double(), -log_prior))
    power, kept = Power(Head.without_bias(weight), norms), KeptBias(head, norms)

    def all_figures() -> None:
        walked = walk(adjust, features, BOUNDS)
        for name in ("balanced-accuracy", "accuracy", "macro-f1", "g-mean", "harmonic-mean"):
            trace(walked, FIGURES[name])

    runs = {
        "logit_adjust": lambda: step_curve(winning_intervals(adjust, features), weights, BOUNDS),
        "tau_norm": lambda: step_curve(winning_intervals(power, features), weights, BOUNDS),
        "all_figures": all_figures,
        "tau_norm_kept_bias": lambda: walk(kept, features, BOUNDS),
        "grid_of_21": lambda: grid_search(x, head, y, log_prior.float()),
    }
    # Memory first: later runs find what the allocator has kept of earlier ones.
    measured = ("logit_adjust", "tau_norm", "all_figures")
    memory = {f"{name}_memory_mb": peak_memory(runs[name]) for name in measured}
    product = median_seconds(lambda: x @ weight.T, repeats)
    found = {"matrix_product_seconds": product}
    for name, run in runs.items():
        found[f"{name}_ratio"] = median_seconds(run, repeats) / product
    found["grid_over_exact"] = found["grid_of_21_ratio"] / found["logit_adjust_ratio"]
    return {**found, **memory}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = {name: getattr(arguments, name) for name in ("samples", "dimensions", "classes", "repeats")}
    found = {**size, "threads": torch.get_num_threads(), **measure(**size)}
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:>24}  {value:.4g}")


if __name__ == "__main__":
    main()
