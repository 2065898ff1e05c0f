"""Networks of the user's own code, named as module:factory."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from posthoc_lt.errors import PosthocError, show


def own_factory(module: str, name: str) -> Callable[[], nn.Module]:
    """The function `name` of `module`, importable from the current folder.

    Raises:
        PosthocError: the module does not import, or has no such function; on being called: it fails,
            or returns no nn.Module.
    """
    arch = f"{module}:{name}"
    with _current_folder():
        try:
            found: object = importlib.import_module(module)
        except Exception as error:  # the user's own code may raise anything
            raise _failed(arch, f"whose module {show(module)} does not import", error) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise PosthocError(
            f"--arch {show(arch)}, but {show(module)} has no function {show(name)}",
            "a function or class that returns the network when called without arguments",
            f"write one: def {show(name)}(): return MyNetwork(num_classes=…)",
        )
    make: Callable[[], object] = found

    def build() -> nn.Module:
        with _current_folder():
            try:
                network = make()
            except Exception as error:  # as above
                raise _failed(arch, "which fails when called without arguments", error) from error
        if not isinstance(network, nn.Module):
            raise PosthocError(
                f"--arch {show(arch)}, which returns {type(network).__name__}",
                "a torch.nn.Module",
                "return the network itself from it",
            )
        return network

    return build


def _failed(arch: str, what: str, error: Exception) -> PosthocError:
    return PosthocError(
        f"--arch {show(arch)}, {what} ({type(error).__name__}: {show(error)})",
        "your own code as module:factory, importable from the current folder",
        f"run: python -c 'import {show(arch.partition(':')[0])}' in the folder {show(os.getcwd())}",
    )


@contextmanager
def _current_folder() -> Iterator[None]:
    """Let Python import from the current folder, which a console script does not look in."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
