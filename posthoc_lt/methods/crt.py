"""Classifier re-training: the head fitted anew, every class weighing the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Path
from posthoc_lt.features import Features, Training
from posthoc_lt.head import Head
from posthoc_lt.losses import CrossEntropy, LogitAdjusted
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import class_weights, effective_number_weights
from posthoc_lt.recipe import CRT_SCHEDULE, sgd
from posthoc_lt.sampling import PowerSampler
from posthoc_lt.solver import Certified, Solution, is_large, path, penalties, solved_path, trace_logistic

BETA = 0.9999
SHORTEST, LONGEST = 1e-12, 1e12
"""Bounds that arithmetic can tell from 0 and from none."""
_EXPONENTS = {"class": 0.0, "square-root": 0.5, "instance": 1.0}


@dataclass(frozen=True)
class CRT(Method):
    """Class-balanced multinomial logistic regression on the train features (Kang 2020, arXiv:1910.09217).

    ``min Σ wᵢ CE(W'xᵢ + b', yᵢ) + (λ/2)‖W' − W₀‖²`` with wᵢ = 1/(C·n_y), λ = l2·σ² and σ² the mean variance of a
    feature under the same weights; the bias is free. Solved to its minimum, where the authors take SGD steps
    with class-balanced sampling: what a sampler does in expectation, weights do exactly. Large l2: nearly
    uniform predictions, in the direction of the class means; small l2: the train samples separated, and weights
    hardly matter.

    With `max_norm` δ the minimum is taken under ‖w'_c‖₂ ≤ δ for every class c, the bias free: MaxNorm, which with
    weight decay balances weights (Alshammari 2022, arXiv:2203.14197). Large δ: as without; small δ: directions
    alone, every row δ long.

    Args:
        l2: the penalty in units of the feature variance; None fits 13 from 10 to 1e-5, 7 on large problems.
        sampler: whose draws the weights stand for: each class as often (``class``), ∝ √n_c (``square-root``),
            or ∝ n_c (``instance``).
        loss: ``cross-entropy``; ``logit-adjusted`` (Menon 2021, arXiv:2007.07314, τ = 1), which adds the log of
            the sampler's class frequencies in training: since the bias is free that is the same fit with them
            subtracted from b', so that with sampler ``instance`` it is refit followed by logit-adjust, and with
            ``class`` nothing; or ``class-balanced`` (Cui 2019, arXiv:1901.05555), which weighs by the effective
            number of samples, β = 0.9999, and is meant for sampler ``instance``.
        towards: W₀, ``zero`` or the ``checkpoint``'s weights, which a large l2 then keeps; not for SGD.
        init: where the first fit starts, ``fresh`` or at the ``checkpoint``'s head: SGD ends near it, while the minimum
            is one and the same, but for a constant in b', and only the steps to it differ.
        max_norm: δ, in the unit of the weights, as in the paper; None bounds nothing. The authors take a tenth of
            the way from the shortest to the longest row of the head they start from.
        recipe: ``convex``, or ``paper``: the authors' SGD on cached features (`posthoc_lt.recipe.sgd`), with l2 its
            weight decay, 5e-4 by default, and `max_norm` what every row is shortened to after each step.

    Raises:
        PosthocError: no train features, a class without samples, l2 or max_norm not above 0, or SGD told what to
            draw towards.
    """

    paper: ClassVar[str] = "1910.09217"
    formula: ClassVar[str] = "W', b' = argmin class-balanced CE + l2 penalty on W'"
    knob: ClassVar[str | None] = "l2"

    l2: float | None = field(
        default=None,
        metadata={"help": "Penalty, in units of the feature variance; by default validation chooses from 10 to 1e-5."},
    )
    sampler: Literal["class", "square-root", "instance"] = field(
        default="class", metadata={"help": "How often a sampler would draw each class: alike, by sqrt(n_c), by n_c."}
    )
    loss: Literal["cross-entropy", "logit-adjusted", "class-balanced"] = field(
        default="cross-entropy",
        metadata={
            "help": "Plain, with the log frequencies added in training, or by effective numbers of samples; "
            "the last two are meant for --sampler instance."
        },
    )
    towards: Literal["zero", "checkpoint"] = field(
        default="zero", metadata={"help": "Which weights the penalty draws to."}
    )

    init: Literal["fresh", "checkpoint"] = field(
        default="fresh", metadata={"help": "Where the fit starts, afresh or from the checkpoint's head."}
    )

    max_norm: float | None = field(
        default=None,
        metadata={"help": "Most that a class's weight vector may be long, in the weights' own unit; by default any."},
    )

    recipe: Literal["convex", "paper"] = field(
        default="convex", metadata={"help": "Solve to the minimum, or take the authors' SGD steps with decay --l2."}
    )

    def fit(self, head: Head, training: Training) -> Path:
        """A head a penalty, the strongest first, with certificates; by the paper's recipe a single one."""
        features = training.require(self.name)
        l2, max_norm = penalties(self.l2, is_large(features, head.classes)), self._bound(head)
        if self.recipe == "paper":
            self._require_decay_to_zero()
            decay = CRT_SCHEDULE.weight_decay if self.l2 is None else l2[0]
            return self._descend(head, features, decay, max_norm)
        counts = features.counts(head.classes)
        weights = self._weights(counts)
        towards = head.weight if self.towards == "checkpoint" else None
        shift = (weights * counts).log() if self.loss == "logit-adjusted" else torch.zeros(head.classes)

        def solve(l2: Sequence[float], start: Solution | None) -> Iterator[Certified]:
            if start is None and self.init == "checkpoint":
                start = Solution(head.weight, head.bias)
            if start is not None:
                start = Solution(start.weight, start.bias + shift.to(start.bias))
            found = trace_logistic(features, weights, l2, start, towards=towards, max_norm=max_norm, draft=len(l2) > 1)
            return map(unshifted, found)

        def unshifted(found: Certified) -> Certified:
            return replace(found, bias=found.bias - shift.to(found.bias))

        return solved_path(head, l2, solve)

    def _bound(self, head: Head) -> float:
        if self.max_norm is None or SHORTEST <= self.max_norm <= LONGEST:
            return self.max_norm or inf
        norms = head.weight.double().norm(dim=1)
        low, high = norms.min().item(), norms.max().item()
        raise PosthocError(
            f"max_norm = {self.max_norm:g}",
            f"a length from 1e-12 to 1e12; the untouched head's weights are {low:.3g} to {high:.3g} long",
            f"give --max-norm {low + (high - low) / 10 or 1:.3g}, or leave it out",
        )

    def _require_decay_to_zero(self) -> None:
        if self.towards != "zero":
            raise PosthocError(
                f"--recipe paper with --towards {self.towards}",
                "SGD, whose weight decay draws to zero",
                f"give --init {self.towards} to start there, or leave out --recipe",
            )

    def _weights(self, counts: Tensor) -> Tensor:
        """Of one sample of each class (C,), all samples' summing to 1."""
        weights = class_weights(counts, _EXPONENTS[self.sampler])
        if self.loss != "class-balanced":
            return weights
        weights = weights * effective_number_weights(counts, BETA)
        return weights / (weights * counts).sum()

    def _descend(self, head: Head, features: Features, decay: float, max_norm: float) -> Path:
        counts, q = features.counts(head.classes), _EXPONENTS[self.sampler]
        shares = class_weights(counts, q) * counts
        loss = {
            "cross-entropy": CrossEntropy(),
            "logit-adjusted": LogitAdjusted(shares.log().float()),
            "class-balanced": CrossEntropy(effective_number_weights(counts, BETA).float()),
        }[self.loss]
        found = sgd(
            features,
            head.classes,
            schedule=replace(CRT_SCHEDULE, weight_decay=decay),
            sampler=None if self.sampler == "class" else PowerSampler(features.labels.cpu(), q=q),
            loss=loss.to(features.device),
            start=head.to(torch.float32) if self.init == "checkpoint" else None,
            max_norm=max_norm,
        )
        return path(head, (decay,), (Solution(found.weight, found.bias),))
