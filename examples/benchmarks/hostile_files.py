"""Every kind of file that is read, and what can befall its bytes; `hostile.py` counts what comes of it."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from posthoc_lt import Features, FeatureSet, Head, PosthocError, load_features, load_head, save_features, save_head
from posthoc_lt.checkpoint import find_head, identify, load_network, read
from posthoc_lt.conformal import fit_thresholds, load_thresholds, save_thresholds
from posthoc_lt.files import SavedHead


class Kind(NamedTuple):
    """A kind of file.

    Args:
        make: writes one into a folder and gives the path that opens it.
        read: opens it and gives all that it holds.
        sealed: its format has checksums.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    sealed: bool = True


def feature_set() -> FeatureSet:
    generator = torch.Generator().manual_seed(0)

    def split(labels: list[int] | None, rows: int) -> Features:
        x = torch.randn(rows, 4, generator=generator).half()
        return Features(x, None if labels is None else torch.tensor(labels))

    head = Head(torch.randn(3, 4, generator=generator), torch.tensor([0.5, -1.0, 0.25]), has_bias=False)
    splits = split([0, 0, 1, 2, 0], 5), split([0, 1, 2, 1], 4), split(None, 2)
    return FeatureSet(head, *splits, ("a", "b", "é"), {"arch": "own", "checkpoint_sha256": "0" * 64})


def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (2, 1, 3, 3), "fc.weight": (3, 2), "fc.bias": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _features(folder: Path, shard_bytes: int) -> Path:
    save_features(feature_set(), folder / "feats.safetensors", shard_bytes=shard_bytes)
    return folder / ("feats.safetensors.index.json" if shard_bytes < 1000 else "feats.safetensors")


def _head(folder: Path) -> Path:
    save_head(SavedHead(feature_set().head, {"method": "tau-norm", "tau": "0.5"}), folder / "head.safetensors")
    return folder / "head.safetensors"


def _thresholds(folder: Path) -> Path:
    features = feature_set()
    assert features.val is not None
    thresholds = fit_thresholds(features.head, features.val, "prevalence", prevalence=features.counts)
    save_thresholds(thresholds, folder / "sets.safetensors")
    return folder / "sets.safetensors"


def _torch(folder: Path, zipped: bool = True) -> Path:
    content = {"state_dict": state(), "epoch": 3}
    torch.save(content, folder / "model.pt", _use_new_zipfile_serialization=zipped)
    return folder / "model.pt"


def _safetensors(folder: Path) -> Path:
    save_file(state(), folder / "model.safetensors", {"mean": "[0.5]"})
    return folder / "model.safetensors"


def _sharded(folder: Path) -> Path:
    places = {}
    for number, (name, tensor) in enumerate(state().items()):
        places[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / places[name])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


def _script(folder: Path) -> Path:
    torch.manual_seed(0)
    as_script(Network(), folder / "model.pt")
    return folder / "model.pt"


