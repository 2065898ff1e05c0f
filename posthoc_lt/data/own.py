"""A data set of the user's own code, named as module:factory."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from posthoc_lt.data.samples import Found
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.features import SPLITS
from posthoc_lt.own_code import current_folder, own_failure, own_function

_INPUTS = "a tensor or an image (texts are taken where the first sample is one)"


def is_own_data(what: str) -> bool:
    """Whether ``--data`` says module:factory, and not a file or a folder."""
    return re.fullmatch(r"[\w.]+:[\w.]+", what) is not None and not Path(what).exists()


class OwnSamples:
    """A map-style ``torch.utils.data.Dataset``.

    Args:
        dataset: N items, each an input alone or (input, label, …).
        place: what messages call it.
        version: a text that changes when its code does; the data behind it cannot be known.
        texts: its inputs are texts.

    Attributes:
        labels: its `targets` or `labels` where it has such, as torchvision's data sets do.
    """

    def __init__(self, dataset: Any, place: str, version: str, texts: bool = False) -> None:
        self.dataset = dataset
        self.texts = texts
        self.place = place
        self.version = version
        self.own_code = True
        self.labels = _targets(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        x, y = _parts(self.dataset[index])
        if not isinstance(x, str if self.texts else Tensor | Image.Image | bytes | Path):
            raise TypeError(f"an input of type {type(x).__name__}, and not {'a text' if self.texts else _INPUTS}")
        return x, None if y is None else int(y)

    def name(self, index: int) -> str:
        """The factory, the split and the index."""
        return f"{self.place}[{index}]"

    def stamp(self, index: int) -> str:
        """The code's version and the index."""
        return f"{self.version}\0{index}"


def own_splits(spec: str) -> dict[str, Found]:
    """The splits that ``factory(split)`` returns, for the split train, val and test; None for one that lacks.

    Raises:
        PosthocError: the module or function cannot be had, it fails, or returns something else.
    """
    example = f"def {spec.partition(':')[2]}(split): return MyDataset(split) if split != 'test' else None"
    factory = own_function("--data", spec, "a function that takes train, val or test and returns a Dataset", example)
    version = _version(factory)
    found: dict[str, Found] = {}
    for split in SPLITS:
        with current_folder():
            try:
                dataset = factory(split)
            except Exception as error:  # the user's own code may raise anything
                raise own_failure("--data", spec, f"which fails for {split}", error) from error
        if dataset is not None:
            found[split] = _found(spec, split, dataset, version)
    if not found:
        raise PosthocError(f"--data {show(spec)}, which has no split", "a Dataset for one of them", example)
    return found


def _found(spec: str, split: str, dataset: Any, version: str) -> Found:
    if isinstance(dataset, IterableDataset):
        raise PosthocError(
            f"--data {show(spec)}, which returns an IterableDataset for {split}, whose samples come one after another",
            "samples by number, so that an interrupted extraction goes on where it was and a proof looks some up again",
            "return list(dataset), or a Dataset with __getitem__ and __len__; or hand your loaders to "
            "posthoc_lt.rebalance(model, train_loader, val_loader)",
        )
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise PosthocError(
            f"--data {show(spec)}, which returns {type(dataset).__name__} for {split}",
            "a Dataset with __getitem__ and __len__",
            "write one, or hand your loaders to posthoc_lt.rebalance(model, train_loader, val_loader)",
        )
    names = getattr(dataset, "classes", ())
    classes = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    texts = _has_texts(dataset)
    return Found(
        lambda _: OwnSamples(dataset, f"{spec}({split!r})", version, texts),
        names=classes,
        kind="texts" if texts else "images",
    )


def _has_texts(dataset: Any) -> bool:
    """Whether the first sample is a text; what cannot be read is told when it is read."""
    try:
        x = _parts(dataset[0])[0] if len(dataset) else None
        if isinstance(x, Image.Image):
            x.load()  # which closes its file
        return isinstance(x, str)
    except Exception:  # the user's own code may raise anything
        return False


def _parts(item: Any) -> tuple[Any, Any]:
    """An input and its label, None where there is none."""
    return (item[0], item[1] if len(item) > 1 else None) if isinstance(item, tuple | list) else (item, None)


def _targets(dataset: Any) -> Tensor | None:
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, Sequence | Tensor) or hasattr(values, "__array__"):
            labels = torch.as_tensor(values)
            if labels.shape == (len(dataset),) and not labels.is_floating_point() and bool((labels >= 0).all()):
                return labels.to(torch.int64)
    return None


def _version(factory: object) -> str:
    try:
        source = inspect.getsourcefile(factory)  # type: ignore[arg-type]  # anything callable: TypeError is caught
        return hashlib.sha256(Path(source or "").read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""
