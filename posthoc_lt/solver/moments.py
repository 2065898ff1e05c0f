"""Class means and the covariance within classes: what the closed forms need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.features import Features
from posthoc_lt.solver.blocks import Blocks, require_finite


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of weighted features, float64.

    Args:
        share: (C,) the weight of each class, summing to 1.
        means: (C, D) the mean of each class.
        within: (D, D) Σ wᵢ (xᵢ − μ_y)(xᵢ − μ_y)ᵀ.
    """

    share: Tensor
    means: Tensor
    within: Tensor


def moments(features: Features, class_weight: Tensor) -> Moments:
    """The moments, in two passes that keep their digits however far the features lie from 0.

    Args:
        features: (N, D), every class present.
        class_weight: (C,) float64; w_i = class_weight[y_i], summing to 1 over the samples.

    Raises:
        PosthocError: the features are not finite.
    """
    counts = features.counts(len(class_weight)).to(features.device, torch.float64)
    means = class_sums(features, len(class_weight)) / counts[:, None]
    within = torch.zeros(features.dimensions, features.dimensions, dtype=torch.float64, device=features.device)
    blocks = Blocks(features, class_weight)
    for x, y, w in blocks:
        centred = x - means[y]
        within.addmm_(centred.T, centred * w[:, None])
    within = ranks.total(within)
    require_finite(within)  # squares overflow before sums do
    return Moments(class_weight.to(counts) * counts, means, within)


def class_sums(features: Features, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The sum (C, D) of each class's features, float64, read in `dtype`.

    Raises:
        PosthocError: the features are not finite.
    """
    sums = torch.zeros(classes, features.dimensions, dtype=torch.float64, device=features.device)
    for rows, x in features.own_chunks(features.dimensions, dtype):
        sums.index_add_(0, features.labels[rows].to(features.device), x.double())
    sums = ranks.total(sums)
    require_finite(sums)
    return sums
