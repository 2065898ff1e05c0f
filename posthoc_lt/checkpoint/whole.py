"""The zip archives that torch writes, proved whole before anything in them is used."""

from __future__ import annotations

import zipfile
from pathlib import Path

from posthoc_lt.errors import PosthocError, listed, show

_BLOCK_BYTES = 1 << 20
_LARGEST_UNPACKED = 1 << 28


def record_names(path: Path) -> list[str]:
    """The names in an archive's directory; none where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # on damaged bytes zipfile fails in any way it likes
        return []


def require_whole(path: Path) -> None:
    """Check what torch does not look at, in one pass over the file: the checksum of every record.

    torch takes tensors from where their records lie, as if none were compressed, and compares no checksum. A file that
    was written without checksums (`torch.serialization.set_crc32_options`) has nothing to compare.

    Raises:
        PosthocError: a tensor is compressed, two records bear one name, or it unpacks to more than any network's code.
        Exception: the archive is damaged; zipfile raises many kinds.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = [info for info in records if info.compress_type != zipfile.ZIP_STORED]
        if tensors := [info.filename for info in packed if "/data/" in info.filename]:
            raise _repacked(path, f"which compresses {listed(tensors, 2)}")
        if sum(info.file_size for info in packed) > _LARGEST_UNPACKED:
            raise _repacked(path, "which unpacks to many times its size")
        if len({info.filename for info in records}) < len(records):
            raise _repacked(path, "which holds two records of one name")
        if not any(info.CRC for info in records):
            return
        for info in records:
            with archive.open(info) as record:
                while record.read(_BLOCK_BYTES):  # its end compares the checksum
                    pass


def _repacked(path: Path, what: str) -> PosthocError:
    return PosthocError(
        f"{show(path)}, an archive {what}",
        "a file as torch writes it, its tensors uncompressed",
        "take the original file, or save the model again with torch",
    )
