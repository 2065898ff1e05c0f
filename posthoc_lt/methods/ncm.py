"""Nearest class mean: classify by the closest mean of train features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError, listed
from posthoc_lt.family import Point
from posthoc_lt.features import Features, Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method


@dataclass(frozen=True)
class NCM(Method):
    """Nearest class mean (Kang 2020, arXiv:1910.09217) as an affine head, with μ_c the mean feature of class c.

    Euclidean: ``w' = 2μ, b' = −‖μ‖²``, which is −‖x − μ‖² up to a term common to all classes.
    Cosine: ``w' = μ/‖μ‖, b' = 0`` (with cl2n ``b' = −w'·m``): the same argmax as the cosine, not the same value,
    since the norm of x is not affine.

    Args:
        distance: ``euclidean`` or ``cosine``.
        transform: what is averaged. ``un``: features; ``l2n``: features of norm 1; ``cl2n``: the mean m of all
            samples subtracted, then norm 1. As in the authors' code the averages are not normalised again.
            Under the Euclidean distance l2n and cl2n are not affine in x, so only ``un`` will do.

    Raises:
        PosthocError: no train features, a class without samples, a combination that is not affine, or a mean
            without direction.
    """

    paper: ClassVar[str] = "1910.09217"
    formula: ClassVar[str] = "w' = 2 mu, b' = -|mu|^2 (euclidean); w' = mu / |mu|, b' = 0 (cosine)"

    distance: Literal["euclidean", "cosine"] = field(
        default="euclidean", metadata={"help": "What near means; cosine keeps the argmax, not the values."}
    )
    transform: Literal["un", "l2n", "cl2n"] = field(
        default="un", metadata={"help": "Average features as they are, normalised, or centred and normalised."}
    )

    def fit(self, head: Head, training: Training) -> Point:
        """The one head."""
        if self.distance == "euclidean" and self.transform != "un":
            raise PosthocError(
                f"ncm with distance euclidean and transform {self.transform}, which no affine head can express",
                "cosine distance with that transform, or untransformed features",
                f"give --distance cosine --transform {self.transform}, or --transform un",
            )
        features = training.require(self.name)
        centre = torch.zeros(features.dimensions, dtype=torch.float64, device=features.device)
        if self.transform == "cl2n":
            centre = _means(features, torch.zeros_like(features.labels), 1, lambda x: x)[0]
        means = _means(features, features.labels, head.classes, _TRANSFORMS[self.transform](centre))
        weight, bias = _euclidean(means) if self.distance == "euclidean" else _cosine(means, centre)
        return Point(Head(weight.to(head.weight), bias.to(head.bias), head.has_bias))


def _normalised(x: Tensor) -> Tensor:
    # A feature of norm 0 has no direction and adds nothing to a mean of directions.
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norms.clamp(min=1e-300)


_TRANSFORMS: dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {
    "un": lambda centre: lambda x: x,
    "l2n": lambda centre: _normalised,
    "cl2n": lambda centre: lambda x: _normalised(x - centre),
}


def _means(features: Features, groups: Tensor, count: int, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean (count, D), float64, of the transformed features of each group, in one pass."""
    sums = torch.zeros(count, features.dimensions, dtype=torch.float64, device=features.device)
    for rows, x in features.own_chunks(features.dimensions, torch.float64):
        sums.index_add_(0, groups[rows].to(features.device), transform(x))
    sums = ranks.total(sums)
    if not sums.isfinite().all():
        raise PosthocError(
            "train features with NaN or infinite values", "finite features", "extract them again, in float32 if in half"
        )
    return sums / torch.bincount(groups, minlength=count).to(sums)[:, None]


def _euclidean(means: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * means, -means.square().sum(dim=1)


def _cosine(means: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    norms: Tensor = torch.linalg.vector_norm(means, dim=1)
    empty = (norms == 0).nonzero().flatten().tolist()
    if empty:
        raise PosthocError(
            f"a mean feature of norm 0 for class {listed(empty)}",
            "a mean with a direction",
            "give --distance euclidean --transform un",
        )
    weight = means / norms[:, None]
    return weight, -(weight @ centre)