def as_script(network: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch calls TorchScript deprecated; its files are there all the same
        torch.jit.save(torch.jit.script(network), path)


def _whole(folder: Path, zipped: bool = True) -> Path:
    torch.manual_seed(0)
    torch.save({"model": Network().eval(), "epoch": 3}, folder / "model.pt", _use_new_zipfile_serialization=zipped)
    return folder / "model.pt"


def _exported(folder: Path) -> Path:
    torch.manual_seed(0)
    as_exported(Network().eval(), folder / "model.pt2")
    return folder / "model.pt2"


def as_exported(network: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own
        free = {"x": {0: torch.export.Dim.DYNAMIC}}
        program = torch.export.export(network, (torch.zeros(2, 1, 4, 4),), dynamic_shapes=free)
        torch.export.save(program, path)


def _onnx(folder: Path) -> Path:
    import onnx

    torch.manual_seed(0)
    as_onnx(Network(), folder / "plain.onnx")
    model = onnx.load(folder / "plain.onnx")
    (folder / "plain.onnx").unlink()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=64)
    return folder / "model.onnx"


def as_onnx(network: nn.Module, path: Path) -> None:
    """The network as a graph, its tensors within."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["h"]),
        helper.make_node("Flatten", ["h"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    tensors = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in network.state_dict().items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 4, 4])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "network", [x], [y], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def _read_checkpoint(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read(path)
    return dict(found.state), dict(found.metadata)


def _run_checkpoint(path: Path) -> object:
    """What a file that holds its own network does, as far as loading it and running it on a batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = read(path, allow_pickle=True)
        network = load_network(found, identify(found))
        head = find_head(network, torch.linspace(-1, 1, 48).reshape(3, 1, 4, 4))
    return dict(found.state), head.name, head.head.weight, head.head.bias


KINDS: Mapping[str, Kind] = {
    "feature file": Kind(lambda folder: _features(folder, 1 << 30), load_features),
    "feature shards": Kind(lambda folder: _features(folder, 80), load_features),
    "head file": Kind(_head, load_head),
    "thresholds": Kind(_thresholds, load_thresholds),
    "torch.save": Kind(_torch, _read_checkpoint),
    "torch.save before 1.6": Kind(lambda folder: _torch(folder, zipped=False), _read_checkpoint, sealed=False),
    "safetensors": Kind(_safetensors, _read_checkpoint, sealed=False),
    "safetensors shards": Kind(_sharded, _read_checkpoint, sealed=False),
    "TorchScript": Kind(_script, _read_checkpoint),
    "torch.export": Kind(_exported, _run_checkpoint),
    "ONNX": Kind(_onnx, _run_checkpoint, sealed=False),
    "trusted pickle": Kind(_whole, _run_checkpoint),
    "trusted, before 1.6": Kind(lambda folder: _whole(folder, zipped=False), _run_checkpoint, sealed=False),
}


def digest(content: object) -> str:
    """A hash of all that a file holds, its tensors bit for bit."""
    found = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, Mapping):
            for key in sorted(part, key=str):
                add(key)
                add(part[key])
        elif isinstance(part, tuple | list):
            for each in part:
                add(each)
        elif hasattr(part, "__dataclass_fields__"):
            add({name: getattr(part, name) for name in part.__dataclass_fields__})
        else:
            found.update(repr(part).encode())

    add(content)
    return found.hexdigest()


def outcome(kind: Kind, path: Path, truth: str | None, canary: Path | None = None) -> str:
    """What comes of reading a file: `truth` is the digest of what it held."""
    try:
        found = digest(kind.read(path))
        result = "right" if found == truth else "wrong" if kind.sealed else "unseen"
    except PosthocError as error:
        result = "refused" if "\n" not in str(error) and "Next: " in str(error) else "crashed: " + str(error)
    except Exception as error:
        result = f"crashed: {type(error).__name__}: {error}"
    return "ran code" if canary is not None and canary.exists() else result


# Bytes


