"""Images within Parquet files (extra `data`), as Hugging Face data sets come: a column of encoded images."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from posthoc_lt.data.samples import label_at
from posthoc_lt.errors import PosthocError, show

_LARGEST_GROUP = 1 << 31
_KEPT_GROUPS = 2


class Parquet(NamedTuple):
    """A Parquet file, its images unread.

    Args:
        frame: the columns of text and numbers that were asked for, a row a sample.
        images: the columns of encoded images, bytes or a struct of bytes and path.
        names: the classes' names, where datasets wrote them into the file.
    """

    frame: pd.DataFrame
    images: tuple[str, ...]
    names: tuple[str, ...]


class ParquetImages:
    """Images in a column of Parquet files, a row group of which is in memory at a time.

    Args:
        files: the Parquet files.
        column: encoded images, or structs of these (``bytes``) or where they lie (``path``).
        where: (N, 2) numbers of a file and of a row in it.
        root: the folder that paths start from.
        labels: (N,) int64, or None.
    """

    def __init__(
        self, files: Sequence[Path], column: str, where: NDArray[np.int64], root: Path, labels: Tensor | None
    ) -> None:
        self.files = files
        self.column = column
        self.where = where
        self.root = root
        self.labels = labels
        self.own_code = False
        self._opened: dict[int, tuple[Any, NDArray[np.int64]]] = {}
        self._groups: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> tuple[bytes | Path, int | None]:
        file, row = self.where[index].tolist()
        with self._lock:
            image = self._cell(file, row).as_py()
        if isinstance(image, dict):
            path = image.get("path")
            image = image.get("bytes") or (None if path is None else self.root / path)
        if not image:
            raise ValueError("an empty cell")
        return image, label_at(self.labels, index)

    def name(self, index: int) -> str:
        """The file and row."""
        file, row = self.where[index].tolist()
        return f"{self.files[file]} row {row + 1}"

    def stamp(self, index: int) -> str:
        """The file's name, size and time of change, and the row."""
        file, row = self.where[index].tolist()
        status = self.files[file].stat()
        return f"{self.files[file].name}\0{status.st_size}\0{status.st_mtime_ns}\0{row}"

    def _cell(self, file: int, row: int) -> Any:
        if file not in self._opened:
            opened = _library().ParquetFile(self.files[file])
            sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            self._opened[file] = opened, np.cumsum([0, *sizes])
        opened, starts = self._opened[file]
        group = int(np.searchsorted(starts, row, side="right")) - 1
        if (cells := self._groups.pop((file, group), None)) is None:
            cells = opened.read_row_group(group, columns=[self.column]).column(0)
        self._groups[file, group] = cells  # the last to be dropped
        while len(self._groups) > _KEPT_GROUPS:
            del self._groups[next(iter(self._groups))]
        return cells[row - int(starts[group])]


def open_parquet(path: Path, columns: Sequence[str]) -> Parquet:
    """What a Parquet file holds beside its images.

    Args:
        path: the file.
        columns: those to read, where they are there.

    Raises:
        ImportError: pyarrow is not installed.
        PosthocError: it holds images in row groups larger than memory may be.
        Exception: the file cannot be read; pyarrow raises many kinds.
    """
    library = _library()
    schema = library.read_schema(path)
    images = tuple(field.name for field in schema if _holds_images(field.type))
    if images:
        _require_small(path)
    wanted = [name for name in columns if name in schema.names and name not in images]
    table = library.read_table(path, columns=wanted)
    frame = pd.DataFrame({name: table.column(name).to_pandas() for name in wanted}, index=range(table.num_rows))
    return Parquet(frame, images, _names(schema.metadata or {}))


def _library() -> Any:
    importlib.import_module("pyarrow")
    return importlib.import_module("pyarrow.parquet")


def _holds_images(kind: Any) -> bool:
    types = importlib.import_module("pyarrow.types")
    if types.is_struct(kind):
        return {"bytes", "path"} >= {field.name for field in kind} >= {"bytes"}
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """The names of the labels' classes, where the file's own notes have them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = next(features[name]["names"] for name in ("label", "labels") if name in features)
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError, StopIteration, RecursionError):
        return ()


def _require_small(path: Path) -> None:
    metadata = _library().read_metadata(path)
    size = max((metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)), default=0)
    if size > _LARGEST_GROUP:
        raise PosthocError(
            f"{show(path)}, with {size / 1e9:.0f} GB of images in one row group, which is read whole",
            "row groups of some hundred images",
            "write it again: frame.to_parquet(path, row_group_size=100)",
        )
