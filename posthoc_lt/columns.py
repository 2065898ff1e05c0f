"""Columns of one number a sample: in memory while they are short, else in temporary files mapped into it.

Pages of a mapped file are no anonymous memory: the kernel writes them back and drops them where it needs the room. What
is computed of columns is computed a block of rows at a time, so that a pass over any number of them holds a few blocks.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError, show

IN_MEMORY = 1 << 22
"""The most rows of a column in memory (32 MB of float64); longer ones are in temporary files."""

TAKEN = 1 << 26
"""The most elements of rows taken from a matrix that are held in memory (128 MB in half precision)."""

BLOCK = 1 << 20
"""The most rows that are worked on at once: some 300 MB where they are sorted."""


def blocks(rows: int) -> Iterator[slice]:
    """Consecutive blocks that cover `rows` rows; of none a single empty one.

    >>> list(blocks(3))
    [slice(0, 3, None)]
    """
    for start in range(0, max(rows, 1), BLOCK):
        yield slice(start, min(start + BLOCK, rows))


def empty(rows: int, dtype: torch.dtype) -> Tensor:
    """A column whose rows are still to be filled.

    Raises:
        PosthocError: the folder of temporary files has no room for it.
    """
    return _Column(dtype, rows).numbers


def computed(rows: int, make: Callable[[slice], Tensor]) -> Tensor:
    """A column of `rows` numbers from what `make` returns for each of its `blocks`.

    >>> computed(3, lambda rows: torch.arange(rows.start, rows.stop) * 2)
    tensor([0, 2, 4])
    """
    column: Tensor | None = None
    for block in blocks(rows):
        part = make(block)
        column = empty(rows, part.dtype) if column is None else column
        column[block] = part
    assert column is not None
    return column


def picked(kept: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """The rows of each column that a mask (N,) keeps."""
    made = Columns(*(column.dtype for column in columns))
    for rows in blocks(len(kept)):
        made.append(*(column[rows][kept[rows]] for column in columns))
    return made.whole()


def placed(kept: Tensor, values: Tensor) -> Tensor:
    """A column with the values where a mask (N,) keeps a row, and zeros elsewhere.

    >>> placed(torch.tensor([False, True, True]), torch.tensor([5, 6]))
    tensor([0, 5, 6])
    """
    made, start = empty(len(kept), values.dtype), 0
    for rows in blocks(len(kept)):
        stop = start + int(kept[rows].sum())
        made[rows] = values.new_zeros(len(kept[rows])).masked_scatter_(kept[rows], values[start:stop])
        start = stop
    return made


def taken(matrix: Tensor, index: Tensor) -> Tensor:
    """The rows of a matrix (N, D) at an index (n,), in its order; many of them (`TAKEN`) in a temporary file."""
    if matrix.device.type != "cpu" or len(index) * matrix.shape[1] <= TAKEN:
        return matrix[index]
    rows = empty(len(index) * matrix.shape[1], matrix.dtype).view(len(index), -1)
    return torch.index_select(matrix, 0, index, out=rows)


def gathered(column: Tensor) -> Tensor:
    """Every process's rows of a column, as `ranks.gathered` has them."""
    if ranks.world() == 1:
        return column
    lengths = ranks.gathered(torch.tensor([len(column)])).tolist()
    whole = empty(sum(lengths), column.dtype)
    for block in blocks(max(lengths)):
        sizes = [min(max(length - block.start, 0), block.stop - block.start) for length in lengths]
        place = block.start
        for length, part in zip(lengths, ranks.gathered(column[block]).split(sizes), strict=True):  # type: ignore[no-untyped-call]
            whole[place : place + len(part)] = part
            place += length
    return whole


class Columns:
    """Columns appended to a few rows at a time, each kept in one block that grows when it is full.

    A list of small tensors would do, did it not pin memory: each lies behind the large temporaries of its chunk, which
    the allocator can then not give back. Half a gigabyte stayed so at 40,000 samples of 1,000 classes.

    >>> made = Columns(torch.int64)
    >>> made.append(torch.tensor([3, 4]))
    >>> made.whole()
    (tensor([3, 4]),)
    """

    def __init__(self, *dtypes: torch.dtype) -> None:
        self._columns = [_Column(dtype, min(1 << 16, IN_MEMORY)) for dtype in dtypes]
        self._length = 0

    def append(self, *parts: Tensor) -> None:
        """Rows (n,) for each column, of one length, on any device."""
        stop = self._length + len(parts[0])
        for column, part in zip(self._columns, parts, strict=True):
            column.reserve(stop)
            column.numbers[self._length : stop] = part
        self._length = stop

    def whole(self) -> tuple[Tensor, ...]:
        """All rows of every column, on the CPU."""
        return tuple(column.numbers[: self._length] for column in self._columns)


class _Column:
    """Room for numbers, in memory or in a file that is mapped anew when it grows."""

    def __init__(self, dtype: torch.dtype, rows: int) -> None:
        self._file: IO[bytes] | None = None
        self.numbers = torch.empty(0, dtype=dtype)
        self._take(rows)

    def reserve(self, rows: int) -> None:
        """Room for as many, and some to spare."""
        held = len(self.numbers)
        if rows > held:
            # Memory that is not yet written to costs nothing, room on a disk is taken.
            self._take(max(rows, 2 * held if held <= IN_MEMORY else held + held // 8))

    def _take(self, rows: int) -> None:
        before = self.numbers
        if rows <= IN_MEMORY:
            self.numbers = before.new_empty(rows)
            self.numbers[: len(before)] = before
            return
        copied = self._file is None
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the column; maps outlive it)
                weakref.finalize(self, self._file.close)
            self.numbers = _mapped(self._file, rows, before.dtype)
        except OSError as error:
            raise PosthocError(
                f"{rows} numbers to be put aside, which {_folder()} cannot hold ({show(error)})",
                f"{rows * before.itemsize / 1e9:.1f} GB of room for temporary files, and so for a few more columns",
                "set TMPDIR to a folder on a disk that has it, and type the same command again",
            ) from None
        if copied:
            self.numbers[: len(before)] = before


def _folder() -> str:
    """The folder of temporary files; asking `tempfile` once more could fail as it did before."""
    return show(tempfile.tempdir or os.environ.get("TMPDIR", "the folder of temporary files"))


def _mapped(file: IO[bytes], rows: int, dtype: torch.dtype) -> Tensor:
    size = rows * dtype.itemsize
    # A mapped page for which the disk has no room kills the process when it is first written.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,))).view(dtype)  # numpy knows no bfloat16
