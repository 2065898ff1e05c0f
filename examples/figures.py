"""Draws the README's figures from the embedded case: ``python examples/figures.py``."""

import argparse
from pathlib import Path

from embedded_case import features_of
from matplotlib import pyplot

import posthoc_lt

FOLDER = Path(__file__).parent / "figures"
SHOWN = ("tau", "classes")


def draw(result: posthoc_lt.Result, folder: Path) -> list[Path]:
    """One PNG file a kind of plot, of the result that `rebalance` gives."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for kind in SHOWN:
        axes = result.plot(kind)
        path = folder / f"{kind}.png"
        axes.figure.savefig(path, dpi=110, metadata={"Software": None})
        pyplot.close(axes.figure)
        made.append(path)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, help="a feature file; the embedded case by default")
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    for path in draw(posthoc_lt.rebalance(features_of(given.features)), given.out):
        print(path)
