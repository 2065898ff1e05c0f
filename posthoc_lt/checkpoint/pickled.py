"""Pickled networks, as torch.save(model) writes them: loading runs their code, so only where the user trusts it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posthoc_lt.checkpoint.formats import SAVE, Format, Loaded, damaged
from posthoc_lt.checkpoint.whole import require_whole
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.own_code import current_folder


def pickled_kind(known: Format, path: Path) -> Format:
    """What a torch file is that may be unpickled: `known` where it holds only tensors, else a kind that runs its code.

    Raises:
        PosthocError: it names code that cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError:
        return known._replace(load=_load) if _module(_unpickled(path)) is None else PICKLED
    except Exception:  # damaged, which `known` itself can tell better
        pass
    return known


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped:
            require_whole(path)
    except PosthocError:
        raise
    except Exception as error:  # on damaged bytes zipfile fails in any way it likes
        raise damaged(path, "a torch checkpoint", error) from None
    with _own_code(path), current_folder():
        return torch.load(path, map_location="cpu", weights_only=False)


@contextmanager
def _own_code(path: Path) -> Iterator[None]:
    """Within the block the file's own code runs, which may raise anything."""
    try:
        yield
    except Exception as error:
        raise PosthocError(
            f"{show(path)}, whose objects cannot be made ({type(error).__name__}: {show(error)})",
            "the code of its classes, importable from the current folder",
            f"run in the folder of that code; or {SAVE}",
        ) from None


def _module(content: Any) -> nn.Module | None:
    """The network: the content itself, or the first one in it."""
    inside = content.values() if isinstance(content, Mapping) else [content]
    return next((value for value in inside if isinstance(value, nn.Module)), None)


def _load(path: Path) -> Loaded:
    content = _unpickled(path)
    module = _module(content)
    if module is None:
        return Loaded(content, {}, (path,))
    with _own_code(path):
        for part in module.modules():  # one from a damaged file may lack what torch gives every module
            part.register_forward_hook(lambda *_: None, with_kwargs=True).remove()
            part.register_forward_pre_hook(lambda *_: None, with_kwargs=True).remove()
        return Loaded({"parameters": module.state_dict(), "object": content}, {}, (path,))


def _network(path: Path) -> nn.Module:
    module = _module(_unpickled(path))
    assert module is not None
    with _own_code(path):
        return module.float().eval().requires_grad_(False)


def _write(original: Path, content: object, path: Path) -> None:
    assert isinstance(content, Mapping)
    whole = _unpickled(original)
    module = _module(whole)
    assert module is not None
    module.load_state_dict(content["parameters"])
    with path.open("wb") as file:
        torch.save(whole, file)


PICKLED = Format("pickled module", lambda *_: False, _load, _write, (".pt", ".pth", ".pkl"), _network, pickles=True)
