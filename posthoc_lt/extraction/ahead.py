"""Batches made ready while the network runs on the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor | None]]


def ahead(batches: Batches, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The batches with their inputs on `device`.

    For CUDA a thread of its own reads and pins them, and the next one is copied while the network runs on this one.
    """
    if device.type != "cuda":
        yield from ((inputs.to(device), y) for inputs, y in batches)
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    held: tuple[Tensor, Tensor | None, torch.cuda.Event] | None = None
    for pinned, y in beside((inputs.pin_memory(), y) for inputs, y in batches):
        with torch.cuda.stream(copies):
            inputs = pinned.to(device, non_blocking=True)
            copied = copies.record_event()
        if held is not None:
            yield _arrived(*held)
        held = inputs, y, copied
    if held is not None:
        yield _arrived(*held)


def _arrived(inputs: Tensor, y: Tensor | None, copied: torch.cuda.Event) -> tuple[Tensor, Tensor | None]:
    network = torch.cuda.current_stream(inputs.device)
    network.wait_event(copied)
    inputs.record_stream(network)  # its memory was taken for the other stream
    return inputs, y


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
