"""A knob without labels: the one whose predictions, on average, are spread as the target says."""

from __future__ import annotations

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.family import Continuous
from posthoc_lt.features import Features
from posthoc_lt.search.likelihood import class_scores


def match_prior(family: Continuous, features: Features, target: Tensor, bounds: tuple[float, float]) -> float:
    """The t that minimises KL(target ‖ mean softmax of the logits at t) over unlabelled features.

    A head that still favours the frequent classes spreads its probability over them; where the features
    are known to come from `target`, the knob that makes the average fit is a choice that needs no label.
    It trusts the head's softmax, so a labelled validation split is better wherever there is one. The range
    is scanned at 33 points and the best one refined, for the divergence may have several minima.

    Args:
        family: a family with a continuous knob.
        features: N samples from the target; labels are not read.
        target: (C,) class frequencies, summing to 1; 0 for classes that take no part.
        bounds: the range of t.
    """
    scores, head = class_scores(family)

    def divergence(knob: float) -> float:
        shares = [
            torch.softmax(scores(x)(knob).value, dim=1).sum(dim=0).cpu()
            for _, x in features.own_chunks(8 * head.classes, head.weight.dtype)
        ]
        mean = ranks.added(shares, torch.zeros(head.classes, dtype=torch.float64)) / len(features)
        return float((torch.xlogy(target, target) - torch.xlogy(target, mean)).sum())

    grid = torch.linspace(*bounds, 33, dtype=torch.float64).tolist()
    start = min(range(len(grid)), key=lambda index: divergence(grid[index]))
    around = (grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)])
    found = minimize_scalar(divergence, bounds=around, method="bounded", options={"xatol": 1e-6})
    return float(found.x)
