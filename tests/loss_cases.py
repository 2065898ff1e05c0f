"""Every loss once: the function, the module, and its paper's formula for one sample, written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posthoc_lt import losses
from posthoc_lt.losses import Reduction
from posthoc_lt.priors import effective_number_weights, log_prior

N = (70, 20, 7, 3)
COUNTS = torch.tensor(N)
WEIGHT, LOG_PRIOR = effective_number_weights(COUNTS, 0.99), log_prior(COUNTS)
MARGIN = torch.tensor([[9.0, 0.3, -1.0, 2.0], [0.1, 9.0, 0.0, 0.5], [-2.0, 1.0, 9.0, 0.2], [1.5, 0.7, -0.4, 9.0]])

C, PI = len(N), [n / sum(N) for n in N]
Z = list[float]


def _softmax(z: Z) -> Z:
    total = sum(math.exp(v) for v in z)
    return [math.exp(v) / total for v in z]


def _nll(z: Z, y: int) -> float:
    return -math.log(_softmax(z)[y])


def _v(y: int) -> float:
    """Cui's weight: (1 − β)/(1 − β^n), over its sum, times C."""
    raw = [(1 - 0.99) / (1 - 0.99**n) for n in N]
    return C * raw[y] / sum(raw)


def _binary(z: Z, y: int, gamma: float) -> float:
    total = 0.0
    for c, value in enumerate(z):
        p = 1 / (1 + math.exp(-value if c == y else value))
        total -= (1 - p) ** gamma * math.log(p)
    return _v(y) * total


def _pairwise(z: Z, y: int) -> float:
    others = (math.exp(float(MARGIN[y, c]) + z[c] - z[y]) for c in range(C) if c != y)
    return _v(y) * math.log(1 + sum(others))


def _equalised(z: Z, y: int) -> float:
    return math.log(1 + sum(PI[c] ** 0.7 * math.exp(z[c] - z[y]) for c in range(C) if c != y))


def _ldam(z: Z, y: int) -> float:
    margins = [n**-0.25 for n in N]
    m = 0.4 * margins[y] / max(margins)
    own = math.exp(2.0 * (z[y] - m))
    return _v(y) * -math.log(own / (own + sum(math.exp(2.0 * z[c]) for c in range(C) if c != y)))


def _vector_scaling(z: Z, y: int) -> float:
    return _v(y) * _nll([(n / max(N)) ** 0.3 * v + 1.3 * math.log(p) for n, v, p in zip(N, z, PI, strict=True)], y)


def _label_aware(z: Z, y: int) -> float:
    smoothing = 0.1 + (0.4 - 0.1) * math.sin((N[y] - min(N)) * math.pi / (2 * (max(N) - min(N))))
    target = [1 - smoothing if c == y else smoothing / (C - 1) for c in range(C)]
    return -sum(q * math.log(p) for q, p in zip(target, _softmax(z), strict=True))


@dataclass(frozen=True)
class Case:
    function: Callable[[Tensor, Tensor, Reduction], Tensor]
    module: nn.Module
    slow: Callable[[Z, int], float]


CASES: dict[str, Case] = {
    "cross-entropy": Case(
        lambda z, y, r: losses.cross_entropy(z, y, reduction=r),
        losses.CrossEntropy(),
        _nll,
    ),
    "weighted": Case(
        lambda z, y, r: losses.cross_entropy(z, y, WEIGHT, r),
        losses.CrossEntropy(WEIGHT),
        lambda z, y: _v(y) * _nll(z, y),
    ),
    "pairwise-margin": Case(
        lambda z, y, r: losses.pairwise_margin(z, y, MARGIN, WEIGHT, r),
        losses.PairwiseMargin(MARGIN, WEIGHT),
        _pairwise,
    ),
    "logit-adjusted": Case(
        lambda z, y, r: losses.logit_adjusted(z, y, LOG_PRIOR, 1.3, r),
        losses.LogitAdjusted(LOG_PRIOR, 1.3),
        lambda z, y: _nll([v + 1.3 * math.log(p) for v, p in zip(z, PI, strict=True)], y),
    ),
    "equalised": Case(
        lambda z, y, r: losses.equalised(z, y, LOG_PRIOR, 0.7, r),
        losses.Equalised(LOG_PRIOR, 0.7),
        _equalised,
    ),
    "ldam": Case(
        lambda z, y, r: losses.ldam(z, y, LOG_PRIOR, 0.4, 2.0, WEIGHT, r),
        losses.LDAM(LOG_PRIOR, 0.4, 2.0, WEIGHT),
        _ldam,
    ),
    "softmax": Case(
        lambda z, y, r: losses.class_balanced(z, y, WEIGHT, reduction=r),
        losses.ClassBalanced(WEIGHT),
        lambda z, y: _v(y) * _nll(z, y),
    ),
    "sigmoid": Case(
        lambda z, y, r: losses.class_balanced(z, y, WEIGHT, "sigmoid", reduction=r),
        losses.ClassBalanced(WEIGHT, "sigmoid"),
        lambda z, y: _binary(z, y, 0.0),
    ),
    "focal": Case(
        lambda z, y, r: losses.class_balanced(z, y, WEIGHT, "focal", 1.5, r),
        losses.ClassBalanced(WEIGHT, "focal", 1.5),
        lambda z, y: _binary(z, y, 1.5),
    ),
    "vector-scaling": Case(
        lambda z, y, r: losses.vector_scaling(z, y, LOG_PRIOR, 1.3, 0.3, WEIGHT, r),
        losses.VectorScaling(LOG_PRIOR, 1.3, 0.3, WEIGHT),
        _vector_scaling,
    ),
    "label-aware-smoothing": Case(
        lambda z, y, r: losses.label_aware_smoothing(z, y, LOG_PRIOR, 0.4, 0.1, r),
        losses.LabelAwareSmoothing(LOG_PRIOR, 0.4, 0.1),
        _label_aware,
    ),
}


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (9, 4), labels (9,)."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(9, C, generator=generator, dtype=dtype), torch.randint(C, (9,), generator=generator)
