"""Passes over labelled features, block by block, and the cross-entropy of a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features

LARGE = 1 << 28
"""From this many multiplications in one product of features and weights on, float32 and drafts save time."""
ROUNDING = 1e-4
"""The relative gradient norm down to which float32 is trusted."""
SHARE, SKETCH_ELEMENTS = 0.3, 1 << 26
"""How many of the samples, and features in all, a sketch has at most."""

SLICE = 1 << 20
"""Elements in such a part of a matrix (4 MB in float32); BLAS is no slower on them."""


class Block(NamedTuple):
    """Consecutive samples: features (n, D), labels (n,), and weights (n,) in the dtype of the features."""

    x: Tensor
    y: Tensor
    w: Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """Repeated passes over this process's share of labelled features; a share of one block is converted once.

    Args:
        features: N labelled samples.
        class_weight: (C,) weight of one sample of each class, float64.
        dtype: what features and weights are converted to, and so what the arithmetic on them is done in.
    """

    features: Features
    class_weight: Tensor
    dtype: torch.dtype = torch.float64

    def __iter__(self) -> Iterator[Block]:
        return self._read() if self._only is None else iter(self._only)

    @cached_property
    def _only(self) -> tuple[Block, ...] | None:
        """The share's one block, or none; None where there are more."""
        first = tuple(islice(self._read(), 2))
        return first if len(first) < 2 else None

    def _read(self) -> Iterator[Block]:
        labels, device = self.features.labels, self.features.device
        weight = self.class_weight.to(device, self.dtype)
        for rows, x in self.features.own_chunks(len(weight), self.dtype):
            y = labels[rows].to(device)
            yield Block(x, y, weight[y])


def slices(rows: int, columns: int) -> Iterator[slice]:
    """A matrix a few rows at a time (`SLICE`), so that what is made of them on the way takes little room."""
    step = max(1, SLICE // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def is_large(features: Features, classes: int) -> bool:
    """Whether a pass takes long enough to be done in float32."""
    return len(features) * features.dimensions * classes >= LARGE


def cross_entropy(logits: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Σ wᵢ CE(logits_i, y_i) over a block, float64, and its gradient wᵢ(pᵢ − yᵢ) (n, C) in the logits."""
    log_p = torch.log_softmax(logits, dim=1)
    label = block.y[:, None]
    value = -torch.dot(block.w.double(), log_p.gather(1, label)[:, 0].double())
    residual = log_p.exp_().mul_(block.w[:, None])
    return value, residual.scatter_add_(1, label, -block.w[:, None])


def require_finite(*results: Tensor) -> None:
    """Refuse features whose sums are not finite.

    Raises:
        PosthocError: one of `results` holds NaN or an infinity.
    """
    if not all(bool(each.isfinite().all()) for each in results):
        raise PosthocError(
            "train features with NaN or infinite values", "finite features", "extract them again, in float32 if in half"
        )


def sketch(blocks: Blocks, dtype: torch.dtype, share: float = SHARE) -> Blocks:
    """A `share` of the samples that weighs as all do: rare classes whole, frequent ones evenly thinned.

    It is held in memory, and so a smaller share of very many samples (`SKETCH_ELEMENTS`).
    """
    share = min(share, SKETCH_ELEMENTS / max(1, blocks.features.x.numel()))
    features, weight = blocks.features, blocks.class_weight
    labels, counts = features.labels.cpu(), features.counts(len(blocks.class_weight)).cpu()
    cap = _cap(counts, share)
    order = labels.argsort(stable=True)
    size = counts[labels[order]]
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[labels[order]]
    kept = size.clamp(max=cap)
    taken = order[rank * kept // size != (rank - 1) * kept // size].sort().values
    heavier = (counts / counts.clamp(min=1, max=cap)).to(weight)
    return Blocks(features.subset(taken), weight * heavier, dtype)


def _cap(counts: Tensor, share: float) -> int:
    """The fewest samples a class at most that keep `share` of them all."""
    low, high = 1, int(counts.max())
    while low < high:
        middle = (low + high) // 2
        if int(counts.clamp(max=middle).sum()) < share * int(counts.sum()):
            low = middle + 1
        else:
            high = middle
    return low
