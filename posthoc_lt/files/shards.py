"""Feature sets past one file: shards and an index, as Hugging Face lays out large models.

``feats-00001-of-00002.safetensors`` … hold whole tensors; ``feats.safetensors.index.json`` says in
``weight_map`` which shard holds which, and in ``metadata`` what one file would say in its header.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.files.atomic import in_turn, replacing
from posthoc_lt.files.container import (
    SHARD,
    Pieces,
    all_checksums,
    file_kind,
    is_file,
    read_container,
    require_kind,
    tensor_checksums,
    write_container,
)

SHARD_BYTES = 5_000_000_000
"""Past so many bytes of tensors a feature set is written as shards."""

_SUFFIX = ".index.json"
_VERSION = "1"

Stored = tuple[dict[str, Tensor], dict[str, str]]


@contextmanager
def writing(
    path: Path,
    tensors: Mapping[str, Tensor | Pieces],
    metadata: Mapping[str, str],
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    inside: Path | None = None,
) -> Iterator[Stored]:
    """Write tensors as one file, or as shards; what was written, read back, comes before it gets its name.

    The files appear when the block ends well, the index last, so that it never names a shard that is not there.

    Args:
        path: the file; shards and index are named after it.
        tensors: by name. One larger than `shard_bytes` has a shard of its own.
        metadata: what the file says of itself, `format` and `version` among it.
        force: overwrite what is there, in either form.
        shard_bytes: the most bytes of tensors in a file.
        inside: the folder for temporary files, beside or below `path`.

    Raises:
        PosthocError: the place cannot be written to, or holds another file and not `force`.
    """
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    groups = _grouped(sizes, shard_bytes)
    if len(groups) == 1:
        _refuse(_index_of(path), force)
        with in_turn(path.parent) as begin:
            with replacing(path, force, inside) as temporary:
                write_container(temporary, tensors, metadata)
                yield read_container(temporary, metadata["format"], metadata["version"], "write it again")
                begin()
                _refuse(_index_of(path), force)
            _forget(path, keep=())
        return
    _refuse(path, force)
    names = [f"{path.stem}-{i:05}-of-{len(groups):05}{path.suffix}" for i in range(1, len(groups) + 1)]
    with ExitStack() as stack:
        begin = stack.enter_context(in_turn(path.parent))
        index = stack.enter_context(replacing(_index_of(path), force, inside))  # left last: published last
        whole: dict[str, Tensor] = {}
        checksums: dict[str, str] = {}
        for name, group in zip(names, groups, strict=True):
            temporary = stack.enter_context(replacing(path.with_name(name), force, inside))
            write_container(temporary, {key: tensors[key] for key in group}, {"format": SHARD, "version": _VERSION})
            found, said = _read_shard(temporary)
            whole |= found
            checksums |= tensor_checksums(said)
        said = {**metadata, "checksums": all_checksums(checksums, whole, metadata)}
        _write_index(index, dict(zip(names, groups, strict=True)), sum(sizes.values()), said)
        yield whole, said
        begin()
        _refuse(path, force)
        if force:
            _forget(path, keep=names)  # a set that is being replaced is never half there
    if force and ranks.rank() == 0:
        path.unlink(missing_ok=True)


def read_stored(path: Path, kind: str, version: str, remake: str) -> Stored:
    """`read_container` for a file, for an index, or for a file in whose place there are shards."""
    index = find(path)
    if index is None or not _is_index(index):
        return read_container(path, kind, version, remake)
    places, metadata = _read_index(index, remake)
    require_kind(index, metadata, kind, version, remake)
    tensors: dict[str, Tensor] = {}
    checksums: dict[str, str] = {}
    for name in sorted(set(places.values())):
        found, said = _read_shard(index.with_name(name))
        tensors |= found
        checksums |= tensor_checksums(said)
    if tensors.keys() != places.keys() or metadata.get("checksums") != all_checksums(checksums, tensors, metadata):
        raise PosthocError(f"{show(index)}, whose shards are not those it was written with", "the set, whole", remake)
    return tensors, metadata


def find(path: Path) -> Path | None:
    """The file `path`, or the index that stands for it; None where there is neither."""
    return next((each for each in (path, _index_of(path)) if is_file(each)), None)


def container_kind(path: Path) -> str | None:
    """What a file or an index says in `format`, without reading its tensors; None for a file that is not ours."""
    found = find(path)
    if found is None or not _is_index(found):
        return None if found is None else file_kind(found)
    try:
        return _read_index(found, "")[1].get("format")
    except PosthocError:
        return None


def _grouped(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, a new group where the next would pass `limit`.

    >>> _grouped({"a": 4, "b": 3, "c": 9, "d": 1}, 7)
    [['a', 'b'], ['c'], ['d']]
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name in sorted(sizes):
        if groups[-1] and size + sizes[name] > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += sizes[name]
    return groups


def _index_of(path: Path) -> Path:
    return path if _is_index(path) or not path.name else path.with_name(path.name + _SUFFIX)


def _is_index(path: Path) -> bool:
    return path.name.endswith(_SUFFIX)


def _refuse(other: Path, force: bool) -> None:
    """Refuse to write one form beside the other, of which a reader would take the wrong one."""
    if is_file(other) and not force:
        raise PosthocError(
            f"{show(other)}, which exists and holds something else",
            "a new file name, or leave to overwrite",
            "give --force to overwrite it, or --out with another name",
        )


def _forget(path: Path, keep: Collection[str]) -> None:
    """Remove the index of a set that is replaced, and those of its shards that nothing takes the place of."""
    index = _index_of(path)
    if ranks.rank() or not is_file(index):
        return
    try:
        places = _read_index(index, "")[0]
    except PosthocError:
        places = {}
    for name in set(places.values()) - set(keep):
        if name.startswith(path.stem + "-"):
            index.with_name(name).unlink(missing_ok=True)
    index.unlink(missing_ok=True)  # last, since without it nobody would know of shards that are left by an interruption


def _read_shard(path: Path) -> Stored:
    return read_container(path, SHARD, _VERSION, "write the set again")


def _write_index(index: Path, groups: Mapping[str, list[str]], total: int, said: Mapping[str, str]) -> None:
    places = {tensor: name for name, group in groups.items() for tensor in group}
    content = {"metadata": {**said, "total_size": total}, "weight_map": places}
    index.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_index(index: Path, remake: str) -> tuple[dict[str, str], dict[str, str]]:
    """Which shard holds which tensor, and the metadata."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        places, metadata = content["weight_map"], content["metadata"]
        sound = all(isinstance(name, str) and name == Path(name).name for name in places.values())
        words = {key: value for key, value in metadata.items() if isinstance(value, str)}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise PosthocError(f"{show(index)}, which is no index of shards beside it", "the set as written", remake)
    return places, words
