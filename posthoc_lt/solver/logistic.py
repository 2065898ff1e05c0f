"""Multinomial logistic regression along a path of penalties."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Certificate
from posthoc_lt.features import Features
from posthoc_lt.progress import through
from posthoc_lt.solver.blocks import ROUNDING, Blocks, cross_entropy, is_large, sketch, slices
from posthoc_lt.solver.bounded import Boundable, minimise_bounded
from posthoc_lt.solver.curvature import Likeness, invert_hessian, likeness
from posthoc_lt.solver.minimise import STEPS, TOLERANCE, Pair, Precondition, memory, minimise
from posthoc_lt.solver.moments import class_sums
from posthoc_lt.solver.penalties import Certified, Solution

LARGE_TOLERANCE = 1e-3
"""What a large problem is solved to by default; its head's predictions hardly move beyond that."""
DRAFT = 1e-2
"""What a head is drafted to that validation will choose among; where on a part of the samples, a third of that."""


def fit_logistic(
    features: Features,
    class_weight: Tensor,
    l2: Sequence[float],
    *,
    towards: Tensor | None = None,
    max_norm: float = inf,
    tolerance: float | None = None,
    steps: int = STEPS,
) -> tuple[Certified, ...]:
    """Multinomial logistic regression at each penalty, each fit started from where those before it point.

    ``min Σ wᵢ CE(W xᵢ + b, yᵢ) + (λ/2)‖W − W₀‖²`` with λ = l2·σ², σ² = Σ wᵢ‖xᵢ − m‖²/D and m = Σ wᵢxᵢ: the
    mean weighted variance of a feature, so that a given l2 means the same whatever the features' unit or offset.
    The bias is not penalised; of the minimisers, which differ by a constant, that with Σb that of the start is
    returned, and Σb = 0 where W₀ = 0.

    With `max_norm` δ, under ‖w_c‖ ≤ δ for every class c; the certificate then is of a projected gradient step
    (`minimise_bounded`).

    The certificate's gradient is that in the coordinates (x − m)/σ, relative to that of all-zero logits
    (or to 0.001, where they are nearly the best there are). Large problems (`blocks.LARGE`) are drafted on a part of
    the samples and in float32, where their certificate is computed too unless `tolerance` is below 1e-4.

    Args:
        features: (N, D), every class present.
        class_weight: (C,) float64; w_i = class_weight[y_i], summing to 1 over the samples.
        l2: the penalties, best from strong to weak.
        towards: W₀ (C, D), which the penalty draws to; zero by default.
        max_norm: δ, above 0, in the unit of the weights.
        tolerance: the relative gradient norm to reach; 1e-8 by default, 1e-3 for large problems.
        steps: the most steps a fit may take.

    Raises:
        PosthocError: the features are not finite, or all alike.

    >>> features = Features(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]))
    >>> fit_logistic(features, torch.tensor([0.5, 0.5]), [0.1])[0].certificate.converged
    True
    """
    return tuple(
        trace_logistic(features, class_weight, l2, towards=towards, max_norm=max_norm, tolerance=tolerance, steps=steps)
    )


