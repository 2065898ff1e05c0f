"""The network of a checkpoint, its head proved, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint import (
    LocatedHead,
    capture,
    difference,
    find_head,
    load_network,
    run_network,
    tolerance,
)
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.extraction.source import Source
from posthoc_lt.head import Head

PROOF_BATCH = 8
"""How many inputs the head is proved on."""

Run: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a batch to what the head reads, and the logits."""


@contextmanager
def opened(source: Source, device: torch.device, *, compiled: bool = False) -> Iterator[tuple[Run, LocatedHead]]:
    """The network on `device`, and its head, found on a few real images and checked against the classes.

    Args:
        source: the checkpoint and its data.
        device: where the network runs within the block.
        compiled: have torch.compile make it faster, which takes a while first.

    Raises:
        PosthocError: see `load_network`, `find_head` and `Data.require_classes`; or it cannot be compiled.
    """
    network = load_network(source.checkpoint, source.architecture)
    images = source.split(next(iter(source.data.splits)))  # a reader of its own: what it skips counts for nothing
    batch = images.stack(spread(len(images), PROOF_BATCH))[0]
    located = find_head(network, batch) if source.l2 is None else _none_yet(network, batch, source)  # CPU, float32
    source.data.require_classes(located.head.classes)
    if device.type == "cuda":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's stubs
    network = network.to(device)
    with capture(network, located.name) as run:
        if compiled:  # only now: what watches the head must be in place
            _compile(network, run, located, batch.to(device))
        yield run, located


def _compile(network: nn.Module, run: Run, located: LocatedHead, batch: Tensor) -> None:
    """Have the network compiled, and see that it runs and that its head still reads what gives its logits."""
    network.compile()
    try:
        x, logits = run(batch)
    except PosthocError as error:
        raise PosthocError(
            f"--compile, which fails ({show(error.__cause__ or error.given, 200)})",
            "a C++ compiler such as g++ on the path, on CUDA also Triton, and a network that torch.compile takes",
            "install what is missing, or leave --compile out",
        ) from error
    head = located.head.to(x.device)
    if located.name and difference(head.to(torch.float64)(x.double()), logits) > tolerance(x.device):
        raise PosthocError(
            "--compile, after which the head no longer gives the network's logits",
            "a network that torch.compile leaves as it is",
            "leave --compile out",
        )


def _none_yet(network: nn.Module, batch: Tensor, source: Source) -> LocatedHead:
    """In place of a head that is fitted when the features are there: all zero, under no name."""
    counts = source.data.counts("train") if "train" in source.data.splits else None
    if counts is None:
        raise PosthocError("a network without a head, and no labelled train", "train, to fit a head on", "add it")
    return LocatedHead("", Head.without_bias(torch.zeros(len(counts), run_network(network, batch).shape[1])))


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices at even distances over ``range(count)``.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]
