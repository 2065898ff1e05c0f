"""Compressed tars, unpacked once into a temporary folder: only there can any sample be read at any time."""

from __future__ import annotations

import gzip
import importlib
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BLOCK = 1 << 20
_MOST, _TIMES = 1 << 26, 20
"""Images hardly compress; what unpacks to more than this, and to so many times its size, is no tar of images."""


class Unpacked:
    """A temporary folder of unpacked tars, removed with the object that holds it."""

    def __init__(self) -> None:
        self.folder: Path | None = None

    def place(self, number: int, path: Path) -> Path:
        """Where the tar lies uncompressed: the file itself, or its content unpacked.

        Raises:
            OSError, ValueError, EOFError, zlib.error: it cannot be read, or is compressed in another way.
        """
        with path.open("rb") as file:
            start = file.read(4)
        if not start.startswith((_GZIP, _ZSTD)):
            return path
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="posthoc-lt-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        most, out = max(_MOST, _TIMES * path.stat().st_size), self.folder / f"{number}.tar"
        with _opened(path, start) as packed, out.open("wb") as unpacked:
            while block := packed.read(_BLOCK):
                unpacked.write(block)
                if unpacked.tell() > most:
                    raise ValueError("it unpacks to many times its size")
        return out


def _opened(path: Path, start: bytes) -> Any:
    if start.startswith(_GZIP):
        return gzip.open(path)
    try:
        return importlib.import_module("compression.zstd").open(path)
    except ImportError:  # before Python 3.14
        raise ValueError(f"Python reads zstd from 3.14 on: unpack it with unzstd {path.name}") from None
