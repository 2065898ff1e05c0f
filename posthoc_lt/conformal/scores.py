"""The conformity of samples and classes, and the head that it is of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.files.container import checksum
from posthoc_lt.head import Head


def blocks(head: Head, features: Features, prevalence: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their conformities (n, C), block by block."""
    here = head.to(features.device)
    for rows, x in features.chunks(4 * head.classes, head.weight.dtype):
        yield rows, conformity_of(here, x, prevalence)


def conformity_of(head: Head, x: Tensor, prevalence: Tensor | None) -> Tensor:
    """p(y|x), or p(y|x)/p(y), (n, C) float64: the larger, the better class and sample agree."""
    logits = head(x)
    if logits.device.type == "mps":  # which has no float64
        logits = logits.cpu()
    p = torch.softmax(logits.double(), dim=1)
    if not bool(p.isfinite().all()):
        raise PosthocError(
            "features with NaN or infinite values (or so large that the logits overflow)",
            "finite features",
            "extract them again, and check the images and the checkpoint",
        )
    return p if prevalence is None else p / prevalence.to(p.device)


def identity(head: Head) -> str:
    """Checksums that no other head shares."""
    return f"{checksum(head.weight.cpu())} {checksum(head.bias.cpu())}"
