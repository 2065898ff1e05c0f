"""Folding a head back into a checkpoint, and writing that file."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posthoc_lt.checkpoint.form import HeadForm, placed
from posthoc_lt.checkpoint.formats import INDEX, Format, raw_bytes, recognise_shards
from posthoc_lt.checkpoint.kinds import KINDS, kind_named
from posthoc_lt.checkpoint.read import Checkpoint
from posthoc_lt.checkpoint.weights import value_at
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.head import Head


def fold(checkpoint: Checkpoint, name: str, head: Head, add_bias: bool = False) -> object:
    """The checkpoint's content with the head in it: same structure, same dtypes, every other value the same object.

    The checkpoint itself is left as it is. Of several sets of weights in the file, only the one read is changed.

    Args:
        checkpoint: as read.
        name: the head's name, as `find_head` tells it.
        head: the new values, cast to the dtype of the old ones.
        add_bias: add ``{name}.bias`` where the layer has none; the code that loads the file must then expect it.

    Raises:
        PosthocError: no such layer, another shape, values beyond the dtype's range, or a bias without a place.
    """
    old = _parameters(checkpoint, name)
    _require_place_for_bias(checkpoint, name, head, old, add_bias)
    new = placed(name, head, old, add_bias)
    return _replaced(checkpoint.content, {_place(checkpoint, parameter): tensor for parameter, tensor in new.items()})


def _require_place_for_bias(
    checkpoint: Checkpoint, name: str, head: Head, old: Mapping[str, Tensor], add_bias: bool
) -> None:
    """Refuse a head with a bias for a layer without one of a network that the file itself holds."""
    form, grows = HeadForm.parse(name), _format(checkpoint).grows
    lacking = [layer for layer in form.layers if f"{layer}.bias" not in old]
    if grows is None or form.cosine or not lacking or not head.bias.any() or (add_bias and grows):
        return
    given = f"a head with a bias, and layer {show(lacking[0])} of {show(checkpoint.path)}, which has none to put it in"
    if grows:
        wanted, then = "a head without bias, or leave to add one", "give --add-bias, which adds it to the graph"
        raise PosthocError(given, wanted, f"{then}, or choose a method that needs no bias, such as tau-norm")
    raise PosthocError(
        given,
        f"a head without bias: the code in a {checkpoint.format} file takes no tensor more",
        "choose a method that needs no bias, such as tau-norm; or save the network again with bias=True in that layer; "
        "or add the head file's bias to the logits in your own code",
    )


def head_places(checkpoint: Checkpoint, name: str) -> list[tuple[str, ...]]:
    """The keys that lead to each of the head's tensors, or would to a bias that is not there."""
    form = HeadForm.parse(name)
    return [_place(checkpoint, parameter) for parameter in form.parameters() if parameter != form.factors]


def stored_head(checkpoint: Checkpoint, name: str, head: Head) -> Head:
    """The head as the checkpoint's dtypes hold it."""
    form, old = HeadForm.parse(name), _parameters(checkpoint, name)
    new = placed(name, head, old, add_bias=True)
    weights = [new[f"{layer}.weight"] for layer in form.layers]
    if form.cosine:
        return form.head(weights, [None], scale=float(head.weight.norm(dim=1).mean()))
    return form.head(weights, [new[f"{layer}.bias"] for layer in form.layers], factors=old.get(form.factors))


def write(checkpoint: Checkpoint, content: object, path: Path) -> None:
    """Write a folded content to `path` in the checkpoint's own format, with the checkpoint's own metadata.

    Shards become shards where `path` is named as their index is, else one file of their kind. Equal input gives equal
    bytes. The file is written in place: give a temporary path.
    """
    _format(checkpoint).write(checkpoint.path, content, path)


def require_suffix(checkpoint: Checkpoint, out: Path) -> None:
    """Refuse an output name that promises another kind of file than the checkpoint is.

    Raises:
        PosthocError: such as ``.pt`` for safetensors, unless the checkpoint itself is named so.
    """
    sharded = checkpoint.format == "shards"
    own = recognise_shards(checkpoint.path) if sharded else _format(checkpoint)
    known = {suffix for each in KINDS for suffix in each.suffixes}
    name = Path(out.name.removesuffix(INDEX))
    wrong = name.suffix in known and name.suffix not in (*own.suffixes, checkpoint.path.suffix)
    if wrong or (out.name.endswith(INDEX) and not sharded):
        raise PosthocError(
            f"--out {show(out)}, and a checkpoint that is {own.name}, as what is written will be",
            f"a name that says so ({', '.join(own.suffixes) or 'a folder'})",
            f"give --out {show(out.with_name(name.stem + ''.join(own.suffixes[:1])))}",
        )


def changes(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """The names of all that differs between two checkpoints' contents: tensors bit by bit, and the structure.

    Nested names are joined by ``/``; what only one of them has counts as different.
    """
    return tuple(_differences(before.content, after.content, ""))


def _format(checkpoint: Checkpoint) -> Format:
    return kind_named(checkpoint.format)


def _place(checkpoint: Checkpoint, parameter: str) -> tuple[str, ...]:
    """Where a parameter lies in the file; a bias beside its weight, there or not."""
    weight = checkpoint.place(parameter.removesuffix("bias") + "weight" if parameter.endswith("bias") else parameter)
    if not parameter.endswith("bias"):
        return weight
    return (*weight[:-1], weight[-1].removesuffix("weight") + "bias")


def _parameters(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """The head's tensors as the file holds them, by the network's own names."""
    found = {}
    for parameter in HeadForm.parse(name).parameters():
        tensor = value_at(checkpoint.content, _place(checkpoint, parameter))
        if isinstance(tensor, Tensor):
            found[parameter] = tensor
    return found


def _replaced(content: object, new: Mapping[tuple[str, ...], Tensor]) -> object:
    """A copy of the mappings on the way to what is new alone, so that all else stays the same object."""
    changed: Any = copy.copy(content)
    for place, tensor in new.items():
        if len(place) == 1:
            changed[place[0]] = tensor
    for first in dict.fromkeys(place[0] for place in new if len(place) > 1):
        within = {place[1:]: tensor for place, tensor in new.items() if place[0] == first and len(place) > 1}
        changed[first] = _replaced(changed[first], within)
    return changed


def _differences(a: object, b: object, where: str) -> Iterator[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in {**a, **b}:
            name = f"{where}/{key}" if where else str(key)
            if key in a and key in b:
                yield from _differences(a[key], b[key], name)
            else:
                yield name
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        yield from _differences(dict(enumerate(a)), dict(enumerate(b)), where)
    elif not _same(a, b):
        yield where


def _same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(raw_bytes(a), raw_bytes(b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    # Anything else that a file may hold (options, dates) went through pickling whole, and need not know equality.
    return a == b if isinstance(a, str | bytes | int | complex | None) else True
