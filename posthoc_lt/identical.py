"""Rows that are, bit for bit, rows of another matrix or of their own; none is ever held in memory whole."""

from __future__ import annotations

import torch
from torch import Tensor

from posthoc_lt import ranks

BLOCK = 1 << 22
"""The most elements that are read at a time."""

_ODD = -0x61C8864680B583EB
"""2^64 over the golden ratio, as a signed number: multiplying by it spreads the bits of a word upward."""


def identical_rows(x: Tensor, other: Tensor) -> int:
    """How many rows of `x` (N, D) are rows of `other` (M, E) too.

    Hashes of 64 bits find the candidates and a comparison of the rows decides. Where the dtypes differ, the wider
    one is rounded to the other.

    >>> identical_rows(torch.eye(3), torch.eye(3)[:2].half())
    2
    """
    if not x.numel() or not other.numel() or x.shape[1] != other.shape[1]:
        return 0
    kind = min(x.dtype, other.dtype, key=lambda each: each.itemsize)
    known, order = _hashes(other, kind).sort()
    own = _hashes(x, kind)
    place = torch.searchsorted(known, own).clamp(max=len(known) - 1)
    alike = (known[place] == own).nonzero()[:, 0]
    return _equal(x, alike, other, order[place[alike]], kind)


def repeated_rows(x: Tensor) -> int:
    """How many rows of `x` (N, D) an earlier one is already, in the same way.

    >>> repeated_rows(torch.tensor([[1.0], [2.0], [1.0], [1.0]]))
    2
    """
    if not x.numel():
        return 0
    known, order = _hashes(x, x.dtype).sort(stable=True)
    alike = (known[1:] == known[:-1]).nonzero()[:, 0]
    return _equal(x, order[alike], x, order[alike + 1], x.dtype)


def _equal(x: Tensor, own: Tensor, other: Tensor, theirs: Tensor, kind: torch.dtype) -> int:
    """How many of the rows `own` of `x` equal the rows `theirs` of `other`, one by one."""
    found, step = 0, max(1, BLOCK // max(1, x.shape[1]))
    share = ranks.share(len(own))
    for start in range(share.start, share.stop, step):
        rows = slice(start, min(start + step, share.stop))
        a, b = x[own[rows].to(x.device)], other[theirs[rows].to(other.device)]
        found += int((a.cpu().to(kind) == b.cpu().to(kind)).all(1).sum())
    return int(ranks.total(torch.tensor(found)))


def _hashes(x: Tensor, kind: torch.dtype) -> Tensor:
    """A 64-bit hash of the bits of each row, (N,) int64: its words times fixed odd numbers, summed modulo 2^64."""
    per_word = 8 // kind.itemsize
    spare = -x.shape[1] % per_word
    width = (x.shape[1] + spare) // per_word
    factors = torch.randint(-(2**62), 2**62, (width,), generator=torch.Generator().manual_seed(0)) * 2 + 1
    share, step = ranks.share(len(x)), max(1, BLOCK // (4 * width))
    made = torch.empty(len(share), dtype=torch.int64)
    for start in range(0, len(share), step):
        rows = share[start : start + step]
        block = x[rows.start : rows.stop].cpu().to(kind).contiguous()
        words = torch.nn.functional.pad(block, (0, spare)).view(torch.int64)
        words = words * _ODD
        # Whole numbers in floating point differ in their upper bits alone, which must reach the lower ones.
        made[start : start + step] = ((words ^ (words >> 32)) * factors).sum(1)
    return ranks.gathered(made)
