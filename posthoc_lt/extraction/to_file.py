"""Features of a checkpoint's network, written as they come and never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.data import Findings, Reader
from posthoc_lt.device import resolve_device
from posthoc_lt.extraction.loop import Forward, note_wide, require_sound, resolve_precision
from posthoc_lt.extraction.network import opened
from posthoc_lt.extraction.passes import Batches, own_runs, run_pass
from posthoc_lt.extraction.source import IDENTITY, Source, split_of
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.files import (
    SHARD_BYTES,
    Part,
    Parts,
    Pieces,
    load_features,
    require_writable,
    working,
    writing_features,
)
from posthoc_lt.fitting import fit_head
from posthoc_lt.head import Head
from posthoc_lt.progress import bar


def extract_to(
    path: Path | str,
    source: Source,
    *,
    force: bool = False,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compiled: bool = False,
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

    Processes that work together (`posthoc_lt.ranks`) take disjoint runs of batches, all on one disk, and the first of
    them makes the file: the same bytes as one process makes, however many begin and however many go on.

    Args:
        path: the feature file.
        source: a checkpoint and its data, as `open_source` gives them.
        force: overwrite an existing, different file.
        device: where the network runs.
        precision: ``float32``, ``bf16`` or ``f16``, by autocast; ``auto`` takes f16 on CUDA, else float32.
        compiled: have torch.compile make the network faster, which takes a while first.
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
    readers = source.passes()
    with opened(source, place, compiled=compiled) as (run, located):
        forward = Forward(run, place, precision=resolve_precision(precision, place), inference=True)
        said = {"head_name": located.name, "precision": forward.precision, **({"compiled": "yes"} if compiled else {})}
        with working(path, _identity(source, said, batch_size)) as parts:
            done = _run_passes(readers, forward, parts, batch_size, workers, progress, note)
            pieces = _pieces(done)
            head = located.head if source.l2 is None else _fitted(pieces, parts, source.l2)
            features = None
            if ranks.rank() == 0:
                bare = _all_but_splits(source, head, said, readers, done)
                with ranks.alone(), writing_features(bare, pieces, path, force, shard_bytes, parts.folder) as features:
                    features.require_apart()
                parts.remove()
            ranks.wait()
    return load_features(path) if features is None else features


def _run_passes(
    readers: Mapping[str, Reader],
    forward: Forward,
    parts: Parts,
    batch_size: int,
    workers: int | None,
    progress: bool,
    note: Callable[[str], object],
) -> dict[str, list[Part]]:
    """Run the network over all that no part holds yet; then every part, in order."""
    done = {name: parts.done(name) for name in readers}
    left = {name: own_runs(len(images), done[name], batch_size) for name, images in readers.items()}
    ranks.wait()  # none adds a part before all have seen the same
    _note_done(readers, done, note)
    with ranks.alone():
        for name, images in readers.items():
            with bar(name, sum(map(len, left[name])), "images", wanted=progress) as shown:
                for each in left[name]:
                    batches = Batches(images, batch_size, workers, each)
                    done[name] += run_pass(name, batches, forward, parts, shown.update)
    ranks.wait()
    if ranks.world() > 1:
        done = {name: parts.done(name) for name in readers}
    return {name: sorted(each, key=lambda part: part.start) for name, each in done.items()}


def _identity(source: Source, said: Mapping[str, str], batch_size: int) -> dict[str, object]:
    """All that decides the bytes of the features."""
    known = {key: source.provenance.get(key) for key in IDENTITY}
    return {**known, **said, "batch_size": batch_size, "skip": source.skip, "torch": torch.__version__}


def _note_done(
    readers: Mapping[str, Reader], done: Mapping[str, Sequence[Part]], note: Callable[[str], object]
) -> None:
    there = sum(part.stop - part.start for parts in done.values() for part in parts)
    if there:
        total = sum(map(len, readers.values()))
        note(f"Going on from an interrupted run: {there} of {total} images were done.")


def _all_but_splits(
    source: Source,
    head: Head,
    said: Mapping[str, str],
    readers: Mapping[str, Reader],
    done: Mapping[str, Sequence[Part]],
) -> FeatureSet:
    splits = {name: readers[name] for name in source.data.splits}
    for name, images in splits.items():  # also what other processes and earlier runs found as they read
        for part in done[name]:
            images.skipped |= {int(index): why for index, why in part.notes["skipped"].items()}
            images.framed |= set(part.notes["framed"])
    counts = source.whole_counts(head.classes, splits)
    provenance = {**source.provenance, **said, **Findings.by(splits).provenance()}
    return FeatureSet(head, classes=source.data.classes, provenance=provenance, train_counts=counts)


def _pieces(done: Mapping[str, Sequence[Part]]) -> dict[str, Pieces]:
    """The tensors of every split, all features in one dtype, as they lie in the parts; views follow one another."""
    splits: dict[str, list[Part]] = {}
    for name, parts in done.items():
        splits.setdefault(split_of(name), []).extend(part for part in parts if part.notes["rows"])
    wide = [name for name, parts in splits.items() if any(part.dtypes["features"] == torch.float32 for part in parts)]
    kind = torch.float32 if note_wide(wide) else torch.float16
    found: dict[str, Pieces] = {}
    for name, parts in splits.items():
        count, bad, labelled = (sum(part.notes[key] for part in parts) for key in ("rows", "bad", "labelled"))
        require_sound(name, count, bad, labelled)
        width = parts[0].tensors()["features"].shape[1]
        found[f"{name}.features"] = Pieces((count, width), kind, partial(_read, parts, "features"))
        if labelled:
            found[f"{name}.labels"] = Pieces((count,), torch.int64, partial(_read, parts, "labels"))
    return found


def _read(parts: Sequence[Part], tensor: str) -> Iterator[Tensor]:
    return (part.tensors()[tensor] for part in parts)


def _fitted(pieces: Mapping[str, Pieces], parts: Parts, l2: float) -> Head:
    """A head fitted on train, which is joined on disk for that and read by chunks."""
    if ranks.rank() == 0:
        with ranks.alone():
            parts.join("train", {name: piece for name, piece in pieces.items() if name.startswith("train.")})
    ranks.wait()
    train = parts.joined("train")
    return fit_head(Features(train["train.features"], train.get("train.labels")), l2)
