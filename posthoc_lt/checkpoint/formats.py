"""The kinds of file that hold tensors by name: told by content, loaded without running any code, written again."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from posthoc_lt.checkpoint.tokens import Transform
from posthoc_lt.checkpoint.whole import record_names, require_whole
from posthoc_lt.errors import PosthocError, listed, show

SAVE = (
    "in the code that trained it: torch.save({'state_dict': model.state_dict()}, 'model.pt'), then give --ckpt model.pt"
)
INDEX = ".index.json"
"""How the name of an index of shards ends."""

_LARGEST_HEADER = 100_000_000


class Loaded(NamedTuple):
    """A file's content, the strings of its header, and every file that it was read from."""

    content: object
    header: Mapping[str, str]
    files: tuple[Path, ...]


class Format(NamedTuple):
    """A kind of file.

    Args:
        name: as `inspect` tells it.
        fits: whether a file is of this kind, told by its first bytes, or by looking further into it.
        load: reads a file.
        write: puts a content into a new file, given the path of the original.
        suffixes: what such a file is named, the usual one first.
        network: makes the network of a file that holds its own, beside its tensors under ``parameters``.
        pickles: loading it may run code in it.
        inputs: tells how inputs are prepared, None where it does not say, and the names of the classes, if it has any.
        headless: its network gives features and no logits.
        grows: a layer of its network that has no bias can be given one; None where the network's code decides.
    """

    name: str
    fits: Callable[[bytes, Path], bool]
    load: Callable[[Path], Loaded]
    write: Callable[[Path, object, Path], None]
    suffixes: tuple[str, ...]
    network: Callable[[Path], nn.Module] | None = None
    pickles: bool = False
    inputs: Callable[[Path], tuple[Transform | None, tuple[str, ...]]] | None = None
    headless: bool = False
    grows: bool | None = None


def recognise(path: Path, kinds: Sequence[Format] | None = None) -> Format:
    """The kind of a file, told by its content; of those in this module, or of `kinds`.

    Raises:
        PosthocError: no such file, or none of the known kinds.
    """
    start = _first_bytes(path)
    for known in FORMATS if kinds is None else kinds:
        if known.fits(start, path):
            return known
    raise _not_a_checkpoint(path, "neither a file of torch.save nor safetensors")


def recognise_shards(index: Path) -> Format:
    """The kind of the shards that an index names."""
    return _recognise_shard(next(iter(_shards(index))))


def _recognise_shard(shard: Path) -> Format:
    """The kind of a shard, which is no index: one that named itself would be read for ever."""
    return recognise(shard, [known for known in FORMATS if known.load is not _load_sharded])


def _fits_torch(start: bytes, _: Path) -> bool:
    return start.startswith((b"PK\x03\x04", b"\x80"))


def _fits_safetensors(start: bytes, _: Path) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _LARGEST_HEADER


def _fits_index(start: bytes, _: Path) -> bool:
    return start.lstrip()[:1] == b"{"


def _load_safetensors(path: Path) -> Loaded:
    try:
        with safe_open(path, framework="pt") as file:
            places = {name: place for name, place in _safetensors_header(path).items() if name != "__metadata__"}
            names = sorted(places, key=lambda name: places[name]["data_offsets"])  # keys() need not be in that order
            return Loaded({name: file.get_tensor(name) for name in names}, dict(file.metadata() or {}), (path,))
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise damaged(path, "safetensors", error) from None


def _load_torch(path: Path) -> Loaded:
    zipped = _first_bytes(path).startswith(b"PK\x03\x04")
    if zipped:
        _refuse_other_archives(path)
    with _harmless_globals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
        try:
            return Loaded(torch.load(path, map_location="cpu", weights_only=True, mmap=zipped), {}, (path,))
        except pickle.UnpicklingError as error:
            _refuse_pickle(path, error)
        except Exception as error:  # the unpickler fails on damaged bytes in any way it likes
            raise damaged(path, "a torch checkpoint", error) from None


def _load_sharded(path: Path) -> Loaded:
    """Shards that an index names, each in the index's own folder, as Hugging Face libraries write them."""
    tensors: dict[str, Tensor] = {}
    shards = _shards(path)
    for shard, names in shards.items():
        content = _recognise_shard(shard).load(shard).content
        found = content if isinstance(content, Mapping) else {}
        if lacking := [name for name in names if not isinstance(found.get(name), Tensor)]:
            raise PosthocError(
                f"{show(path)}, whose shard {show(shard.name)} lacks {listed(lacking, 3)}",
                "every tensor where the index says",
                "copy or download that shard again",
            )
        tensors |= {name: found[name] for name in names}
    return Loaded(tensors, {}, (path, *shards))


def _shards(path: Path) -> dict[Path, list[str]]:
    try:
        if path.stat().st_size > _LARGEST_HEADER:
            raise ValueError("too long")
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, list[str]] = {}
        for name, file in where.items():
            if Path(file).name != file:  # an index may not reach outside its folder
                raise ValueError(f"shard {file!r}")
            shards.setdefault(path.parent / file, []).append(name)
        if not shards:
            raise ValueError("no shards")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        raise _not_a_checkpoint(path, "JSON, and no index of shards") from None
    if lacking := [shard.name for shard in shards if not shard.is_file()]:
        raise PosthocError(
            f"{show(path)}, whose shards {listed(lacking, 3)} are not beside it",
            "every shard in the folder of the index",
            "copy them there",
        )
    return shards


def _write_torch(_: Path, content: object, path: Path) -> None:
    with path.open("wb") as file:  # given a path, torch would put the file's name into the file
        torch.save(content, file)


def _write_safetensors(original: Path, content: object, path: Path) -> None:
    """Write tensors in the original's order, dtypes and metadata, so that only what is new differs."""
    assert isinstance(content, Mapping)
    _write_tensors(content, _safetensors_header(original), path)


