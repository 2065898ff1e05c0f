"""Scales and offsets of a head's logits, one or two a class, fitted by Newton's method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.solver.blocks import ROUNDING, Blocks, cross_entropy, is_large
from posthoc_lt.solver.minimise import TOLERANCE, Precondition, minimise
from posthoc_lt.solver.penalties import Certified


def fit_scaling(
    head: Head, features: Features, class_weight: Tensor, l2: Sequence[float], centre: Tensor
) -> tuple[Certified, ...]:
    """``min Σ wᵢ CE(s∘zᵢ (+ β), yᵢ) + (l2/2)‖(s, β) − centre‖²`` at each penalty, z = Wx + b the head's logits.

    Args:
        head: W, b.
        features: (N, D), every class present.
        class_weight: (C,) float64; w_i = class_weight[y_i], summing to 1 over the samples.
        l2: the penalties, best from strong to weak.
        centre: (C, 1) for the scales s alone, (C, 2) for s and offsets β: what the penalty draws them to.

    Raises:
        PosthocError: the features are not finite.
    """
    large, exact = is_large(features, head.classes), head.to(torch.float64).to(features.device)
    dtype, tolerance = (torch.float32, ROUNDING) if large else (torch.float64, TOLERANCE)
    centre = centre.to(exact.weight)
    problem = _Scaling(exact.to(dtype), Blocks(features, class_weight, dtype), centre)
    problem = replace(problem, scale=problem.reach())
    point = before = torch.cat([torch.ones_like(centre[:, :1]), torch.zeros_like(centre[:, 1:])], dim=1)
    solutions = []
    for penalty in l2:
        start, before = 2 * point - before, point
        point, certificate = minimise(replace(problem, l2=penalty), start, tolerance=tolerance)
        scale, offset = point[:, 0], point[:, 1:].sum(dim=1)
        solutions.append(Certified(scale[:, None] * exact.weight, scale * exact.bias + offset, certificate))
    return tuple(solutions)


@dataclass(frozen=True, eq=False)
class _Scaling:
    """Penalised cross-entropy of a (C, 1 or 2) point: scales of the logits, and offsets."""

    head: Head
    blocks: Blocks
    centre: Tensor
    l2: float = 0.0
    scale: float = 1.0

    @property
    def noise(self) -> float:
        return 1e-12 if self.blocks.dtype == torch.float64 else 1e-6

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        away = point - self.centre
        value, gradient = self.l2 / 2 * away.square().sum(), self.l2 * away
        for block in self.blocks:
            z = self.head(block.x)
            loss, residual = cross_entropy(self._logits(z, point), block)
            value = value + loss
            gradient += torch.stack([(residual * part).sum(dim=0) for part in self._parts(z)], dim=1)
        return value.item(), gradient

    def precondition(self, point: Tensor) -> Precondition:
        """The exact inverse Hessian, of Σ wᵢ(diag(pᵢ) − pᵢpᵢᵀ) between every two of the parts zᵢ and 1, + l2."""
        classes, kinds = point.shape
        hessian = point.new_zeros(kinds, classes, kinds, classes)
        for x, _, w in self.blocks:
            z = self.head(x)
            p = torch.softmax(self._logits(z, point), dim=1)
            parts = self._parts(z)
            for i, one in enumerate(parts):
                for j, other in enumerate(parts):
                    hessian[i, :, j] -= (p * one).T @ (p * other * w[:, None])
                    hessian[i, :, j].diagonal().add_(w @ (p * one * other))
        square = hessian.reshape(point.numel(), point.numel())
        diagonal = square.diagonal()
        diagonal += self.l2
        diagonal += 1e-12 * diagonal.max()
        factor, failed = torch.linalg.cholesky_ex(square)
        if failed:  # saturated logits, whose curvature drowns in rounding
            steep = diagonal.clamp(min=self.l2)
            return lambda g: (g.T.flatten() / steep).reshape(kinds, classes).T
        return lambda g: torch.cholesky_solve(g.T.reshape(-1, 1), factor).reshape(kinds, classes).T

    def reach(self) -> float:
        """The gradient norm of all-zero logits, or a thousandth of the parts' root mean square if that is more."""
        gradient, square = torch.zeros_like(self.centre), torch.zeros_like(self.centre[0, 0])
        for block in self.blocks:
            z = self.head(block.x)
            residual = cross_entropy(torch.zeros_like(z), block)[1]
            gradient += torch.stack([(residual * part).sum(dim=0) for part in self._parts(z)], dim=1)
            square += block.w @ z.square().mean(dim=1)
        return float(max(gradient.norm().item(), 1e-3 * square.item() ** 0.5, 1e-300))

    def _logits(self, z: Tensor, point: Tensor) -> Tensor:
        scale, offset = point[:, 0].to(z), point[:, 1:].sum(dim=1).to(z)
        return z * scale + offset

    def _parts(self, z: Tensor) -> list[Tensor]:
        return [z, torch.ones_like(z)][: self.centre.shape[1]]
