"""Passes over labelled samples that stand for a population with label frequencies of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.head import Head


class Weighting(NamedTuple):
    """Label frequencies v (C,), 0 for classes without a sample, and the weight v_c/n_c (C,) of a sample of each."""

    share: Tensor
    weight: Tensor


def weighting(head: Head, features: Features, under: Tensor | None) -> Weighting:
    """The frequencies that samples stand for: their own, or `under` among the classes that have one.

    The weights of all samples sum to 1. Everything is float64 on the CPU.

    Raises:
        PosthocError: shapes or labels do not fit, a frequency is negative, or no sample carries weight.
    """
    features.require_labelled(head)
    counts = features.counts(head.classes).cpu().double()
    share = counts if under is None else distribution(under, head, "label distribution") * (counts > 0)
    if not share.sum() > 0:
        raise PosthocError(
            "a label distribution without weight on any class that has a sample",
            "some weight where there are samples",
            "leave it out, to take the frequencies of the samples themselves",
        )
    share = share / share.sum()
    return Weighting(share, share / counts.clamp(min=1))


def distribution(values: Tensor, head: Head, what: str) -> Tensor:
    """`values` (C,) as float64 shares on the CPU that sum to 1.

    Raises:
        PosthocError: not one a class, negative, not finite, or all zero.
    """
    if values.shape != (head.classes,):
        raise PosthocError(
            f"a {what} of shape {tuple(values.shape)}",
            f"one number for each of the {head.classes} classes",
            "write one number a class, in the order of the head's rows",
        )
    values = values.detach().cpu().double()
    if not bool((values.isfinite() & (values >= 0)).all()) or not values.sum() > 0:
        raise PosthocError(
            f"a {what} with a number that is negative or not finite, or with zeros alone",
            "frequencies from 0",
            "give counts or frequencies, not their logarithms",
        )
    return values / values.sum()


def finite_log_prior(log_prior: Tensor, head: Head) -> Tensor:
    """Log π (C,), float64 on the CPU.

    Raises:
        PosthocError: not one a class, or not finite.
    """
    if log_prior.shape != (head.classes,) or not bool(log_prior.isfinite().all()):
        raise PosthocError(
            f"a log prior of shape {tuple(log_prior.shape)}, or not finite",
            f"one finite number for each of the {head.classes} classes",
            "smooth the counts of classes without a train sample, or take these classes out of the head",
        )
    return log_prior.detach().cpu().double()


def blocks(head: Head, features: Features) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, float64 logits and labels, block by block, of this process's share of the samples.

    Raises:
        PosthocError: a logit is not finite.
    """
    here, bad = head.to(features.device), 0
    for rows, x in features.own_chunks(4 * head.classes, head.weight.dtype):
        z = here(x)
        z = (z.cpu() if z.device.type == "mps" else z).double()  # MPS has no float64
        bad += not bool(z.isfinite().all())
        yield rows, z, features.labels[rows].to(z.device)
    if ranks.total(torch.tensor(bad)):  # at the end, so that all processes come to know
        raise PosthocError(
            "features with NaN or infinite values (or so large that the logits overflow)",
            "finite features",
            "extract them again, and check the images and the checkpoint",
        )
