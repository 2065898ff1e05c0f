"""Progress on standard error, for what takes longer than a moment."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

PATIENCE = 2.0
"""Seconds that pass before a bar appears: what is done by then needs none."""

_COUNTED = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"
_OPEN = "{desc} {n_fmt} {unit} [{elapsed}{postfix}]"

T = TypeVar("T")

_silent: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silence() -> Iterator[None]:
    """No bars while the block lasts."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def bar(name: str, total: int | None, unit: str, done: int = 0, wanted: bool = True) -> Any:
    """A bar of tqdm, to be told of progress by ``update(n)`` and closed; it appears after `PATIENCE` and then goes.

    Only on a terminal or in a notebook, and there only the first of several processes has one.

    Args:
        name: what is being done.
        total: how much there is to do; None where nobody knows.
        unit: of what, in the plural.
        done: how much was done before.
        wanted: whether to show it at all.
    """
    from posthoc_lt import ranks  # here, so that help costs no torch

    silent = _silent.get() or not wanted or ranks.rank() > 0
    return _tqdm()(
        total=total,
        initial=done,
        desc=name,
        unit=unit,
        bar_format=_OPEN if total is None else _COUNTED,
        file=sys.stderr,
        delay=PATIENCE,
        leave=False,
        dynamic_ncols=True,
        disable=silent or not (_on_terminal() or _in_notebook()),
    )


def through(items: Sequence[T], name: str, unit: str, label: Callable[[T], str] = str) -> Iterator[T]:
    """Each of the items, with a bar that tells how many are done and, by its label, which one is in work.

    >>> list(through([1, 10], "fitting", "penalties"))
    [1, 10]
    """
    start = time.monotonic()
    with bar(name, len(items), unit) as shown:
        for item in items:
            shown.set_postfix_str(label(item), refresh=time.monotonic() - start > PATIENCE)
            yield item
            shown.update()


@cache
def _tqdm() -> Any:
    """A notebook's own bars in a notebook that has ipywidgets, else text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are experimental, or that ipywidgets are missing
        from tqdm.auto import tqdm
    return tqdm


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # None where the shell has closed it
