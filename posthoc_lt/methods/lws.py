"""Learnable weight scaling: one factor a class, learned with every class weighing the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posthoc_lt.family import Path
from posthoc_lt.features import Training
from posthoc_lt.head import Head
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import class_weights
from posthoc_lt.solver import Blocks, Precondition, Solution, cross_entropy, minimise, path, penalties


@dataclass(frozen=True)
class LWS(Method):
    """Learnable weight scaling (Kang 2020, arXiv:1910.09217), ``w'_c = s_c w_c, b'_c = s_c b_c``.

    ``min Σ wᵢ CE(s∘(Wxᵢ + b), yᵢ) + (l2/2)‖s‖²`` over s (C,), with wᵢ = 1/(C·n_y): the bias scaled too and s
    decayed towards 0, as in the authors' code. Solved to its minimum, which does not depend on their start
    s = 1. Large l2: s near 0, uniform probabilities, decided by which classes the samples ask to scale most;
    small l2: the factors that fit the train samples best. A factor may be negative.

    Args:
        l2: the weight decay; None fits 13 from 10 to 1e-5.

    Raises:
        PosthocError: no train features, a class without samples, or l2 not above 0.
    """

    paper: ClassVar[str] = "1910.09217"
    formula: ClassVar[str] = "w' = s w, b' = s b, s = argmin class-balanced CE + l2 penalty on s"
    knob: ClassVar[str | None] = "l2"

    l2: float | None = field(
        default=None, metadata={"help": "Weight decay of the factors; by default validation chooses from 10 to 1e-5."}
    )

    def fit(self, head: Head, training: Training) -> Path:
        """A head a penalty, the strongest first, with certificates."""
        features, l2 = training.require(self.name), penalties(self.l2)
        exact = head.to(torch.float64).to(features.device)
        blocks = Blocks(features, class_weights(features.counts(head.classes), q=0.0), exact)
        factors, solutions = torch.ones_like(exact.bias), []
        scale = _scale(blocks)
        for penalty in l2:
            factors, certificate = minimise(_Scaling(blocks, penalty, scale), factors)
            solutions.append(Solution(factors[:, None] * exact.weight, factors * exact.bias, certificate))
        return path(head, l2, solutions)


@dataclass(frozen=True, eq=False)
class _Scaling:
    """Penalised cross-entropy of factors s (C,) on logits z, the blocks' inputs."""

    blocks: Blocks
    l2: float
    scale: float

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.l2 / 2 * point.square().sum(), self.l2 * point
        for block in self.blocks:
            loss, residual = cross_entropy(block.x * point, block)
            value += loss
            gradient += (residual * block.x).sum(dim=0)
        return value.item(), gradient

    def precondition(self, point: Tensor) -> Precondition:
        """The exact inverse Hessian, of Σ wᵢ(diag(pᵢzᵢ²) − (pᵢ∘zᵢ)(pᵢ∘zᵢ)ᵀ) + l2."""
        diagonal = torch.full_like(point, self.l2)
        hessian = point.new_zeros(len(point), len(point))
        for z, _, w in self.blocks:
            p = torch.softmax(z * point, dim=1)
            hessian.addmm_((p * z).T, p * z * w[:, None], alpha=-1)
            diagonal += w @ (p * (1 - p) * z.square())
        diagonal += 1e-12 * diagonal.max()
        factor, failed = torch.linalg.cholesky_ex(hessian.diagonal_scatter(diagonal))
        if failed:  # saturated logits, whose curvature drowns in rounding
            return lambda g: g / diagonal
        return lambda g: torch.cholesky_solve(g[:, None], factor)[:, 0]


def _scale(blocks: Blocks) -> float:
    """The gradient norm of all-zero logits, or a thousandth of the logits' root mean square if that is more."""
    gradient, square = torch.zeros_like(blocks.class_weight), 0.0
    for block in blocks:
        residual = cross_entropy(torch.zeros_like(block.x), block)[1]
        gradient = gradient.to(residual) + (residual * block.x).sum(dim=0)
        square += (block.w @ block.x.square().mean(dim=1)).item()
    return float(max(gradient.norm().item(), 1e-3 * square**0.5, 1e-300))
