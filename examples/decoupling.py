"""Kang 2020 (arXiv:1910.09217) on cached features: sampling × classifier, weight norms, and boundaries in a plane.

python examples/decoupling.py [--features feats.safetensors] [--seed 0] [--plot folder]

The paper trains a backbone by each way of sampling and puts each classifier on it. Here the backbone is one, the
embedded case's, trained instance-balanced; only the second stage varies. So `joint` is a linear head trained on its
features by the authors' SGD with that sampler, τ-norm and LWS start from that head, and cRT and NCM, which see
features alone, are the same for every sampling. `untouched` is the head that was trained together with the backbone:
the paper's own joint model. `crt` is solved to its minimum; `crt, SGD` takes the authors' steps, ten epochs in
batches of 512. Validation chooses every knob; test judges.

`refit` and `refit + logit-adjust` are controls: what a classifier gains over them is its own merit, not that of
better regularisation.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from embedded_case import balanced, features_of, gain, show
from embedded_case import fit as minimise
from torch import Tensor

import posthoc_lt
from posthoc_lt import FeatureSet, Fitted, Head
from posthoc_lt.evaluation import difference
from posthoc_lt.features import Features, Training
from posthoc_lt.losses import cross_entropy
from posthoc_lt.methods.crt import CRT
from posthoc_lt.methods.ncm import NCM
from posthoc_lt.methods.tau_norm import TauNorm
from posthoc_lt.metrics import GROUPS
from posthoc_lt.recipe import Schedule, sgd
from posthoc_lt.sampling import (
    ClassAwareSampler,
    EpochSampler,
    InstanceBalancedSampler,
    PowerSampler,
    ProgressivelyBalancedSampler,
)
from posthoc_lt.stats import LEVEL, holm

EPOCHS = 90
"""Of the paper's first stage on ImageNet-LT."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A row of the table: a classifier, the sampling that its head came from, and knobs chosen on the way."""

    sampling: str
    classifier: str
    fitted: Fitted
    before: Mapping[str, float] = field(default_factory=dict)

    @property
    def knobs(self) -> str:
        return " ".join(f"{name}={value:.3g}" for name, value in {**self.before, **self.fitted.knobs}.items())


def samplers(labels: Tensor, epochs: int, seed: int) -> dict[str, EpochSampler]:
    """The paper's four ways of sampling."""
    return {
        "instance": InstanceBalancedSampler(labels, seed=seed),
        "class": ClassAwareSampler(labels, seed=seed),
        "square-root": PowerSampler(labels, seed=seed),
        "progressive": ProgressivelyBalancedSampler(labels, epochs=epochs, seed=seed),
    }


def joint_heads(features: FeatureSet, epochs: int, seed: int) -> dict[str, Head]:
    """A head a sampling, trained afresh; the authors' rate of 0.2 for batches of 512 is scaled to 128."""
    schedule, train = Schedule(epochs=epochs, batch=128, lr=0.05), features.train
    return {
        name: sgd(train, features.head.classes, schedule=schedule, sampler=sampler, seed=seed)
        for name, sampler in samplers(train.labels, epochs, seed).items()
    }


def design(features: FeatureSet, heads: Mapping[str, Head]) -> list[Entry]:
    """Every row of the table, the untouched head first; `heads` are those of `joint_heads`."""
    refit = posthoc_lt.fit("refit", features)
    adjusted = posthoc_lt.fit("logit-adjust", replace(features, head=refit.head))
    entries = [
        Entry("untouched", "joint", posthoc_lt.fit("baseline", features)),
        Entry("control", "refit", refit),
        Entry("control", "refit + logit-adjust", adjusted, refit.knobs),
    ]
    for sampling, head in {"untouched": features.head, **heads}.items():
        own = replace(features, head=head)
        if sampling != "untouched":
            entries.append(Entry(sampling, "joint", posthoc_lt.fit("baseline", own)))
        entries += [Entry(sampling, name, posthoc_lt.fit(name, own)) for name in ("tau-norm", "lws")]
    alike = {
        "crt": CRT(),
        "crt, SGD": CRT(recipe="paper"),
        "ncm, Euclidean": NCM(),
        "ncm, cosine": NCM(distance="cosine"),
    }
    return entries + [Entry("any", name, posthoc_lt.fit(method, features)) for name, method in alike.items()]


def print_table(entries: Sequence[Entry]) -> None:
    """A row an entry, each against the first: paired on test, marked where clear of 0 after Holm."""
    untouched = entries[0].fitted.test
    p = holm([difference(untouched, entry.fitted.test).p for entry in entries[1:]])
    rows = []
    for entry, adjusted in zip(entries, [1.0, *p], strict=True):
        val, test = entry.fitted.val, entry.fitted.test
        shares = [test.group(name) for name in GROUPS]
        figures = [*shares, test.accuracy, val.balanced_accuracy, test.balanced_accuracy]
        told = ["n/a" if share is None else f"{100 * share:.1f}" for share in figures]
        gained = "" if entry is entries[0] else gain(untouched, test) + (" *" if adjusted < 1 - LEVEL else "  ")
        rows.append([entry.sampling, entry.classifier, entry.knobs, *told, gained])
    print("One backbone, trained instance-balanced; only the second stage varies. Accuracy on test, percent;")
    print("differences in balanced accuracy with paired 95% intervals, * clear of 0 after Holm\n")
    show(["sampling", "classifier", "knob", *GROUPS, "overall", "bal. val", "balanced", "vs untouched  "], rows)


@dataclass(frozen=True, eq=False)
class Plane:
    """The features of three classes in the plane through their train means, whose middle is its origin."""

    classes: tuple[int, int, int]
    train: Features
    test: Features
    counts: Tensor


