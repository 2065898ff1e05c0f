"""Tensors replaced within a zip archive that torch wrote, every other byte of the file as it was."""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from posthoc_lt.checkpoint.formats import raw_bytes
from posthoc_lt.errors import PosthocError, show

_LOCAL, _CENTRAL = 30, 46
_DESCRIPTOR = b"PK\x07\x08"


class Place(NamedTuple):
    """Where a tensor lies: the archive's record, and offset, size and stride within it, in elements."""

    record: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def patch_tensors(original: Path, tensors: Mapping[str, Tensor], places: Mapping[str, Place], out: Path) -> None:
    """Write `original` to `out` with those tensors replaced whose values differ, in the dtypes that they have.

    Raises:
        PosthocError: a tensor has no place, or its record is compressed.
    """
    records: dict[str, bytes] = {}
    with zipfile.ZipFile(original) as archive:
        for name, new in tensors.items():
            place = places.get(name)
            if place is None:
                raise PosthocError(
                    f"{show(name)}, for which {show(original)} has no place",
                    "a tensor that the file holds already: its code takes no other",
                    "choose a head without bias, such as tau-norm's",
                )
            content = records.get(place.record) or archive.read(place.record)
            whole = torch.frombuffer(bytearray(content), dtype=new.dtype) if content else new.new_empty(0)
            old = whole.as_strided(place.size, place.stride, place.offset)
            if not torch.equal(raw_bytes(old), raw_bytes(new)):
                old.copy_(new)
                records[place.record] = raw_bytes(whole).numpy().tobytes()
    _patch(original, records, out)


def _patch(original: Path, records: Mapping[str, bytes], out: Path) -> None:
    """Write `original` to `out` with these records' bytes replaced by as many others."""
    shutil.copyfile(original, out)
    with zipfile.ZipFile(original) as archive, out.open("r+b") as file:
        entry = archive.start_dir
        for info in archive.infolist():
            if (new := records.get(info.filename)) is not None:
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != len(new):
                    raise PosthocError(
                        f"{show(original)}, whose record {show(info.filename)} is compressed or of another size",
                        "an archive as torch writes it, its tensors uncompressed",
                        "save the model again with torch",
                    )
                _replace(file, info, entry, new)
            name, extra, comment = struct.unpack("<HHH", _read(file, entry + 28, 6))
            entry += _CENTRAL + name + extra + comment


def _replace(file: BinaryIO, info: zipfile.ZipInfo, entry: int, new: bytes) -> None:
    """Overwrite one record, and its checksum wherever the archive keeps it."""
    name, extra = struct.unpack("<HH", _read(file, info.header_offset + 26, 4))
    start = info.header_offset + _LOCAL + name + extra
    end = start + len(new)
    old, checksum = struct.pack("<L", info.CRC), struct.pack("<L", zlib.crc32(new))
    marked = 4 if _read(file, end, 4) == _DESCRIPTOR else 0
    places = [info.header_offset + 14, entry + 16] + ([end + marked] if info.flag_bits & 8 else [])
    for place in places:
        if _read(file, place, 4) == old:
            _write(file, place, checksum)
    _write(file, start, new)


def _read(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _write(file: BinaryIO, place: int, data: bytes) -> None:
    file.seek(place)
    file.write(data)
