"""L-BFGS, preconditioned, with a line search made for convex functions."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from posthoc_lt.family import Certificate
from posthoc_lt.progress import bar
from posthoc_lt.solver.blocks import require_finite

TOLERANCE = 1e-8
STEPS = 2000
MEMORY, MEMORY_ELEMENTS = 10, 1 << 26
"""How many steps L-BFGS remembers; past so many elements in all (256 MB in float32) fewer, at least 2."""
REFRESH = 30
"""Steps after which the preconditioner is made anew, for a start far from the minimum."""

Precondition = Callable[[Tensor], Tensor]


class Pair(NamedTuple):
    """A step taken, what the gradient did along it, and their product."""

    step: Tensor
    change: Tensor
    curvature: float

    @staticmethod
    def of(step: Tensor, change: Tensor) -> Pair:
        """The pair with its product."""
        return Pair(step, change, _dot(step, change))


def memory(point: Tensor) -> deque[Pair]:
    """An empty memory for steps from such a point."""
    return deque(maxlen=min(MEMORY, max(2, MEMORY_ELEMENTS // (2 * point.numel()))))


class Objective(Protocol):
    """A smooth convex function, as `minimise` wants it."""

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        """Its value and gradient."""

    def precondition(self, point: Tensor) -> Precondition:
        """A positive definite map near the inverse of its Hessian there."""

    @property
    def scale(self) -> float:
        """The gradient norm that counts as 1."""

    @property
    def noise(self) -> float:
        """The relative error of its values."""


def minimise(
    objective: Objective,
    start: Tensor,
    *,
    drafts: Sequence[tuple[Objective, float]] = (),
    tolerance: float = TOLERANCE,
    enough: float | None = None,
    steps: int = STEPS,
    pairs: deque[Pair] | None = None,
) -> tuple[Tensor, Certificate]:
    """Minimise by L-BFGS, preconditioned, with a line search made for convex functions.

    Args:
        objective: the function.
        start: where to begin; its dtype is that of the arithmetic here.
        drafts: cheaper likenesses of the function, the cheapest first, each with the relative gradient norm
            down to which it is followed before the next.
        tolerance: the relative gradient norm that ends it, ‖∇‖ ≤ tolerance · scale.
        enough: a larger one that ends it too, where a draft will do, then without convergence.
        steps: the most steps to take.
        pairs: the `memory` of earlier steps, of this function or one like it, and of those taken here.

    Returns:
        The last point, and its certificate; `converged` is False where the steps ran out or no step
        descends any more.

    Raises:
        PosthocError: a function is not finite where it begins, as with NaN features.
    """
    pairs = memory(start) if pairs is None else pairs
    point, taken, age = start, 0, REFRESH
    del start  # which on large data is dear, as every tensor of its size
    value, gradient = math.nan, torch.empty(0)
    shown = bar("minimising", None, "steps")
    for current, goal in (*drafts, (objective, enough or tolerance)):
        value, gradient = current.evaluate(point)
        require_finite(torch.tensor(value), gradient)
        if taken:  # what a draft's likeness curved like misleads
            pairs.clear()
        while taken < steps and gradient.norm().item() > goal * objective.scale:
            if age >= REFRESH:
                precondition, age = current.precondition(point), 0
            found = _search_line(current, point, value, gradient, _direction(gradient, pairs, precondition))
            if found is None:
                break
            _remember(pairs, point, gradient, found)
            (point, value, gradient), taken, age = found, taken + 1, age + 1
            del found
            shown.update()
    shown.close()
    norm = gradient.norm().item() / objective.scale
    return point, Certificate(value, norm, taken, norm <= tolerance)


def _dot(a: Tensor, b: Tensor) -> float:
    return torch.dot(a.flatten(), b.flatten()).item()


def _remember(pairs: deque[Pair], point: Tensor, gradient: Tensor, found: tuple[Tensor, float, Tensor]) -> None:
    """Add the step from there to what was found; the oldest makes room before it takes any."""
    if len(pairs) == pairs.maxlen:
        pairs.popleft()
    pair = Pair.of(found[0] - point, found[2] - gradient)
    if pair.curvature > 0:
        pairs.append(pair)


def _direction(gradient: Tensor, pairs: Sequence[Pair], precondition: Precondition) -> Tensor:
    """The two-loop recursion (Nocedal 1980) around the preconditioner, scaled to the latest curvature."""
    q, shares = gradient.clone(), []
    for pair in reversed(pairs):
        share = _dot(pair.step, q) / pair.curvature
        shares.append(share)
        q.add_(pair.change, alpha=-share)
    q = precondition(q)
    if pairs:
        q *= pairs[-1].curvature / _dot(pairs[-1].change, precondition(pairs[-1].change))
    for pair, share in zip(pairs, reversed(shares), strict=True):
        q.add_(pair.step, alpha=share - _dot(pair.change, q) / pair.curvature)
    return q.neg_()


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
        there = point.add(direction, alpha=size)
        value_there, gradient_there = objective.evaluate(there)
        slope_there = _dot(gradient_there, direction)
        descends = value_there <= value + 1e-4 * size * slope
        flat = abs(slope_there) <= -0.8 * slope and value_there <= value + objective.noise * abs(value)
        if not (descends or flat):
            high = size
        elif slope_there < 0.9 * slope:
            low = size
        else:
            return there, value_there, gradient_there
        del there, gradient_there  # before the next are made
        size = 2 * size if high == math.inf else (low + high) / 2
    return None