def corruptions(data: bytes, chance: random.Random, flips: int) -> Iterator[tuple[str, bytes]]:
    """Every first byte flipped, random flips, cuts, zeroed, swapped, repeated and added blocks."""
    size = len(data)
    for place in [*range(min(16, size)), *(chance.randrange(size) for _ in range(flips))]:
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        yield f"bit {place}", bytes(changed)
    for length in {0, 1, 7, 8, 9, size - 1, size - 2, *(chance.randrange(size) for _ in range(flips // 4))}:
        yield f"cut {length}", data[:length]
    for _ in range(flips // 8):
        start = chance.randrange(size)
        stop = min(size, start + chance.choice((1, 2, 4, 8, 64)))
        block = data[start:stop]
        for name, new in (
            ("zeros", bytes(len(block))),
            ("ones", b"\xff" * len(block)),
            ("swapped", block[::-1]),
            ("noise", chance.randbytes(len(block))),
            ("repeated", block * 2),
            ("removed", b""),
        ):
            yield f"{name} {start}", data[:start] + new + data[stop:]
    yield "more", data + b"\0"
    yield "twice", data + data
    yield "shifted", b"\0" + data


_ENTRIES: Mapping[str, tuple[object, ...]] = {
    "dtype": (
        "F8",
        "F32",
        "I32",
        "U32",
        "F16",
        "BF16",
        "I16",
        "F64",
        "I64",
        "BOOL",
        "F4",
        "C64",
        "",
        "x" * 999,
        7,
        None,
    ),
    "shape": ([], [0], [-1, 4], [2**63], [2**32, 2**32], [1.5], "3", None, [1] * 99, [2**63, 0], [10**30], [True, 12]),
    "data_offsets": ([0, 0], [0, 8], [8, 0], [-8, 8], [0, 2**63], [10**30, 10**30], [0], [0, 4, 8], None, "0", [4, 52]),
}


def headers(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every field of a safetensors header made absurd, and headers that are hardly one."""
    size = struct.unpack("<Q", data[:8])[0]
    text, rest = data[8 : 8 + size].decode(), data[8 + size :]
    header: dict[str, Any] = json.loads(text)

    def whole(new: str | bytes, length: int | None = None) -> bytes:
        encoded = new.encode() if isinstance(new, str) else new
        return struct.pack("<Q", len(encoded) if length is None else length) + encoded + rest

    names = [name for name in header if name != "__metadata__"]
    for name, (field, values) in itertools.product(names, _ENTRIES.items()):
        for value in values:
            changed = copy.deepcopy(header)
            if changed[name][field] != value:
                changed[name][field] = value
                yield f"{name} {field} {value!s:.20}", whole(json.dumps(changed))
        lacking = copy.deepcopy(header)
        del lacking[name][field]
        yield f"{name} without {field}", whole(json.dumps(lacking))
    for name, new in itertools.product(
        names, ("../../etc/passwd", "", "a\0b", "/", "__metadata__", "é" * 999, names[0])
    ):
        yield f"{name} called {new:.9}", whole(json.dumps({new if key == name else key: header[key] for key in header}))
    for name, other in itertools.permutations(names, 2):
        swapped = {**header, name: header[other], other: header[name]}
        yield f"{name} for {other}", whole(json.dumps(swapped))
    for key, value in header.get("__metadata__", {}).items():
        for new in ("", value + " ", value[::-1], "null", "0.9", "true", "[" * 999, "\x1b[31m", 7, None, [value]):
            if new != value:
                changed = {**header, "__metadata__": {**header["__metadata__"], key: new}}
                yield f"metadata {key} {new!s:.9}", whole(json.dumps(changed))
        lacking = copy.deepcopy(header)
        del lacking["__metadata__"][key]
        yield f"no metadata {key}", whole(json.dumps(lacking))
    again = f",{json.dumps(names[0])}:{json.dumps(header[names[-1]])}}}"
    yield "a name twice", whole(text.rstrip().removesuffix("}") + again)
    for new in ("", "{", "[]", "null", '"' * 9, "[" * 100_000, '{"a":' * 100_000, "{}" + "\0" * 64, b"\xff" * 64):
        yield f"header {new!s:.9}", whole(new)
    for length in (0, 1, size - 1, size + 1, len(data), 10**8, 2**31, 2**32, 2**63, 2**64 - 1):
        yield f"header length {length}", whole(text, length)
    yield "big-endian length", struct.pack(">Q", size) + data[8:]


def records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """A zip archive written again, its checksums right: compressed, records twice, absent, cut, under other names."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = [(info.filename, archive.read(info)) for info in archive.infolist()]

    def packed(parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
        out = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
            warnings.simplefilter("ignore")  # zipfile warns of a name that comes twice
            for name, content in parts:
                archive.writestr(name, content)
        return out.getvalue()

    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"compressed by {method}", packed(held, method)
    yield "no record", packed([])
    for place, (name, content) in enumerate(held):
        others = held[:place] + held[place + 1 :]
        yield f"without {name}", packed(others)
        for what, part in (
            ("emptied", (name, b"")),
            ("cut", (name, content[:-1])),
            ("of zeros", (name, bytes(len(content)))),
            ("above", (f"../{name}", content)),
            ("at the root", (f"/{name}", content)),
            ("with a NUL", (f"{name}\0", content)),
        ):
            if part != (name, content):
                yield f"{name} {what}", packed([*held[:place], part, *held[place + 1 :]])
        yield f"{name} twice", packed([*held, (name, content[::-1])])
