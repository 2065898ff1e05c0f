"""What fitting ends in: a family of heads with at most one knob, which validation then sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.head import Head

BOUNDS = (0.0, 4.0)
"""The range that τ is searched in."""
LINE_PRIOR, POWER_PRIOR = (1.25, 0.5), (1.0, 1.0)
"""Mean and deviation of τ, for logit adjustment and its like, and for tau-norm and its like.

Taken after five real feature sets had been seen; what that is worth is in examples/benchmarks/README.md.
"""


@dataclass(frozen=True, eq=False)
class Point:
    """A single head: nothing to choose."""

    head: Head

    def at(self, knob: float | None = None) -> Head:
        """The head."""
        return self.head


@dataclass(frozen=True, eq=False)
class Line:
    """Heads on a straight line, ``logits(t) = A + t·B`` with A and B affine in x.

    Args:
        origin: the head that gives A, in the deployed dtype.
        direction: the head that gives B, float64; its weight is all zero when B does not depend on x.
        prior: mean and deviation of t, before validation has spoken.
        bounds: the range that t is searched in.
    """

    origin: Head
    direction: Head
    prior: tuple[float, float] = LINE_PRIOR
    bounds: tuple[float, float] = BOUNDS

    def at(self, knob: float | None) -> Head:
        """The head at t = `knob`: W_A + t·W_B, b_A + t·b_B, computed in float64, in the origin's dtype."""
        t = _number(knob)
        weight = self.origin.weight
        if self.direction.weight.any():
            weight = (weight.double() + t * self.direction.weight).to(weight.dtype)
        bias = (self.origin.bias.double() + t * self.direction.bias).to(weight.dtype)
        return Head(weight, bias, self.origin.has_bias)


@dataclass(frozen=True, eq=False)
class Power:
    """Heads rescaled row by row, ``logits_c(t) = z_c · exp(-t·u_c)``, z the logits of `head`.

    Args:
        head: the head that gives z (its bias already dropped where the method drops it).
        log_scale: u, shape (C,), float64; tau-norm has u_c = ln‖w_c‖.
        prior: mean and deviation of t, before validation has spoken.
        bounds: the range that t is searched in.
    """

    head: Head
    log_scale: Tensor
    prior: tuple[float, float] = POWER_PRIOR
    bounds: tuple[float, float] = BOUNDS

    def at(self, knob: float | None) -> Head:
        """The head at t = `knob`: w_c·exp(-t·u_c), b_c·exp(-t·u_c)."""
        t, dtype = _number(knob), self.head.weight.dtype
        scale = torch.exp(-t * self.log_scale)
        weight = (self.head.weight.double() * scale[:, None]).to(dtype)
        return Head(weight, (self.head.bias.double() * scale).to(dtype), self.head.has_bias)


@dataclass(frozen=True, eq=False)
class KeptBias:
    """tau-norm with its bias kept, ``logits_c(t) = (w_c·x)·exp(-t·u_c) + b_c``.

    Args:
        head: the untouched head.
        log_scale: u_c = ln‖w_c‖, shape (C,), float64.
        prior: mean and deviation of t, before validation has spoken.
        bounds: the range that t is searched in.
    """

    head: Head
    log_scale: Tensor
    prior: tuple[float, float] = POWER_PRIOR
    bounds: tuple[float, float] = BOUNDS

    def at(self, knob: float | None) -> Head:
        """The head at t = `knob`: w_c·exp(-t·u_c), b_c."""
        scale = torch.exp(-_number(knob) * self.log_scale)
        weight = (self.head.weight.double() * scale[:, None]).to(self.head.weight.dtype)
        return Head(weight, self.head.bias, self.head.has_bias)


@dataclass(frozen=True)
class Certificate:
    """How well a minimisation ended: what a reader needs to trust a fitted head.

    Args:
        objective: the value reached.
        gradient_norm: the gradient's norm there, or under bounds that of a projected gradient step, relative to that
            of all-zero logits; 0 at the exact minimum.
        iterations: steps taken.
        converged: whether `gradient_norm` came under the tolerance.
    """

    objective: float
    gradient_norm: float
    iterations: int
    converged: bool


@dataclass(frozen=True, eq=False)
class Path:
    """A finite path of fitted heads, one a knob value, the most regularised first.

    Args:
        knobs: the knob values.
        heads: the head fitted at each, or a draft of it that has not converged, fit to choose by.
        certificates: how well each fit ended, or nothing where no minimisation took place.
        finish: puts in the place of one draft, by its index, what it drafts; nothing where it is no draft.
    """

    knobs: tuple[float, ...]
    heads: Sequence[Head]
    certificates: Sequence[Certificate] = ()
    finish: Callable[[int], None] | None = None

    def at(self, knob: float | None) -> Head:
        """The head fitted at exactly this knob value, finished if it was a draft.

        Raises:
            PosthocError: none was.
        """
        if knob not in self.knobs:
            raise PosthocError(
                f"knob value {knob}", f"one of {', '.join(f'{k:g}' for k in self.knobs)}", "fit it at that value first"
            )
        index = self.knobs.index(knob)
        if self.finish is not None:
            self.finish(index)
        return self.heads[index]


@dataclass(frozen=True, eq=False)
class Sheet:
    """Heads with two knobs: a line of them at each of a few values of an outer one.

    Args:
        name: what the outer knob is called, such as ``gamma``.
        values: its values, the plainest first.
        lines: the line of heads at each.
        penalties: minus the log prior of each value, up to a constant.
    """

    name: str
    values: tuple[float, ...]
    lines: tuple[Line, ...]
    penalties: tuple[float, ...]

    def at(self, knob: float | None) -> Head:
        """No head: one knob does not make one.

        Raises:
            PosthocError: always.
        """
        raise PosthocError(
            f"a knob of {knob} without {self.name}",
            "both of them, or neither",
            f"give --{self.name} {self.values[len(self.values) // 2]:g} too, or let validation choose both",
        )


@dataclass(frozen=True, eq=False)
class Offsets:
    """All heads ``A + t·B + δ`` with offsets δ of the classes, which validation learns along with t.

    Args:
        line: A and B; the heads at δ = 0.
        deviation: of each δ_c around 0, before validation has spoken; 0 leaves the line.
    """

    line: Line
    deviation: float

    def at(self, knob: float | None) -> Head:
        """No head: t alone does not say what the offsets are.

        Raises:
            PosthocError: always.
        """
        raise PosthocError(
            f"a knob of {knob} for offsets that validation has to learn along with it",
            "labelled validation samples and no knob",
            "leave it out, or use logit-adjust, which learns no offsets",
        )


Continuous: TypeAlias = Line | Power | KeptBias
"""One knob, of any value within bounds."""
Family: TypeAlias = Point | Continuous | Path | Sheet | Offsets


def _number(knob: float | None) -> float:
    if knob is None or knob != knob or knob in (float("inf"), float("-inf")):
        raise PosthocError(f"tau = {knob}", "a finite number", "give --tau 1.0, or let validation choose")
    return float(knob)
