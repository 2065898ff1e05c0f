"""One pass of the network over a split, kept in parts as it goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.data import Reader
from posthoc_lt.extraction.loop import Forward, broken, joined, rows
from posthoc_lt.files import Part, Parts

PART_SECONDS = 10.0
"""What an interruption costs at most, beside the batch at hand."""

PART_BYTES = 1 << 24
"""How much of the features is in memory at most, beside a batch and the part that is being written."""


def own_runs(count: int, done: Sequence[Part], size: int) -> list[range]:
    """What of `count` samples is left to this process: its share of the batches that no part holds, neighbours joined.

    Batches are where a single process that nothing interrupts has them, so that the features are the same bits.

    >>> own_runs(10, [], 4)
    [range(0, 10)]
    """
    starts, stops = [part.start for part in done], [part.stop for part in done]
    gaps = [range(start, stop) for start, stop in zip([0, *stops], [*starts, count], strict=True)]
    batches = [gap[first : first + size] for gap in gaps for first in range(0, len(gap), size)]
    share = ranks.share(len(batches))
    runs: list[range] = []
    for batch in batches[share.start : share.stop]:
        joins = bool(runs) and runs[-1].stop == batch.start
        runs.append(range(runs.pop().start if joins else batch.start, batch.stop))
    return runs


class Batches:
    """The batches of a run of samples, and the sample that each ends at: those that were left out have no row."""

    def __init__(self, images: Reader, size: int, workers: int | None, run: range) -> None:
        self.images = images
        self.run = run
        self.batches = images.batches(size, workers, run)
        self.stops: deque[int] = deque()
        """Of batches that are read and not yet used, for reading may be ahead."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        skipped, reached = len(self.images.skipped), self.run.start
        for inputs, y in self.batches:
            reached += len(inputs) + len(self.images.skipped) - skipped
            skipped = len(self.images.skipped)
            self.stops.append(reached)
            yield inputs, y


def run_pass(
    name: str, batches: Batches, forward: Forward, parts: Parts, advance: Callable[[int], object]
) -> list[Part]:
    """Run the network over a run of samples; each part is written while the next one is computed."""
    made: list[Future[Part]] = []
    with ThreadPoolExecutor(1) as thread:

        def keep(start: int, stop: int, pending: list[tuple[Tensor, Tensor | None]]) -> None:
            if made:
                made[-1].result()  # a disk that is full is told now, and no more than one part waits
            found = _notes(batches.images, range(start, stop))
            made.append(thread.submit(_write, parts, name, range(start, stop), pending, found))

        start, pending, began = batches.run.start, [], time.monotonic()
        stop, size = start, 0
        for x, y in rows(batches, forward):
            pending.append((x, y))
            advance(batches.stops[0] - stop)
            stop, size = batches.stops.popleft(), size + x.nbytes
            if time.monotonic() - began >= PART_SECONDS or size >= PART_BYTES:
                keep(start, stop, pending)
                start, pending, began, size = stop, [], time.monotonic(), 0
        if start < batches.run.stop:
            keep(start, batches.run.stop, pending)
    return [each.result() for each in made]


def _notes(images: Reader, span: range) -> dict[str, object]:
    """What reading some samples found out; the reader itself may be ahead of them."""
    skipped, framed = images.skipped.copy(), images.framed.copy()
    return {
        "skipped": {index: why for index, why in skipped.items() if index in span},
        "framed": [index for index in framed if index in span],
    }


def _write(
    parts: Parts, name: str, span: range, batches: Sequence[tuple[Tensor, Tensor | None]], notes: Mapping[str, object]
) -> Part:
    labels = [y for _, y in batches if y is not None]
    tensors = {"labels": torch.cat(labels)} if labels else {}
    if batches:  # not every sample of the part was left out
        tensors["features"] = joined([x for x, _ in batches])
    count, bad = sum(len(x) for x, _ in batches), broken(tensors["features"]) if batches else 0
    return parts.add(name, span, tensors, {**notes, "rows": count, "bad": bad, "labelled": sum(map(len, labels))})
