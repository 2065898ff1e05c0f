"""The network of a checkpoint, its head proved, ready to run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint import LocatedHead, find_head, load_network, run_network
from posthoc_lt.errors import PosthocError
from posthoc_lt.extraction.source import Source
from posthoc_lt.head import Head

PROOF_BATCH = 8
"""How many inputs the head is proved on."""


def prepare(source: Source, device: torch.device) -> tuple[nn.Module, LocatedHead]:
    """The network on `device`, and its head, found on a few real images and checked against the classes.

    Raises:
        PosthocError: see `load_network`, `find_head` and `Data.require_classes`.
    """
    network = load_network(source.checkpoint, source.architecture)
    images = source.split(next(iter(source.data.splits)))  # a reader of its own: what it skips counts for nothing
    batch = images.stack(spread(len(images), PROOF_BATCH))[0]
    located = find_head(network, batch) if source.l2 is None else _none_yet(network, batch, source)  # CPU, float32
    source.data.require_classes(located.head.classes)
    if device.type == "cuda":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from torch's stubs
    return network.to(device), located


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
