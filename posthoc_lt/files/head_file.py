"""The head file: a fitted head and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.files.atomic import replacing
from posthoc_lt.files.container import HEAD, read_container, write_container
from posthoc_lt.head import Head

_VERSION = "1"
_REMAKE = "make it with: posthoc-lt rebalance --out head.safetensors"
_OURS = frozenset({"format", "version", "has_bias", "checksums"})


@dataclass(frozen=True, eq=False)
class SavedHead:
    """A head with the strings saved beside it: method, knob, checkpoint_sha256, head_name."""

    head: Head
    provenance: Mapping[str, str] = field(default_factory=dict)


def save_head(saved: SavedHead, path: Path, force: bool = False) -> None:
    """Write a head file, whole or not at all.

    Raises:
        PosthocError: the place cannot be written to, or holds another file and not `force`.
    """
    tensors = {"head.weight": saved.head.weight, "head.bias": saved.head.bias}
    metadata = {
        **saved.provenance,
        "format": HEAD,
        "version": _VERSION,
        "has_bias": "true" if saved.head.has_bias else "false",
    }
    with replacing(path, force) as temporary:
        write_container(temporary, tensors, metadata)


def load_head(path: Path) -> SavedHead:
    """Read a head file, its checksums verified.

    Raises:
        PosthocError: no such file, not a head file, cut short or changed.
    """
    path = Path(path)
    tensors, metadata = read_container(path, HEAD, _VERSION, _REMAKE)
    if not {"head.weight", "head.bias"} <= tensors.keys():
        raise PosthocError(f"{show(path)}, which lacks head.weight or head.bias", "a whole head file", _REMAKE)
    has_bias = metadata.get("has_bias") != "false"
    provenance = {key: value for key, value in metadata.items() if key not in _OURS}
    return SavedHead(Head(tensors["head.weight"], tensors["head.bias"], has_bias), provenance)
