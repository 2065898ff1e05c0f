"""The only loop that runs a network over data."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from posthoc_lt.ahead import ahead
from posthoc_lt.checkpoint import OutOfMemoryError
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.features import SPLITS, Features, FeatureSet
from posthoc_lt.head import Head

HALF_ERROR = 1e-3
"""The largest error, relative to its row's norm, with which features may be kept in float16."""

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor | None]]
"""Inputs of the network, and their labels where there are some."""

logger = logging.getLogger(__name__)


PRECISIONS: Mapping[str, torch.dtype | None] = {"float32": None, "bf16": torch.bfloat16, "f16": torch.float16}
"""What the network may run in, weights and sums kept in float32."""


def resolve_precision(name: str, device: torch.device) -> str:
    """One of `PRECISIONS`; ``auto`` takes float16 on CUDA, else float32.

    Raises:
        PosthocError: another name.
    """
    if name == "auto":
        return "f16" if device.type == "cuda" else "float32"
    if name not in PRECISIONS:
        raise PosthocError(
            f"precision {show(name)!r}", "one of auto, " + ", ".join(PRECISIONS), "drop --precision to take auto"
        )
    return name


class Forward:
    """From a batch of inputs to the features that the head reads.

    Where the device has no memory for a batch it is halved, and the following ones with it: the same rows, up to the
    rounding in which batches of different sizes differ.

    Args:
        run: a captured network.
        device: where it is.
        precision: what it runs in; float16 only where that does not overflow within the network.
        inference: leave out all bookkeeping for gradients; only for a network that nobody trains afterwards.
    """

    def __init__(
        self,
        run: Callable[[Tensor], tuple[Tensor, Tensor]],
        device: torch.device,
        *,
        precision: str = "float32",
        inference: bool = False,
    ) -> None:
        self.run = run
        self.device = device
        self.precision = precision
        self.kind = PRECISIONS[precision]
        self.inference = inference
        self.most = sys.maxsize

    def __call__(self, inputs: Tensor) -> Tensor:
        """The features (N, D) in float32 of inputs that are on the device.

        Raises:
            OutOfMemoryError: there is no memory for a single input.
        """
        x = self.compute(inputs, self.kind)
        return x if self.kind is not torch.float16 or bool(x.isfinite().all()) else self.compute(inputs, None)

    def compute(self, inputs: Tensor, kind: torch.dtype | None) -> Tensor:
        """The features with the network run in `kind`, None for float32, even where that overflows within it."""
        while True:
            size = min(self.most, max(1, len(inputs)))
            try:
                with torch.inference_mode(self.inference):
                    blocks = [self._features(block, kind) for block in torch.split(inputs, size)]
                    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
            except OutOfMemoryError:
                if size <= 1:
                    raise
                self.most = size // 2
            logger.warning("no memory for %d inputs at a time: going on with %d", size, self.most)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _features(self, inputs: Tensor, kind: torch.dtype | None) -> Tensor:
        if kind is None:
            return self.run(inputs)[0].float()
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(inputs.device.type, kind):
            return self.run(inputs)[0].float()


def rows(batches: Batches, forward: Forward) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The features and labels of each batch, on the CPU, in float16 where that holds them."""
    if forward.device.type == "cuda":
        yield from _rows_behind(batches, forward)
        return
    for inputs, y in ahead(batches, forward.device):
        x = forward(inputs)
        half, held = _halved(x)
        yield (half if held else x).cpu(), None if y is None else y.cpu()


def _halved(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` in float16, and whether that neither overflows nor loses more than rounding."""
    half = x.half()
    error = (half.float() - x).norm(dim=1)
    return half, (error <= HALF_ERROR * x.norm(dim=1)).all()


def _rows_behind(batches: Batches, forward: Forward) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`rows` on CUDA, where asking for a value waits for it: each is asked for when the next batch is under way."""
    before: _Queued | None = None
    for inputs, y in ahead(batches, forward.device):
        queued = _Queued(inputs, y, forward)
        if before is not None:
            yield before.arrived()
        before = queued
    if before is not None:
        yield before.arrived()


class _Queued:
    """A batch whose features are being computed and copied."""

    def __init__(self, inputs: Tensor, y: Tensor | None, forward: Forward) -> None:
        self.inputs, self.y, self.forward = inputs, y, forward
        x = forward.compute(inputs, forward.kind)
        half, sound = _halved(x)  # never sound where there is infinity or NaN
        self.half = torch.empty(half.shape, dtype=half.dtype, pin_memory=True).copy_(half, non_blocking=True)
        self.sound = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(sound, non_blocking=True)
        self.copied = torch.cuda.current_stream(inputs.device).record_event()

    def arrived(self) -> tuple[Tensor, Tensor | None]:
        self.copied.synchronize()
        y = None if self.y is None else self.y.cpu()
        if self.sound:
            return self.half, y
        x = self.forward(self.inputs)
        half, held = _halved(x)
        return (half if held else x).cpu(), y


def collect(
    name: str, batches: Batches, forward: Forward, advance: Callable[[int], object] = lambda _: None
) -> Features:
    """The features of one split, in memory.

    Raises:
        PosthocError: there are none, they hold NaN, or labels for a part of them.
    """
    kept: list[Tensor] = []
    labels: list[Tensor] = []
    for x, y in rows(batches, forward):
        kept.append(x)
        labels += [] if y is None else [y]
        advance(len(x))
    require_sound(name, sum(map(len, kept)), sum(map(broken, kept)), sum(map(len, labels)))
    return Features(joined(kept), torch.cat(labels) if labels else None)


def joined(blocks: Sequence[Tensor]) -> Tensor:
    """Blocks of rows as one, in float32 where any of them is."""
    widest = torch.float32 if any(x.dtype == torch.float32 for x in blocks) else torch.float16
    return torch.cat([x.to(widest) for x in blocks])


def broken(x: Tensor) -> int:
    """How many rows hold NaN or infinity."""
    return int((~x.isfinite().all(dim=1)).sum())


def require_sound(name: str, count: int, bad: int, labelled: int) -> None:
    """Refuse a split of no samples, with NaN, or with labels for a part of it.

    Raises:
        PosthocError: so it is.
    """
    if not count:
        raise no_samples(name)
    if bad:
        raise PosthocError(
            f"NaN or infinite features in {bad} of {count} {name} rows",
            "finite features",
            "check the images and the preprocessing, and the checkpoint for a diverged run",
        )
    if 0 < labelled < count:
        raise PosthocError(f"{name} with labels for a part of it", "labels for all, or none", "complete the labels")


def no_samples(name: str) -> PosthocError:
    """What to tell of an empty split."""
    return PosthocError(f"no samples in {name}", "at least one", "leave that split out")


def together(
    head: Head,
    splits: Mapping[str, Features],
    classes: Sequence[str],
    provenance: Mapping[str, str],
    train_counts: Tensor | None = None,
) -> FeatureSet:
    """The set of all splits, in one dtype.

    Raises:
        PosthocError: they do not fit the head or the counts, or share their samples.
    """
    if note_wide([name for name, split in splits.items() if split.x.dtype == torch.float32]):
        splits = {name: Features(split.x.float(), split.y) for name, split in splits.items()}
    train, val, test = (splits.get(name) for name in SPLITS)
    features = FeatureSet(head, train, val, test, tuple(classes), provenance, train_counts)
    features.require_apart()
    return features


def note_wide(names: Sequence[str]) -> bool:
    """Whether any split needs float32, which then all are kept in; a warning says so."""
    if names:
        logger.warning("features of %s do not fit float16: all are kept in float32", ", ".join(names))
    return bool(names)
