"""Features of a checkpoint's network, written as they come and never all in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from posthoc_lt.checkpoint import LocatedHead, capture
from posthoc_lt.data import Reader, findings
from posthoc_lt.device import resolve_device
from posthoc_lt.extraction.loop import Forward, broken, note_wide, progress_bar, require_sound, rows
from posthoc_lt.extraction.network import prepare
from posthoc_lt.extraction.source import IDENTITY, Source
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import SHARD_BYTES, Part, Parts, Pieces, require_writable, working, writing_features

PART_SECONDS = 10.0
"""What an interruption costs at most, beside the batch at hand."""

PART_BYTES = 1 << 24
"""How much of the features is in memory at most, beside a batch and the part that is being written."""


def extract_to(
    path: Path | str,
    source: Source,
    *,
    force: bool = False,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
    note: Callable[[str], object] = lambda _: None,
) -> FeatureSet:
    """Run a checkpoint's network once over every split and write what its head reads to a feature file.

    Every few seconds' work is kept as a part, in ``.NAME.parts`` beside the file. Interrupted at any moment, the same
    call goes on from there and the file is, byte for byte, what it would have been: parts end where batches do.
    Parts of another checkpoint, network, transform, data, precision or batch size are not touched.

    Args:
        path: the feature file.
        source: a checkpoint and its data, as `open_source` gives them.
        force: overwrite an existing, different file.
        device: where the network runs; CUDA runs in mixed precision.
        batch_size: images at a time; halved where the device has no memory for so many.
        workers: threads that decode images; None takes one a core, or none for few images.
        shard_bytes: past so many bytes, several files with an index; a split is never divided.
        progress: a bar on standard error, where that is a terminal.
        note: is told where an earlier run is continued.

    Returns:
        The features as the file holds them, memory-mapped.

    Raises:
        PosthocError: any input that cannot be used, NaN features, class counts that do not agree, splits that share
            their samples, a place that cannot be written to, or another process that makes the same file.
    """
    path, place = Path(path), resolve_device(device)
    require_writable(path)
    readers = source.readers()
    network, located = prepare(source, place)
    with capture(network, located.name) as run:
        forward = Forward(run, place, mixed=place.type == "cuda", inference=True)
        with working(path, _identity(source, located, forward, batch_size)) as parts:
            done = {name: _resume(name, images, parts) for name, images in readers.items()}
            total, there = sum(map(len, readers.values())), sum(map(_reached, done.values()))
            if there:
                note(f"Going on from an interrupted run: {there} of {total} images were done.")
            for name, images in readers.items():
                with progress_bar(name, len(images), progress, _reached(done[name])) as bar:
                    batches = _Batches(images, batch_size, workers, _reached(done[name]))
                    done[name] += _run(name, batches, forward, parts, bar.update)
            bare = _all_but_splits(source, located, forward, readers)
            with writing_features(bare, _pieces(done), path, force, shard_bytes, parts.folder) as features:
                features.require_apart()
            parts.remove()
    return features


def _all_but_splits(
    source: Source, located: LocatedHead, forward: Forward, readers: Mapping[str, Reader]
) -> FeatureSet:
    said = {"head_name": located.name, "precision": forward.precision, **findings(readers)}
    counts = source.whole_counts(located.head.classes, readers)
    provenance = {**source.provenance, **said}
    return FeatureSet(located.head, classes=source.data.classes, provenance=provenance, train_counts=counts)


def _identity(source: Source, located: LocatedHead, forward: Forward, batch_size: int) -> dict[str, object]:
    """All that decides the bytes of the features."""
    return {
        **{key: source.provenance.get(key) for key in IDENTITY},
        "head_name": located.name,
        "precision": forward.precision,
        "batch_size": batch_size,
        "skip": source.skip,
        "torch": torch.__version__,
    }


def _resume(name: str, images: Reader, parts: Parts) -> list[Part]:
    """The parts of a split that are done; what was found as they were made, the reader knows again."""
    done = parts.done(name)
    for part in done:
        images.skipped |= {int(index): why for index, why in part.notes["skipped"].items()}
        images.framed |= set(part.notes["framed"])
    return done


def _reached(done: Sequence[Part]) -> int:
    """The first sample that is not in a part."""
    return done[-1].stop if done else 0


class _Batches:
    """Batches from one sample on, and the sample that each ends at: those that were left out have no row."""

    def __init__(self, images: Reader, size: int, workers: int | None, start: int) -> None:
        self.images = images
        self.batches = images.batches(size, workers, start)
        self.reached = start
        self.stops: deque[int] = deque()
        """Of batches that are read and not yet used, for reading may be ahead."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        skipped = len(self.images.skipped)
        for inputs, y in self.batches:
            self.reached += len(inputs) + len(self.images.skipped) - skipped
            skipped = len(self.images.skipped)
            self.stops.append(self.reached)
            yield inputs, y


def _run(name: str, batches: _Batches, forward: Forward, parts: Parts, advance: Callable[[int], object]) -> list[Part]:
    """Run the network over what is left of a split; each part is written while the next one is computed."""
    made: list[Future[Part]] = []
    with ThreadPoolExecutor(1) as thread:

        def keep(start: int, stop: int, pending: list[tuple[Tensor, Tensor | None]]) -> None:
            if made:
                made[-1].result()  # a disk that is full is told now, and no more than one part waits
            found = _notes(batches.images, range(start, stop))
            made.append(thread.submit(_write, parts, name, range(start, stop), pending, found))

        start, pending, began = batches.reached, [], time.monotonic()
        stop, size = start, 0
        for x, y in rows(batches, forward):
            pending.append((x, y))
            advance(batches.stops[0] - stop)
            stop, size = batches.stops.popleft(), size + x.nbytes
            if time.monotonic() - began >= PART_SECONDS or size >= PART_BYTES:
                keep(start, stop, pending)
                start, pending, began, size = stop, [], time.monotonic(), 0
        if pending:
            keep(start, len(batches.images), pending)
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
    widest = torch.float32 if any(x.dtype == torch.float32 for x, _ in batches) else torch.float16
    x = torch.cat([x.to(widest) for x, _ in batches])
    labels = [y for _, y in batches if y is not None]
    tensors = {"features": x, **({"labels": torch.cat(labels)} if labels else {})}
    bad, labelled = broken(x), sum(map(len, labels))
    return parts.add(name, span, tensors, {**notes, "rows": len(x), "bad": bad, "labelled": labelled})


def _pieces(done: Mapping[str, Sequence[Part]]) -> dict[str, Pieces]:
    """The tensors of every split, all features in one dtype, as they lie in the parts."""
    wide = [name for name, parts in done.items() if any(part.dtypes["features"] == torch.float32 for part in parts)]
    kind = torch.float32 if note_wide(wide) else torch.float16
    found: dict[str, Pieces] = {}
    for name, parts in done.items():
        count, bad, labelled = (sum(part.notes[key] for part in parts) for key in ("rows", "bad", "labelled"))
        require_sound(name, count, bad, labelled)
        width = parts[0].tensors()["features"].shape[1]
        found[f"{name}.features"] = Pieces((count, width), kind, partial(_read, parts, "features"))
        if labelled:
            found[f"{name}.labels"] = Pieces((count,), torch.int64, partial(_read, parts, "labels"))
    return found


def _read(parts: Sequence[Part], tensor: str) -> Iterator[Tensor]:
    return (part.tensors()[tensor] for part in parts)
