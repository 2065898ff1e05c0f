"""The splits of a feature set, shown under its own head."""

from __future__ import annotations

from posthoc_lt.evaluation import evaluate
from posthoc_lt.features import FeatureSet


def split_rows(features: FeatureSet) -> list[dict[str, object]]:
    """A row a split: samples, classes that are there, and accuracy under the untouched head where it is labelled."""
    rows: list[dict[str, object]] = []
    for name, split in features.splits().items():
        split = (features.plain_train if name == "train" else None) or split  # augmented views tell nothing of it
        judged = None if split.y is None else evaluate(features.head, split, features.counts)
        rows.append(
            {
                "split": name,
                "samples": len(split),
                "classes": None if judged is None else features.head.classes - len(judged.missing),
                "accuracy": None if judged is None else judged.accuracy,
                "balanced_accuracy": None if judged is None else judged.balanced_accuracy,
            }
        )
    return rows
