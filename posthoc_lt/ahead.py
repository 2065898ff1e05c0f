"""Batches made ready while the device computes on the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def ahead(batches: Iterable[tuple[Tensor, T]], device: torch.device) -> Iterator[tuple[Tensor, T]]:
    """The batches with their tensors on `device`; what comes along stays as it is.

    For CUDA a thread of its own reads and pins them, and the next one is copied while the device works on this one.
    """
    if device.type != "cuda":
        yield from ((x.to(device), rest) for x, rest in batches)
        return
    copies = _copies(device)
    held: tuple[Tensor, T, torch.cuda.Event] | None = None
    for pinned, rest in beside((x if x.is_cuda else x.pin_memory(), rest) for x, rest in batches):
        with torch.cuda.stream(copies):
            x = pinned.to(device, non_blocking=True)
            copied = copies.record_event()
        if held is not None:
            yield _arrived(*held)
        held = x, rest, copied
    if held is not None:
        yield _arrived(*held)


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """One stream a device, for memory that one has used goes to no other."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _arrived(x: Tensor, rest: T, copied: torch.cuda.Event) -> tuple[Tensor, T]:
    work = torch.cuda.current_stream(x.device)
    work.wait_event(copied)
    x.record_stream(work)  # its memory was taken for the other stream
    return x, rest


def beside(items: Iterable[T]) -> Iterator[T]:
    """The same items, each made in another thread while the one before is in use.

    >>> list(beside(range(3)))
    [0, 1, 2]
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, source, end)
        while (item := waiting.result()) is not end:
            waiting = thread.submit(next, source, end)
            yield item  # type: ignore[misc]  # no longer the end
