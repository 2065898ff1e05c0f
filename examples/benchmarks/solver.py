"""What fitting costs: against scikit-learn and torch's L-BFGS, or every method against one matrix product.

python examples/benchmarks/solver.py [--samples 20000 --dimensions 512 --classes 100] [--json]
python examples/benchmarks/solver.py --size imagenet-lt [--fraction 0.1] [--json]

The first fits class-balanced logistic regression once each at the penalties asked for, float32 features in
memory, and recomputes every objective in float64. The second puts synthetic float16 features on disk, in the
shape of ImageNet-LT or a fraction of it (samples, dimensions and classes alike), and times `compare` in units of
one float32 product of train features and weights, with the anonymous memory that it takes at its peak (Linux).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import posthoc_lt
from posthoc_lt import FeatureSet, Head, load_features, save_features
from posthoc_lt.features import Features
from posthoc_lt.priors import class_weights
from posthoc_lt.solver import fit_logistic

IMAGENET_LT = {"samples": 115_846, "dimensions": 2048, "classes": 1000, "per_class": 20}
TOLERANCE = 1.5e-3
"""The relative gradient norm that `fit_logistic` is asked for here; scikit-learn's own tol is 1e-4."""


def long_tail(samples: int, classes: int, imbalance: float) -> Tensor:
    """Counts (C,) that fall geometrically and sum to N, at least one each."""
    share = torch.logspace(0, -float(np.log10(imbalance)), classes, dtype=torch.float64)
    counts = (share / share.sum() * samples).round().clamp(min=1).long()
    counts[0] += samples - counts.sum()
    return counts


