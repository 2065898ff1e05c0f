"""From class counts to what methods and losses weigh with: priors, sampler weights, effective numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, listed, show

ZeroCount: TypeAlias = Literal["refuse", "mask", "smooth"]
"""What to do with a class without a train sample, whose log frequency would be infinite."""

PSEUDO_COUNT = 0.5
"""What smoothing adds to every class: Jeffreys' prior, as Krichevsky and Trofimov (1981) estimate frequencies."""


@dataclass(frozen=True)
class Shares:
    """Class frequencies as the value of an option: hashable, compared by value, and short in a table.

    Args:
        values: C numbers above 0, in any unit.
        source: what tables and files call them, such as ``em``, ``model`` or the name of a file.

    Raises:
        PosthocError: a number is not finite or not above 0, or there is none.

    >>> print(Shares((3, 1), "em"), Shares((3, 1)).log(2).exp())
    em tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    values: tuple[float, ...]
    source: str = "given"

    def __post_init__(self) -> None:
        bad = [index for index, value in enumerate(self.values) if not 0 < value < math.inf]
        if bad or not self.values:
            raise PosthocError(
                f"frequencies ({show(self.source)}) of which class {listed(bad)} has none" if bad else "no frequency",
                "one positive, finite number a class",
                "give a small one, such as 0.0001, to classes hardly ever met",
            )

    def log(self, classes: int) -> Tensor:
        """Log frequencies (C,), float64, normalised.

        Raises:
            PosthocError: they are not those of C `classes`.
        """
        if len(self.values) != classes:
            raise PosthocError(
                f"{len(self.values)} frequencies ({show(self.source)}) for {classes} classes",
                "one number a class",
                "write them in the order of the head's rows",
            )
        values = torch.tensor(self.values, dtype=torch.float64)
        return values.log() - values.sum().log()

    def __str__(self) -> str:
        return self.source


Prior: TypeAlias = Literal["counts", "uniform"] | Shares
"""The class frequencies that logits hold: those of train, none, or others."""

Target: TypeAlias = Literal["uniform", "train"] | Shares
"""The class frequencies to be right under."""


def log_prior(counts: Tensor, zero_count: ZeroCount = "refuse") -> Tensor:
    """Log class frequencies, ``log π_c = log(n_c / N)``.

    Args:
        counts: (C,) samples a class.
        zero_count: what to do where n_c = 0. ``refuse`` raises. ``smooth`` adds half a sample to *every* class,
            ``π_c = (n_c + ½)/(N + C/2)``, which hardly moves frequent ones. ``mask`` is for callers that take such
            classes out of the head (`Head.masking`): it leaves them 0, the others as they are.

    Returns:
        (C,) float64, on the device of `counts`.

    Raises:
        PosthocError: a class has no sample and `zero_count` is ``refuse``, or no class has any.

    >>> log_prior(torch.tensor([3, 1])).exp()
    tensor([0.7500, 0.2500], dtype=torch.float64)
    >>> log_prior(torch.tensor([3, 0]), "smooth").exp()
    tensor([0.8750, 0.1250], dtype=torch.float64)
    """
    if zero_count == "smooth":
        n = _present(counts.double() + PSEUDO_COUNT, "a finite log prior")
    elif zero_count == "mask":
        seen = counts > 0
        _present(counts[seen], "a prior")
        return torch.where(seen, counts.double().clamp(min=1).log() - counts.sum().double().log(), 0.0)
    else:
        n = _present(
            counts,
            "a finite log prior",
            "give --zero-count smooth (half a sample more for every class) or --zero-count mask (such classes are "
            "never predicted) to logit-adjust, tau-search or calibrate, or use tau-norm, which needs no counts",
        )
    return n.log() - n.sum().log()


def class_weights(counts: Tensor, q: float = 0.0) -> Tensor:
    """Weight of one sample of each class under a sampler that draws class c with frequency ∝ n_c^q.

    ``w_c = n_c^(q-1) / Σ_k n_k^q``, so that the weights of all N samples sum to 1. q = 1 draws instances
    (w = 1/N), q = 0 classes (w = 1/(C·n_c)), q = ½ is square-root sampling (Kang 2020, arXiv:1910.09217).

    Args:
        counts: (C,) samples a class.
        q: the sampler's exponent, any finite number.

    Returns:
        (C,) float64; sample i weighs ``class_weights(counts, q)[y_i]``.

    Raises:
        PosthocError: a class has no sample, or q is not finite.

    >>> class_weights(torch.tensor([3, 1]), q=0.0)
    tensor([0.1667, 0.5000], dtype=torch.float64)
    """
    if not math.isfinite(q):
        raise PosthocError(f"sampler exponent q = {q}", "a finite number", "give 0 (classes), 0.5 or 1 (instances)")
    log_n = _present(counts, "a sampling weight").log()
    return ((q - 1) * log_n - (q * log_n).logsumexp(0)).exp()


def effective_number_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Class weights by the effective number of samples (Cui 2019, arXiv:1901.05555).

    ``w_c ∝ (1-β)/(1-β^n_c)``, normalised to sum C. β = 0 weighs all classes alike, β → 1 by 1/n_c,
    which β = 1 itself gives as the limit.

    Args:
        counts: (C,) samples a class.
        beta: β in [0, 1].

    Returns:
        (C,) float64, summing to C.

    Raises:
        PosthocError: a class has no sample, or β is outside [0, 1].

    >>> effective_number_weights(torch.tensor([3, 1]), beta=1.0)
    tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    if not 0 <= beta <= 1:
        raise PosthocError(f"beta = {beta}", "a number from 0 to 1", "give 0.9999, or 0 for equal weights")
    n = _present(counts, "an effective number")
    if beta == 1:
        effective = n
    elif beta == 0:
        effective = torch.ones_like(n)
    else:
        # 1 - β^n through expm1: for β near 1 the plain difference keeps no digit.
        effective = -torch.expm1(n * math.log(beta)) / (1 - beta)
    weights = 1 / effective
    return weights * (len(weights) / weights.sum())


_WAYS_OUT = "add samples or take the class out of the head, or use tau-norm, which needs no counts"


def _present(counts: Tensor, what: str, then: str = _WAYS_OUT) -> Tensor:
    """The counts in float64, every one of them positive."""
    if counts.ndim != 1 or not len(counts):
        raise PosthocError(
            f"class counts of shape {tuple(counts.shape)}", "one count a class", "give them in the order of the head"
        )
    empty = (~(counts > 0)).nonzero().flatten().tolist()
    if empty:
        raise PosthocError(
            f"no train sample of class {listed(empty)}",
            f"at least one train sample a class, without which {what} does not exist",
            then,
        )
    return counts.to(torch.float64)
