"""The only loop that runs a network over data."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from posthoc_lt.checkpoint import OutOfMemoryError
from posthoc_lt.errors import PosthocError
from posthoc_lt.extraction.ahead import Batches, ahead
from posthoc_lt.features import SPLITS, Features, FeatureSet
from posthoc_lt.head import Head

HALF_ERROR = 1e-3
"""The largest error, relative to its row's norm, with which features may be kept in float16."""

logger = logging.getLogger(__name__)


class Forward:
    """From a batch of inputs to the features that the head reads.

    Where the device has no memory for a batch it is halved, and the following ones with it: the same rows, up to the
    rounding in which batches of different sizes differ.

    Args:
        run: a captured network.
        device: where it is.
        mixed: run in float16 where that does not overflow within the network.
        inference: leave out all bookkeeping for gradients; only for a network that nobody trains afterwards.
    """

    def __init__(
        self,
        run: Callable[[Tensor], tuple[Tensor, Tensor]],
        device: torch.device,
        *,
        mixed: bool = False,
        inference: bool = False,
    ) -> None:
        self.run = run
        self.device = device
        self.mixed = mixed
        self.inference = inference
        self.most = sys.maxsize

    @property
    def precision(self) -> str:
        """What a feature file says of it."""
        return "mixed" if self.mixed else "float32"

    def __call__(self, inputs: Tensor) -> Tensor:
        """The features (N, D) in float32 of inputs that are on the device.

        Raises:
            OutOfMemoryError: there is no memory for a single input.
        """
        while True:
            size = min(self.most, max(1, len(inputs)))
            try:
                with torch.inference_mode(self.inference):
                    blocks = [self._features(block) for block in torch.split(inputs, size)]
                    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
            except OutOfMemoryError:
                if size <= 1:
                    raise
                self.most = size // 2
            logger.warning("no memory for %d inputs at a time: going on with %d", size, self.most)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _features(self, inputs: Tensor) -> Tensor:
        if self.mixed:
            if inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(inputs.device.type, torch.float16):
                x = self.run(inputs)[0].float()
            if x.isfinite().all():
                return x
        return self.run(inputs)[0].float()  # also where float16 overflowed within the network


def rows(batches: Batches, forward: Forward) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The features and labels of each batch, on the CPU, in float16 where that holds them."""
    for inputs, y in ahead(batches, forward.device):
        yield _halved(forward(inputs)).cpu(), None if y is None else y.cpu()


def _halved(x: Tensor) -> Tensor:
    """`x` in float16, or as it is where that would overflow or lose more than rounding."""
    half = x.half()
    error = (half.float() - x).norm(dim=1)
    return half if bool((error <= HALF_ERROR * x.norm(dim=1)).all()) else x


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
    widest = torch.float32 if any(x.dtype == torch.float32 for x in kept) else torch.float16
    return Features(torch.cat([x.to(widest) for x in kept]), torch.cat(labels) if labels else None)


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


def progress_bar(name: str, total: int, progress: bool, done: int = 0) -> Any:
    """A bar on standard error, where that is a terminal."""
    hidden = not (progress and sys.stderr.isatty())
    return tqdm(total=total, initial=done, desc=name, unit=" images", file=sys.stderr, disable=hidden)
