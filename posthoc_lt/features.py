"""Cached features: one split, what a method may see of them, and the whole set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.head import Head

CHUNK_ELEMENTS = 1 << 22
"""The largest (rows, width) block that a pass over features makes: 16 MB in float32."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one split.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64; may be memory-mapped, is read by `chunks` alone.
        y: (N,) integer labels, or None for an unlabelled split.
        device: where `chunks` delivers its blocks and so where all arithmetic runs.

    Raises:
        PosthocError: shapes or dtypes do not fit.
    """

    x: Tensor
    y: Tensor | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __repr__(self) -> str:
        labelled = "" if self.y is not None else ", unlabelled"
        return f"Features({len(self)} samples, {self.dimensions} dimensions, {self.x.dtype}{labelled})"

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or not self.x.is_floating_point():
            raise PosthocError(
                f"features of shape {tuple(self.x.shape)} and type {self.x.dtype}",
                "floating-point features of shape (samples, dimensions)",
                "flatten or pool them to one row a sample",
            )
        if self.y is not None:
            fits = self.y.shape == self.x.shape[:1] and not self.y.is_floating_point()
            if not fits or (len(self.y) and int(self.y.min()) < 0):
                raise PosthocError(
                    f"labels of shape {tuple(self.y.shape)} and type {self.y.dtype} for {len(self.x)} samples",
                    "one integer class index >= 0 a sample",
                    "give class indices counted from 0 in the order of the head's rows",
                )
            object.__setattr__(self, "y", self.y.to(torch.int64))

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def dimensions(self) -> int:
        """D, the number of features a sample."""
        return self.x.shape[1]

    @property
    def labels(self) -> Tensor:
        """The labels (N,), for code that cannot do without them.

        Raises:
            PosthocError: the split is unlabelled.
        """
        if self.y is None:
            raise PosthocError("a split without labels", "labelled features", "extract it again with its labels")
        return self.y

    def counts(self, classes: int) -> Tensor:
        """Samples a class, shape (C,), int64."""
        return torch.bincount(self.labels, minlength=classes)

    def to(self, device: torch.device) -> Features:
        """The same features, delivered to `device`; nothing moves before a chunk is asked for."""
        return replace(self, device=device)

    def subset(self, index: Tensor) -> Features:
        """The rows of `index`, in its order, held in memory."""
        return Features(self.x[index], None if self.y is None else self.y[index], self.device)

    def chunks(self, width: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive row blocks ``(rows, x[rows])`` on `device`, small enough for a (rows, width) matrix.

        Args:
            width: columns of the widest matrix the caller makes of a block, most often C.
            dtype: what the block is converted to.
        """
        rows = max(1, CHUNK_ELEMENTS // max(width, self.dimensions, 1))
        for start in range(0, len(self), rows):
            block = slice(start, min(start + rows, len(self)))
            yield block, self.x[block].to(self.device).to(dtype)


@dataclass(frozen=True, eq=False)
class Training:
    """All that fitting may see: the class counts, and the train features where they were cached.

    Args:
        counts: (C,) train samples a class.
        features: the train split, or None where only counts are known.
    """

    counts: Tensor
    features: Features | None = None

    def require(self, method: str) -> Features:
        """The train features, for a method that cannot do without, every class present.

        Raises:
            PosthocError: they are missing, or a class has no sample.
        """
        if self.features is None:
            raise PosthocError(
                "features without a labelled train split",
                f"train features, which {method} is fitted on",
                "extract again with a train/ folder, or use logit-adjust or tau-norm, which need only class counts",
            )
        empty = (self.counts == 0).nonzero().flatten().tolist()
        if empty:
            raise PosthocError(
                f"no train sample of class {listed(empty)}",
                f"at least one train sample a class, which {method} needs",
                "add samples, or use tau-norm, which needs none",
            )
        return self.features


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Every split's features, the head that the network came with, and where it all comes from.

    Args:
        head: the untouched head, C classes and D dimensions.
        train, val, test: the splits; any may lack.
        classes: C names; ``0 … C-1`` where none are given.
        provenance: strings that say where the features come from (checkpoint_sha256, arch, transform, …).
        train_counts: (C,) train samples a class, standing in for a missing train split.

    Raises:
        PosthocError: dimensions, labels or names do not fit the head.
    """

    head: Head
    train: Features | None = None
    val: Features | None = None
    test: Features | None = None
    classes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    train_counts: Tensor | None = None

    def __post_init__(self) -> None:
        count = self.head.classes
        if not self.classes:
            object.__setattr__(self, "classes", tuple(str(c) for c in range(count)))
        if len(self.classes) != count:
            raise PosthocError(
                f"{len(self.classes)} class names for a head of {count} classes",
                "one name a class",
                "give data with the classes that the network was trained on, in their order",
            )
        for name, split in self.splits().items():
            self._check(name, split)
        if self.train_counts is not None and self.train_counts.shape != (count,):
            raise PosthocError(
                f"train counts of shape {tuple(self.train_counts.shape)}",
                f"one count for each of the {count} classes",
                "write one number a class, in the order of the head's rows",
            )

    def _check(self, name: str, split: Features) -> None:
        if split.dimensions != self.head.dimensions:
            raise PosthocError(
                f"{name} features of {split.dimensions} dimensions for a head of {self.head.dimensions}",
                "the features that this head reads",
                "extract features and head from the same checkpoint",
            )
        if split.y is not None and len(split) and int(split.y.max()) >= self.head.classes:
            raise PosthocError(
                f"{name} label {int(split.y.max())} for a head of {self.head.classes} classes",
                f"labels from 0 to {self.head.classes - 1}",
                "give data with the classes that the network was trained on",
            )

    def splits(self) -> dict[str, Features]:
        """The splits that are there, by name."""
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    def to(self, device: torch.device) -> FeatureSet:
        """The same set, its arithmetic on `device`."""
        train, val, test = (None if split is None else split.to(device) for split in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    @cached_property
    def counts(self) -> Tensor:
        """Train samples a class (C,), from the train labels or from `train_counts`.

        Raises:
            PosthocError: there is neither.
        """
        if self.train_counts is not None:
            return self.train_counts
        if self.train is None or self.train.y is None:
            raise PosthocError(
                "features without train labels or train counts",
                "how many train samples each class had",
                "extract again with a train/ folder",
            )
        return self.train.counts(self.head.classes)

    @property
    def training(self) -> Training:
        """What a method may see."""
        labelled = self.train is not None and self.train.y is not None
        return Training(self.counts, self.train if labelled else None)
