"""The safetensors container: written in a fixed order, read back under checksums.

The library's own writer orders metadata at random, so that equal content gives unequal bytes; the
format is a length, a JSON header and the raw tensors, which is what `write_container` writes, block by
block, so that a tensor need not be in memory. Reading is the library's.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from posthoc_lt.errors import PosthocError, show

_NAMES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_BLOCK_BYTES = 1 << 24
_DESCRIPTION = "__metadata__"
"""Whose checksum covers all else in the header; no tensor can bear this name."""

FEATURES, HEAD, SHARD = "posthoc-lt", "posthoc-lt-head", "posthoc-lt-shard"
_WORDS = {
    FEATURES: "a feature file",
    HEAD: "a head file",
    SHARD: "a shard of a feature file, which its .index.json opens",
}


@dataclass(frozen=True)
class Pieces:
    """A tensor that is read piece by piece along its first axis, and joined only as it is written.

    Args:
        shape: of the whole.
        dtype: of the whole; pieces are converted to it.
        read: begins anew at the first piece.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Iterator[Tensor]]

    @property
    def nbytes(self) -> int:
        """The bytes of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_container(path: Path, tensors: Mapping[str, Tensor | Pieces], metadata: Mapping[str, str]) -> None:
    """Write `tensors` with `metadata`, a sha256 for each tensor and one for the rest; equal input, equal bytes."""
    ordered = {name: tensors[name] for name in sorted(tensors)}
    checksums = dict.fromkeys(ordered, checksum(torch.zeros(0)))  # as long as those that take their place below
    checksums[_DESCRIPTION] = _description_checksum(ordered, metadata)
    with path.open("wb") as file:
        file.write(_header(ordered, metadata, checksums))
        for name, tensor in ordered.items():
            digest, size = hashlib.sha256(), 0
            for block in _blocks_of(tensor):
                digest.update(block.data)
                size += file.write(block.data)
            if size != tensor.nbytes:
                raise ValueError(f"{size} bytes of {name}, which has {tensor.nbytes}")
            checksums[name] = f"sha256:{digest.hexdigest()}"
        file.seek(0)
        file.write(_header(ordered, metadata, checksums))


def _header(tensors: Mapping[str, Tensor | Pieces], metadata: Mapping[str, str], checksums: Mapping[str, str]) -> bytes:
    text = {**metadata, "checksums": json.dumps(checksums, sort_keys=True)}
    header: dict[str, object] = {"__metadata__": dict(sorted(text.items()))}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors start aligned, as the format advises
    return struct.pack("<Q", len(encoded)) + encoded


def read_container(path: Path, kind: str, version: str, remake: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, memory-mapped, and the metadata of a file of ours, every checksum verified.

    Args:
        path: the file.
        kind: what its `format` must say.
        version: the one version that this release reads.
        remake: the command that makes such a file, for the error.

    Raises:
        PosthocError: missing, not of this kind or version, cut short, or changed since it was written.
    """
    if not is_file(path):
        raise PosthocError(f"{show(path)}, which is no file", _words(kind), remake)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            require_kind(path, metadata, kind, version, remake)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise PosthocError(
            f"{show(path)}, which cannot be read as safetensors ({show(error)})", f"{_words(kind)}, whole", remake
        ) from None
    _verify(path, tensors, metadata, remake)
    return tensors, metadata


def file_kind(path: Path) -> str | None:
    """What a file says in `format`, without reading its tensors; None for a file that is not ours."""
    if not is_file(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format")
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return None


def checksum(tensor: Tensor) -> str:
    """The sha256 of a tensor's bytes.

    >>> checksum(torch.zeros(0))[:15]
    'sha256:e3b0c442'
    """
    digest = hashlib.sha256()
    for block in _blocks(tensor):
        digest.update(block.data)
    return f"sha256:{digest.hexdigest()}"


def _description_checksum(tensors: Mapping[str, Tensor | Pieces], metadata: Mapping[str, str]) -> str:
    """The sha256 of what a file says of itself and of its tensors' names, types and shapes.

    Without it a changed letter could turn float32 into int32, or a threshold's 0.1 into 0.9, unseen.
    """
    said = {key: value for key, value in metadata.items() if key != "checksums"}
    kinds = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    text = json.dumps([said, kinds], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def all_checksums(sums: Mapping[str, str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Tensors' checksums with that of the description, as JSON."""
    return json.dumps({**sums, _DESCRIPTION: _description_checksum(tensors, metadata)}, sort_keys=True)


def tensor_checksums(metadata: Mapping[str, str]) -> dict[str, str]:
    """The checksums of the tensors alone, out of the metadata of a file that was read."""
    return {name: value for name, value in json.loads(metadata["checksums"]).items() if name != _DESCRIPTION}


def _blocks(tensor: Tensor) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    if not tensor.numel():
        return []
    flat = tensor.reshape(-1).view(torch.uint8).numpy()
    return [flat[start : start + _BLOCK_BYTES] for start in range(0, len(flat), _BLOCK_BYTES)]


def _blocks_of(tensor: Tensor | Pieces) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    pieces = tensor.read() if isinstance(tensor, Pieces) else (tensor,)
    for piece in pieces:
        yield from _blocks(piece.detach().cpu().to(tensor.dtype).contiguous())


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def _words(kind: str) -> str:
    return _WORDS.get(kind, f"a {show(kind)} file")


def require_kind(path: Path, metadata: Mapping[str, str], kind: str, version: str, remake: str) -> None:
    """Refuse what says of itself that it is another thing.

    Raises:
        PosthocError: `format` or `version` is not the one wanted.
    """
    found = metadata.get("format", "")
    if found != kind:
        ours = found.startswith(FEATURES)
        told = f"which is {_words(found)}" if ours else "a safetensors file that is not ours"
        raise PosthocError(f"{show(path)}, {told}", _words(kind), remake)
    if metadata.get("version") != version:
        raise PosthocError(
            f"{show(path)} of version {show(metadata.get('version'))}",
            f"version {version}, which this release reads",
            "upgrade posthoc-lt, or " + remake,
        )


def _verify(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], remake: str) -> None:
    try:
        expected = json.loads(metadata.get("checksums", ""))
    except (ValueError, RecursionError):
        expected = None
    # Files of the first releases have no checksum of their description.
    if not isinstance(expected, dict) or expected.keys() - {_DESCRIPTION} != tensors.keys():
        raise PosthocError(f"{show(path)}, whose list of checksums does not fit it", "the file as written", remake)
    description = _description_checksum(tensors, metadata)
    if expected.get(_DESCRIPTION, description) != description:
        raise PosthocError(
            f"{show(path)}, whose description of itself has changed since it was written (its checksum fails)",
            "the file as written",
            remake,
        )
    for name, tensor in tensors.items():
        if checksum(tensor) != expected[name]:
            raise PosthocError(
                f"{show(path)}, whose {show(name)} has changed since it was written (its checksum fails)",
                "the file as written",
                remake,
            )
