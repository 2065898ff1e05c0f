"""Networks that come with code of their own, which have no layers to hang hooks on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

Watched = Callable[[Tensor], tuple[Tensor, object]]


class Program(nn.Module, ABC):
    """A network read from a TorchScript, torch.export or ONNX file, run by that format's own runtime.

    Called, it gives what the file gives; `watched` gives what one of its layers takes beside it.
    """

    @abstractmethod
    def layers(self) -> Mapping[str, nn.Module]:
        """Its linear layers and 1×1 convolutions by name, in the file's order, each with weight and perhaps bias."""

    @abstractmethod
    def watched(self, name: str) -> AbstractContextManager[Watched]:
        """Within the block: a function from a batch to (what layer `name` takes, what the network gives)."""


class Layer(nn.Module):
    """A weight, (C, D) or that of a 1×1 convolution, and a bias (C,) or None, as a layer of torch holds them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias


def in_batches(run: Callable[[Tensor], Sequence[Tensor]], size: int | None, batch: Tensor) -> list[Tensor]:
    """Run a program that takes exactly `size` samples at a time (None: any number) on any number of them.

    The last batch is filled up with its own last sample, whose results are dropped.
    """
    if size is None or len(batch) == size:
        return list(run(batch))
    parts = []
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        filled = torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])
        parts.append([result[: len(part)] for result in run(filled)])
    return [torch.cat(results) for results in zip(*parts, strict=True)]
