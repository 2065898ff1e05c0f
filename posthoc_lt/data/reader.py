"""Samples, read and prepared in batches."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from posthoc_lt import ranks
from posthoc_lt.ahead import beside
from posthoc_lt.data.images import UnreadableImageError, open_image
from posthoc_lt.data.samples import Samples
from posthoc_lt.errors import PosthocError, show

_FEW = 512
"""Below so many samples, reading them alongside would not pay."""


class Read(NamedTuple):
    """One sample as read: an input as the network takes it, or why there is none."""

    row: int
    x: Any
    y: int | None
    fault: str = ""
    frames: bool = False


class Reader(Dataset[Read]):
    """The samples of one split, decoded and prepared one by one.

    Args:
        samples: what to read.
        prepare: from a decoded image, or a text, to what the network takes; tensors are taken as they are.
        collate: from a list of prepared inputs to a batch; None stacks tensors.
        exif: turn images as their EXIF orientation says.
        skip: leave out samples that cannot be read, instead of raising.

    Attributes:
        skipped: the index and fault of each sample left out so far.
        framed: the indices of images of several frames, of which the first was taken.
    """

    def __init__(
        self,
        samples: Samples,
        prepare: Callable[[Any], Any],
        collate: Callable[[list[Any]], Any] | None = None,
        *,
        exif: bool = False,
        skip: bool = False,
    ) -> None:
        self.samples = samples
        self.prepare = prepare
        self.collate = collate
        self.exif = exif
        self.skip = skip
        self.skipped: dict[int, str] = {}
        self.framed: set[int] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Read:
        try:
            raw, label = self.samples[index]
        except Exception as error:  # the user's own data set may raise anything
            return Read(index, None, None, f"{type(error).__name__}: {error}")
        frames = False
        try:
            if isinstance(raw, Path | bytes):
                raw, frames = open_image(raw, self.exif)
            return Read(index, self.prepared(raw, index), label, frames=frames)
        except (UnreadableImageError, OSError, ValueError) as error:
            return Read(index, None, None, str(error))

    def prepared(self, raw: Any, index: int) -> Any:
        """What the network takes of one decoded sample; a tensor is that already."""
        return raw if isinstance(raw, Tensor) else self.prepare(raw)

    def stack(self, indices: Sequence[int]) -> tuple[Any, Tensor | None]:
        """The inputs and labels (n,) of some samples as one batch, those left out that cannot be read.

        Raises:
            PosthocError: a sample cannot be read (unless `skip`), or none of them can.
        """
        batch = self._batch([self[index] for index in indices])
        if batch is None:
            first = next(iter(indices))
            raise self._unreadable(first, self.skipped[first])
        return batch

    def batches(
        self, size: int, workers: int | None = None, part: range | None = None
    ) -> Iterator[tuple[Any, Tensor | None]]:
        """Every sample, or those of a part, once, in order, `size` at a time; read ahead by `workers`.

        Images are read by threads, since decoding lets go of Python's lock, and a data set of the user's own code
        by processes, since nothing is known of it. None takes a thread a core (its share of them, where several
        processes work together on a machine), or none for few images and for own code.

        Raises:
            PosthocError: a sample cannot be read (unless `skip`), sizes differ, or options that make no sense.
        """
        if size < 1 or (workers is not None and workers < 0):
            raise PosthocError(
                f"batch size {size} with {workers} workers",
                "a batch size above 0 and workers of 0 or more",
                "give, for example, --batch-size 256 --workers 4",
            )
        indices = range(len(self)) if part is None else part
        groups = [indices[first : first + size] for first in range(0, len(indices), size)]
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for group in self._read(groups, workers):
                batch = self._batch(group)
                if batch is not None:
                    yield batch

    def _read(self, groups: Sequence[Sequence[int]], workers: int | None) -> Iterator[list[Read]]:
        own = self.samples.own_code
        if workers is None:
            workers = 0 if own or len(self) < _FEW else max(1, (os.cpu_count() or 1) // ranks.neighbours())
        if workers and own:
            yield from self._read_beside(groups, workers)
        elif workers:
            yield from self._read_ahead(groups, workers)
        else:
            yield from ([self[index] for index in group] for group in groups)

    def _read_beside(self, groups: Sequence[Sequence[int]], workers: int) -> Iterator[list[Read]]:
        loader = DataLoader(self, batch_sampler=map(list, groups), num_workers=workers, collate_fn=list)

        def read() -> Iterator[list[Read]]:
            yield from loader

        try:
            # In a thread of its own: in the main one torch has a worker's death raise wherever that happens to be.
            yield from beside(read())
        except (RuntimeError, OSError, EOFError) as error:  # what the data set itself raises is a `Read`
            raise PosthocError(
                f"a worker process of {show(self.samples.name(0))} and others, which has died ({show(error)})",
                "workers that live until all is read; one that is killed has most often taken too much memory",
                "type the same command again, which goes on from here, with fewer --workers or --workers 0",
            ) from None

    def _read_ahead(self, groups: Sequence[Sequence[int]], workers: int) -> Iterator[list[Read]]:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        waiting: deque[list[Future[Read]]] = deque()
        try:
            for group in groups:
                waiting.append([pool.submit(self.__getitem__, index) for index in group])
                if len(waiting) > 2:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, group: Sequence[Read]) -> tuple[Any, Tensor | None] | None:
        for read in group:
            if read.fault and not self.skip:
                raise self._unreadable(read.row, read.fault)
        self.skipped |= {read.row: read.fault for read in group if read.fault}
        self.framed |= {read.row for read in group if read.frames}
        whole = [read for read in group if not read.fault]
        if not whole:
            return None
        x = self._stacked(whole) if self.collate is None else self.collate([read.x for read in whole])
        labels = [read.y for read in whole]
        return x, self._labels(whole) if any(label is not None for label in labels) else None

    def _labels(self, group: Sequence[Read]) -> Tensor:
        if bare := [read.row for read in group if read.y is None]:
            raise PosthocError(
                f"{show(self.samples.name(bare[0]))} without a label among others with one",
                "a label for every sample of a split, or for none",
                "complete the labels",
            )
        return torch.tensor([read.y for read in group])

    def _stacked(self, group: Sequence[Read]) -> Tensor:
        first = group[0]
        for read in group:
            if read.x.shape != first.x.shape:
                sizes = " and ".join("x".join(map(str, reversed(one.x.shape[1:]))) for one in (first, read))
                names = " and ".join(show(self.samples.name(one.row)) for one in (first, read))
                raise PosthocError(
                    f"images of different sizes ({sizes} pixels: {names}) for a network of no fixed input size",
                    "one size for every image",
                    "give --input-size 224, or the size that the network was trained on",
                )
        return torch.stack([read.x for read in group])

    def _unreadable(self, index: int, fault: str) -> PosthocError:
        return PosthocError(
            f"{show(self.samples.name(index))}, which cannot be read ({show(fault)})",
            "a whole image of 8 or 16 bits a channel" if not self.samples.own_code else "a sample",
            "replace or remove it, or give --on-error skip to go on without it",
        )
