"""Features of a checkpoint's network, kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from posthoc_lt.checkpoint import capture
from posthoc_lt.data import DataSpec, findings
from posthoc_lt.device import resolve_device
from posthoc_lt.extraction.loop import Forward, collect, progress_bar, together
from posthoc_lt.extraction.network import prepare
from posthoc_lt.extraction.source import Source, open_source
from posthoc_lt.features import FeatureSet
from posthoc_lt.fitting import fit_head

logger = logging.getLogger(__name__)


def extract(
    ckpt: Path | str,
    data: DataSpec | Path | str = "data",
    *,
    arch: str | None = None,
    device: str | torch.device = "auto",
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
    progress: bool = False,
) -> FeatureSet:
    """Run a checkpoint's network once over every split and keep what its head reads.

    Args:
        ckpt: the checkpoint; it is read without running code in it, and never written to.
        data: the folder with ``train/ val/ test/``, a folder a class in each, or any other form that `DataSpec` says.
        arch: ``timm:NAME``, ``torchvision:NAME`` or ``module:factory``; None tells it from the tensors.
        device: where the network runs; CUDA runs in mixed precision.
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
    )
    if "arch_chosen_by" in source.provenance:
        logger.warning(source.architecture.note)
    return extract_source(source, device=device, batch_size=batch_size, workers=workers, progress=progress)


def extract_source(
    source: Source,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    workers: int | None = None,
    progress: bool = False,
) -> FeatureSet:
    """`extract` for what is already open."""
    place = resolve_device(device)
    splits, readers = {}, source.readers()
    network, located = prepare(source, place)
    with capture(network, located.name) as run:
        forward = Forward(run, place, mixed=place.type == "cuda", inference=True)
        for name, images in readers.items():
            with progress_bar(name, len(images), progress) as bar:
                splits[name] = collect(name, images.batches(batch_size, workers), forward, bar.update)
    provenance = {**source.provenance, "head_name": located.name, "precision": forward.precision, **findings(readers)}
    counts = source.whole_counts(located.head.classes, readers)
    features = together(located.head, splits, source.data.classes, provenance, counts)
    return features if source.l2 is None else replace(features, head=fit_head(features.train, source.l2))
