"""Cui 2019 (arXiv:1901.05555) on cached features: effective numbers, and the class-balanced losses over beta.

python examples/class_balanced_loss.py [--features feats.safetensors]

Softmax, sigmoid and focal heads are trained on the embedded case's train features with every β and penalty. Of the
penalties validation chooses, and in the end of the β; test judges. β = 0 is the same loss without weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from embedded_case import L2, balanced, features_of, fit, gain, show

from posthoc_lt import FeatureSet, Head, evaluate
from posthoc_lt.losses import ClassBalanced, Kind, initialise_bias
from posthoc_lt.priors import effective_number_weights

BETAS = (0.0, 0.9, 0.99, 0.999, 0.9999)


def effective_numbers(counts: torch.Tensor) -> list[list[str]]:
    """A row a class size: E_n = (1 − β^n)/(1 − β) at every β, then the weights they give."""
    sizes, first = counts.unique(return_inverse=True)
    rows = []
    for size in reversed(range(len(sizes))):
        n, c = int(sizes[size]), int((first == size).nonzero()[0])
        numbers = [sum(beta**k for k in range(n)) for beta in BETAS]
        weights = [float(effective_number_weights(counts, beta)[c]) for beta in BETAS]
        rows.append([str(n), *(f"{e:.1f}" for e in numbers), *(f"{w:.2f}" for w in weights)])
    return rows


def best_head(features: FeatureSet, kind: Kind, beta: float, penalties: Sequence[float]) -> tuple[float, float, Head]:
    """The head of the penalty that validation likes best, with that figure and the penalty."""
    loss = ClassBalanced(effective_number_weights(features.counts, beta), kind)
    classes = features.head.classes
    prepare = initialise_bias if kind != "softmax" else lambda layer: None
    heads = [(l2, fit(features.train, classes, loss, l2, prepare)) for l2 in penalties]
    judged = [(balanced(head, features.val, features.counts), l2, head) for l2, head in heads]
    return max(judged, key=lambda each: each[0])


def sweep(features: FeatureSet, betas: Sequence[float], penalties: Sequence[float]) -> list[list[str]]:
    """A row a loss and β; what validation chooses is marked, differences are paired on test."""
    counts, rows = features.counts, []
    untouched = evaluate(features.head, features.test, counts)
    shown = f"{balanced(features.head, features.val, counts):.1f}", f"{100 * untouched.balanced_accuracy:.1f}"
    rows.append(["", "untouched head", "", "", *shown, "", ""])
    for kind in get_args(Kind):
        found = [best_head(features, kind, beta, penalties) for beta in betas]
        judged = [evaluate(head, features.test, counts) for _, _, head in found]
        chosen = max(range(len(betas)), key=lambda k: found[k][0])
        for k, (beta, (val, l2, _), test) in enumerate(zip(betas, found, judged, strict=True)):
            figures = f"{val:.1f}", f"{100 * test.balanced_accuracy:.1f}"
            gains = ("" if k == 0 else gain(judged[0], test)), gain(untouched, test)
            rows.append([">" if k == chosen else "", kind, f"{beta:g}", f"{l2:g}", *figures, *gains])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="what posthoc-lt extract wrote; by default the embedded case")
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS, help="the first one is compared with")
    parser.add_argument("--l2", type=float, nargs="+", default=L2)
    given = parser.parse_args(arguments)
    features = features_of(given.features)
    print("Effective numbers E of n train samples, and weights v ∝ 1/E of sum C, by β\n")
    show(["n", *(f"E {b:g}" for b in BETAS), *(f"v {b:g}" for b in BETAS)], effective_numbers(features.counts))
    print("Balanced accuracy, percent; differences on test with paired 95% intervals; > chosen on val\n")
    header = ["", "loss", "beta", "l2", "val", "test", f"vs beta={given.betas[0]:g}", "vs untouched"]
    show(header, sweep(features, given.betas, given.l2))


if __name__ == "__main__":
    main()
