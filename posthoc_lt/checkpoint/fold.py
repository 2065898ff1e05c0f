"""Folding a head back into a checkpoint, and writing that file."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint.read import Checkpoint, at_route
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.head import Head


def fold(checkpoint: Checkpoint, name: str, head: Head, add_bias: bool = False) -> object:
    """The checkpoint's content with the head in it: same structure, same dtypes, every other value the same object.

    The checkpoint itself is left as it is.

    Args:
        checkpoint: as read.
        name: the module name of the head, as `find_head` tells it.
        head: the new values, cast to the dtype of the old ones.
        add_bias: add ``{name}.bias`` where the layer has none; the code that loads the file must then expect it.

    Raises:
        PosthocError: no such layer, another shape, values beyond the dtype's range, or a bias without a place.
    """
    weight_key = checkpoint.key(f"{name}.weight")
    bias_key = weight_key.removesuffix("weight") + "bias"
    old = at_route(checkpoint.content, checkpoint.route)
    weight = old[weight_key]
    assert isinstance(weight, Tensor)
    if weight.shape != head.weight.shape:
        raise PosthocError(
            f"a head of shape {tuple(head.weight.shape)} for {show(weight_key)} of shape {tuple(weight.shape)}",
            "a head fitted on the features of this very checkpoint",
            "extract its features and fit the head again",
        )
    new = {weight_key: cast_like(head.weight, weight, weight_key)}
    if isinstance(bias := old.get(bias_key), Tensor):
        new[bias_key] = cast_like(head.bias, bias, bias_key)
    elif add_bias:
        new[bias_key] = cast_like(head.bias, weight, bias_key)
    else:
        refuse_bias(head, name)
    return _replaced(checkpoint.content, checkpoint.route, new)


def refuse_bias(head: Head, name: str) -> None:
    """Refuse a head with a bias for a layer without one.

    Raises:
        PosthocError: the bias is not all zero.
    """
    if head.bias.any():
        raise PosthocError(
            f"a head with a bias, and layer {show(name)}, which has none to put it in",
            "a head without bias, or leave to add one",
            "choose a method that needs no bias, such as tau-norm, or give --add-bias, which adds "
            f"{show(name)}.bias and so needs bias=True in that layer of the code that loads the file",
        )


def cast_like(values: Tensor, old: Tensor, key: str) -> Tensor:
    """`values` as a tensor of its own, in the dtype and kind (plain or nn.Parameter) of `old`, on its device.

    Raises:
        PosthocError: a value is too large for that dtype.
    """
    new = values.detach().to(old.device, old.dtype, copy=True).contiguous()
    if not new.isfinite().all():
        raise PosthocError(
            f"values up to {float(values.abs().max()):.3g} for {show(key)}, stored as {old.dtype}",
            f"values within {torch.finfo(old.dtype).max:.3g}",
            "save the checkpoint in float32 first, or choose a smaller tau",
        )
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def write(checkpoint: Checkpoint, content: object, path: Path) -> None:
    """Write a folded content to `path` in the checkpoint's own format, with the checkpoint's own metadata.

    Equal input gives equal bytes. The file is written in place: give a temporary path.
    """
    if checkpoint.format == "safetensors":
        assert isinstance(content, dict)
        _write_safetensors(checkpoint, content, path)
    else:
        with path.open("wb") as file:  # given a path, torch would put the file's name into the file
            torch.save(content, file)


def changes(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """The names of all that differs between two checkpoints' contents: tensors bit by bit, and the structure.

    Nested names are joined by ``/``; what only one of them has counts as different.
    """
    return tuple(_differences(before.content, after.content, ""))


def _replaced(content: object, route: tuple[str, ...], new: Mapping[str, Tensor]) -> object:
    """A copy of the mappings along `route` alone, so that all else stays the same object."""
    changed: Any = copy.copy(content)
    if route:
        changed[route[0]] = _replaced(changed[route[0]], route[1:], new)
    else:
        changed.update(new)
    return changed


def _write_safetensors(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
    with checkpoint.path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    written: dict[str, object] = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    start = 0
    for name, tensor in tensors.items():
        # A name that is not there is an added bias, in the dtype of the weight that it stands beside.
        dtype = header[name if name in header else name.removesuffix("bias") + "weight"]["dtype"]
        written[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    encoded = json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format wants tensors aligned
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            out.write(_bytes(tensor).numpy().data)


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)


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
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    # Anything else that a file may hold (options, dates) went through pickling whole, and need not know equality.
    return a == b if isinstance(a, str | bytes | int | complex | None) else True
