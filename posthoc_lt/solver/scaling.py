"""Scales and offsets of a head's logits, one or two a class, fitted by Newton's method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.progress import through
from posthoc_lt.solver.blocks import ROUNDING, Blocks, cross_entropy, is_large, sketch
from posthoc_lt.solver.minimise import TOLERANCE, Objective, Precondition, minimise
from posthoc_lt.solver.penalties import Certified, Solution

SHARE, DRAFT = 0.15, 3e-3
"""Of the samples, those that curvature and drafts of a large problem are taken from; what drafts are taken to."""
WIDE = 1 << 12
"""Up to this many scales and offsets the Hessian is made whole."""


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
    return tuple(trace_scaling(head, features, class_weight, l2, centre))


def trace_scaling(
    head: Head,
    features: Features,
    class_weight: Tensor,
    l2: Sequence[float],
    centre: Tensor,
    start: Solution | None = None,
    *,
    draft: bool = False,
) -> Iterator[Certified]:
    """The same one after another, so that none has to be kept.

    Args:
        head, features, class_weight, l2, centre: as for `fit_scaling`.
        start: where to begin, such as a draft.
        draft: whether a fit on a part of a large problem's samples will do; it has not converged then.
    """
    large = is_large(features, head.classes)
    dtype, tolerance = (torch.float32, ROUNDING) if large else (torch.float64, TOLERANCE)
    head = head.to(features.device)
    problem = _problem(head.to(dtype), Blocks(features, class_weight, dtype), centre.to(head.bias.device).double())
    part = replace(problem, blocks=problem.curving)
    point = before = problem.start(start)
    for penalty in through(l2, "solving", "penalties", "l2 = {:.3g}".format):
        ahead, before = 2 * point - before, point
        whole, part = replace(problem, l2=penalty), replace(part, l2=penalty)
        if large and draft:
            point, certificate = minimise(part, ahead, tolerance=DRAFT)
            certificate = replace(certificate, converged=False)
        else:
            drafts: list[tuple[Objective, float]] = [(part, DRAFT)] if large and start is None else []
            point, certificate = minimise(whole, ahead, drafts=drafts, tolerance=tolerance)
        (weight, bias), (scale, offset) = (
            (problem.head.weight, problem.head.bias),
            (point[:, 0], point[:, 1:].sum(dim=1)),
        )
        yield Certified(scale[:, None].to(weight) * weight, scale * bias + offset, certificate)


@dataclass(frozen=True, eq=False)
class _Scaling:
    """Penalised cross-entropy of a (C, 1 or 2) point: scales of the logits, and offsets."""

    head: Head
    blocks: Blocks
    curving: Blocks
    centre: Tensor
    l2: float = 0.0
    scale: float = 1.0

    @property
    def noise(self) -> float:
        return 1e-12 if self.blocks.dtype == torch.float64 else 1e-6

    def start(self, solution: Solution | None) -> Tensor:
        """The untouched head, or the scales and offsets of one that was fitted."""
        centre = self.centre
        point = torch.cat([torch.ones_like(centre[:, :1]), torch.zeros_like(centre[:, 1:])], dim=1)
        if solution is not None:
            weight, bias = self.head.weight, self.head.bias.to(centre)
            square = weight.square().sum(dim=1).clamp(min=1e-30)
            scale = ((solution.weight.to(weight) * weight).sum(dim=1) / square).to(centre)
            point[:, 0], point[:, 1:] = scale, (solution.bias.to(centre) - scale * bias)[:, None]
        return point

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        away, loss, gradient = point - self.centre, point.new_zeros(1), torch.zeros_like(point)
        for block in self.blocks:
            z = self.head(block.x)
            there, residual = cross_entropy(self._logits(z, point), block)
            loss += there
            gradient += torch.stack([(residual * part).sum(dim=0) for part in self._parts(z)], dim=1)
        value = ranks.total(loss).item() + self.l2 / 2 * away.square().sum().item()
        return value, ranks.total(gradient) + self.l2 * away

    def precondition(self, point: Tensor) -> Precondition:
        """The inverse Hessian, or where it is wide or drowns in rounding, that of its blocks a class."""
        if point.numel() <= WIDE:
            factor, failed = torch.linalg.cholesky_ex(self._hessian(point))
            if not failed:
                return lambda g: torch.cholesky_solve(g.T.reshape(-1, 1), factor).reshape(g.T.shape).T
        blocks = self._class_blocks(point)
        return lambda g: torch.linalg.solve(blocks, g[:, :, None])[:, :, 0]

    def _hessian(self, point: Tensor) -> Tensor:
        """Σ wᵢ(diag(pᵢ) − pᵢpᵢᵀ) between every two of the parts zᵢ and 1, + l2."""
        classes, kinds = point.shape
        hessian = point.new_zeros(kinds, classes, kinds, classes)
        for w, p, parts in self._curvature(point):
            for i, one in enumerate(parts):
                for j, other in enumerate(parts[: i + 1]):
                    hessian[i, :, j] -= (p * one).T @ (p * other * w[:, None])
                    hessian[i, :, j].diagonal().add_(w @ (p * one * other))
        if kinds == 2:
            hessian[0, :, 1] = hessian[1, :, 0].T
        return _stiffened(ranks.total(hessian).reshape(point.numel(), -1), self.l2)

    def _class_blocks(self, point: Tensor) -> Tensor:
        """Σ wᵢ p_ic(1 − p_ic) between every two of the parts z_ic and 1, + l2, of each class c."""
        blocks = point.new_zeros(*point.shape, point.shape[1])
        for w, p, parts in self._curvature(point):
            curved = (p * (1 - p)).mul_(w[:, None])
            for i, one in enumerate(parts):
                for j, other in enumerate(parts):
                    blocks[:, i, j] += (curved * one * other).sum(dim=0)
        return _stiffened(ranks.total(blocks), max(self.l2, 1e-12))

    def _curvature(self, point: Tensor) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        for x, _, w in self.curving:
            z = self.head(x)
            yield w, torch.softmax(self._logits(z, point), dim=1), self._parts(z)

    def _logits(self, z: Tensor, point: Tensor) -> Tensor:
        scale, offset = point[:, 0].to(z), point[:, 1:].sum(dim=1).to(z)
        return z * scale + offset

    def _parts(self, z: Tensor) -> list[Tensor]:
        return [z, torch.ones_like(z)][: self.centre.shape[1]]


def _stiffened(square: Tensor, l2: float) -> Tensor:
    """With the penalty, and a trace of it for rounding, on the diagonal."""
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    diagonal += l2
    diagonal += 1e-12 * diagonal.max()
    return square


def _problem(head: Head, blocks: Blocks, centre: Tensor) -> _Scaling:
    """The problem without penalty.

    Its scale is the gradient norm of all-zero logits, or a thousandth of the parts' root mean square if that is more.
    """
    curving = sketch(blocks, blocks.dtype, SHARE) if blocks.dtype == torch.float32 else blocks
    problem = _Scaling(head, blocks, curving, centre)
    gradient, square = torch.zeros_like(centre), centre.new_zeros(1)
    for block in blocks:
        z = head(block.x)
        residual = cross_entropy(torch.zeros_like(z), block)[1]
        gradient += torch.stack([(residual * part).sum(dim=0) for part in problem._parts(z)], dim=1)
        square += block.w @ z.square().mean(dim=1)
    norm, square = ranks.total(gradient).norm().item(), ranks.total(square)
    return replace(problem, scale=max(norm, 1e-3 * square.item() ** 0.5, 1e-300))
