"""Reading a checkpoint safely: whatever the file holds, none of its code runs."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed, show

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and Lightning put before every key."""

NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
"""Where training scripts keep the state dict, the most usual first."""

_SAVE = (
    "in the code that trained it: torch.save({'state_dict': model.state_dict()}, 'model.pt'), then give --ckpt model.pt"
)
_BLOCK_BYTES = 1 << 20
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint file as read; nothing in it has been changed.

    Args:
        path: the file.
        sha256: of the file's bytes, in hexadecimal.
        format: ``torch`` (a file of torch.save) or ``safetensors``.
        content: the loaded object as it is; its tensors are memory-mapped where the format allows.
        route: the keys that lead from `content` to the state dict; () where it is the state dict.
        stripped: the wrappers' prefixes that every key carried and `state` does not, outermost first.
        state: parameter and buffer names to tensors.
        metadata: what the file says beside its weights: a training script's entries, a safetensors header's strings.
    """

    path: Path
    sha256: str
    format: Literal["torch", "safetensors"]
    content: object
    route: tuple[str, ...]
    stripped: tuple[str, ...]
    state: Mapping[str, Tensor]
    metadata: Mapping[str, object]

    def spellings(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """The state dict without its wrappers' prefixes, then with ever more of them, and the prefix each has."""
        for start in range(len(self.stripped), -1, -1):
            prefix = "".join(self.stripped[start:])
            yield prefix, {prefix + name: tensor for name, tensor in self.state.items()}

    def key(self, name: str) -> str:
        """The key, in the file's own state dict, of a network's parameter `name`.

        Raises:
            PosthocError: there is none.
        """
        for prefix, _ in self.spellings():
            if name.startswith(prefix) and name[len(prefix) :] in self.state:
                return "".join(self.stripped) + name[len(prefix) :]
        raise PosthocError(
            f"{show(self.path)}, which has no tensor {show(name)!r}",
            "a head whose weight is stored under its own name",
            f"look for it among the last keys: {listed(list(self.state)[-5:])}",
        )


def read(path: Path | str) -> Checkpoint:
    """Read a checkpoint, told by its content and not by its suffix, without running any code in it.

    Args:
        path: a file of torch.save that holds a state dict, plain or nested (``state_dict``, ``model``, …), or a
            safetensors file.

    Raises:
        PosthocError: no such file, not a checkpoint, cut short, no tensors in it, or it pickles code.

    >>> read("nowhere.pt")
    Traceback (most recent call last):
    posthoc_lt.errors.PosthocError: checkpoint nowhere.pt, which does not exist. Wanted: ...
    """
    path = Path(path)
    start = _first_bytes(path)
    for known in FORMATS:
        if known.fits(start):
            content, header = known.load(path)
            return _checkpoint(path, known.name, content, header)
    raise _not_a_checkpoint(path, "neither a file of torch.save nor safetensors")


class Format(NamedTuple):
    """A kind of file: how its first bytes look, and how to load (content, header strings)."""

    name: Literal["torch", "safetensors"]
    fits: Callable[[bytes], bool]
    load: Callable[[Path], tuple[object, dict[str, str]]]


def _fits_torch(start: bytes) -> bool:
    return start.startswith((b"PK\x03\x04", b"\x80"))


def _fits_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _LARGEST_HEADER


def _load_safetensors(path: Path) -> tuple[object, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.offset_keys() if hasattr(file, "offset_keys") else file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise _damaged(path, "safetensors", error) from None


def _load_torch(path: Path) -> tuple[object, dict[str, str]]:
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _refuse_other_archives(path)
    with _harmless_globals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of foreign pickles before it refuses them
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped), {}
        except pickle.UnpicklingError as error:
            _refuse_pickle(path, error)
        except Exception as error:  # the unpickler fails on damaged bytes in any way it likes
            raise _damaged(path, "a torch checkpoint", error) from None


FORMATS = (Format("safetensors", _fits_safetensors, _load_safetensors), Format("torch", _fits_torch, _load_torch))


