"""The conformity of samples and classes, and the head that it is of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.files.container import checksum
from posthoc_lt.head import Head


def blocks(head: Head, features: Features, prevalence: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows and their conformities (n, C), block by block, of this process's share of the samples.

    Raises:
        PosthocError: a logit is not finite.
    """
    here, bad = head.to(features.device), 0
    for rows, x in features.own_chunks(4 * head.classes, head.weight.dtype):
        p = _conformity(here, x, prevalence)
        bad += not bool(p.isfinite().all())
        yield rows, p
    if ranks.total(torch.tensor(bad)):  # at the end, so that all processes come to know
        raise _not_finite()


def conformity_of(head: Head, x: Tensor, prevalence: Tensor | None) -> Tensor:
    """p(y|x), or p(y|x)/p(y), (n, C) float64: the larger, the better class and sample agree.

    Raises:
        PosthocError: a logit is not finite.
    """
    p = _conformity(head, x, prevalence)
    if not bool(p.isfinite().all()):
        raise _not_finite()
    return p


def _conformity(head: Head, x: Tensor, prevalence: Tensor | None) -> Tensor:
    logits = head(x)
    if logits.device.type == "mps":  # which has no float64
        logits = logits.cpu()
    p = torch.softmax(logits.double(), dim=1)
    return p if prevalence is None else p / prevalence.to(p.device)


def _not_finite() -> PosthocError:
    return PosthocError(
        "features with NaN or infinite values (or so large that the logits overflow)",
        "finite features",
        "extract them again, and check the images and the checkpoint",
    )


def identity(head: Head) -> str:
    """Checksums that no other head shares."""
    return f"{checksum(head.weight.cpu())} {checksum(head.bias.cpu())}"
