"""The penalties of a path, and the heads fitted along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Certificate, Path
from posthoc_lt.head import Head

L2_PATH = tuple(10.0 ** (k / 2) for k in range(2, -11, -1))
"""The penalties of a path where none is asked for: 10 … 1e-5, two a decade, the strongest first."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A fitted affine map, float64.

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


def path(head: Head, knobs: Sequence[float], solutions: Sequence[Solution]) -> Path:
    """Solutions as a path of heads, in the place and dtype of the head that they replace."""
    heads = tuple(Head(s.weight.to(head.weight), s.bias.to(head.bias), head.has_bias) for s in solutions)
    return Path(tuple(knobs), heads, tuple(s.certificate for s in solutions if isinstance(s, Certified)))
