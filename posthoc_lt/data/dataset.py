"""The data of every split, as found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posthoc_lt.data.reader import Reader
from posthoc_lt.data.samples import Kind, Samples
from posthoc_lt.errors import PosthocError, listed, show


@dataclass(frozen=True, eq=False)
class Data:
    """Where the samples of every split lie; nothing is read yet.

    Args:
        place: what a message calls it.
        splits: the samples of train, val and test, those that are there.
        classes: C names in the network's order; () where labels are bare numbers.
        kind: what an input is.
        exif: whether images are turned as their EXIF orientation says.
    """

    place: str
    splits: Mapping[str, Samples]
    classes: tuple[str, ...] = ()
    kind: Kind = "images"
    exif: bool = False

    def reader(
        self,
        split: str,
        prepare: Callable[[Any], Any],
        collate: Callable[[list[Any]], Any] | None = None,
        *,
        skip: bool = False,
    ) -> Reader:
        """One split, to be read in batches; arguments as `Reader`'s."""
        return Reader(self.splits[split], prepare, collate, exif=self.exif, skip=skip)

    def counts(self, split: str, classes: int | None = None) -> Tensor | None:
        """Samples a class in one split, (C,) int64; None where labels are not known without reading.

        Args:
            split: its name.
            classes: C, where no names tell it.
        """
        labels = self.splits[split].labels
        size = len(self.classes) if classes is None else classes
        return None if labels is None else torch.bincount(labels, minlength=size)

    def train_counts(self, given: Sequence[int] | None, limit: int | None = None) -> Tensor | None:
        """The counts of what the network was trained on, where the train split does not tell them itself.

        Args:
            given: what the user says they are.
            limit: where it leaves samples out, those of the whole split, which this is.

        Returns:
            (C,) or fewer where the last classes have no sample; None where the train split tells.

        Raises:
            PosthocError: they are not given, and there is no labelled train split; or given for other classes.
        """
        if given is not None:
            if self.classes and len(given) != len(self.classes):
                raise PosthocError(
                    f"{len(given)} train counts for {len(self.classes)} classes",
                    "one for each, in the order of the classes",
                    "correct --counts",
                )
            return torch.tensor(given, dtype=torch.int64)
        train = self.splits.get("train")
        if train is None or (train.labels is None and not (train.own_code and limit is None)):
            raise PosthocError(
                f"{show(self.place)} without a train/ folder or other labelled train split",
                "how many images of each class the network was trained on",
                "add it, or give --counts with a file of one number a class",
            )
        return None if limit is None else self.counts("train")

    def require_classes(self, count: int) -> None:
        """Refuse data of other classes than a network of `count`.

        Raises:
            PosthocError: as many names or a label that the network does not have.
        """
        if self.classes and len(self.classes) != count:
            raise PosthocError(
                f"a network of {count} classes and {len(self.classes)} classes in {show(self.place)} "
                f"({listed(self.classes, 3)})",
                "the classes that the network was trained on, in its order",
                "give --data with these, --classes with a file of all their names, or another --ckpt",
            )
        for name, samples in self.splits.items():
            if samples.labels is not None and len(samples) and int(samples.labels.max()) >= count:
                worst = int(samples.labels.argmax())
                raise PosthocError(
                    f"label {int(samples.labels[worst])} of {show(samples.name(worst))} in {name}, for a network of "
                    f"{count} classes",
                    f"labels from 0 to {count - 1}, in the order of the network's classes",
                    "correct the labels, or give another --ckpt",
                )


def fingerprint(data: Data, missing: bool = False) -> str:
    """A sha256 over every sample (its place, label, size and time of change), by which a cache knows its data.

    Args:
        data: what to know again.
        missing: take samples that are not there as they come, since they will be skipped.

    Raises:
        PosthocError: a sample is not there.
    """
    digest = hashlib.sha256(json.dumps([data.classes, data.exif]).encode())
    for split, samples in data.splits.items():
        labels = None if samples.labels is None else samples.labels.tolist()
        for index in range(len(samples)):
            label = "" if labels is None else labels[index]
            stamp = _stamp(samples, index, missing)
            digest.update(f"{split}\0{label}\0{stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stamp(samples: Samples, index: int, missing: bool) -> str:
    try:
        return samples.stamp(index)
    except OSError as error:
        if missing:
            return "missing"
        raise PosthocError(
            f"{show(samples.name(index))}, which cannot be read ({error.strerror})",
            "a readable file",
            "replace or remove it, check the folder that paths start from, or give --on-error skip",
        ) from None