def _checkpoint(
    path: Path, name: Literal["torch", "safetensors"], content: object, header: Mapping[str, str]
) -> Checkpoint:
    route = find_route(content)
    if route is None:
        keys = f" but {listed(content)}" if isinstance(content, Mapping) else f", only one {type(content).__name__}"
        raise PosthocError(
            f"{show(path)}, which holds no state dict{keys}",
            "named tensors, plain or under a key such as state_dict or model",
            _SAVE,
        )
    found = at_route(content, route)
    state = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    stripped, state = _strip_wrappers(state)
    beside = content if route and isinstance(content, Mapping) else {}
    metadata = {key: value for key, value in beside.items() if isinstance(key, str) and key != route[0]}
    return Checkpoint(path, _sha256(path), name, content, route, stripped, state, {**metadata, **header})


def find_route(content: object) -> tuple[str, ...] | None:
    """The keys from a loaded object to the state dict in it, or None.

    >>> find_route({"epoch": 3, "model": {"fc.weight": torch.ones(2, 2)}})
    ('model',)
    """
    if not isinstance(content, Mapping):
        return None
    for name in NESTS:
        inner = find_route(content.get(name))
        if inner is not None:
            return (name, *inner)
    holds = any(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    return () if holds else None


def at_route(content: object, route: tuple[str, ...]) -> Mapping[object, object]:
    """The mapping at the end of `route`."""
    for key in route:
        assert isinstance(content, Mapping)
        content = content[key]
    assert isinstance(content, Mapping)
    return content


def _strip_wrappers(state: dict[str, Tensor]) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    stripped: list[str] = []
    while wrapper := next((w for w in WRAPPERS if all(k.startswith(w) and k != w for k in state)), None):
        stripped.append(wrapper)
        state = {key[len(wrapper) :]: value for key, value in state.items()}
    return tuple(stripped), state


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
        raise PosthocError(f"{given}, which is empty", wanted, "copy it again, or save it again: " + _SAVE)
    return start


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _harmless_globals() -> AbstractContextManager[object]:
    """Allow what training scripts store beside weights and what runs no code: argparse options, NumPy numbers."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # torch 2.4
        return nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    harmless: list[object] = [argparse.Namespace, scalar, np.dtype, *kinds]
    if (
        torch.torch_version.TorchVersion(torch.__version__) >= "2.8"
    ):  # older ones do not take an object under another name
        harmless += [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]
    context: AbstractContextManager[object] = allow(harmless)
    return context


def _refuse_other_archives(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, "a torch checkpoint", error) from None
    if any(name.endswith("/constants.pkl") for name in names):
        raise PosthocError(f"{show(path)}, a TorchScript archive", "a state dict", _SAVE)
    if not any(name.endswith("data.pkl") for name in names):
        raise _not_a_checkpoint(path, "a zip archive that torch.save did not write")


def _refuse_pickle(path: Path, error: pickle.UnpicklingError) -> NoReturn:
    names = _foreign_globals(path, error)
    if not names:
        raise _not_a_checkpoint(path, "a pickle that torch.save did not write") from None
    raise PosthocError(
        f"{show(path)}, which pickles Python objects ({listed(names)}) that would run code on loading",
        "a state dict, which holds tensors alone",
        _SAVE,
    ) from None


def _foreign_globals(path: Path, error: Exception) -> list[str]:
    lister = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    try:
        if lister is not None:
            return sorted(lister(path))
    except Exception:
        pass
    return re.findall(r"GLOBAL ([\w.]+)", str(error))


def _damaged(path: Path, kind: str, error: Exception) -> PosthocError:
    reason = show(str(error).strip().split("\n")[0] or type(error).__name__, 80)
    return PosthocError(
        f"{show(path)}, which begins as {kind} but is cut short or damaged ({reason.rstrip('.')})",
        "the whole file",
        "copy or download it again and compare its size with the original's",
    )


def _not_a_checkpoint(path: Path, what: str) -> PosthocError:
    return PosthocError(f"{show(path)}, which is no checkpoint ({what})", "a file of torch.save, or safetensors", _SAVE)
