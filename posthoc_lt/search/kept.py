"""The walk of tau-norm with its bias kept, whose classes cross up to twice a pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_HALVINGS = 60
"""Enough to bring any bracket down to neighbouring float64 numbers."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Logits ``s_c(t) = a_c·exp(-t·u_c) + b_c`` of n samples.

    Args:
        a: (n, C), the logits without bias.
        u, b: (C,).
    """

    a: Tensor
    u: Tensor
    b: Tensor

    def rows(self, index: Tensor) -> Curves:
        """The curves of some samples."""
        return Curves(self.a[index], self.u, self.b)

    def at(self, knob: float) -> Tensor:
        """All logits (n, C) at one t."""
        return self.a * torch.exp(-knob * self.u) + self.b

    def slope(self, knob: float) -> Tensor:
        """Their derivatives (n, C) in t."""
        return -self.u * self.a * torch.exp(-knob * self.u)


def overtaken(curves: Curves, current: Tensor, now: Tensor, last: float) -> tuple[Tensor, Tensor]:
    """When the class in front is overtaken after `now`, and by which; an infinite time where it never is.

    g(t) = s_j(t) − s_k(t) is monotone on either side of its one turning point t° with
    exp(t°·(u_k − u_j)) = a_k·u_k / (a_j·u_j). Class j, behind at `now`, gets in front before t° iff
    g(t°) > 0, else after it iff g(last) > 0. Only those pairs are bisected, to the first number at which
    j is in front, so that the order of the two is never in doubt there.

    Args:
        curves: n samples.
        current: (n,) the class in front at `now`.
        now: (n,) where each sample has got to.
        last: the upper bound.
    """
    own = current[:, None]
    a_k, u_k, b_k = curves.a.gather(1, own), curves.u[own], curves.b[own]
    turn = torch.log(a_k * u_k / (curves.a * curves.u)) / (u_k - curves.u)
    turn = torch.minimum(torch.maximum(turn.nan_to_num(nan=last), now[:, None]), turn.new_tensor(last))

    def ahead(t: Tensor | float) -> Tensor:
        rivals = curves.a * torch.exp(-t * curves.u) + curves.b
        return rivals - (a_k * torch.exp(-t * u_k) + b_k) > 0

    early, late = ahead(turn), ahead(last)
    time = torch.full_like(curves.a, torch.inf)
    row, rival = (early | late).nonzero(as_tuple=True)
    if len(row):
        before = early[row, rival]
        low = torch.where(before, now[row], turn[row, rival])
        high = torch.where(before, turn[row, rival], torch.full_like(low, last))
        time[row, rival] = _bisect(_gap(curves, current, row, rival), low, high)
    first = time.amin(dim=1)
    return first, time.argmin(dim=1)


def _gap(curves: Curves, current: Tensor, row: Tensor, rival: Tensor) -> Callable[[Tensor], Tensor]:
    """g(t) of single pairs (rows, rivals)."""
    own = current[row]
    a_j, u_j, b_j = curves.a[row, rival], curves.u[rival], curves.b[rival]
    a_k, u_k, b_k = curves.a[row, own], curves.u[own], curves.b[own]
    return lambda t: a_j * torch.exp(-t * u_j) + b_j - (a_k * torch.exp(-t * u_k) + b_k)


def _bisect(gap: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """The least t found with gap(t) > 0, given that it holds at `high`."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        beyond = gap(middle) > 0
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return high
