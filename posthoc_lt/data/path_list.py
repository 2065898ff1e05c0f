"""Lists of ``path label``, as ImageNet-LT, Places-LT and iNaturalist come with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from posthoc_lt.data.images import ImageFiles
from posthoc_lt.data.samples import Found
from posthoc_lt.errors import PosthocError, show


def read_list(path: Path, root: Path | None = None) -> Found:
    """A text file with ``path label`` on every line, the label a class index; or with paths alone.

    A path may hold spaces. Empty lines are passed over.

    Args:
        path: the list.
        root: the folder that relative paths start from; None takes the list's own.

    Raises:
        PosthocError: the file cannot be read or is empty, labels are no class indices, or some lines have none.
    """
    try:
        # Python's own way with bytes in file names that are no UTF-8.
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [(number, line.strip()) for number, line in enumerate(_lines(path, file), 1) if line.strip()]
    except OSError as error:
        raise PosthocError(f"list {show(path)}, which cannot be read ({error.strerror})", *_WANTED) from None
    if not lines or any("\0" in line for _, line in lines):
        what = "which is no text" if lines else "which is empty"
        raise PosthocError(f"list {show(path)}, {what}", *_WANTED)
    split = [line.rsplit(maxsplit=1) for _, line in lines]
    labelled = [len(parts) == 2 and parts[1].isascii() and parts[1].isdigit() for parts in split]
    base = path.parent if root is None else root
    if not any(labelled):
        bare = [line for _, line in lines]
        number, named = lines[0]
        if len(split[0]) == 2 and not (base / named).exists() and (base / split[0][0]).exists():
            what = f"whose line {number} has a label that is no class index: {show(split[0][1])}"
            raise PosthocError(f"list {show(path)}, {what}", *_WANTED)
        return Found(lambda labels: ImageFiles(base, bare, labels))
    if not all(labelled):
        number, line = lines[labelled.index(False)]
        raise PosthocError(f"list {show(path)}, whose line {number} has no label: {show(line)}", *_WANTED)
    names = [parts[0] for parts in split]
    return Found(lambda labels: ImageFiles(base, names, labels), [sys.intern(parts[1]) for parts in split])


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines, of which no device or endless stream gives more than a list can have."""
    for number in range(_MOST_LINES + 1):
        line = file.readline(_LONGEST_LINE + 1)
        if not line:
            return
        if number == _MOST_LINES or len(line) > _LONGEST_LINE:
            raise PosthocError(
                f"list {show(path)}, whose line {number + 1} "
                + (f"is longer than {_LONGEST_LINE} characters" if number < _MOST_LINES else "is not its last"),
                *_WANTED,
            )
        yield line


_MOST_LINES = 1 << 25
_LONGEST_LINE = 1 << 13
_WANTED = ("lines such as: train/n01440764/n01440764_190.JPEG 0", "correct the list")
