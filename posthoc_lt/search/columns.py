"""Columns of numbers that grow as they are found."""

from __future__ import annotations

import torch
from torch import Tensor


class Columns:
    """Columns appended to a few rows at a time, each kept in one block that doubles when it is full.

    A list of small tensors would do, did it not pin memory: each lies behind the large temporaries of its chunk, which
    the allocator can then not give back. Half a gigabyte stayed so at 40,000 samples of 1,000 classes.

    >>> made = Columns(torch.int64)
    >>> made.append(torch.tensor([3, 4]))
    >>> made.whole()
    (tensor([3, 4]),)
    """

    def __init__(self, *dtypes: torch.dtype) -> None:
        self._blocks = [torch.empty(1 << 16, dtype=dtype) for dtype in dtypes]
        self._length = 0

    def append(self, *parts: Tensor) -> None:
        """Rows (n,) for each column, of one length, on any device."""
        stop = self._length + len(parts[0])
        if stop > len(self._blocks[0]):
            room = max(stop, 2 * len(self._blocks[0]))
            self._blocks = [torch.cat([block, block.new_empty(room - len(block))]) for block in self._blocks]
        for block, part in zip(self._blocks, parts, strict=True):
            block[self._length : stop] = part
        self._length = stop

    def whole(self) -> tuple[Tensor, ...]:
        """All rows of every column, on the CPU."""
        return tuple(block[: self._length].clone() for block in self._blocks)
