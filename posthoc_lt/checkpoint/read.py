"""Reading a checkpoint safely: whatever the file holds, none of its code runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from posthoc_lt.checkpoint.formats import SAVE
from posthoc_lt.checkpoint.kinds import kind_of
from posthoc_lt.checkpoint.weights import AVERAGED, WeightSet, own_weights, value_at, weight_sets
from posthoc_lt.errors import PosthocError, listed, show

_BLOCK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 28
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}(\.\w+)")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint file as read; nothing in it has been changed.

    Args:
        path: the file.
        sha256: of the file's bytes, in hexadecimal; of all shards' in turn where there are several.
        format: the name of its kind: ``torch`` (a file of torch.save), ``safetensors``, and others of `KINDS`.
        content: the loaded object as it is; its tensors are memory-mapped where the format allows.
        weights: which of the sets of weights in the file this is.
        others: the keys of the other sets.
        state: parameter and buffer names to tensors.
        metadata: what the file says beside its weights: a training script's entries, a safetensors header's strings.
    """

    path: Path
    sha256: str
    format: str
    content: object
    weights: WeightSet
    others: tuple[str, ...]
    state: Mapping[str, Tensor]
    metadata: Mapping[str, object]

    def spellings(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The state dict without its wrappers' prefixes, then with ever more of them, and the prefix each has."""
        stripped = self.weights.stripped
        for start in range(len(stripped), -1, -1):
            prefix = "".join(stripped[start:])
            yield prefix, {prefix + name: tensor for name, tensor in self.state.items()}

    def place(self, name: str) -> tuple[str, ...]:
        """The keys, in the file's content, that lead to a network's parameter `name`.

        Raises:
            PosthocError: there is none.
        """
        for prefix, _ in self.spellings():
            if name.startswith(prefix) and name[len(prefix) :] in self.state:
                return self.weights.places[name[len(prefix) :]]
        raise PosthocError(
            f"{show(self.path)}, which has no tensor {show(name)!r}",
            "a head whose weight is stored under its own name",
            f"look for it among the last keys: {listed(list(self.state)[-5:])}",
        )

    def renamed(self, renames: Mapping[str, str]) -> Checkpoint:
        """The same with tensors under a network's own names: `renames` maps these to the checkpoint's."""
        if not renames:
            return self
        new = {old: name for name, old in renames.items()}
        places = {new.get(name, name): place for name, place in self.weights.places.items()}
        state = {new.get(name, name): tensor for name, tensor in self.state.items()}
        return replace(self, weights=self.weights._replace(places=places), state=state)

    @property
    def note(self) -> str:
        """What a user should know of the choice among several sets of weights; empty where there was none."""
        if not self.others:
            return ""
        why = ", the moving average, which most evaluation code loads" if _averaged(self.weights.key) else ""
        return (
            f"{show(self.path)} holds several sets of weights: {show(self.weights.key)} is taken{why}; "
            f"--weights takes {listed(self.others)} instead."
        )


def read(path: Path | str, weights: str | None = None, *, allow_pickle: bool = False) -> Checkpoint:
    """Read a checkpoint, told by its content and not by its suffix, without running any code in it.

    Args:
        path: a file of torch.save that holds a state dict, plain, nested (``state_dict``, ``model``, …) or in several
            parts; a safetensors file; the ``*.index.json`` of either in shards; or any other of `KINDS`.
        weights: which set of weights, where the file holds several; None takes the moving average where there is one,
            as timm's loader does.
        allow_pickle: load even what may run code on loading; only for files that you trust.

    Raises:
        PosthocError: no such file, not a checkpoint, cut short, no tensors in it, or it pickles code.

    >>> read("nowhere.pt")
    Traceback (most recent call last):
    posthoc_lt.errors.PosthocError: checkpoint nowhere.pt, which does not exist. Wanted: ...
    """
    path = Path(path)
    stamps = _stamps(path)
    known = kind_of(path, allow_pickle)
    if known.pickles and not allow_pickle:
        raise PosthocError(
            f"{show(path)}, a {known.name} file, which torch loads by unpickling, so that it may run any code",
            "a state dict, or leave to load it",
            f"give --allow-pickle if you trust whoever made the file, else {SAVE}",
        )
    _refuse_one_shard(path)
    content, header, files = known.load(path)
    sha256 = _sha256_of({file: stamps.get(file, _stamp(file)) for file in (path, *files)}, files)
    found = weight_sets(content) if known.network is None else [own_weights(content)]
    if not found:
        keys = f" but {listed(content)}" if isinstance(content, Mapping) else f", only one {type(content).__name__}"
        raise PosthocError(
            f"{show(path)}, which holds no state dict{keys}",
            "named tensors, plain or under a key such as state_dict or model",
            SAVE,
        )
    chosen = found[0] if weights is None else _named(path, found, weights)
    tensors = {name: value_at(content, place) for name, place in chosen.places.items()}
    state = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    _require_held(path, files, state)
    others = tuple(each.key for each in found if each is not chosen)
    return Checkpoint(path, sha256, known.name, content, chosen, others, state, _metadata(content, found, header))


def _stamps(path: Path) -> dict[Path, tuple[int, ...] | None]:
    """Of a file and those beside it, or those in a folder, which may be read with it."""
    with suppress(OSError, ValueError):
        beside = islice((path if path.is_dir() else path.parent).iterdir(), 10_000)
        return {each: _stamp(each) for each in (path, *beside)}
    return {path: _stamp(path)}


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What tells a file from another in its place and from what it was before it was written to; None if it is gone."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _sha256_of(stamps: Mapping[Path, tuple[int, ...] | None], files: Iterable[Path]) -> str:
    """The hash of the files, where they are those that were read.

    Raises:
        PosthocError: one of them has another stamp by now.
    """
    try:
        sha256 = _sha256(files)
    except OSError:  # it is gone, and its stamp with it
        sha256 = ""
    if changed := [path for path, stamp in stamps.items() if _stamp(path) != stamp]:
        raise PosthocError(
            f"{show(changed[0])}, which changed while it was read",
            "a file that nobody writes to meanwhile",
            "type the same command again when it is whole",
        )
    return sha256


def _require_held(path: Path, files: Iterable[Path], state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that no network's weights are, among them those that would unfold to far more than the file."""
    most = max(sum(stamp[2] for stamp in map(_stamp, files) if stamp), _SMALL_BYTES)
    for name, tensor in state.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_complex() or tensor.nbytes > most:
            raise PosthocError(
                f"{show(path)}, whose {show(name)} of shape {tuple(tensor.shape)} is without data, sparse, complex or "
                "larger than the file",
                "weights that are stored as they are",
                SAVE,
            )


def _named(path: Path, found: list[WeightSet], key: str) -> WeightSet:
    chosen = next((each for each in found if each.key == key), None)
    if chosen is None:
        raise PosthocError(
            f"--weights {show(key)}, which {show(path)} does not hold",
            f"one of its sets of weights: {listed([each.key or 'the whole file' for each in found])}",
            "give --weights with one of these, or leave it out",
        )
    return chosen


def _metadata(content: object, found: list[WeightSet], header: Mapping[str, str]) -> dict[str, object]:
    if not isinstance(content, Mapping):
        return dict(header)
    of_weights = {place[0] for each in found for place in each.places.values()}
    # Tensors at the top of a plain state dict are weights, whichever set they belong to.
    plain = any(len(place) == 1 for each in found for place in each.places.values())
    entries = {} if plain else {key: value for key, value in content.items() if key not in of_weights}
    return {**{key: value for key, value in entries.items() if isinstance(key, str)}, **header}


def _averaged(key: str) -> bool:
    return key.split("/")[-1] in AVERAGED


def _refuse_one_shard(path: Path) -> None:
    """A shard alone is no network: name the index that tells of the others."""
    parts = _SHARD.fullmatch(path.name)
    index = None if parts is None else path.with_name(f"{parts[1]}{parts[2]}.index.json")
    if index is not None and index.is_file():
        raise PosthocError(
            f"{show(path)}, one shard of several", "the whole checkpoint", f"give its index: --ckpt {show(index)}"
        )


def _sha256(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
