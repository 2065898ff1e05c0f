"""Knowing a network by the names and shapes of its tensors, whatever its number of classes and its head's name."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from torch import Tensor

INDEX = "fingerprints.json.gz"
"""The index beside this file; ``python -m posthoc_lt.checkpoint.build_fingerprints`` makes it."""

_MASK = (1 << 64) - 1
_MOST_HEADS = 16  # a distilled EfficientViM has as many

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Known:
    """A network of the index.

    Args:
        name: such as ``timm:resnet50``.
        heads: the module names of its classifiers; empty where it has none.
        function: networks of equal tensors and equal number compute the same.
    """

    name: str
    heads: tuple[str, ...]
    function: int


class Match(NamedTuple):
    """A network whose tensors a checkpoint holds.

    Args:
        known: the network.
        renames: its own tensor names to the checkpoint's, where they differ.
    """

    known: Known
    renames: Mapping[str, str]


def fingerprint(shapes: Shapes) -> int:
    """One number for a set of named shapes: the sum of their hashes, so that a part can be taken away again.

    Counters of batch normalisation, which old checkpoints lack, do not count.

    >>> both = {"a": (2, 3), "b": (2,)}
    >>> (fingerprint(both) - fingerprint({"b": (2,)})) % 2**64 == fingerprint({"a": (2, 3)})
    True
    """
    return sum(map(_hash, shapes, shapes.values())) & _MASK


def matches(state: Mapping[str, Tensor]) -> list[Match]:
    """Every network of the index whose tensors, its head aside, are these; the plainest name first.

    The head may have any number of classes and any name, the first convolution any number of input channels, and the
    rest a prefix of its own (``backbone.``).

    >>> import torch
    >>> matches({"fc.weight": torch.ones(2, 2)})
    []
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found := _matches(shapes, ""):
        return found
    first = [name.partition(".")[0] for name in shapes]
    common = f"{max(set(first), key=first.count)}." if first else ""
    return _matches(shapes, common) if common else []


def index_versions() -> Mapping[str, str]:
    """The versions of the libraries that the index was built from."""
    return _index()[0]


def _matches(shapes: Shapes, prefix: str) -> list[Match]:
    known = _index()[1]
    body = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    outside = {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}
    if len({_module(name) for name in outside}) > 1:
        return []
    total = fingerprint(body)
    corrections = [0, *_stems(body)]
    for head in [list(outside)] if outside else _heads(body):
        inside = {name: body[name] for name in head} if not outside else {}
        rest = (total - fingerprint(inside)) & _MASK
        for correction in corrections:
            if fitting := _fitting(known.get((rest + correction) & _MASK, ()), head, body, prefix):
                return fitting
    return []


def _fitting(entries: Iterable[Known], head: list[str], body: Shapes, prefix: str) -> list[Match]:
    found = [(entry, _renames(entry, head, body, prefix)) for entry in entries]
    fitting = [Match(entry, renames) for entry, renames in found if renames is not None]
    return sorted(fitting, key=lambda match: _plainness(match.known.name))


def _plainness(name: str) -> tuple[int, bool, str]:
    """Short names first; of equal ones torchvision's, whose preprocessing is the one that most training code copies."""
    library, _, model = name.partition(":")
    return len(model), library != "torchvision", model


def _renames(entry: Known, head: list[str], body: Shapes, prefix: str) -> dict[str, str] | None:
    """The entry's names to the checkpoint's, or None where the heads cannot be each other's."""
    own = sorted({_module(name) for name in head})
    if not own or len(own) != len(entry.heads):
        return None
    pairs = dict(zip(own, sorted(entry.heads), strict=True))
    if len(own) > 1 and own != sorted(entry.heads):
        return None
    renames = {name: prefix + name for name in body if name not in head} if prefix else {}
    for name in head:
        module = _module(name)
        renames[pairs[module] + name[len(module) :]] = prefix + name if name in body else name
    return {new: old for new, old in renames.items() if new != old}


def _heads(shapes: Shapes) -> Iterator[list[str]]:
    """The tensors that may be a head: all that have as many rows as some matrix, then each layer alone."""
    matrices = [name for name, shape in shapes.items() if _is_matrix(name, shape)]
    rows = dict.fromkeys(shapes[name][0] for name in reversed(matrices))
    for count in rows:
        group = [name for name, shape in shapes.items() if shape[:1] == (count,)]
        if len({_module(name) for name in group}) <= _MOST_HEADS:
            yield group
    for matrix in reversed(matrices):
        module = _module(matrix)
        yield [name for name in shapes if _module(name) == module]


def _stems(shapes: Shapes) -> list[int]:
    """What to add to a fingerprint for a first convolution of other than three input channels."""
    return [
        _hash(name, (shape[0], 3, *shape[2:])) - _hash(name, shape)
        for name, shape in shapes.items()
        if len(shape) == 4 and shape[1] != 3 and shape[1] <= 16 and shape[2] > 1
    ]


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith("weight") and (len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


@lru_cache(maxsize=1 << 16)
def _hash(name: str, shape: tuple[int, ...]) -> int:
    if _is_counter(name):
        return 0
    return int.from_bytes(hashlib.blake2b(f"{name} {shape}".encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=1)
def _index() -> tuple[dict[str, str], dict[int, tuple[Known, ...]]]:
    stored = json.loads(gzip.decompress(files(__package__).joinpath(INDEX).read_bytes()))
    networks = {
        int(key, 16): tuple(Known(name, tuple(heads), function) for name, heads, function in entries)
        for key, entries in stored["networks"].items()
    }
    return stored["versions"], networks
