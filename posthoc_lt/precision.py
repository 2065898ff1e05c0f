"""Full precision for products of float32 matrices, whatever the program around has set for its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Within the block matrices in float32 are multiplied in float32, on every device.

    A training script may have allowed TF32 or bfloat16 (`torch.set_float32_matmul_precision`), or stand in
    `torch.autocast`: ten or seven bits, which must not decide what class is ahead. What it has set comes back, as
    settings of the products themselves where they were inherited.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for switch in _switches():
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = "ieee"
        if not _SWITCHES and torch.get_float32_matmul_precision() != "highest":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        yield


_SWITCHES: tuple[Any, ...] = ()
if hasattr(torch.backends.mkldnn, "matmul"):  # since torch 2.9 every library has one of its own
    _SWITCHES = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def _switches() -> list[Any]:
    """Those that allow less than float32."""
    return [switch for switch in _SWITCHES if switch.fp32_precision not in ("ieee", "none")]
