"""The safetensors container: written in a fixed order, read back under checksums.

The library's own writer orders metadata at random, so that equal content gives unequal bytes; the
format is a length, a JSON header and the raw tensors, which is what `write_container` writes. Reading
is the library's.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
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

FEATURES, HEAD = "posthoc-lt", "posthoc-lt-head"
_WORDS = {FEATURES: "a feature file", HEAD: "a head file"}


def write_container(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` with `metadata` and a sha256 for each tensor; equal input gives equal bytes."""
    tensors = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
    text = {**metadata, "checksums": json.dumps(checksums, sort_keys=True)}
    header: dict[str, object] = {"__metadata__": dict(sorted(text.items()))}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that tensors start aligned, as the format advises
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            for block in _blocks(tensor):
                file.write(block.data)


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
    if not _is_file(path):
        raise PosthocError(f"{show(path)}, which is no file", _words(kind), remake)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_kind(path, metadata, kind, version, remake)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise PosthocError(
            f"{show(path)}, which cannot be read as safetensors ({show(error)})", f"{_words(kind)}, whole", remake
        ) from None
    _verify(path, tensors, metadata, remake)
    return tensors, metadata


def container_kind(path: Path) -> str | None:
    """What a file says in `format`, without reading its tensors; None for a file that is not ours."""
    if not _is_file(path):
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


def _blocks(tensor: Tensor) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    if not tensor.numel():
        return []
    flat = tensor.reshape(-1).view(torch.uint8).numpy()
    return [flat[start : start + _BLOCK_BYTES] for start in range(0, len(flat), _BLOCK_BYTES)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a NUL
        return False


def _words(kind: str) -> str:
    return _WORDS.get(kind, f"a {show(kind)} file")


def _check_kind(path: Path, metadata: Mapping[str, str], kind: str, version: str, remake: str) -> None:
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
    if not isinstance(expected, dict) or expected.keys() != tensors.keys():
        raise PosthocError(f"{show(path)}, whose list of checksums does not fit it", "the file as written", remake)
    for name, tensor in tensors.items():
        if checksum(tensor) != expected[name]:
            raise PosthocError(
                f"{show(path)}, whose {show(name)} has changed since it was written (its checksum fails)",
                "the file as written",
                remake,
            )
