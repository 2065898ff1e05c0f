"""Inverses of likenesses of multinomial logistic regression's Hessian, to precondition by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.solver.blocks import slices

Samples = Iterable[tuple[Tensor, Tensor, Tensor]]
"""Blocks of standardised features (n, D), sample weights (n,) and probabilities (n, C)."""
Inverse = Callable[[Tensor], Tensor]
"""From a gradient (C, D + 1), its last column the bias's, to a step."""

BLOCK_WIDTH, BLOCK_ELEMENTS = 100, 1 << 24
"""Up to this many columns, and elements in all, Hessian blocks a class are worth their making."""


def invert_hessian(samples: Samples, point: Tensor, l2: float) -> Inverse:
    """The inverse of the Hessian's blocks on its diagonal, one a class, or of a likeness for wide features.

    Böhning's bound, one block ½ Σ wᵢx̃ᵢx̃ᵢᵀ for all, holds everywhere but took some ten times the passes on
    weak penalties, where most samples are fitted and hardly curve the objective.
    """
    width = point.shape[1]
    by_class = width <= BLOCK_WIDTH and point.numel() * width <= BLOCK_ELEMENTS
    solve = _invert_blocks(samples, point, l2) if by_class else likeness(samples, point).inverse(l2)

    def apply(gradient: Tensor) -> Tensor:
        # A constant added to every class changes no probability: keep it out of the search.
        step = solve(gradient - gradient.mean(dim=0))
        return step.sub_(step.mean(dim=0))

    return apply


def _invert_blocks(samples: Samples, point: Tensor, l2: float) -> Inverse:
    """Σ wᵢ p_ic(1 − p_ic) x̃ᵢx̃ᵢᵀ + l2 for each class c, in float64."""
    blocks = point.new_zeros(*point.shape, point.shape[1], dtype=torch.float64)
    for x, w, p in samples:
        padded = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        curvature = (p * (1 - p)).clamp(min=1e-9) * w[:, None]
        for block, h in zip(blocks, curvature.T, strict=True):
            block += padded.T @ (padded * h[:, None])
    blocks = ranks.total(blocks)
    diagonal = blocks.diagonal(dim1=1, dim2=2)
    diagonal[:, :-1] += l2
    diagonal += 1e-12 * diagonal.max()
    factors = torch.linalg.cholesky(blocks)
    return lambda g: torch.cholesky_solve(g[:, :, None].double(), factors)[:, :, 0].to(g)


@dataclass(frozen=True, eq=False)
class Likeness:
    """d_c·S for each class c: one shape S for all, from the mean curvature, of its own size d_c.

    S = Σ hᵢ(xᵢ − n)(xᵢ − n)ᵀ / Σ hᵢ around n = Σ hᵢxᵢ / Σ hᵢ, where the bias comes apart, with
    hᵢ = wᵢ(1 − ‖pᵢ‖²) and d_c = Σ wᵢ p_ic(1 − p_ic).

    Args:
        values, vectors: (D,), (D, D) the eigenvalues of S and their vectors.
        centre: n (D,).
        size: d (C,).
    """

    values: Tensor
    vectors: Tensor
    centre: Tensor
    size: Tensor

    def inverse(self, l2: float | Tensor) -> Inverse:
        """Of d_c·S + l2, with one penalty for all classes or (C, 1) of them."""
        values = self.values.clamp(min=0)
        each = torch.as_tensor(l2, dtype=values.dtype, device=values.device).expand(len(self.size), 1)

        def solve(g: Tensor) -> Tensor:
            step = torch.empty_like(g)
            for rows in slices(*g.shape):
                residual, size = g[rows, -1], self.size[rows]
                weight = torch.addr(g[rows, :-1], residual, self.centre, alpha=-1) @ self.vectors
                weight = weight.div_(torch.outer(size, values).add_(each[rows])) @ self.vectors.T
                step[rows, :-1], step[rows, -1] = weight, residual / size - weight @ self.centre
            return step

        return solve


def likeness(samples: Samples, point: Tensor) -> Likeness:
    """Taken from samples at a point (C, D + 1), in its dtype."""
    classes, dimensions = point.shape[0], point.shape[1] - 1
    shape = point.new_zeros(dimensions, dimensions, dtype=torch.float64)
    centre, size, total = shape.new_zeros(dimensions), shape.new_zeros(classes), shape.new_zeros(1)
    for x, w, p in samples:
        h = w * (1 - p.square().sum(dim=1)).clamp(min=1e-9)
        shape += x.T @ (x * h[:, None])
        centre, total, size = centre + h @ x, total + h.sum(), size + w @ (p * (1 - p)).clamp(min=1e-9)
    shape, centre, total, size = (ranks.total(each) for each in (shape, centre, total, size))
    centre = centre / total
    found = torch.linalg.eigh((shape / total - torch.outer(centre, centre)).to(point))
    return Likeness(found.eigenvalues, found.eigenvectors, centre.to(point), size.to(point))
