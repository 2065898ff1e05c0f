"""Multinomial logistic regression along a path of penalties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.solver.blocks import ROUNDING, Blocks, cross_entropy, is_large, sketch
from posthoc_lt.solver.curvature import invert_hessian
from posthoc_lt.solver.minimise import STEPS, TOLERANCE, Objective, Precondition, minimise
from posthoc_lt.solver.moments import class_sums
from posthoc_lt.solver.penalties import Certified

LARGE_TOLERANCE = 1e-3
"""What a large problem is solved to by default; its head's predictions hardly move beyond that."""
SHARE, DRAFT = 0.4, 3e-3
"""Of the samples, those that the draft and the curvature of a large problem are taken from; where the draft ends."""


def fit_logistic(
    features: Features,
    class_weight: Tensor,
    l2: Sequence[float],
    *,
    towards: Tensor | None = None,
    tolerance: float | None = None,
    steps: int = STEPS,
) -> tuple[Certified, ...]:
    """Multinomial logistic regression at each penalty, each fit started from where those before it point.

    ``min Σ wᵢ CE(W xᵢ + b, yᵢ) + (λ/2)‖W − W₀‖²`` with λ = l2·σ², σ² = Σ wᵢ‖xᵢ − m‖²/D and m = Σ wᵢxᵢ: the
    mean weighted variance of a feature, so that a given l2 means the same whatever the features' unit or offset.
    The bias is not penalised; of the minimisers, which differ by a constant, that with Σb that of the start is
    returned, and Σb = 0 where W₀ = 0.

    The certificate's gradient is that in the coordinates (x − m)/σ, relative to that of all-zero logits
    (or to 0.001, where they are nearly the best there are). Large problems (`blocks.LARGE`) are drafted on a part of
    the samples and in float32, where their certificate is computed too unless `tolerance` is below 1e-4.

    Args:
        features: (N, D), every class present.
        class_weight: (C,) float64; w_i = class_weight[y_i], summing to 1 over the samples.
        l2: the penalties, best from strong to weak.
        towards: W₀ (C, D), which the penalty draws to; zero by default.
        tolerance: the relative gradient norm to reach; 1e-8 by default, 1e-3 for large problems.
        steps: the most steps a fit may take.

    Raises:
        PosthocError: the features are not finite, or all alike.

    >>> features = Features(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))
    >>> fit_logistic(features, torch.tensor([0.5, 0.5]), [0.1])[0].certificate.converged
    True
    """
    large = is_large(features, len(class_weight))
    tolerance = tolerance or (LARGE_TOLERANCE if large else TOLERANCE)
    problem = _standardise(features, class_weight, towards, torch.float32 if large else torch.float64)
    point = before = problem.start()
    solutions = []
    for index, penalty in enumerate(l2):
        objective, drafts = _ladder(replace(problem, l2=penalty), large, index == 0, tolerance)
        # The last two fits point to the next: halves the steps of a path.
        start, before = 2 * point - before, point
        point, certificate = minimise(objective, start, drafts=drafts, tolerance=tolerance, steps=steps)
        weight = point[:, :-1] / problem.spread
        solutions.append(Certified(weight, point[:, -1] - weight @ problem.mean, certificate))
    return tuple(solutions)


@dataclass(frozen=True, eq=False)
class _Logistic:
    """Penalised cross-entropy of a (C, D + 1) point, its last column the bias, on features (x − m)/σ.

    The blocks hold x itself: m and σ are folded into the weights, which are fewer.
    """

    blocks: Blocks
    curving: Blocks
    mean: Tensor
    spread: Tensor
    centre: Tensor
    scale: float
    l2: float = 0.0

    @property
    def noise(self) -> float:
        return 1e-12 if self.blocks.dtype == torch.float64 else 1e-6

    def start(self) -> Tensor:
        """The centre of the penalty, with the biases that are best at all-zero weights."""
        counts = self.blocks.features.counts(len(self.centre)).to(self.centre)
        bias = (self.blocks.class_weight.to(counts) * counts).log()
        return torch.cat([self.centre, (bias - bias.mean())[:, None]], dim=1)

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        weight, bias = self._unfold(point, self.blocks.dtype)
        away = point[:, :-1] - self.centre
        value, slope, total = self.l2 / 2 * away.square().sum(), torch.zeros_like(away), torch.zeros_like(point[:, -1])
        for block in self.blocks:
            loss, residual = cross_entropy(torch.addmm(bias, block.x, weight.T), block)
            value, slope, total = value + loss, slope + residual.T @ block.x, total + residual.sum(dim=0)
        slope = (slope - torch.outer(total, self.mean)) / self.spread + self.l2 * away
        return value.item(), torch.cat([slope, total[:, None]], dim=1)

    def precondition(self, point: Tensor) -> Precondition:
        return invert_hessian(self._probabilities(point), point, self.l2)

    def _unfold(self, point: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The weights and bias for features as they are."""
        weight = point[:, :-1] / self.spread
        return weight.to(dtype), (point[:, -1] - weight @ self.mean).to(dtype)

    def _probabilities(self, point: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        dtype = self.curving.dtype
        weight, bias = self._unfold(point, dtype)
        for x, _, w in self.curving:
            p = torch.softmax(torch.addmm(bias, x, weight.T), dim=1)
            yield (x - self.mean.to(dtype)) / self.spread.to(dtype), w, p


def _ladder(
    problem: _Logistic, large: bool, first: bool, tolerance: float
) -> tuple[_Logistic, list[tuple[Objective, float]]]:
    """What is minimised, and the drafts before it; a sketch only for the first of a path, which starts far off."""
    if not large:
        return problem, []
    drafts: list[tuple[Objective, float]] = [(replace(problem, blocks=problem.curving), DRAFT)] if first else []
    if tolerance >= ROUNDING:
        return problem, drafts
    exact = replace(problem.blocks, dtype=torch.float64)
    return replace(problem, blocks=exact), [*drafts, (problem, ROUNDING)]


def _standardise(features: Features, class_weight: Tensor, towards: Tensor | None, dtype: torch.dtype) -> _Logistic:
    """The problem without penalty, in the weighted mean m (D,) and the root σ () of a feature's mean variance."""
    class_weight = class_weight.to(features.device, torch.float64)
    blocks, classes = Blocks(features, class_weight, dtype), len(class_weight)
    sums, counts = class_sums(features, classes, dtype), features.counts(classes).to(class_weight)
    mean = class_weight @ sums
    variance, largest = torch.zeros_like(mean[0]), torch.zeros_like(mean[0])
    for x, _, w in blocks:
        variance += (w @ (x - mean.to(dtype)).square().mean(dim=1)).double()
        largest = torch.maximum(largest, x.abs().max().double())
    if variance.sqrt() <= 1e-12 * largest:
        raise PosthocError(
            "train features that are all alike",
            "features that differ from sample to sample",
            "check the preprocessing: the network seems to see the same input every time",
        )
    spread = variance.sqrt()
    at_zero = torch.cat(
        [
            (class_weight * counts)[:, None] * mean / spread - class_weight[:, None] * sums / spread,
            (1 / classes - class_weight * counts)[:, None],
        ],
        dim=1,
    )
    centre = torch.zeros_like(sums) if towards is None else towards.to(sums) * spread
    curving = sketch(blocks, SHARE, dtype) if dtype == torch.float32 else blocks
    return _Logistic(blocks, curving, mean, spread, centre, max(1e-3, at_zero.norm().item()))
