"""Full-batch convex fitting: the minimiser, its passes over features, and logistic regression on them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Certificate, Path
from posthoc_lt.features import Features
from posthoc_lt.head import Head

L2_PATH = tuple(10.0 ** (k / 2) for k in range(2, -11, -1))
"""The penalties of a path where none is asked for: 10 … 1e-5, two a decade, the strongest first."""

TOLERANCE = 1e-8
STEPS = 2000
MEMORY = 10
REFRESH = 30
"""Steps after which the preconditioner is made anew, for a start far from the minimum."""
BLOCK_WIDTH, BLOCK_ELEMENTS = 100, 1 << 24
"""Up to this many columns, and elements in all, Hessian blocks a class are worth their making."""

Precondition = Callable[[Tensor], Tensor]


class Objective(Protocol):
    """A smooth convex function, as `minimise` wants it."""

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        """Its value and gradient."""

    def precondition(self, point: Tensor) -> Precondition:
        """A positive definite map near the inverse of its Hessian there."""

    @property
    def scale(self) -> float:
        """The gradient norm that counts as 1."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A fitted affine map, float64, and how well the fit ended.

    Args:
        weight: (C, D).
        bias: (C,).
        certificate: objective, relative gradient norm, steps, and whether it converged.
    """

    weight: Tensor
    bias: Tensor
    certificate: Certificate


class Block(NamedTuple):
    """Consecutive samples: inputs (n, ·) float64, labels (n,), and weights (n,) float64."""

    x: Tensor
    y: Tensor
    w: Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """Repeated passes over labelled features in float64; features of a single block are converted once.

    Args:
        features: N labelled samples.
        class_weight: (C,) weight of one sample of each class, float64.
        transform: what is made of the features of a block.
    """

    features: Features
    class_weight: Tensor
    transform: Callable[[Tensor], Tensor]

    def __iter__(self) -> Iterator[Block]:
        if len(self._first.x) == len(self.features):
            return iter((self._first,))
        return self._read()

    @cached_property
    def _first(self) -> Block:
        return next(self._read())

    def _read(self) -> Iterator[Block]:
        labels, device = self.features.labels, self.features.device
        weight = self.class_weight.to(device, torch.float64)
        for rows, x in self.features.chunks(len(weight), torch.float64):
            y = labels[rows].to(device)
            yield Block(self.transform(x), y, weight[y])


def cross_entropy(logits: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Σ wᵢ CE(logits_i, y_i) over a block, and its gradient wᵢ(pᵢ − yᵢ) (n, C) in the logits."""
    log_p = torch.log_softmax(logits, dim=1)
    label = block.y[:, None]
    value = -(block.w @ log_p.gather(1, label)[:, 0])
    residual = log_p.exp_() * block.w[:, None]
    return value, residual.scatter_add_(1, label, -block.w[:, None])


def minimise(
    objective: Objective, start: Tensor, *, tolerance: float = TOLERANCE, steps: int = STEPS
) -> tuple[Tensor, Certificate]:
    """Minimise by L-BFGS, preconditioned, with a line search made for convex functions.

    Args:
        objective: the function.
        start: where to begin, float64.
        tolerance: the relative gradient norm that ends it, ‖∇‖ ≤ tolerance · scale.
        steps: the most steps to take.

    Returns:
        The last point, and its certificate; `converged` is False where the steps ran out or no step
        descends any more.

    Raises:
        PosthocError: the objective is not finite at the start, as with NaN features.
    """
    point, pairs, taken = start, deque[_Pair](maxlen=MEMORY), 0
    value, gradient = objective.evaluate(point)
    if not math.isfinite(value):
        raise PosthocError(
            "train features with NaN or infinite values", "finite features", "extract them again, in float32 if in half"
        )
    while taken < steps and gradient.norm().item() > tolerance * objective.scale:
        if taken % REFRESH == 0:
            precondition = objective.precondition(point)
        direction = _direction(gradient, pairs, precondition)
        found = _search_line(objective, point, value, gradient, direction)
        if found is None:
            break
        step, change = found[0] - point, found[2] - gradient
        curvature = _dot(step, change)
        if curvature > 0:
            pairs.append(_Pair(step, change, curvature))
        (point, value, gradient), taken = found, taken + 1
    norm = gradient.norm().item() / objective.scale
    return point, Certificate(value, norm, taken, norm <= tolerance)


class _Pair(NamedTuple):
    step: Tensor
    change: Tensor
    curvature: float


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.flatten(), b.flatten()).item()