def _write_sharded(original: Path, content: object, path: Path) -> None:
    """Write shards beside the index `path`, named after it; or all tensors in one file of the shards' kind."""
    assert isinstance(content, Mapping)
    shards = _shards(original)
    if path.name.endswith(INDEX):
        _write_shards(original, shards, content, path)
    elif recognise_shards(original).name == "torch":
        _write_torch(original, dict(content), path)
    else:
        headers = [_safetensors_header(shard) for shard in shards]
        _write_tensors(content, {key: value for header in headers for key, value in header.items()}, path)


def _write_shards(original: Path, shards: Mapping[Path, list[str]], content: Mapping[str, Tensor], path: Path) -> None:
    index = json.loads(original.read_text(encoding="utf-8"))
    before, after = (each.name.partition(".")[0] for each in (original, path))
    places: dict[str, str] = {}
    for shard, names in shards.items():
        known, name = _recognise_shard(shard), f"{after}-{shard.name.removeprefix(before).removeprefix('-')}"
        old = known.load(shard).content
        assert isinstance(old, Mapping)
        # A bias that is new stands beside its weight.
        added = [key for key in content if key not in index["weight_map"] and _beside(key) in names]
        new = {**old, **{key: content[key] for key in (*names, *added)}}
        if added or any(not torch.equal(raw_bytes(old[key]), raw_bytes(new[key])) for key in names):
            known.write(shard, new, path.with_name(name))
        else:
            shutil.copyfile(shard, path.with_name(name))
        places |= dict.fromkeys((*names, *added), name)
    if isinstance(index.get("metadata"), dict) and "total_size" in index["metadata"]:
        index["metadata"]["total_size"] = sum(tensor.nbytes for tensor in content.values())
    path.write_text(json.dumps({**index, "weight_map": places}, indent=2) + "\n", encoding="utf-8")


def _beside(name: str) -> str:
    return name.removesuffix("bias") + "weight"


def _safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    with path.open("rb") as file:
        header: dict[str, dict[str, Any]] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _write_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    written: dict[str, object] = {"__metadata__": header["__metadata__"]} if "__metadata__" in header else {}
    start = 0
    for name, tensor in tensors.items():
        # A name that is not there is an added bias, in the dtype of the weight that it stands beside.
        dtype = header[name if name in header else _beside(name)]["dtype"]
        written[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    encoded = json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format wants tensors aligned
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        for tensor in tensors.values():
            out.write(raw_bytes(tensor).numpy().data)


def raw_bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes, one after the other, on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)


FORMATS = (
    Format("safetensors", _fits_safetensors, _load_safetensors, _write_safetensors, (".safetensors",)),
    Format("torch", _fits_torch, _load_torch, _write_torch, (".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl")),
    Format("shards", _fits_index, _load_sharded, _write_sharded, (".safetensors", ".bin", ".pt", ".pth")),
)
"""Every kind that `read` knows; a new kind is one more row."""


def _first_bytes(path: Path) -> bytes:
    given = f"checkpoint {show(path)}"
    wanted, then = "a checkpoint file", "give --ckpt with the path of your trained model"
    if not path.exists():
        raise PosthocError(f"{given}, which does not exist", wanted, then)
    if not path.is_file():
        raise PosthocError(f"{given}, which is {'a folder' if path.is_dir() else 'no regular file'}", wanted, then)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise PosthocError(f"{given}, which cannot be read ({error.strerror})", wanted, then) from None
    if not start:
        raise PosthocError(f"{given}, which is empty", wanted, "copy it again, or save it again: " + SAVE)
    return start


def _harmless_globals() -> AbstractContextManager[object]:
    """Allow what training scripts store beside weights and what runs no code: argparse options, NumPy numbers."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    harmless: list[Any] = [argparse.Namespace, scalar, np.dtype, *kinds]
    harmless += [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    return torch.serialization.safe_globals(harmless)


def _refuse_other_archives(path: Path) -> None:
    try:
        require_whole(path)
    except PosthocError:
        raise
    except Exception as error:  # on damaged bytes zipfile, too, fails in any way it likes
        raise damaged(path, "a torch checkpoint", error) from None
    names = record_names(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise PosthocError(f"{show(path)}, a TorchScript archive", "a state dict", SAVE)
    if not any(name.endswith("data.pkl") for name in names):
        raise _not_a_checkpoint(path, "a zip archive that torch.save did not write")


def _refuse_pickle(path: Path, error: pickle.UnpicklingError) -> NoReturn:
    names = _foreign_globals(path, error)
    if not names:
        raise _not_a_checkpoint(path, "a pickle that torch.save did not write") from None
    raise PosthocError(
        f"{show(path)}, which pickles Python objects ({listed(names)}) that would run code on loading",
        "a state dict, which holds tensors alone, or leave to load it",
        f"{SAVE}; or give --allow-pickle, if you trust whoever made the file",
    ) from None


def _foreign_globals(path: Path, error: Exception) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it reads zip archives alone
        return re.findall(r"GLOBAL ([\w.]+)", str(error))


def damaged(path: Path, kind: str, error: Exception) -> PosthocError:
    """The error for a file that begins as one of its kind does, and cannot be read."""
    reason = show(str(error).strip().split("\n")[0] or type(error).__name__, 80)
    return PosthocError(
        f"{show(path)}, which begins as {kind} but is cut short or damaged ({reason.rstrip('.')})",
        "the whole file",
        "copy or download it again and compare its size with the original's",
    )


def _not_a_checkpoint(path: Path, what: str) -> PosthocError:
    return PosthocError(f"{show(path)}, which is no checkpoint ({what})", "a file of torch.save, or safetensors", SAVE)
