"""What the golden files hold, by arithmetic alone; run as a program, it writes those of the schemas of today."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from posthoc_lt import FeatureSet
from posthoc_lt.features import Features
from posthoc_lt.files import SavedHead, save_features, save_head
from posthoc_lt.head import Head

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("übel", "<b>bold</b>", "שלום", "plain")
FOUND = {"arch": "none", "checkpoint_sha256": "0" * 64, "transform": "identity"}


def numbers(rows: int, columns: int, start: int) -> Tensor:
    """Eighths between -4 and 4, which every dtype holds exactly."""
    index = torch.arange(rows * columns).reshape(rows, columns)
    return ((index * 7 + start) % 65 - 32) / 8


def split(samples: int, start: int, dtype: torch.dtype, labelled: bool = True) -> Features:
    """A split of four classes, the first the most frequent."""
    labels = (torch.arange(samples) % 7).clamp(max=4) % 4
    return Features(numbers(samples, 5, start).to(dtype), labels if labelled else None)


def feature_set() -> FeatureSet:
    """Every kind of tensor that a feature file may hold."""
    head = Head.without_bias(numbers(4, 5, 3))
    return FeatureSet(
        head,
        split(11, 1, torch.float16),
        split(6, 2, torch.float32),
        split(5, 4, torch.float16, labelled=False),
        NAMES,
        FOUND,
        torch.tensor([40, 30, 20, 10]),
    )


def saved_head() -> SavedHead:
    """A head with a bias of its own, and where it comes from."""
    return SavedHead(Head(numbers(4, 5, 9), numbers(1, 4, 2)[0]), {"method": "tau-norm", "knob": "0.75"})


def write(folder: Path) -> None:
    """Write the files of the schemas of today: one file, shards, a head."""
    save_features(feature_set(), folder / "features-1.safetensors")
    save_features(feature_set(), folder / "shards-1.safetensors", shard_bytes=200)
    save_head(saved_head(), folder / "head-1.safetensors")


if __name__ == "__main__":
    write(GOLDEN)