def trace_logistic(
    features: Features,
    class_weight: Tensor,
    l2: Sequence[float],
    start: Solution | None = None,
    *,
    towards: Tensor | None = None,
    max_norm: float = inf,
    draft: bool = False,
    tolerance: float | None = None,
    steps: int = STEPS,
) -> Iterator[Certified]:
    """The same one after another, so that none has to be kept.

    Args:
        features, class_weight, l2, towards, max_norm, tolerance, steps: as for `fit_logistic`.
        start: where to begin, such as a draft.
        draft: whether a relative gradient norm of 1e-2 will do for a large problem; it has not converged then.
    """
    large = is_large(features, len(class_weight))
    tolerance = tolerance or (LARGE_TOLERANCE if large else TOLERANCE)
    problem = _standardise(features, class_weight, towards, max_norm, torch.float32 if large else torch.float64)
    solve = minimise if problem.radius == inf else partial(minimise_bounded, radius=problem.radius)
    point = before = problem.start() if start is None else problem.fold(start)
    far = large and start is None
    pairs, last = memory(point), l2[0]
    for penalty in through(l2, "solving", "penalties", "l2 = {:.3g}".format):
        objective = replace(problem, l2=penalty)
        if large:
            _stiffen(pairs, penalty - last)
        else:  # where fresh curvature is cheap and exact
            pairs.clear()
        drafts: list[tuple[Boundable, float]] = []
        if far:  # as only the first of a path starts
            drafts, far = [(replace(objective, blocks=problem.curving), DRAFT / 3)], False
        ahead, before, last = [_extrapolated(before, point)], point, penalty
        point, certificate = solve(
            objective,
            ahead.pop(),  # so that nobody holds it once it has been left
            drafts=drafts,
            tolerance=max(tolerance, ROUNDING) if large else tolerance,
            enough=DRAFT if draft and large else None,
            steps=steps,
            pairs=pairs,
        )
        if large and tolerance < ROUNDING:
            exact = replace(objective, blocks=replace(problem.blocks, dtype=torch.float64))
            rest = steps - certificate.iterations
            found, certificate = solve(exact, exact.centred(point.double()), tolerance=tolerance, steps=rest)
            certificate = replace(certificate, iterations=certificate.iterations + steps - rest)
            yield problem.unfold(found, certificate)
        else:
            yield problem.unfold(point, certificate)


