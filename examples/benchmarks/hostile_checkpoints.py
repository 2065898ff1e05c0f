"""Checkpoints made to run code, to fill the memory, or to be walked for ever."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Maker = Callable[[Path, Path], object]
"""Writes the file at the first path; code in it, if it ran, would make the second."""


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


class Named:
    """Pickles as a global by its name, imported only by whoever reads it."""

    def __init__(self, name: str, *arguments: object) -> None:
        self.name, self.arguments = name, arguments


class Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the Python one, which can be taught an opcode
    """Writes `Named` as a global and a call of it, whatever is importable here."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Named):
            super().save(obj, save_persistent_id)
            return
        module, _, name = obj.name.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        super().save(obj.arguments)
        self.write(pickle.REDUCE)


def dumped(content: object, protocol: int) -> bytes:
    out = io.BytesIO()
    Pickler(out, protocol).dump(content)
    return out.getvalue()


def as_archive(path: Path, pickled: bytes, tensors: Mapping[str, bytes] | None = None) -> None:
    """A file as torch.save writes it, around any pickle."""
    parts = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", ".format_version": b"1"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**parts, **{f"data/{key}": value for key, value in (tensors or {}).items()}}.items():
            archive.writestr(f"model/{name}", content)


def as_legacy(path: Path, pickled: bytes) -> None:
    """A file as torch before 1.6 wrote it, around any pickle."""
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(part, file, protocol=2)
        file.write(pickled)
        pickle.dump([], file, protocol=2)


def calls(canary: Path) -> dict[str, object]:
    """What would make the canary if it were called."""
    text = str(canary)
    code = f"open({text!r}, 'w')"
    return {
        "os.system": Named("os.system", f"touch {text}"),
        "posix.system": Named("posix.system", f"touch {text}"),
        "open": Call(open, text, "w"),
        "exec": Call(exec, code),
        "eval": Call(eval, code),
        "subprocess": Named("subprocess.call", ["touch", text]),
        "getattr": Call(getattr, Named("importlib.import_module", "os"), "system"),
        "partial": partial(open, text, "w"),
        "map": Call(list, Call(map, os.mkdir, [text])),
        "torch.save": Named("torch.save", 1, text),
        "torch.load": Named("torch.serialization.load", text),
        "numpy.save": Named("numpy.save", text, 1),
        "numpy memmap": Named("numpy.memmap", text, "u1", "w+", 0, 1),
        "torch.from_file": Named("torch._C._VariableFunctions.from_file", text, True, 8),
        "logging": Named("logging.FileHandler", text),
        "torch extension": Named("torch.ops.load_library", text),
        "torch hub": Named("torch.hub._import_module", "x", text),
        "torch fx": Named("torch.fx.graph_module.reduce_graph_module", {"_code": code}, "x"),
        "pickle.loads": Named("pickle.loads", pickle.dumps(Call(exec, code))),
        "numpy scalar of objects": Named(
            "numpy._core.multiarray.scalar", Named("numpy.dtype", "O"), pickle.dumps(Call(exec, code))
        ),
        "a module by name": nn.Linear(2, 2),
        "a class by name": Named("posthoc_lt.head.Head", torch.eye(2).tolist(), [0.0, 0.0]),
        "no such module": Named("no_such_module.thing"),
    }


def running(canary: Path) -> dict[str, Maker]:
    """Every call, in every protocol and every form of file that holds pickles, at the top and among weights."""
    made: dict[str, Maker] = {}
    for name, call in calls(canary).items():
        for protocol in range(5):
            for where, content in (("alone", call), ("among weights", {"state_dict": {"fc.weight": [1.0]}, "x": call})):
                told = f"{name}, protocol {protocol}, {where}"
                pickled = dumped(content, protocol)
                made[f"{told}, zip"] = lambda path, _, pickled=pickled: as_archive(path, pickled)
                made[f"{told}, legacy"] = lambda path, _, pickled=pickled: as_legacy(path, pickled)
                made[f"{told}, bare"] = lambda path, _, pickled=pickled: path.write_bytes(pickled)
    made["TorchScript that saves"] = _script_that_saves
    made["TorchScript that maps"] = _script_that_maps
    return made


