"""TorchScript files: run by TorchScript's own interpreter, patched in place.

Such a file is a program. Its interpreter knows neither Python nor the modules of Python, but it has a few operators
that read or write files; a file whose code names one of these, or an operator or class of an unknown library, is
refused before any of it runs. What it can still do is compute wrongly, for ever, or with more memory than there is.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint.archive import Place, patch_tensors
from posthoc_lt.checkpoint.formats import SAVE, Format, Loaded, damaged
from posthoc_lt.checkpoint.program import Program, Watched
from posthoc_lt.checkpoint.whole import record_names, require_whole
from posthoc_lt.errors import PosthocError, listed, show

_LARGEST_CODE = 1 << 28
_FILES = re.compile(r"\b(?:save|from_file|load_tensor|rpc_\w+|print(?=\())")
_FOREIGN = re.compile(r"\bops\b(?!\.(?:aten|prims?|prepacked|quantized|torchvision)\.)(?:\.\w+)*")
_CLASSES = re.compile(r"__torch__\b(?:\.torch\b)?(?![.\w])|\btorch\.classes\b(?!\.quantized\.)(?:\.\w+)*")


class Script(Program):
    """A TorchScript module.

    A layer is watched by giving it the rows of the identity beside its own, W := [W; I] and b := [b; 0], so that
    one run gives the logits and, exactly, what the layer takes.
    """

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.script = script

    def forward(self, batch: Tensor) -> object:
        """What the file gives."""
        return self.script(batch)

    def layers(self) -> Mapping[str, nn.Module]:
        """The modules with a matrix, or a 1×1 convolution's kernel, as their weight."""
        named = {name: layer for name, layer in self.script.named_modules() if name}
        return {name: layer for name, layer in named.items() if _is_linear(getattr(layer, "weight", None))}

    @contextmanager
    def watched(self, name: str) -> Iterator[Watched]:
        """Within the block the layer gives its input beside its output."""
        layer = self.layers()[name]
        weight, bias = layer.weight, getattr(layer, "bias", None)
        assert isinstance(weight, Tensor)
        classes, dimensions = weight.shape[:2]
        kept = [(tensor, tensor.data) for tensor in (weight, bias) if isinstance(tensor, Tensor)]
        identity = torch.eye(dimensions, dtype=weight.dtype, device=weight.device)
        weight.data = torch.cat([weight.data, identity.reshape(dimensions, *weight.shape[1:])])
        if isinstance(bias, Tensor):
            bias.data = torch.cat([bias.data, bias.data.new_zeros(dimensions)])

        def run(batch: Tensor) -> tuple[Tensor, object]:
            both = self.script(batch)
            if not isinstance(both, Tensor) or both.ndim != 2 or both.shape[1] != classes + dimensions:
                raise RuntimeError(f"layer {name} is not the last")
            return both[:, classes:], both[:, :classes]

        try:
            yield run
        finally:
            for tensor, data in kept:
                tensor.data = data


def _is_linear(weight: object) -> bool:
    return isinstance(weight, Tensor) and (weight.ndim == 2 or (weight.ndim == 4 and weight.shape[2:] == (1, 1)))


def _fits(start: bytes, path: Path) -> bool:
    if not start.startswith(b"PK\x03\x04"):
        return False
    return any(name.endswith("/constants.pkl") for name in record_names(path))


def _load(path: Path) -> Loaded:
    script = _script(path)
    with zipfile.ZipFile(path) as archive:
        rest = sorted((info.filename, info.CRC) for info in archive.infolist() if "/data/" not in info.filename)
    state = dict(script.state_dict())
    if not state:
        raise PosthocError(
            f"{show(path)}, a TorchScript file whose weights are constants of its code",
            "a module with parameters, which can be replaced",
            "save it before torch.jit.freeze, or " + SAVE,
        )
    code = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
    return Loaded({"parameters": state, "code": code}, {}, (path,))


def _script(path: Path) -> Any:
    jit: Any = torch.jit  # untyped in torch
    try:
        require_whole(path)
        _screen(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as such
            return jit.load(path, map_location="cpu").eval()
    except PosthocError:
        raise
    except Exception as error:  # on damaged bytes zipfile and the interpreter fail in any way they like
        raise damaged(path, "TorchScript", error) from None


def _screen(path: Path) -> None:
    """Refuse code that names an operator which touches files, before it is compiled."""
    found: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        parts = [info for info in archive.infolist() if info.filename.endswith((".py", ".pkl"))]
        if sum(info.file_size for info in parts) > _LARGEST_CODE:
            raise ValueError("more code than any network has")
        for info in parts:
            text = archive.read(info).decode("latin-1")
            found |= _suspicious(text) if info.filename.endswith(".py") else {*_CLASSES.findall(text)}
    if found:
        raise PosthocError(
            f"{show(path)}, a TorchScript file whose code names {listed(sorted(found))}, which may touch files, print, "
            "or belong to a library that is not torch's",
            "code that only computes",
            SAVE,
        )


def _suspicious(code: str) -> set[str]:
    """What code names beyond computing, however it is spaced and wherever it says that a comment begins."""
    joined = [re.sub(r"\s*\.\s*", ".", re.sub(drop, "", code)) for drop in (r"\\\r?\n", r"#[^\n]*|\\\r?\n")]
    return {name for text in joined for kind in (_FILES, _FOREIGN, _CLASSES) for name in kind.findall(text)}


def _write(original: Path, content: object, path: Path) -> None:
    """The original file, byte for byte, but for the tensors whose values differ."""
    assert isinstance(content, Mapping)
    with zipfile.ZipFile(original) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).rpartition("/")[0]
        with archive.open(f"{root}/data.pkl") as file:
            places = dict(_walk(_Reader(file, root).load(), ""))
    patch_tensors(original, content["parameters"], places, path)


class _Part:
    """Anything else in the pickle: it takes any arguments, keeps its attributes and does nothing."""

    def __new__(cls, *_: object) -> _Part:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads where tensors lie; whatever the pickle names, nothing is imported and nothing called."""

    def __init__(self, file: IO[bytes], root: str) -> None:
        super().__init__(file)
        self.root = root

    def find_class(self, module: str, name: str) -> Any:
        """Stand-ins alone."""
        return self._place if (module, name) == ("torch._utils", "_rebuild_tensor_v2") else _Part

    def _place(self, storage: tuple[str, ...], offset: int, size: list[int], stride: list[int], *_: object) -> Place:
        return Place(f"{self.root}/data/{storage[2]}", offset, tuple(size), tuple(stride))

    def persistent_load(self, pid: Any) -> Any:
        """What the pickle says of a storage: the kind, its type, its record, and more."""
        return pid


def _walk(part: object, prefix: str) -> Iterator[tuple[str, Place]]:
    state = getattr(part, "state", None)
    for key, value in state.items() if isinstance(state, dict) else ():
        if isinstance(value, Place):
            yield f"{prefix}{key}", value
        else:
            yield from _walk(value, f"{prefix}{key}.")


def _network(path: Path) -> Program:
    script = _script(path)
    for parameter in script.parameters():
        parameter.requires_grad_(False)
    return Script(script)


TORCHSCRIPT = Format("torchscript", _fits, _load, _write, (".pt", ".pth", ".ts", ".torchscript"), _network, grows=False)
"""What torch.jit.save writes."""
