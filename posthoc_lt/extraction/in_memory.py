"""Features of a checkpoint's network, kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from posthoc_lt.data import DataSpec, Findings
from posthoc_lt.device import resolve_device
from posthoc_lt.extraction.loop import Forward, collect, joined, resolve_precision, together
from posthoc_lt.extraction.network import opened
from posthoc_lt.extraction.source import Source, open_source, split_of
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.fitting import fit_head
from posthoc_lt.progress import bar

logger = logging.getLogger(__name__)


def extract(
    ckpt: Path | str,
    data: DataSpec | Path | str = "data",
    *,
    arch: str | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compiled: bool = False,
    batch_size: int = 256,
    workers: int | None = None,
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    counts: Sequence[int] | None = None,
    skip: bool = False,
    weights: str | None = None,
    allow_pickle: bool = False,
    l2: float | None = None,
    views: int = 1,
    progress: bool = False,
) -> FeatureSet:
    """Run a checkpoint's network once over every split and keep what its head reads.

    Args:
        ckpt: the checkpoint; it is read without running code in it, and never written to.
        data: the folder with ``train/ val/ test/``, a folder a class in each, or any other form that `DataSpec` says.
        arch: ``timm:NAME``, ``torchvision:NAME`` or ``module:factory``; None tells it from the tensors.
        device: where the network runs.
        precision: ``float32``, ``bf16`` or ``f16``, by autocast; ``auto`` takes f16 on CUDA, else float32.
        compiled: have torch.compile make the network faster, which takes a while first.
        batch_size: images at a time.
        workers: threads that decode images; None takes one a core, or none for few images.
        limit: at most so many images a split, every class in its proportion.
        mean: of each channel, for pixels in 0…1, in place of the checkpoint's or the architecture's.
        std: likewise.
        input_size: the side of the square that the network takes, likewise.
        counts: train images a class, where there is no ``train/`` to count, or only a part of it.
        skip: leave out images that cannot be read, which `provenance["skipped"]` then lists.
        weights: which set of weights, where the file holds several; None takes the moving average where there is one.
        allow_pickle: load even a checkpoint that may run code on loading; only for files that you trust.
        l2: for a sentence encoder, which has no head: the penalty of one that is fitted on train.
        views: rows of each train image: the image itself, then parts of it, mirrored or not, drawn by the seed of
            `data`; for fits that read train features. Class counts stay those of the images.
        progress: a bar on standard error, where that is a terminal.

    Returns:
        float16 features (float32 where float16 would not hold them), labels, the untouched head, class names and
        provenance.

    Raises:
        PosthocError: any input that cannot be used, NaN features, or class counts that do not agree.
    """
    source = open_source(
        ckpt,
        data,
        arch=arch,
        limit=limit,
        mean=mean,
        std=std,
        input_size=input_size,
        counts=counts,
        skip=skip,
        weights=weights,
        allow_pickle=allow_pickle,
        l2=l2,
        views=views,
    )
    if "arch_chosen_by" in source.provenance:
        logger.warning(source.architecture.note)
    how: Any = {"device": device, "precision": precision, "compiled": compiled, "workers": workers}
    return extract_source(source, batch_size=batch_size, progress=progress, **how)


def extract_source(
    source: Source,
    *,
    device: str | torch.device = "auto",
    precision: str = "auto",
    compiled: bool = False,
    batch_size: int = 256,
    workers: int | None = None,
    progress: bool = False,
) -> FeatureSet:
    """`extract` for what is already open."""
    place = resolve_device(device)
    found: dict[str, list[Features]] = {}
    readers = source.passes()
    with opened(source, place, compiled=compiled) as (run, located):
        forward = Forward(run, place, precision=resolve_precision(precision, place), inference=True)
        for name, images in readers.items():
            with bar(name, len(images), "images", wanted=progress) as shown:
                rows = collect(name, images.batches(batch_size, workers), forward, shown.update)
            found.setdefault(split_of(name), []).append(rows)
    own = {name: readers[name] for name in found}
    said = {"head_name": located.name, "precision": forward.precision, **({"compiled": "yes"} if compiled else {})}
    counts = source.whole_counts(located.head.classes, own)
    provenance = {**source.provenance, **said, **Findings.by(own).provenance()}
    splits = {name: _one(views) for name, views in found.items()}
    features = together(located.head, splits, source.data.classes, provenance, counts)
    return features if source.l2 is None else replace(features, head=fit_head(features.train, source.l2))


def _one(views: Sequence[Features]) -> Features:
    """All views of a split, one after another."""
    labels = [view.y for view in views if view.y is not None]
    return Features(joined([view.x for view in views]), torch.cat(labels) if labels else None)
