"""Functions of the user's own code, named as module:function."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from posthoc_lt.errors import PosthocError, show

_named = set[str]()


def named_here(spec: str) -> bool:
    """Whether the user of this process has named this code, and not only a file that it read."""
    return spec in _named


def own_function(option: str, spec: str, wanted: str, example: str) -> Callable[..., object]:
    """The function that ``module:function`` names, importable from the current folder.

    Args:
        option: how the user gave it, for messages.
        spec: the module and the function in it.
        wanted: what the function does.
        example: how one is written.

    Raises:
        PosthocError: the module does not import, or has no such function.
    """
    _named.add(spec)
    module, _, name = spec.partition(":")
    with current_folder():
        try:
            found: object = importlib.import_module(module)
        except Exception as error:  # the user's own code may raise anything
            raise own_failure(option, spec, f"whose module {show(module)} does not import", error) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise PosthocError(
            f"{option} {show(spec)}, but {show(module)} has no function {show(name)}", wanted, f"write one: {example}"
        )
    return found


def own_failure(option: str, spec: str, what: str, error: Exception) -> PosthocError:
    """The error for own code that fails."""
    return PosthocError(
        f"{option} {show(spec)}, {what} ({type(error).__name__}: {show(error)})",
        "your own code as module:factory, importable from the current folder",
        f"run: python -c 'import {show(spec.partition(':')[0])}' in the folder {show(os.getcwd())}",
    )


@contextmanager
def current_folder() -> Iterator[None]:
    """Let Python import from the current folder, which a console script does not look in."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
