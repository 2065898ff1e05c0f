"""One pass over the logits of a head."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from posthoc_lt.features import Features
from posthoc_lt.head import Head


def float64_logits(head: Head, features: Features) -> Iterator[tuple[slice, Tensor]]:
    """Rows and float64 logits, block by block, of this process's share of the samples."""
    here = head.to(features.device)
    for rows, x in features.own_chunks(4 * head.classes, head.weight.dtype):
        logits = here(x)
        yield rows, (logits.cpu() if logits.device.type == "mps" else logits).double()  # MPS has no float64