def _direction(gradient: Tensor, pairs: Sequence[_Pair], precondition: Precondition) -> Tensor:
    """The two-loop recursion (Nocedal 1980) around the preconditioner, scaled to the latest curvature."""
    q, shares = gradient.clone(), []
    for pair in reversed(pairs):
        share = _dot(pair.step, q) / pair.curvature
        shares.append(share)
        q -= share * pair.change
    q = precondition(q)
    if pairs:
        q *= pairs[-1].curvature / _dot(pairs[-1].change, precondition(pairs[-1].change))
    for pair, share in zip(pairs, reversed(shares), strict=True):
        q += (share - _dot(pair.change, q) / pair.curvature) * pair.step
    return -q


def _search_line(
    objective: Objective, point: Tensor, value: float, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """A step that meets the Wolfe conditions, or None where none is found.

    Near the minimum the decrease drowns in rounding, so the slope alone may vouch for it (the approximate
    Wolfe condition of Hager and Zhang 2005); for a convex function bisection on the slope cannot miss.
    """
    slope = _dot(gradient, direction)
    low, high, size = 0.0, math.inf, 1.0
    for _ in range(60 if slope < 0 else 0):
        there = point + size * direction
        value_there, gradient_there = objective.evaluate(there)
        slope_there = _dot(gradient_there, direction)
        descends = value_there <= value + 1e-4 * size * slope
        flat = abs(slope_there) <= -0.8 * slope and value_there <= value + 1e-12 * abs(value)
        if not (descends or flat):
            high = size
        elif slope_there < 0.9 * slope:
            low = size
        else:
            return there, value_there, gradient_there
        size = 2 * size if high == math.inf else (low + high) / 2
    return None


def fit_logistic(
    features: Features,
    class_weight: Tensor,
    l2: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
    steps: int = STEPS,
) -> tuple[Solution, ...]:
    """Multinomial logistic regression at each penalty, each fit started from the one before.

    ``min Σ wᵢ CE(W xᵢ + b, yᵢ) + (λ/2)‖W‖²`` with λ = l2·σ², σ² = Σ wᵢ‖xᵢ − m‖²/D and m = Σ wᵢxᵢ: the mean
    weighted variance of a feature, so that a given l2 means the same whatever the features' unit or offset.
    The bias is not penalised; of the minimisers, which differ by a constant, that with Σb = 0 is returned.

    The certificate's gradient is that in the coordinates (x − m)/σ, relative to that of all-zero logits
    (or to 0.001, where they are nearly the best there are).

    Args:
        features: (N, D), every class present.
        class_weight: (C,) float64; w_i = class_weight[y_i], summing to 1 over the samples.
        l2: the penalties, best from strong to weak.
        tolerance: the relative gradient norm to reach.
        steps: the most steps a fit may take.

    Raises:
        PosthocError: the features are not finite, or all alike.

    >>> features = Features(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))
    >>> fit_logistic(features, torch.tensor([0.5, 0.5]), [0.1])[0].certificate.converged
    True
    """
    mean, spread = _standard(features, class_weight)
    blocks = Blocks(features, class_weight, lambda x: (x - mean) / spread)
    point = torch.zeros(len(class_weight), features.dimensions + 1, dtype=torch.float64, device=features.device)
    scale = max(1e-3, _Logistic(blocks, 0.0, 1.0).evaluate(point)[1].norm().item())
    solutions = []
    for penalty in l2:
        point, certificate = minimise(_Logistic(blocks, penalty, scale), point, tolerance=tolerance, steps=steps)
        weight = point[:, :-1] / spread
        solutions.append(Solution(weight, point[:, -1] - weight @ mean, certificate))
    return tuple(solutions)


@dataclass(frozen=True, eq=False)
class _Logistic:
    """Penalised cross-entropy of a (C, D + 1) point, its last column the bias, on standardised features."""

    blocks: Blocks
    l2: float
    scale: float

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        weight, bias = point[:, :-1], point[:, -1]
        value = self.l2 / 2 * weight.square().sum()
        gradient = torch.zeros_like(point)
        gradient[:, :-1] = self.l2 * weight
        for block in self.blocks:
            loss, residual = cross_entropy(torch.addmm(bias, block.x, weight.T), block)
            value += loss
            gradient[:, :-1].addmm_(residual.T, block.x)
            gradient[:, -1] += residual.sum(dim=0)
        return value.item(), gradient

    def precondition(self, point: Tensor) -> Precondition:
        """The inverse of the Hessian's blocks on its diagonal, one a class, or of a likeness for wide features.

        Böhning's bound, one block ½ Σ wᵢx̃ᵢx̃ᵢᵀ for all, holds everywhere but took some ten times the passes on
        weak penalties, where most samples are fitted and hardly curve the objective.
        """
        width = point.shape[1]
        by_class = width <= BLOCK_WIDTH and point.numel() * width <= BLOCK_ELEMENTS
        solve = self._invert_blocks(point) if by_class else self._invert_likeness(point)

        def apply(gradient: Tensor) -> Tensor:
            # A constant added to every class changes no probability: keep it out of the search.
            step = solve(gradient - gradient.mean(dim=0))
            return step - step.mean(dim=0)

        return apply

    def _invert_blocks(self, point: Tensor) -> Precondition:
        """Σ wᵢ p_ic(1 − p_ic) x̃ᵢx̃ᵢᵀ + l2 for each class c."""
        blocks = point.new_zeros(*point.shape, point.shape[1])
        for x, w, p in self._probabilities(point):
            padded = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
            curvature = (p * (1 - p)).clamp(min=1e-9) * w[:, None]
            for block, h in zip(blocks, curvature.T, strict=True):
                block.addmm_(padded.T, padded * h[:, None])
        diagonal = blocks.diagonal(dim1=1, dim2=2)
        diagonal[:, :-1] += self.l2
        diagonal += 1e-12 * diagonal.max()
        factors = torch.linalg.cholesky(blocks)
        return lambda g: torch.cholesky_solve(g[:, :, None], factors)[:, :, 0]

    def _invert_likeness(self, point: Tensor) -> Precondition:
        """d_c·S + l2 for each class c: one shape S for all, from the mean curvature, of its own size d_c.

        S = Σ hᵢ(xᵢ − n)(xᵢ − n)ᵀ / Σ hᵢ around n = Σ hᵢxᵢ / Σ hᵢ, where the bias comes apart, with
        hᵢ = wᵢ(1 − ‖pᵢ‖²) and d_c = Σ wᵢ p_ic(1 − p_ic).
        """
        dimensions = point.shape[1] - 1
        shape, centre = point.new_zeros(dimensions, dimensions), point.new_zeros(dimensions)
        size, total = point.new_zeros(len(point)), point.new_zeros(())
        for x, w, p in self._probabilities(point):
            h = w * (1 - p.square().sum(dim=1)).clamp(min=1e-9)
            shape.addmm_(x.T, x * h[:, None])
            centre, total, size = centre + h @ x, total + h.sum(), size + w @ (p * (1 - p)).clamp(min=1e-9)
        centre = centre / total
        values, vectors = torch.linalg.eigh(shape / total - torch.outer(centre, centre))
        divisor = size[:, None] * values.clamp(min=0) + self.l2

        def solve(g: Tensor) -> Tensor:
            weight = ((g[:, :-1] - g[:, -1:] * centre) @ vectors / divisor) @ vectors.T
            return torch.cat([weight, (g[:, -1] / size - weight @ centre)[:, None]], dim=1)

        return solve

    def _probabilities(self, point: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Blocks of features, sample weights and probabilities."""
        for x, _, w in self.blocks:
            yield x, w, torch.softmax(torch.addmm(point[:, -1], x, point[:, :-1].T), dim=1)


def _standard(features: Features, class_weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted mean m (D,) and the root σ () of the mean weighted variance of a feature."""
    mean = torch.zeros(features.dimensions, dtype=torch.float64, device=features.device)
    variance, largest = torch.zeros_like(mean[0]), torch.zeros_like(mean[0])
    for x, _, w in Blocks(features, class_weight, lambda x: x):
        mean += w @ x
        largest = torch.maximum(largest, x.abs().max())
    for x, _, w in Blocks(features, class_weight, lambda x: x - mean):
        variance += w @ x.square().mean(dim=1)
    if variance.sqrt() <= 1e-12 * largest:
        raise PosthocError(
            "train features that are all alike",
            "features that differ from sample to sample",
            "check the preprocessing: the network seems to see the same input every time",
        )
    return mean, variance.sqrt()


def penalties(l2: float | None) -> tuple[float, ...]:
    """The penalties to fit at: `L2_PATH` where none is asked for.

    Raises:
        PosthocError: the penalty is not a positive number.

    >>> penalties(0.1)
    (0.1,)
    """
    if l2 is None:
        return L2_PATH
    if not (l2 > 0 and math.isfinite(l2)):
        raise PosthocError(
            f"l2 = {l2}",
            "a number above 0, without which separable classes have no best head",
            "give --l2 0.001, or leave it out and let validation choose",
        )
    return (float(l2),)


def path(head: Head, l2: Sequence[float], solutions: Sequence[Solution]) -> Path:
    """Solutions as a path of heads, in the place and dtype of the head that they replace."""
    heads = tuple(Head(s.weight.to(head.weight), s.bias.to(head.bias), head.has_bias) for s in solutions)
    return Path(tuple(l2), heads, tuple(s.certificate for s in solutions))