class Backbone:
    """Rectified Gaussian classes whose directions differ in size, as features behind a ReLU do."""

    def __init__(self, dimensions: int, classes: int, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.scale = torch.linspace(2.0, 0.3, dimensions)
        self.means = 0.25 * torch.randn(classes, dimensions, generator=self.generator)

    def draw(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Features in random order, and labels."""
        y = torch.repeat_interleave(torch.arange(len(counts)), counts)
        y = y[torch.randperm(len(y), generator=self.generator)]
        noise = torch.randn(len(y), len(self.scale), generator=self.generator)
        return noise.add_(self.means[y]).mul_(self.scale).add_(0.3).relu_(), y


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def against_peers(samples: int, dimensions: int, classes: int, imbalance: float, l2: float) -> dict[str, float]:
    """Seconds and float64 objectives of three solvers of ``Σ wᵢ CE + (l2/2)‖W‖²``, wᵢ = 1/(C·n_y)."""
    x, y = Backbone(dimensions, classes).draw(long_tail(samples, classes, imbalance))
    weights = class_weights(torch.bincount(y))
    each = weights[y].float()

    def objective(weight: Tensor, bias: Tensor) -> float:
        value = l2 / 2 * weight.double().square().sum()
        for part in torch.arange(samples).split(4096):
            logits = x[part].double() @ weight.double().T + bias.double()
            value += weights[y[part]] @ torch.nn.functional.cross_entropy(logits, y[part], reduction="none")
        return value.item()

    mean = weights[y] @ x.double()
    unit = float(weights[y] @ (x - mean).square().mean(dim=1))  # fit_logistic's l2 is in units of this variance

    def ours() -> Any:
        return fit_logistic(Features(x, y), weights, [l2 / unit], tolerance=TOLERANCE)[0]

    def sklearn() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=1 / (samples * l2), class_weight="balanced", tol=1e-4, max_iter=1000)
            return model.fit(x.numpy(), y.numpy())

    def torch_lbfgs() -> tuple[Tensor, Tensor]:
        weight, bias = torch.zeros(classes, dimensions, requires_grad=True), torch.zeros(classes, requires_grad=True)
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            losses = torch.nn.functional.cross_entropy(torch.addmm(bias, x, weight.T), y, reduction="none")
            loss = each @ losses + l2 / 2 * weight.square().sum()
            torch.autograd.backward(loss)
            return loss

        optimiser.step(closure)
        return weight.detach(), bias.detach()

    seconds, solution = timed(ours)
    peer_seconds, peer = timed(sklearn)
    torch_seconds, theirs = timed(torch_lbfgs)
    return {
        "l2": l2,
        "seconds": seconds,
        "objective": objective(solution.weight, solution.bias),
        "relative_gradient": solution.certificate.gradient_norm,
        "iterations": solution.certificate.iterations,
        "sklearn_seconds": peer_seconds,
        "sklearn_objective": objective(torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_)),
        "torch_seconds": torch_seconds,
        "torch_objective": objective(*theirs),
        "seconds_over_sklearn": seconds / peer_seconds,
    }


def feature_file(folder: Path, samples: int, dimensions: int, classes: int, per_class: int) -> Path:
    """A feature file of that shape in float16, its head the true class directions; imbalance 256."""
    source, counts = Backbone(dimensions, classes), long_tail(samples, classes, 256)
    head = Head(source.means / dimensions**0.5, (counts / samples).log())
    val = torch.full((classes,), per_class)
    splits = {}
    for name, size in (("train", counts), ("val", val), ("test", val)):
        x, y = source.draw(size)
        splits[name] = Features(x.half(), y)
    path = folder / "feats.safetensors"
    save_features(FeatureSet(head, **splits), path)
    return path


@contextmanager
def anonymous_peak(interval: float = 0.02) -> Iterator[list[float]]:
    """Fills a list with the most anonymous memory held meanwhile, in MiB (Linux); a thread looks now and then."""
    peak, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(interval):
            line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
            peak[0] = max(peak[0], int(line.split()[1]) / 1024)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def product_times(samples: int, dimensions: int, classes: int) -> list[float]:
    """What a float32 product of such features and weights takes, seven times over."""
    block, weight = torch.randn(min(samples, 8192), dimensions), torch.randn(classes, dimensions)
    block @ weight.T
    return [timed(lambda: block @ weight.T)[0] * samples / len(block) for _ in range(7)]


def all_methods(samples: int, dimensions: int, classes: int, per_class: int) -> dict[str, Any]:
    """`compare` over all methods in units of one float32 product of train features and weights.

    The product's time is the median of fourteen, half of them before and half after: a busy moment of the machine
    would otherwise flatter the ratio.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = feature_file(Path(folder), samples, dimensions, classes, per_class)
        products = product_times(samples, dimensions, classes)
        with anonymous_peak() as peak:
            seconds, found = timed(lambda: posthoc_lt.compare(load_features(path), device="cpu"))
    products += product_times(samples, dimensions, classes)
    product = statistics.median(products)
    return {
        "product_seconds": product,
        "product_seconds_range": [min(products), max(products)],
        "compare_seconds": seconds,
        "compare_products": seconds / product,
        "peak_anonymous_mib": peak[0],
        "methods": [each.name for each in found.fitted],
        "unsolved": [each.name for each in found.fitted if each.certificate and not each.certificate.converged],
        "skipped": dict(found.skipped),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["peers", "imagenet-lt"], default="peers")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--imbalance", type=float, default=256)
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-2, 1e-4])
    parser.add_argument("--fraction", type=float, default=1.0, help="Of ImageNet-LT's samples, dimensions and classes.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    if given.size == "imagenet-lt":
        size = {key: max(2, round(value * given.fraction)) for key, value in IMAGENET_LT.items()}
        size["per_class"] = IMAGENET_LT["per_class"]
        found: list[dict[str, Any]] = [{**size, "threads": threads, **all_methods(**size)}]
    else:
        size = {name: getattr(given, name) for name in ("samples", "dimensions", "classes", "imbalance")}
        found = [{**size, "threads": threads, **against_peers(**size, l2=l2)} for l2 in given.l2]
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for each in found:
        print(
            "\n".join(
                f"{name:>24}  {value:.4g}" if isinstance(value, float) else f"{name:>24}  {value}"
                for name, value in each.items()
            ),
            end="\n\n",
        )


if __name__ == "__main__":
    main()
