"""Tables: CSV, TSV or Parquet with columns path (or text), label and split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from posthoc_lt.data.images import ImageFiles
from posthoc_lt.data.samples import Found, label_at, split_of
from posthoc_lt.errors import PosthocError, listed, show

SUFFIXES = (".csv", ".tsv", ".parquet")

_COLUMNS = ("path", "text", "label", "split")
_LAYOUT = "columns path (or text), label and, for several splits in one table, split with train, val or test"


def read_table(path: Path, root: Path | None = None) -> dict[str | None, Found]:
    """The splits of a table; without a split column all of it under None.

    Labels are class indices or names; where there is no label column, or an empty one, a split is unlabelled.

    Args:
        path: a .csv or .tsv file with a header line, or a .parquet file (extra `data`).
        root: the folder that relative image paths start from; None takes the table's own.

    Raises:
        PosthocError: the file cannot be read, its columns are others, or a cell is empty where it may not be.
    """
    frame = _load(path)
    kinds = [column for column in ("path", "text") if column in frame]
    if len(kinds) != 1 or not len(frame):
        what = f"with columns {listed(frame.columns)}" if len(frame) else "without rows"
        raise PosthocError(f"table {show(path)} {what}", _LAYOUT, "rename its columns")
    base = path.parent if root is None else root
    if "split" not in frame:
        return {None: _split(path, frame, kinds[0], base)}
    splits = frame["split"].map(split_of)
    if unknown := sorted(set(frame["split"][splits.isna()])):
        raise PosthocError(
            f"table {show(path)} with split {listed(map(repr, unknown))}", "train, val or test", "correct that column"
        )
    return {name: _split(path, frame[splits == name], kinds[0], base) for name in dict.fromkeys(splits)}


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


def _load(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
            frame = frame[[column for column in _COLUMNS if column in frame]]
            return frame.astype(object).where(frame.notna(), "").astype(str)
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ImportError:
        raise PosthocError(
            f"table {show(path)}, and pyarrow, which reads Parquet, is not installed",
            "the extra for data",
            "install it with: pip install 'posthoc-lt[data]', or give a .csv",
        ) from None
    except (OSError, ValueError) as error:
        raise PosthocError(f"table {show(path)}, which cannot be read ({show(error)})", _LAYOUT, "correct it") from None


def _split(path: Path, frame: pd.DataFrame, kind: str, base: Path) -> Found:
    rows = [f"{path} row {int(row) + 1}" for row in frame.index]
    cells: list[str] = frame["label"].tolist() if "label" in frame else []
    written = cells if any(cells) else None
    if written is not None and not all(written):
        raise PosthocError(f"{show(rows[written.index('')])} without a label", _LAYOUT, "complete that row")
    if kind == "text":
        texts = frame["text"].tolist()
        return Found(lambda labels: Texts(texts, labels, rows), written, kind="texts")
    names = frame["path"].tolist()
    return Found(lambda labels: ImageFiles(base, names, labels), written)
