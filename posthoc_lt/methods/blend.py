"""Blend: a convex mix of the untouched head and one fitted anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from posthoc_lt import ranks
from posthoc_lt.family import Line, Sheet
from posthoc_lt.features import Features, Training
from posthoc_lt.head import Head
from posthoc_lt.methods.crt import CRT
from posthoc_lt.methods.method import Method
from posthoc_lt.methods.ncm import NCM
from posthoc_lt.methods.refit import Refit

PRIOR, BOUNDS = (0.5, 0.5), (0.0, 1.0)
"""Mean and deviation of the mix before validation has spoken, no end preferred, and its range."""


@dataclass(frozen=True)
class Blend(Method):
    """Every head between two, ``W' = (1−t) W + t V, b' = (1−t) b + t c``, (V, c) fitted on the train features.

    t = 0 is the untouched head, t = 1 the other one. Nearest class means have logits of another unit: theirs are
    first brought to the root mean square, over train samples and around each sample's mean, of the untouched
    head's, which moves no prediction of theirs.

    Args:
        other: whose head (V, c) is: that of ``crt``, ``ncm`` or ``refit``.
        l2: the penalty of crt and refit; None fits 13 from 10 to 1e-5, and validation chooses one along with t.

    Raises:
        PosthocError: no train features, a class without samples, or l2 not above 0.
    """

    formula: ClassVar[str] = "W' = (1 - mix) W + mix V, b' = (1 - mix) b + mix c, (V, c) another method's head"
    knob: ClassVar[str | None] = "mix"
    default: ClassVar[bool] = False

    other: Literal["crt", "ncm", "refit"] = field(default="crt", metadata={"help": "The head to mix in."})
    l2: float | None = field(
        default=None,
        metadata={"help": "Penalty of crt and refit, as theirs; by default validation chooses from 10 to 1e-5."},
    )

    def fit(self, head: Head, training: Training) -> Line | Sheet:
        """A line for each l2, or the only one."""
        features = training.require(self.name)
        if self.other == "ncm":
            return _between(head, _in_unit_of(head, NCM().fit(head, training).head, features))
        path = _PATHS[self.other](l2=self.l2).fit(head, training)
        lines = tuple(_between(head, other) for other in map(path.at, path.knobs))
        return lines[0] if len(lines) == 1 else Sheet("l2", path.knobs, lines, (0.0,) * len(lines))


_PATHS: Mapping[str, type[CRT] | type[Refit]] = {"crt": CRT, "refit": Refit}


def _between(head: Head, other: Head) -> Line:
    weight, bias = (two.double() - one.double() for one, two in ((head.weight, other.weight), (head.bias, other.bias)))
    return Line(head, Head(weight, bias, head.has_bias), PRIOR, BOUNDS)


def _in_unit_of(head: Head, other: Head, features: Features) -> Head:
    """The other head times the factor that gives its logits the spread of the first one's."""
    parts = []
    heads = [each.to(torch.float64).to(features.device) for each in (head, other)]
    for _, x in features.own_chunks(2 * head.classes, torch.float64):
        logits = (each(x) for each in heads)
        parts.append(torch.stack([(z - z.mean(dim=1, keepdim=True)).square().sum() for z in logits]).cpu())
    squares = ranks.added(parts, torch.zeros(2, dtype=torch.float64))
    factor = (squares[0] / squares[1]).sqrt().item() if squares[1] > 0 else 1.0
    weight, bias = factor * other.weight.double(), factor * other.bias.double()
    return Head(weight.to(head.weight), bias.to(head.bias), head.has_bias)