def plane(features: FeatureSet) -> Plane:
    """That of the largest class, the middle one and the smallest."""
    order = features.counts.argsort(descending=True, stable=True)
    chosen = order[[0, len(order) // 2, -1]]
    train = features.train
    means = torch.stack([train.x[train.labels == c].double().mean(dim=0) for c in chosen])
    centre = means.mean(dim=0)
    axes = torch.linalg.svd(means - centre)[2][:2]

    def flat(split: Features) -> Features:
        rows, label = (split.labels[:, None] == chosen).nonzero(as_tuple=True)
        return Features((split.x[rows].double() - centre) @ axes.T, label)

    return Plane(tuple(chosen.tolist()), flat(train), flat(features.test), features.counts[chosen])


def boundaries(where: Plane) -> dict[str, Head]:
    """The paper's five classifiers in the plane: a linear head refitted there, its bias dropped, and class means."""
    training = Training(where.counts, where.train)
    head = minimise(where.train, len(where.classes), cross_entropy, l2=1e-2)
    family, heads = TauNorm().fit(head, training), {}
    for tau in (0.0, 0.5, 1.0):
        heads[f"tau = {tau:g}"] = family.at(tau)
    heads["cosine NCM"] = NCM(distance="cosine").fit(head, training).at()
    heads["Euclidean NCM"] = NCM().fit(head, training).at()
    return heads


def print_boundaries(where: Plane, heads: Mapping[str, Head]) -> None:
    """A row a classifier: norms of its rows, and what it does with the three classes in the plane."""
    sizes = [f"n={int(n)}" for n in where.counts]
    print("Three classes in the plane through their train means: norms of the rows, and recall on test (percent)\n")
    rows = []
    for name, head in heads.items():
        predicted = head(where.test.x).argmax(dim=1)
        right = [float((predicted[where.test.labels == c] == c).double().mean()) for c in range(len(sizes))]
        norms = (f"{norm:.2f}" for norm in head.weight.norm(dim=1))
        total = f"{balanced(head, where.test, where.counts):.1f}"
        rows.append([name, *norms, *(f"{100 * share:.1f}" for share in right), total])
    show(["classifier", *(f"norm, {size}" for size in sizes), *(f"recall, {size}" for size in sizes), "balanced"], rows)


def draw_norms(entries: Sequence[Entry], counts: Tensor, file: Path) -> None:
    """Weight norms against class sizes: by sampling of the joint head, and by classifier on the untouched one."""
    from matplotlib import pyplot

    from posthoc_lt.report.plots import plot_norms

    untouched = {"baseline": entries[0].fitted.head}
    joint = {entry.sampling: entry.fitted.head for entry in entries[1:] if entry.classifier == "joint"}
    others = {e.classifier: e.fitted.head for e in entries[1:] if e.sampling in ("untouched", "any")}
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    for axes, title, heads in zip(panels, ("joint, by sampling", "by classifier"), (joint, others), strict=True):
        plot_norms({**untouched, **heads}, counts, axes).title.set_text(title)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def draw_boundaries(where: Plane, heads: Mapping[str, Head], names: Sequence[str], file: Path) -> None:
    """Regions, test samples, train means (stars) and rows of weights (arrows, the longest of a panel always alike)."""
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap

    from posthoc_lt.report.plots.style import printable

    colours, x = ("#0072b2", "#e69f00", "#009e73"), where.test.x
    means = torch.stack([where.train.x[where.train.labels == c].mean(dim=0) for c in range(len(colours))])
    reach = 1.1 * float(torch.cat([x, means]).abs().max())
    side = torch.linspace(-reach, reach, 300, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    figure, panels = pyplot.subplots(1, len(heads), figsize=(3 * len(heads), 3.7), layout="constrained", sharey=True)
    for axes, (name, head) in zip(panels, heads.items(), strict=True):
        region = head(grid).argmax(dim=1).reshape(300, 300).T.numpy()
        axes.pcolormesh(
            side.numpy(), side.numpy(), region, cmap=ListedColormap(colours), vmin=0, vmax=2, alpha=0.25, linewidth=0
        )
        arrows = (head.weight / head.weight.norm(dim=1).max() * reach / 2).numpy()
        for c, colour in enumerate(colours):
            label = f"{printable(names[where.classes[c]])} (n = {int(where.counts[c])})"
            axes.plot(*x[where.test.labels == c].T.numpy(), "o", color=colour, markersize=3, alpha=0.6, label=label)
            axes.plot(*means[c].tolist(), "*", color=colour, markersize=13, markeredgecolor="black")
            axes.annotate("", arrows[c], (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2})
        axes.set(title=f"{name}: {balanced(head, where.test, where.counts):.1f}%", aspect="equal", xticks=[], yticks=[])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="what posthoc-lt extract wrote; by default the embedded case")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every training of a joint head")
    parser.add_argument("--seed", type=int, default=0, help="of these heads' start and order")
    parser.add_argument("--plot", type=Path, help="a folder to draw norms.png and boundaries.png into")
    given = parser.parse_args(arguments)
    features = features_of(given.features)
    entries = design(features, joint_heads(features, given.epochs, given.seed))
    print_table(entries)
    where = plane(features)
    heads = boundaries(where)
    print_boundaries(where, heads)
    if given.plot:
        given.plot.mkdir(parents=True, exist_ok=True)
        draw_norms(entries, features.counts, given.plot / "norms.png")
        draw_boundaries(where, heads, features.classes, given.plot / "boundaries.png")


if __name__ == "__main__":
    main()
