"""Tables: CSV, TSV or Parquet with columns path (or text, or in Parquet an image), label and split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from posthoc_lt.data.images import ImageFiles
from posthoc_lt.data.parquet import Parquet, ParquetImages, open_parquet
from posthoc_lt.data.samples import Found, label_at, split_of
from posthoc_lt.errors import PosthocError, listed, show

SUFFIXES = (".csv", ".tsv", ".parquet")

_COLUMNS = ("path", "text", "label", "labels", "split")
_LAYOUT = (
    "columns path (or text, or in Parquet one column of encoded images), label and, for several splits in one table, "
    "split with train, val or test"
)


def read_table(paths: Path | Sequence[Path], root: Path | None = None) -> dict[str | None, Found]:
    """The splits of a table; without a split column all of it under None.

    Labels are class indices or names; where there is no label column, or an empty one (in Parquet, or one of −1
    alone), a split is unlabelled.

    Args:
        paths: a .csv or .tsv file with a header line, or a .parquet file (extra `data`); or several, as one table.
        root: the folder that relative image paths start from; None takes the table's own.

    Raises:
        PosthocError: the file cannot be read, its columns are others, or a cell is empty where it may not be.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    loaded = [_load(path) for path in files]
    frame = pd.concat([each.frame for each in loaded], keys=range(len(files)))
    path = files[0]
    encoded = dict.fromkeys(column for each in loaded for column in each.images)
    inputs = ["path"] if "path" in frame and "text" not in frame else [*({"path", "text"} & {*frame.columns}), *encoded]
    if len(inputs) != 1 or not len(frame):
        what = f"with columns {listed([*frame.columns, *encoded])}" if len(frame) else "without rows"
        raise PosthocError(f"table {show(path)} {what}", _LAYOUT, "rename its columns")
    table = _Table(files, inputs[0], path.parent if root is None else root, loaded[0].names)
    if "split" not in frame:
        return {None: table.split(frame)}
    splits = frame["split"].map(split_of)
    if unknown := sorted(set(frame["split"][splits.isna()])):
        raise PosthocError(
            f"table {show(path)} with split {listed(map(repr, unknown))}", "train, val or test", "correct that column"
        )
    return {name: table.split(frame[splits == name]) for name in dict.fromkeys(splits)}


class Texts:
    """Texts in memory.

    Args:
        texts: N texts.
        labels: (N,) int64, or None.
        rows: where each lies, for messages.
    """

    def __init__(self, texts: Sequence[str], labels: Tensor | None, rows: Sequence[str]) -> None:
        self.texts = texts
        self.labels = labels
        self.rows = rows
        self.own_code = False

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[str, int | None]:
        return self.texts[index], label_at(self.labels, index)

    def name(self, index: int) -> str:
        """The table and row."""
        return self.rows[index]

    def stamp(self, index: int) -> str:
        """A digest of the text."""
        return hashlib.sha256(self.texts[index].encode("utf-8", "surrogatepass")).hexdigest()


class _Table(NamedTuple):
    """Where a table's rows lie, and what is in them."""

    files: Sequence[Path]
    column: str
    base: Path
    names: tuple[str, ...]

    def split(self, frame: pd.DataFrame) -> Found:
        """Some of its rows, each known by the numbers of its file and row."""
        where = np.stack([frame.index.get_level_values(level).to_numpy(np.int64) for level in (0, 1)], axis=1)
        cells: list[str] = frame["label"].tolist() if "label" in frame else []
        blank = {"", "-1"} if self.files[0].suffix.lower() == ".parquet" else {""}  # as Hugging Face marks them
        written = cells if set(cells) - blank else None
        if written is not None and not all(written):
            raise PosthocError(f"{self._row(where[written.index('')])} without a label", _LAYOUT, "complete that row")
        if self.column == "text":
            texts = frame["text"].tolist()
            rows = [self._row(each) for each in where]
            return Found(lambda labels: Texts(texts, labels, rows), written, self.names, kind="texts")
        if self.column == "path":
            paths = frame["path"].tolist()
            return Found(lambda labels: ImageFiles(self.base, paths, labels), written, self.names)
        return Found(
            lambda labels: ParquetImages(self.files, self.column, where, self.base, labels), written, self.names
        )

    def _row(self, where: NDArray[np.int64]) -> str:
        return f"{self.files[where[0]]} row {where[1] + 1}"


def _load(path: Path) -> Parquet:
    try:
        if path.suffix.lower() == ".parquet":
            found = open_parquet(path, _COLUMNS)
            frame = found.frame.astype(object).where(found.frame.notna(), "").astype(str)
            frame = frame if "label" in frame else frame.rename(columns={"labels": "label"})
            return found._replace(frame=frame)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        return Parquet(frame, (), ())
    except ImportError:
        raise PosthocError(
            f"table {show(path)}, and pyarrow, which reads Parquet, is not installed",
            "the extra for data",
            "install it with: pip install 'posthoc-lt[data]', or give a .csv",
        ) from None
    except PosthocError:
        raise
    except Exception as error:  # on damaged bytes pyarrow, as pandas, fails in any way it likes
        raise PosthocError(f"table {show(path)}, which cannot be read ({show(error)})", _LAYOUT, "correct it") from None