class _Saves(nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.text = text

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.text)
        return self.fc(x)


class _Maps(_Saves):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.from_file(self.text, True, 8)[0]


def _script_that_saves(path: Path, canary: Path) -> None:
    torch.jit.save(torch.jit.script(_Saves(str(canary))), path)


def _script_that_maps(path: Path, canary: Path) -> None:
    torch.jit.save(torch.jit.script(_Maps(str(canary))), path)


def _save(make: Callable[[], object]) -> Maker:
    return lambda path, _: torch.save(make(), path)


def _write(make: Callable[[], bytes]) -> Maker:
    return lambda path, _: path.write_bytes(make())


def _itself() -> object:
    content: dict[str, object] = {"fc.weight": torch.ones(2, 2)}
    content["state_dict"] = content["model"] = content["ema"] = content
    return content


def _nested(depth: int, twice: bool) -> object:
    content: dict[str, object] = {"fc.weight": torch.ones(2, 2)}
    for _ in range(depth):
        content = {"state_dict": content, "model": content} if twice else {"state_dict": content}
    return content


def _expanding(path: Path) -> None:
    """A thousandth of its size on disk: 1 GB of zeros as the tensor's record."""
    original = io.BytesIO()
    torch.save({"fc.weight": torch.ones(2, 2)}, original)
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for info in old.infolist():
            if not info.filename.endswith("/data/0"):
                new.writestr(info.filename, old.read(info))
                continue
            with new.open(info.filename, "w", force_zip64=True) as file:
                for _ in range(64):
                    file.write(bytes(1 << 24))


def _pickle_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
        new.open("model/data.pkl", "w", force_zip64=True) as f,
    ):
        for _ in range(64):
            f.write(b"]" * (1 << 24))


def _header(header: object, length: int | None = None, body: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _sparse_file(path: Path, start: bytes, size: int = 1 << 33) -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def _index(path: Path, content: object) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps({"weight_map": content}))


def _linked(path: Path) -> None:
    save_file({"fc.weight": torch.ones(2, 2)}, path.parent / "shard.safetensors")
    _index(path, {"fc.weight": f"../{path.parent.name}/shard.safetensors"})


def _folder(path: Path, config: str, size: int = 0, bomb: bool = False) -> None:
    path.mkdir()
    _sparse_file(path / "config.json", config.encode(), max(size, len(config)))
    if bomb:
        _expanding(path / "pytorch_model.bin")
    else:
        save_file({"fc.weight": torch.ones(2, 2)}, path / "model.safetensors")


