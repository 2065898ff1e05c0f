"""Running the network once, so that everything after it works on cached features."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from posthoc_lt.checkpoint import (
    Architecture,
    Checkpoint,
    LocatedHead,
    Preprocessing,
    capture,
    find_head,
    identify,
    load_network,
    read,
)
from posthoc_lt.data import ImageData, ImageSplit, fingerprint, printable, read_folder
from posthoc_lt.device import resolve_device
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.features import SPLITS, Features, FeatureSet

IDENTITY = ("checkpoint_sha256", "arch", "transform", "data_fingerprint", "limit", "counts_given")
"""The provenance that decides what the features are: where all of it agrees, a cache is up to date."""

HALF_ERROR = 1e-3
"""The largest error, relative to its row's norm, with which features may be kept in float16."""

_PROOF_BATCH = 8

logger = logging.getLogger(__name__)

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Source:
    """What there is to extract: a checkpoint with its architecture, and the images.

    Args:
        checkpoint: as read.
        architecture: as identified.
        preprocessing: the architecture's, with what the user changed.
        data: the images, limited where asked.
        provenance: strings for the feature file, all known before the network runs.
        train_counts: (C,) train images a class where `limit` leaves some out, since groups and priors are
            those of what the network was trained on.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    preprocessing: Preprocessing
    data: ImageData
    provenance: Mapping[str, str]
    train_counts: Tensor | None = None

    def split(self, name: str) -> ImageSplit:
        """The images of one split, as the network takes them."""
        return ImageSplit(self.data.splits[name], self.preprocessing)


def open_source(
    ckpt: Path | str,
    data: Path | str = Path("data"),
    *,
    arch: str | None = None,
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    counts: Sequence[int] | None = None,
) -> Source:
    """Read the checkpoint and list the images, without building or running the network; arguments as `extract`'s.

    Raises:
        PosthocError: see `checkpoint.read`, `checkpoint.identify` and `data.read_folder`.
    """
    checkpoint = read(ckpt)
    architecture = identify(checkpoint, arch)
    preprocessing = architecture.preprocessing.changed(mean, std, input_size)
    every = read_folder(data)
    images = every.limited(limit)
    provenance = {
        "source": "images",
        "checkpoint": printable(ckpt),
        "checkpoint_sha256": checkpoint.sha256,
        "arch": architecture.name,
        "transform": preprocessing.to_json(),
        "data": printable(data),
        "data_fingerprint": fingerprint(images),
        **({} if limit is None else {"limit": str(limit)}),
        **({} if counts is None else {"counts_given": hashlib.sha256(repr(list(counts)).encode()).hexdigest()}),
    }
    return Source(checkpoint, architecture, preprocessing, images, provenance, _train_counts(every, limit, counts))


def _train_counts(every: ImageData, limit: int | None, counts: Sequence[int] | None) -> Tensor | None:
    """The counts that the train split does not tell, because it lacks or is limited; None where it does."""
    if counts is not None:
        if len(counts) != len(every.classes):
            raise PosthocError(
                f"{len(counts)} train counts for {len(every.classes)} classes",
                "one for each, in the order of the class folders",
                "correct --counts",
            )
        return torch.tensor(counts, dtype=torch.int64)
    if "train" not in every.splits:
        raise PosthocError(
            f"{show(every.root)} without a train/ folder",
            "how many images of each class the network was trained on",
            "add train/, or give --counts with a file of one number a class",
        )
    return None if limit is None else every.counts("train")


def is_current(features: FeatureSet, source: Source) -> bool:
    """Whether extracting `source` would give these features again: same checkpoint, network, transform and images."""
    return all(features.provenance.get(key) == source.provenance.get(key) for key in IDENTITY)


def extract(
    ckpt: Path | str,
    data: Path | str = Path("data"),
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
    progress: bool = False,
) -> FeatureSet:
    """Run a checkpoint's network once over every split and keep what its head reads.

    Args:
        ckpt: the checkpoint; it is read without running code in it, and never written to.
        data: the folder with ``train/ val/ test/``, a folder a class in each.
        arch: ``timm:NAME``, ``torchvision:NAME`` or ``module:factory``; None finds a CIFAR ResNet by its tensors.
        device: where the network runs; CUDA runs in mixed precision.
        batch_size: images at a time.
        workers: threads that decode images; None takes one a core, or none for few images.
        limit: at most so many images a split, every class in its proportion.
        mean: of each channel, for pixels in 0…1, in place of the checkpoint's or the architecture's.
        std: likewise.
        input_size: the side of the square that the network takes, likewise.
        counts: train images a class, where there is no ``train/`` to count, or only a part of it.
        progress: a bar on standard error, where that is a terminal.

    Returns:
        float16 features (float32 where float16 would not hold them), labels, the untouched head, class names and
        provenance.

    Raises:
        PosthocError: any input that cannot be used, NaN features, or class counts that do not agree.
    """
    source = open_source(ckpt, data, arch=arch, limit=limit, mean=mean, std=std, input_size=input_size, counts=counts)
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
    network = load_network(source.checkpoint, source.architecture)
    located = _prove(network, source)
    if place.type == "cuda":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's stubs
    splits = {}
    with capture(network.to(place), located.name) as run:
        for name in source.data.splits:
            images = source.split(name)
            with _bar(name, len(images), progress) as bar:
                batches = images.batches(batch_size, workers)
                splits[name] = _collect(name, run, batches, place, mixed=place.type == "cuda", advance=bar.update)
    provenance = {**source.provenance, "head_name": located.name, "precision": _precision(place)}
    return _feature_set(located, splits, source.data.classes, provenance, source.train_counts)


def extract_loaders(
    model: nn.Module, train: Any, val: Any = None, test: Any = None, *, device: str | torch.device = "auto"
) -> FeatureSet:
    """Run a network that is in memory once over its loaders; the network is left as it was.

    Args:
        model: any network that ends in one `nn.Linear` and returns its output.
        train: a loader that yields (inputs, labels), without random augmentation; or None.
        val: likewise.
        test: likewise.
        device: where the network runs meanwhile.

    Raises:
        PosthocError: no loader, batches of another form, no such last layer, or NaN features.
    """
    loaders = {"train": train, "val": val, "test": test}
    loaders = {name: loader for name, loader in loaders.items() if loader is not None}
    if not loaders:
        raise PosthocError("no loader", "a loader of (inputs, labels)", "give extract_loaders(model, train, val)")
    place = resolve_device(device)
    splits = {}
    with _borrowed(model, place):
        batches = {name: _pairs(name, loader) for name, loader in loaders.items()}
        first = next(iter(batches))
        inputs, batches[first] = _peek(first, batches[first])
        located = find_head(model, inputs.to(place))
        with capture(model, located.name) as run:
            for name, pairs in batches.items():
                splits[name] = _collect(name, run, pairs, place, mixed=False)
    provenance = {"source": "memory", "head_name": located.name, "precision": "float32"}
    return _feature_set(located, splits, _class_names(loaders, located.head.classes), provenance)


def _precision(device: torch.device) -> str:
    return "mixed" if device.type == "cuda" else "float32"


def _prove(network: nn.Module, source: Source) -> LocatedHead:
    """Find the head on a few real images, on the CPU in float32, and check it against the class folders."""
    images = source.split(next(iter(source.data.splits)))
    located = find_head(network, images.stack(spread(len(images), _PROOF_BATCH))[0])
    count, classes = located.head.classes, source.data.classes
    if count != len(classes):
        raise PosthocError(
            f"a network of {count} classes and {len(classes)} class folders in {show(source.data.root)} "
            f"({listed(classes, 3)})",
            "a folder for every class of the network",
            "give --data with the classes that the network was trained on, or another --ckpt",
        )
    return located


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices at even distances over ``range(count)``.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def _collect(
    name: str,
    run: Callable[[Tensor], tuple[Tensor, Tensor]],
    batches: Batches,
    device: torch.device,
    *,
    mixed: bool,
    advance: Callable[[int], object] = lambda _: None,
) -> Features:
    """The features of one split: the only loop that runs a network."""
    kept, labels, bad = [], [], 0
    for inputs, y in batches:
        x = _forward(run, inputs.to(device, non_blocking=True), mixed)
        bad += int((~x.isfinite().all(dim=1)).sum())
        kept.append(_halved(x).cpu())
        labels.append(y.cpu())
        advance(len(x))
    if not kept:
        raise _no_samples(name)
    if bad:
        raise PosthocError(
            f"NaN or infinite features in {bad} of {sum(map(len, kept))} {name} rows",
            "finite features",
            "check the images and the preprocessing, and the checkpoint for a diverged run",
        )
    widest = torch.float32 if any(x.dtype == torch.float32 for x in kept) else torch.float16
    return Features(torch.cat([x.to(widest) for x in kept]), torch.cat(labels))


def _forward(run: Callable[[Tensor], tuple[Tensor, Tensor]], inputs: Tensor, mixed: bool) -> Tensor:
    if mixed:
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, torch.float16):
            x = run(inputs)[0].float()
        if x.isfinite().all():
            return x
    return run(inputs)[0].float()  # also where float16 overflowed within the network


def _halved(x: Tensor) -> Tensor:
    """`x` in float16, or as it is where that would overflow or lose more than rounding."""
    half = x.half()
    error = (half.float() - x).norm(dim=1)
    return half if bool((error <= HALF_ERROR * x.norm(dim=1)).all()) else x


def _feature_set(
    located: LocatedHead,
    splits: Mapping[str, Features],
    classes: Sequence[str],
    provenance: Mapping[str, str],
    train_counts: Tensor | None = None,
) -> FeatureSet:
    wide = [name for name, split in splits.items() if split.x.dtype == torch.float32]
    if wide:
        logger.warning("features of %s do not fit float16: all are kept in float32", ", ".join(wide))
        splits = {name: Features(split.x.float(), split.y) for name, split in splits.items()}
    train, val, test = (splits.get(name) for name in SPLITS)
    return FeatureSet(located.head, train, val, test, tuple(classes), provenance, train_counts)


@contextmanager
def _borrowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in evaluation mode on `device`; afterwards in the mode and on the device it came with."""
    modes = [(module, module.training) for module in model.modules()]
    places = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    move = places != {device} and len(places) == 1  # a model spread over devices stays where it is
    try:
        model.eval()
        if move:
            model.to(device)
        yield
    finally:
        if move:
            model.to(next(iter(places)))
        for module, mode in modes:
            module.training = mode


def _pairs(name: str, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) < 2 or not isinstance(batch[0], Tensor):
            raise PosthocError(
                f"{name} batches of type {type(batch).__name__}",
                "pairs (inputs, labels) of tensors",
                "wrap the loader in one that yields (inputs, labels)",
            )
        yield batch[0], torch.as_tensor(batch[1])


def _peek(name: str, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]:
    """A few inputs of the first batch, and all batches still, since a loader may be readable only once."""
    first = next(batches, None)
    if first is None:
        raise _no_samples(name)
    return first[0][:_PROOF_BATCH], chain([first], batches)


def _no_samples(name: str) -> PosthocError:
    return PosthocError(f"no samples in {name}", "at least one", "leave that split out")


def _class_names(loaders: Mapping[str, Any], count: int) -> tuple[str, ...]:
    for loader in loaders.values():
        names = getattr(getattr(loader, "dataset", None), "classes", ())
        if isinstance(names, list | tuple) and len(names) == count:
            return tuple(str(name) for name in names)
    return ()


def _bar(name: str, total: int, progress: bool) -> Any:
    return tqdm(total=total, desc=name, unit=" images", file=sys.stderr, disable=not (progress and sys.stderr.isatty()))
