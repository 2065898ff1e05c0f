"""One split of data, whatever it is made of: inputs by index, and their labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor

Kind: TypeAlias = Literal["images", "texts"]

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}


class Samples(Protocol):
    """N inputs that are read one by one.

    An input is an encoded image (a path, or bytes), a decoded one, a tensor that the network takes as it is,
    or a text.
    """

    @property
    def labels(self) -> Tensor | None:
        """The labels (N,) int64 where they are known without reading; None where not, or where there are none."""
        ...

    @property
    def own_code(self) -> bool:
        """Whether code of the user's own reads them, of which nothing is known."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        """One input and its label; whatever it raises means that this sample cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What a message calls a sample."""
        ...

    def stamp(self, index: int) -> str:
        """A text that changes when a sample does, made without reading it.

        Raises:
            OSError: the sample is not there.
        """
        ...


class Subset:
    """Some of other samples, in an order of their own."""

    def __init__(self, samples: Samples, index: Sequence[int]) -> None:
        self.samples = samples
        self.index = index
        self.labels = None if samples.labels is None else samples.labels[list(index)]
        self.own_code = samples.own_code

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        return self.samples[self.index[index]]

    def name(self, index: int) -> str:
        """What a message calls a sample."""
        return self.samples.name(self.index[index])

    def stamp(self, index: int) -> str:
        """A text that changes when a sample does."""
        return self.samples.stamp(self.index[index])


@dataclass(frozen=True, eq=False)
class Found:
    """One split before its labels are numbers.

    Args:
        make: its samples, given class indices (N,) int64, or None where there are none.
        labels: N labels as they are written, or None.
        names: the classes in the network's order, where the source tells it.
        named: labels are names even where they are digits.
        kind: what an input is.
    """

    make: Callable[[Tensor | None], Samples]
    labels: Sequence[str] | None = None
    names: tuple[str, ...] = ()
    named: bool = False
    kind: Kind = "images"


def label_at(labels: Tensor | None, index: int) -> int | None:
    """One label, where there are labels."""
    return None if labels is None else int(labels[index])


def split_of(text: str) -> str | None:
    """The split that a name stands for, or None.

    >>> split_of("validation"), split_of("val-old")
    ('val', None)
    """
    return next((split for split, names in _NAMES.items() if text.lower() in names), None)


def split_within(text: str) -> str | None:
    """The one split that a word within a name stands for, or None.

    >>> split_within("imagenet-validation-0012"), split_within("train-val-0012")
    ('val', None)
    """
    found = {split_of(word) for word in re.findall("[a-z]+", text.lower())} - {None}
    return found.pop() if len(found) == 1 else None


def printable(text: str | Path) -> str:
    """A path or file name as text that any file can hold: bytes that are no UTF-8 become replacement marks."""
    return os.fsencode(text).decode("utf-8", "replace")