def bombs() -> dict[str, Maker]:
    """Small files that would take all memory or time, and those that hold what no network does."""
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    big = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}
    return {
        "holds itself": _save(_itself),
        "10,000 deep": lambda path, _: as_archive(path, _deep(10_000)),
        "doubling, 40 deep": _save(lambda: _nested(40, twice=True)),
        "60 deep": _save(lambda: _nested(60, twice=False)),
        "deflated to a thousandth": lambda path, _: _expanding(path),
        "a pickle that expands": lambda path, _: _pickle_bomb(path),
        "a tensor of 4 TB in 4 bytes": _save(lambda: {"fc.weight": huge}),
        "a tensor without data": _save(lambda: {"fc.weight": torch.empty(1 << 20, 1 << 20, device="meta")}),
        "a sparse tensor of 4 TB": _save(
            lambda: {"fc.weight": torch.zeros(2, 2).to_sparse().sparse_resize_((1 << 20, 1 << 20), 2, 0)}
        ),
        "a complex tensor": _save(lambda: {"fc.weight": torch.ones(2, 2, dtype=torch.complex64)}),
        "a bool tensor": _save(lambda: {"fc.weight": torch.ones(2, 2, dtype=torch.bool)}),
        "a tensor of NaN": _save(lambda: {"fc.weight": torch.full((2, 2), torch.nan)}),
        "an empty tensor": _save(lambda: {"fc.weight": torch.ones(0, 2), "fc.bias": torch.ones(0)}),
        "names like paths": _save(
            lambda: {"../../x": torch.ones(2, 2), "/etc/passwd": torch.ones(2), "a\0b": torch.ones(1)}
        ),
        "names with escapes": _save(lambda: {"\x1b[2J": torch.ones(2, 2), "\u202e": torch.ones(1)}),
        "names that are no strings": _save(lambda: {1: torch.ones(2, 2), (2, 3): torch.ones(1), None: torch.ones(1)}),
        "a name of a megabyte": _save(lambda: {"x" * (1 << 20): torch.ones(2, 2)}),
        "100,000 names": _save(lambda: OrderedDict((str(i), 1) for i in range(100_000))),
        "metadata that is no mapping": _save(lambda: _with_metadata(7)),
        "a bytearray of 10 TB": lambda path, _: as_archive(path, dumped(Named("builtins.bytearray", 10**13), 2)),
        "a storage of 4 TB": lambda path, _: as_archive(path, _huge_storage(), {"0": b"\0" * 16}),
        "safetensors of 4 TB": _write(lambda: _header({"fc.weight": big})),
        "safetensors, deep": _write(lambda: _header('{"a":' * 50_000)),
        "safetensors, length 10^19": _write(lambda: _header("{}", 10**19)),
        "safetensors, header of 90 MB": lambda path, _: _sparse_file(
            path, struct.pack("<Q", 90_000_000) + b'{"', 1 << 27
        ),
        "an index of 8 GB": lambda path, _: _sparse_file(path, b'{"weight_map":'),
        "an index, deep": lambda path, _: _index(path, '{"weight_map":' * 50_000),
        "an index of itself": lambda path, _: _index(path, {"fc.weight": path.name}),
        "an index above itself": lambda path, _: _linked(path),
        "an index of a folder": lambda path, _: _index(path, {"fc.weight": "."}),
        "an index of the parent": lambda path, _: _index(path, {"fc.weight": ".."}),
        "an index of numbers": lambda path, _: _index(path, {"fc.weight": 7}),
        "a torch file of 8 GB of nothing": lambda path, _: _sparse_file(path, b"PK\x03\x04"),
        "a pickle of 8 GB of nothing": lambda path, _: _sparse_file(path, b"\x80\x02"),
        "a fifo": lambda path, _: os.mkfifo(path),
        "a folder": lambda path, _: path.mkdir(),
        "a folder of timm, deep": lambda path, _: _folder(path, '{"architecture":' * 50_000),
        "a folder of timm, 8 GB of nothing": lambda path, _: _folder(path, '{"architecture":', 1 << 33),
        "a folder of timm, numbers for names": lambda path, _: _folder(
            path, '{"architecture":7,"pretrained_cfg":[1e999]}'
        ),
        "a folder of timm, its weights a bomb": lambda path, _: _folder(path, '{"architecture":"a"}', bomb=True),
        "a link to itself": lambda path, _: path.symlink_to(path),
        "/dev/zero": lambda path, _: path.symlink_to("/dev/zero"),
    }


def _deep(depth: int) -> bytes:
    opening = b"".join(pickle.EMPTY_DICT + pickle.SHORT_BINUNICODE + b"\x05model" for _ in range(depth))
    return b"\x80\x04" + opening + pickle.EMPTY_DICT + pickle.SETITEM * depth + pickle.STOP


def _with_metadata(value: object) -> object:
    content = OrderedDict({"fc.weight": torch.ones(2, 2)})
    content._metadata = value  # type: ignore[attr-defined]
    return content


def _huge_storage() -> bytes:
    original = io.BytesIO()
    torch.save({"fc.weight": torch.ones(2, 2)}, original)
    with zipfile.ZipFile(original) as archive:
        pickled = archive.read("archive/data.pkl")
    # the storage's number of elements, and the tensor's rows
    return pickled.replace(b"K\x04t", b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"t").replace(
        b"K\x02K\x02\x86", b"\x8a\x06" + (1 << 39).to_bytes(6, "little") + b"K\x02\x86", 1
    )
