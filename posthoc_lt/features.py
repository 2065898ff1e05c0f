"""Cached features: one split, what a method may see of them, and the whole set."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.ahead import ahead
from posthoc_lt.columns import taken
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.head import Head, as_tensor
from posthoc_lt.identical import identical_rows, repeated_rows
from posthoc_lt.progress import bar

CHUNK_ELEMENTS = 1 << 22
"""The largest (rows, width) block that a pass over features makes: 16 MB in float32."""

SPLITS = ("train", "val", "test")

_KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False, init=False)
class Features:
    """The features of one split.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64, a tensor, an array, a data frame or lists; may be
            memory-mapped, is read by `chunks` alone.
        y: (N,) integer labels of any such form, kept on the CPU, or None for an unlabelled split.
        device: where `chunks` delivers its blocks and so where all arithmetic runs.

    Raises:
        PosthocError: no numbers, or shapes or dtypes that do not fit.
    """

    x: Tensor
    y: Tensor | None
    device: torch.device

    def __init__(self, x: Tensor | ArrayLike, y: Tensor | ArrayLike | None = None, device: torch.device = _CPU) -> None:
        rows = as_tensor(x, "features")
        if isinstance(x, list | tuple) and not rows.is_floating_point():
            rows = rows.double()  # 1 in a list stands for 1.0; an integer array is more likely something else
        if rows.ndim != 2 or rows.dtype not in _KINDS:
            raise PosthocError(
                f"features of shape {tuple(rows.shape)} and type {rows.dtype}",
                "floating-point features of shape (samples, dimensions)",
                "flatten or pool them to one row a sample",
            )
        object.__setattr__(self, "x", rows)
        object.__setattr__(self, "y", None if y is None else _labels(as_tensor(y, "labels"), len(rows)))
        object.__setattr__(self, "device", device)

    def __repr__(self) -> str:
        labelled = "" if self.y is not None else ", unlabelled"
        return f"Features({len(self)} samples, {self.dimensions} dimensions, {self.x.dtype}{labelled})"

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

    def require_fit(self, head: Head, name: str = "") -> None:
        """Refuse a head that these features are not for.

        Args:
            head: C classes, D dimensions.
            name: of the split, for the message.

        Raises:
            PosthocError: dimensions differ, or a label is not one of the head's.
        """
        split = f"{name} " if name else ""
        if self.dimensions != head.dimensions:
            raise PosthocError(
                f"{split}features of {self.dimensions} dimensions for a head of {head.dimensions}",
                "the features that this head reads",
                "extract features and head from the same checkpoint",
            )
        if self.y is not None and len(self) and int(self.y.max()) >= head.classes:
            raise PosthocError(
                f"{split}label {int(self.y.max())} for a head of {head.classes} classes",
                f"labels from 0 to {head.classes - 1}",
                "give data with the classes that the network was trained on",
            )

    def require_labelled(self, head: Head) -> None:
        """Refuse features that a head cannot be judged or fitted on.

        Raises:
            PosthocError: there is no sample or no label, or they do not fit the head.
        """
        if not len(self.labels):
            raise PosthocError("no labelled sample", "at least one", "extract again with a folder that holds images")
        self.require_fit(head)

    def counts(self, classes: int) -> Tensor:
        """Samples a class, shape (C,), int64."""
        return torch.bincount(self.labels, minlength=classes)

    def to(self, device: torch.device) -> Features:
        """The same features, delivered to `device`; nothing moves before a chunk is asked for."""
        return replace(self, device=device)

    def subset(self, index: Tensor) -> Features:
        """The rows of `index`, in its order; many of them in a temporary file."""
        return Features(taken(self.x, index), None if self.y is None else self.y[index], self.device)

    def chunks(self, width: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive row blocks ``(rows, x[rows])`` on `device`, small enough for a (rows, width) matrix.

        Args:
            width: columns of the widest matrix the caller makes of a block, most often C.
            dtype: what the block is converted to.
        """
        rows = self._rows(width)
        return self._read(range(-(-len(self) // rows)), rows, dtype)

    def own_chunks(self, width: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[slice, Tensor]]:
        """Those of `chunks` that are this process's share (`posthoc_lt.ranks`): consecutive, all of them if alone.

        The blocks are the same however many processes share them, and so is what is computed of each, to the bit.
        """
        rows = self._rows(width)
        return self._read(ranks.share(-(-len(self) // rows)), rows, dtype)

    def _rows(self, width: int) -> int:
        return max(1, CHUNK_ELEMENTS // max(width, self.dimensions, 1))

    def _read(self, blocks: range, rows: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        with bar("reading features", len(blocks), "blocks", wanted=len(blocks) > 1) as shown:
            every = (slice(index * rows, min((index + 1) * rows, len(self))) for index in blocks)
            for x, block in ahead(((self.x[block], block) for block in every), self.device):
                yield block, x.to(dtype)
                shown.update()

    def shared_with(self, other: Features) -> int:
        """How many of these samples are, bit for bit, samples of `other`; neither is ever held in memory whole.

        Where the dtypes differ, the wider one is rounded to the other.
        """
        return identical_rows(self.x, other.x)

    def repeated(self) -> int:
        """How many of these samples are, bit for bit, an earlier one."""
        return repeated_rows(self.x)


def _labels(y: Tensor, samples: int) -> Tensor:
    labels = y.to(_CPU, torch.int64)  # first of all, for torch cannot compare unsigned types
    if y.shape != (samples,) or y.is_floating_point() or bool(len(labels) and labels.min() < 0):
        raise PosthocError(
            f"labels of shape {tuple(y.shape)} and type {y.dtype} for {samples} samples",
            "one integer class index >= 0 a sample",
            "give class indices counted from 0 in the order of the head's rows",
        )
    return labels


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
                "extract again with a train/ folder, or use logit-adjust, scale or tau-norm, which need only counts",
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
        train_counts: (C,) train samples a class, standing in for a missing train split or for one that
            holds only a part of them; whole numbers of any dtype, kept as int64 on the CPU.

    Raises:
        PosthocError: dimensions, labels, names or counts do not fit.
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
            split.require_fit(self.head, name)
        if self.train_counts is not None:
            object.__setattr__(self, "train_counts", _whole(as_tensor(self.train_counts, "train counts"), count))
        self._check_views()
        self._check_counts()

    @property
    def views(self) -> int:
        """How many rows train has of each image, all first views before all second ones, as `provenance` tells."""
        return int(self.provenance.get("views", "1"))

    @property
    def plain_train(self) -> Features | None:
        """Train without augmented views: a row an image."""
        train = self.train
        if train is None or self.views == 1:
            return train
        count = len(train) // self.views
        return Features(train.x[:count], None if train.y is None else train.y[:count], train.device)

    def _check_views(self) -> None:
        told = self.provenance.get("views", "1")
        views = int(told) if told.isdecimal() and len(told) < 10 else 0
        if not views or (self.train is not None and len(self.train) % views):
            raise PosthocError(
                f"{show(told)} views of {0 if self.train is None else len(self.train)} train rows",
                "as many rows of every image",
                "extract again",
            )

    def _check_counts(self) -> None:
        if self.train_counts is None or self.train is None or self.train.y is None:
            return
        counts, there = self.train_counts.cpu(), self.train.counts(self.head.classes).cpu() // self.views
        short = (counts < there).nonzero().flatten().tolist()
        if short:
            raise PosthocError(
                f"train count {int(counts[short[0]])} of class {short[0]}, of which {int(there[short[0]])} samples "
                "are there",
                "counts of all train samples, those at hand among them",
                "count them again, in the order of the head's rows, or leave train_counts out",
            )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{name}</td><td>{len(split)}</td><td>{split.dimensions}</td><td>{str(split.x.dtype)[6:]}</td>"
            f"<td>{'no' if split.y is None else 'yes'}</td></tr>"
            for name, split in self.splits().items()
        )
        header = "".join(f"<th>{name}</th>" for name in ("split", "samples", "dimensions", "type", "labelled"))
        classes = html.escape(listed(self.classes))
        return (
            f"<p>FeatureSet: {self.head.classes} classes ({classes})</p>"
            f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
        )

    def splits(self) -> dict[str, Features]:
        """The splits that are there, by name."""
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    def to(self, device: torch.device) -> FeatureSet:
        """The same set, its arithmetic on `device`; itself where it is there already."""
        if all(split.device == device for split in self.splits().values()):
            return self
        train, val, test = (None if split is None else split.to(device) for split in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    @cached_property
    def shared(self) -> Mapping[tuple[str, str], int]:
        """How many samples of a split are, bit for bit, samples of one before it, by the names (earlier, later).

        Unlabelled splits, which judge nothing, and pairs that share nothing are left out.
        """
        labelled = [(name, split) for name, split in self.splits().items() if split.y is not None]
        found = {(one, other): second.shared_with(first) for (one, first), (other, second) in combinations(labelled, 2)}
        return {pair: count for pair, count in found.items() if count}

    def require_apart(self) -> None:
        """Refuse splits of which one consists, by half or more, of samples of another; one pass over all features.

        Real data holds a few duplicates, and a few bias no choice: those are in `shared`.

        Raises:
            PosthocError: val or test shares half of its samples with a split before it.
        """
        for (one, other), count in self.shared.items():
            total = len(self.splits()[other])
            if 2 * count >= total:
                raise PosthocError(
                    f"{other} features, {count} of whose {total} samples are {one} samples, bit for bit",
                    "splits that share no sample, for train fits, val chooses and test judges",
                    f"give {other} samples of its own, or leave it out",
                )

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
        return self.train.counts(self.head.classes) // self.views

    @property
    def training(self) -> Training:
        """What a method may see."""
        labelled = self.train is not None and self.train.y is not None
        return Training(self.counts, self.train if labelled else None)


def _whole(counts: Tensor, classes: int) -> Tensor:
    if counts.shape != (classes,):
        raise PosthocError(
            f"train counts of shape {tuple(counts.shape)}",
            f"one count for each of the {classes} classes",
            "write one number a class, in the order of the head's rows",
        )
    counts = counts.to(_CPU)
    whole = counts.to(torch.int64)
    broken = counts.is_floating_point() and not torch.equal(whole.to(counts), counts)
    if broken or counts.dtype == torch.bool or bool((whole < 0).any()):
        raise PosthocError(
            f"train counts {listed(counts.tolist())}",
            "one whole number >= 0 a class",
            "count the train samples of each class, in the order of the head's rows",
        )
    return whole