@dataclass(frozen=True, eq=False)
class _Logistic:
    """Penalised cross-entropy of a (C, D + 1) point, its last column the bias, on features (x − m)/σ.

    The blocks hold x itself: m and σ are folded into the weights, which are fewer. Points are in the blocks' dtype,
    sums over blocks in float64.
    """

    blocks: Blocks
    curving: Blocks
    mean: Tensor
    spread: float
    centre: Tensor
    scale: float
    l2: float = 0.0
    radius: float = inf

    @property
    def noise(self) -> float:
        return 1e-12 if self.blocks.dtype == torch.float64 else 1e-6

    def start(self) -> Tensor:
        """The centre of the penalty, with the biases that are best at all-zero weights."""
        shares = self.blocks.class_weight
        bias = (shares * self.blocks.features.counts(len(shares)).to(shares)).log().to(self.blocks.dtype)
        weight = self.centre.expand(len(shares), len(self.mean))
        return torch.cat([weight, (bias - bias.mean())[:, None]], dim=1)

    def fold(self, solution: Solution) -> Tensor:
        """The point of a head for features as they are."""
        weight = solution.weight.to(self.mean.device, self.blocks.dtype)
        bias = solution.bias.to(self.mean) + _shift(weight, self.mean)
        return self.centred(torch.cat([weight * self.spread, bias[:, None].to(weight)], dim=1))

    def centred(self, point: Tensor) -> Tensor:
        """The point without what rounding has put where the search does not go: a weight common to all classes."""
        if self.radius < inf:  # there it does
            return point
        away = point[:, :-1] - self.centre
        point[:, :-1] -= away.mean(dim=0)
        return point

    def unfold(self, point: Tensor, certificate: Certificate) -> Certified:
        """The head of a point."""
        return Certified(point[:, :-1] / self.spread, self._bias(point).to(point.dtype), certificate)

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        # Of a tensor of (C, D) there are here as few at a time as can be: on large data each is dear.
        penalty = self.l2 / 2 * _square(point[:, :-1] - self.centre)
        weight, bias = point[:, :-1], self._bias(point).to(point.dtype)
        parts = list(slices(*weight.shape))
        slopes = [self.mean.new_zeros(weight[rows].shape) for rows in parts]
        total = self.mean.new_zeros(len(weight) + 1)  # the loss, and the residuals of each class
        for block in self.blocks:
            logits = torch.addmm(bias, block.x, weight.T, alpha=1 / self.spread)
            loss, residual = cross_entropy(logits, block)
            for rows, slope in zip(parts, slopes, strict=True):
                slope += residual[:, rows].T @ block.x
            total += torch.cat([loss[None], residual.sum(dim=0, dtype=total.dtype)])
        total = ranks.total(total)
        for k, rows in enumerate(parts):
            slopes[k] = ranks.total(slopes[k]).addr_(total[1:][rows], self.mean, alpha=-1).div_(self.spread)
        # A bound leaves the common weight free: it has no slope but rounding's, which would be followed.
        common = torch.stack([slope.sum(dim=0) for slope in slopes]).sum(dim=0) / len(weight) * (self.radius < inf)
        gradient = torch.empty_like(point)
        for rows in parts:
            gradient[rows, :-1] = slopes.pop(0) - common
        gradient[:, -1] = total[1:]
        gradient[:, :-1].add_(weight, alpha=self.l2).sub_(self.centre, alpha=self.l2)
        return total[0].item() + penalty, gradient

    def precondition(self, point: Tensor) -> Precondition:
        return invert_hessian(self._probabilities(point), point, self.l2)

    def likeness(self, point: Tensor) -> Likeness:
        return likeness(self._probabilities(point), point)

    def _bias(self, point: Tensor) -> Tensor:
        """That for features as they are, in float64."""
        return point[:, -1].double() - _shift(point[:, :-1], self.mean) / self.spread

    def _probabilities(self, point: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        point = point.to(self.curving.dtype)
        for x, _, w in self.curving:
            z = (x - self.mean.to(x.dtype)) / self.spread
            yield z, w, torch.softmax(torch.addmm(point[:, -1], z, point[:, :-1].T), dim=1)


def _shift(weight: Tensor, mean: Tensor) -> Tensor:
    """Wm in float64."""
    return torch.cat([weight[rows].to(mean) @ mean for rows in slices(*weight.shape)])


def _extrapolated(before: Tensor, point: Tensor) -> Tensor:
    """Where the last two fits point to."""
    return point if before is point else (point - before).add_(point)


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _stiffen(pairs: deque[Pair], more: float) -> None:
    """Make of what was remembered under one penalty what it were under another: the penalty's curvature is known."""
    for _ in range(len(pairs) if more else 0):
        pair = pairs.popleft()
        pair.change[:, :-1].add_(pair.step[:, :-1], alpha=more)
        changed = Pair.of(pair.step, pair.change)
        if changed.curvature > 0:
            pairs.append(changed)


def _standardise(
    features: Features, class_weight: Tensor, towards: Tensor | None, max_norm: float, dtype: torch.dtype
) -> _Logistic:
    """The problem without penalty, in the weighted mean m (D,) and the root σ of a feature's mean variance."""
    class_weight = class_weight.to(features.device, torch.float64)
    blocks, classes = Blocks(features, class_weight, dtype), len(class_weight)
    sums, counts = class_sums(features, classes, dtype), features.counts(classes).to(class_weight)
    mean = class_weight @ sums
    variance, largest = mean.new_zeros(1), mean.new_zeros(1)
    for x, _, w in blocks:
        variance += (w @ (x - mean.to(dtype)).square_().mean(dim=1)).double()
        largest = torch.stack([largest[0], *map(abs, x.aminmax())]).max()[None].double()
    spread, largest = ranks.total(variance).sqrt(), ranks.gathered(largest).max()
    if spread <= 1e-12 * largest:
        raise PosthocError(
            "train features that are all alike",
            "features that differ from sample to sample",
            "check the preprocessing: the network seems to see the same input every time",
        )
    shares = class_weight * counts
    at_zero = sums.mul_(class_weight[:, None]).addr_(shares, mean, alpha=-1).div_(spread)
    scale = (_square(at_zero) + _square(1 / classes - shares)) ** 0.5
    centre = mean.new_zeros(1, 1) if towards is None else towards.to(mean) * spread
    curving = sketch(blocks, dtype) if dtype == torch.float32 else blocks
    radius = max_norm * spread.item()  # the mean goes into the biases, and bounds no weight
    return _Logistic(blocks, curving, mean, spread.item(), centre.to(dtype), max(1e-3, scale), radius=radius)
