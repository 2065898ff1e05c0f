"""The penalties of a path, and the heads fitted along it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posthoc_lt.columns import empty
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Certificate, Path
from posthoc_lt.head import Head

ON_DISK = 1 << 24
"""Heads on a path of this many weights (64 MB in float32) and more are kept in temporary files, not in memory."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A fitted affine map.

    Args:
        weight: (C, D).
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Certified(Solution):
    """A minimised one, and how well the fit ended.

    Args:
        weight: (C, D).
        bias: (C,).
        certificate: objective, relative gradient norm, steps, and whether it converged.
    """

    certificate: Certificate


Solve = Callable[[Sequence[float], "Solution | None"], Iterable[Certified]]
"""From penalties to a solution each: drafts where there are many and they take long; from a draft, what it drafts."""


def penalties(l2: float | None, large: bool = False, weakest: float = 1e-5) -> tuple[float, ...]:
    """The penalties to fit at where none is asked for: 10 … `weakest`, two a decade, one on large problems.

    Raises:
        PosthocError: the penalty is not a positive number.

    >>> penalties(0.1)
    (0.1,)
    """
    if l2 is None:
        halves = range(2, round(2 * math.log10(weakest)) - 1, -2 if large else -1)
        return tuple(10.0 ** (k / 2) for k in halves)
    if not (l2 > 0 and math.isfinite(l2)):
        raise PosthocError(
            f"l2 = {l2}",
            "a number above 0, without which separable classes have no best head",
            "give --l2 0.001, or leave it out and let validation choose",
        )
    return (float(l2),)


def path(head: Head, knobs: Sequence[float], solutions: Iterable[Solution]) -> Path:
    """Solutions as a path of heads, in the place and dtype of the head that they replace."""
    return Path(tuple(knobs), tuple(_like(head, each) for each in solutions))


def solved_path(head: Head, l2: Sequence[float], solve: Solve) -> Path:
    """The same of minimised ones, with their certificates; drafts are finished once they are asked for."""

    def keep(found: Certified) -> tuple[Head, Certificate]:
        return _like(head, found), found.certificate

    # Not a loop, whose variable would hold one solution while the next is made.
    heads, certificates = map(list, zip(*map(keep, solve(l2, None)), strict=True))
    tried = {k for k, each in enumerate(certificates) if each.converged or len(l2) == 1}

    def finish(index: int) -> None:
        if index in tried:
            return
        tried.add(index)
        (found,) = solve([l2[index]], Solution(heads[index].weight, heads[index].bias))
        taken = certificates[index].iterations + found.certificate.iterations
        heads[index], certificates[index] = _like(head, found), replace(found.certificate, iterations=taken)

    return Path(tuple(l2), heads, certificates, finish)


def _like(head: Head, solution: Solution) -> Head:
    return Head(_kept(solution.weight.to(head.weight)), solution.bias.to(head.bias), head.has_bias)


def _kept(weight: Tensor) -> Tensor:
    """The same weights, large ones in a temporary file that goes with them."""
    if weight.numel() < ON_DISK or weight.device.type != "cpu" or weight.dtype == torch.bfloat16:
        return weight
    mapped = empty(weight.numel(), weight.dtype).view(weight.shape)
    return mapped.copy_(weight)
