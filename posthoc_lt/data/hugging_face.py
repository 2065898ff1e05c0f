"""Hugging Face data sets on disk, as ``save_to_disk`` writes them (extra `data`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import Tensor

from posthoc_lt.data.samples import Found, label_at, split_of
from posthoc_lt.data.table import Texts
from posthoc_lt.errors import PosthocError, listed, show


class RowImages:
    """Images in the rows of a table on disk.

    Args:
        rows: N rows of one column, each an encoded image or the path of one.
        labels: (N,) int64, or None.
        place: what messages call the table.
        version: a text that changes when the table does.
    """

    def __init__(self, rows: Any, labels: Tensor | None, place: str, version: str) -> None:
        self.rows = rows
        self.labels = labels
        self.place = place
        self.version = version
        self.own_code = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[bytes | Path, int | None]:
        image = self.rows[index]
        if isinstance(image, dict):
            image = image["bytes"] or (image.get("path") and Path(image["path"]))
        if not image:
            raise ValueError("an empty cell")
        return image, label_at(self.labels, index)

    def name(self, index: int) -> str:
        """The table and row."""
        return f"{self.place} row {index + 1}"

    def stamp(self, index: int) -> str:
        """The table's version and the row."""
        return f"{self.version}\0{index}"


def read_saved(place: Path) -> dict[str | None, Found]:
    """The splits of a saved DatasetDict, or a saved Dataset under None.

    The one column of images, or else the one of texts, is the input; the one of class labels the label, or
    else whole numbers named label or labels. Labels that are all −1 are none.

    Raises:
        PosthocError: `datasets` is not installed, or cannot read the folder, or the columns are others.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise PosthocError(
            f"{show(place)}, a Hugging Face data set, and the library datasets is not installed",
            "the extra for data",
            "install it with: pip install 'posthoc-lt[data]'",
        ) from None
    try:
        loaded = datasets.load_from_disk(str(place))
    except Exception as error:  # the library may raise anything on a broken folder
        raise PosthocError(
            f"{show(place)}, which datasets cannot read ({show(error)})", "what save_to_disk wrote", "write it again"
        ) from None
    if not isinstance(loaded, dict):
        return {None: _split(datasets, loaded, place)}
    named = {name: split_of(name) for name in loaded}
    known = [split for split in named.values() if split is not None]
    if not known or len(set(known)) < len(known):
        raise PosthocError(
            f"{show(place)} with splits {listed(loaded)}", "each of train, val and test at most once", "rename them"
        )
    return {split: _split(datasets, loaded[name], place / name) for name, split in named.items() if split is not None}


def _split(datasets: Any, rows: Any, place: Path) -> Found:
    features = rows.features
    images = [name for name, kind in features.items() if _holds_images(datasets, kind)]
    texts = [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    classes = classes or [name for name in ("label", "labels") if name in features]
    column = (images or texts)[:1]
    if not column or len(images or texts) > 1 or len(classes) > 1:
        raise PosthocError(
            f"{show(place)} with columns {listed(f'{name} ({kind})' for name, kind in features.items())}",
            "one column of images, or else of texts, and at most one of labels",
            "keep these: dataset.select_columns(['image', 'label'])",
        )
    written, names = _labels(rows, classes[0], features) if classes else (None, ())
    if not images:
        values = list(rows[column[0]])
        return Found(
            lambda labels: Texts(values, labels, [f"{place} row {row + 1}" for row in range(len(values))]),
            written,
            names,
            kind="texts",
        )
    encoded = rows.select_columns(column)
    if isinstance(features[column[0]], datasets.Image):
        encoded = encoded.cast_column(column[0], datasets.Image(decode=False))
    version = "\0".join(_version(Path(file["filename"])) for file in rows.cache_files)
    return Found(lambda labels: RowImages(_Column(encoded, column[0]), labels, str(place), version), written, names)


def _holds_images(datasets: Any, kind: Any) -> bool:
    """Images, or what they are encoded as: bytes, or these and a path."""
    plain = getattr(kind, "dtype", None) in ("binary", "large_binary")
    return isinstance(kind, datasets.Image) or plain or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})


class _Column:
    """One column, row by row: the library itself would read all of it."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows = rows
        self.column = column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index][self.column]


def _labels(rows: Any, column: str, features: Any) -> tuple[list[str] | None, tuple[str, ...]]:
    numbers, names = list(rows[column]), tuple(getattr(features[column], "names", ()))
    if all(number == -1 for number in numbers):
        return None, names
    if bad := sorted({number for number in numbers if number is None or number < 0}, key=str):
        raise PosthocError(f"labels {listed(bad)} among others", "class indices from 0", "correct or drop these rows")
    return [names[number] if names else str(number) for number in numbers], names


def _version(path: Path) -> str:
    status = path.stat()
    return f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}"
