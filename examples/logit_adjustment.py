"""Menon 2021 (arXiv:2007.07314) on cached features: balanced error over tau, and weight norms under two optimisers.

python examples/logit_adjustment.py [--features feats.safetensors] [--plot figure.png]

Logits are adjusted post-hoc, on the untouched head, and in the loss that a head is trained with anew: to its minimum,
and by SGD. On fixed features with a free bias the minimum of the adjusted loss is that of plain cross-entropy with
τ log π taken off its bias, so that loss and post-hoc adjustment of a refitted head are one: what the loss adds in the
paper, it adds through the backbone or by stopping early. Validation chooses τ, and the penalty of the minimum; test
judges.

Then the norms of a head's rows, trained from one start by SGD with momentum and by Adam, against class sizes: weight
normalisation rests on their growing together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from embedded_case import L2, balanced, features_of, fit, gain, show
from scipy.stats import spearmanr
from torch import Tensor, nn

from posthoc_lt import FeatureSet, Head, evaluate
from posthoc_lt.features import Features
from posthoc_lt.losses import LogitAdjusted, cross_entropy
from posthoc_lt.priors import log_prior
from posthoc_lt.recipe import Schedule, sgd
from posthoc_lt.sampling import InstanceBalancedSampler

TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
OPTIMISERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "SGD, momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


@dataclass(frozen=True)
class Curve:
    """Heads over τ by one way, their balanced errors (percent) on val and test, and which of them val chooses."""

    way: str
    heads: list[Head]
    val: list[float]
    test: list[float]

    @property
    def chosen(self) -> int:
        return min(range(len(self.heads)), key=lambda k: self.val[k])


def curve(way: str, features: FeatureSet, candidates: Sequence[Sequence[Head]]) -> Curve:
    """The curve of the candidate that validation likes best at each τ."""
    counts = features.counts
    heads = [max(at_tau, key=lambda head: balanced(head, features.val, counts)) for at_tau in candidates]
    val, test = ([100 - balanced(head, split, counts) for head in heads] for split in (features.val, features.test))
    return Curve(way, heads, val, test)


def curves(features: FeatureSet, taus: Sequence[float], penalties: Sequence[float], epochs: int) -> list[Curve]:
    """Post-hoc on the untouched head, then by the loss: its minimum, and SGD's way toward it."""
    prior, classes = log_prior(features.counts), features.head.classes
    refitted = [fit(features.train, classes, cross_entropy, l2) for l2 in penalties]
    schedule = Schedule(epochs=epochs, batch=128, lr=0.1)

    def adjusted(head: Head, tau: float) -> Head:
        return Head(head.weight.double(), head.bias.double() - tau * prior)

    def trained(tau: float) -> Head:
        sampler = InstanceBalancedSampler(features.train.labels)
        return sgd(features.train, classes, schedule=schedule, sampler=sampler, loss=LogitAdjusted(prior, tau))

    return [
        curve("post-hoc", features, [[adjusted(features.head, tau)] for tau in taus]),
        curve("loss, minimum", features, [[adjusted(head, tau) for head in refitted] for tau in taus]),
        curve("loss, SGD", features, [[trained(tau)] for tau in taus]),
    ]


def train(features: Features, classes: int, name: str, epochs: int, batch: int = 128) -> Head:
    """A head trained with plain cross-entropy, from the start and in the order that every optimiser gets."""
    torch.manual_seed(0)
    layer, sampler = nn.Linear(features.dimensions, classes), InstanceBalancedSampler(features.labels)
    optimiser = OPTIMISERS[name](layer.parameters())
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for index in torch.split(torch.tensor(list(sampler)), batch):
            optimiser.zero_grad()
            torch.autograd.backward(cross_entropy(layer(features.x[index].float()), features.labels[index]))
            optimiser.step()
    return Head(layer.weight.detach(), layer.bias.detach())


def print_curves(features: FeatureSet, taus: Sequence[float], found: Sequence[Curve]) -> None:
    """A row a τ, then what validation chooses, each way judged on test against the untouched head and post-hoc."""
    print("Balanced error, percent, val / test; > chosen on val\n")
    rows = []
    for k, tau in enumerate(taus):
        marked = [f"{'> ' if k == c.chosen else ''}{c.val[k]:.1f} / {c.test[k]:.1f}" for c in found]
        rows.append([f"{tau:g}", *marked])
    show(["tau", *(c.way for c in found)], rows)
    print("As chosen: differences in balanced accuracy on test, points, with paired 95% intervals\n")
    untouched = evaluate(features.head, features.test, features.counts)
    judged = [evaluate(c.heads[c.chosen], features.test, features.counts) for c in found]
    rows = [
        [c.way, f"{taus[c.chosen]:g}", f"{c.test[c.chosen]:.1f}", gain(untouched, e), gain(judged[0], e) if k else ""]
        for k, (c, e) in enumerate(zip(found, judged, strict=True))
    ]
    show(["way", "tau", "test error", "vs untouched", "vs post-hoc"], rows)


def print_norms(counts: Tensor, heads: dict[str, Head]) -> None:
    """A row a class, the largest first, and how norms and sizes go together."""
    print("Norms of the head's rows against train samples\n")
    norms = {name: head.weight.norm(dim=1) for name, head in heads.items()}
    order = counts.argsort(descending=True, stable=True).tolist()
    rows = [[str(int(counts[c])), *(f"{norm[c]:.2f}" for norm in norms.values())] for c in order]
    ranks = (spearmanr(counts.numpy(), norm.numpy()).statistic for norm in norms.values())
    show(["n", *norms], [*rows, ["rank corr.", *(f"{rank:+.2f}" for rank in ranks)]])


def plot(taus: Sequence[float], found: Sequence[Curve], counts: Tensor, heads: dict[str, Head], file: Path) -> None:
    """Draw test error over τ with what validation chooses, and norms over class sizes."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    colours = ("#777777", "#56b4e9", "#0072b2")
    for c, colour, style in zip(found, colours, (":", "--", "-"), strict=True):
        left.plot(taus, c.test, style, color=colour, label=c.way)
        left.plot(taus[c.chosen], c.test[c.chosen], "D", color=colour)
    left.set(xlabel=r"$\tau$ (diamond: chosen on validation)", ylabel="balanced error on test (%)")
    left.set_title("Logit adjustment")
    for (name, head), colour, marker in zip(heads.items(), colours, "os^", strict=True):
        norm = head.weight.norm(dim=1)
        right.plot(counts, norm / norm.mean(), marker, color=colour, label=name)
    right.set(xscale="log", xlabel="train samples of the class", ylabel="norm of its row / mean norm")
    right.set_title("Weight norms")
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="what posthoc-lt extract wrote; by default the embedded case")
    parser.add_argument("--taus", type=float, nargs="+", default=TAUS)
    parser.add_argument("--l2", type=float, nargs="+", default=L2)
    parser.add_argument("--epochs", type=int, default=50, help="of every training by steps")
    parser.add_argument("--plot", type=Path, help="where to draw, such as figure.png")
    given = parser.parse_args(arguments)
    features = features_of(given.features)
    found = curves(features, given.taus, given.l2, given.epochs)
    print_curves(features, given.taus, found)
    heads = {"untouched": features.head}
    heads |= {name: train(features.train, features.head.classes, name, given.epochs) for name in OPTIMISERS}
    print_norms(features.counts, heads)
    if given.plot:
        plot(given.taus, found, features.counts, heads, given.plot)


if __name__ == "__main__":
    main()
