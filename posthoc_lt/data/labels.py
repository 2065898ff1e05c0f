"""Labels as written, to class indices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.text import read_text

Written = Mapping[str, Sequence[str] | None]
"""For each split the labels as they are written, or None where it has none."""


def read_names(path: Path | str) -> tuple[str, ...]:
    """Class names from a text file, one a line, in the network's order.

    Raises:
        PosthocError: the file cannot be read, is empty, or names a class twice.
    """
    try:
        names = tuple(read_text(Path(path), "utf-8-sig").splitlines())
    except (OSError, ValueError) as error:
        raise _bad_names(path, f"which cannot be read ({show(error)})") from None
    if not names or not all(name.strip() for name in names):
        raise _bad_names(path, "which is empty" if not names else "which has an empty line")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise _bad_names(path, f"which has {listed(twice)} twice")
    return names


def encode(
    written: Written, names: tuple[str, ...] = (), named: bool = False
) -> tuple[dict[str, Tensor | None], tuple[str, ...]]:
    """Class indices of every split, and the classes' names.

    Labels that are among `names` are these classes; else whole numbers are indices themselves, in the network's
    order; else the texts of the first labelled split are the classes, sorted, as torchvision's ImageFolder does.

    Args:
        written: the labels.
        names: the classes in the network's order, where they are known.
        named: labels are names even where they are digits, as those of folders are.

    Returns:
        (N,) int64 a split, None for an unlabelled one; and C names, () where numbers have none.

    Raises:
        PosthocError: a label that none of this explains.

    >>> encode({"train": ["cat", "ant", "cat"]})
    ({'train': tensor([1, 0, 1])}, ('ant', 'cat'))
    """
    labelled = {split: texts for split, texts in written.items() if texts is not None}
    texts = {text for found in labelled.values() for text in found}
    numeric = not named and all(text.isascii() and text.isdigit() and len(text) < 10 for text in texts)
    if numeric and not texts <= set(names):
        index = {text: int(text) for text in texts}
        if names and max(index.values(), default=0) >= len(names):
            raise PosthocError(
                f"label {max(index.values())} for {len(names)} class names",
                f"labels from 0 to {len(names) - 1}",
                "correct the labels or --classes",
            )
    else:
        names = names or tuple(sorted(set(next(iter(labelled.values()), ()))))
        index = {name: number for number, name in enumerate(names)}
        for split, found in labelled.items():
            if unknown := sorted(set(found) - index.keys()):
                raise PosthocError(
                    f"{split} with class {listed(unknown)}, which is none of {listed(names)}",
                    "labels that --classes, or else the first split, knows; or whole numbers",
                    "correct the labels, or give --classes with every name, one a line, in the network's order",
                )
    encoded = {
        split: None if found is None else torch.tensor([index[text] for text in found], dtype=torch.int64)
        for split, found in written.items()
    }
    return encoded, names


def _bad_names(path: Path | str, what: str) -> PosthocError:
    return PosthocError(
        f"class names {show(path)}, {what}",
        "a text file with a class a line, in the network's order, each once",
        "correct --classes",
    )
