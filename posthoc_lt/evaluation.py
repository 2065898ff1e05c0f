"""One head on one labelled split: every figure that a report needs, from a single pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from posthoc_lt.columns import Columns, blocks, computed, gathered
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.metrics import (
    EDGES,
    GROUPS,
    Tally,
    accuracy,
    balanced_accuracy,
    expected_calibration_error,
    group_accuracy,
    group_classes,
    macro_f1,
    recall,
    tally,
    worst_class,
)
from posthoc_lt.stats import Paired, balanced_interval, paired
from posthoc_lt.yardstick import BALANCED, Yardstick


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a head does on a split, sample by sample and in figures; all on the CPU, all fractions of 1.

    Args:
        labels: (N,) true classes.
        predicted: (N,) predicted classes; of equal logits the first wins.
        confidence: (N,) float64, the probability given to the predicted class.
        right: (N,) bool.
        tally: the counts by class.
        nll: mean negative log-likelihood of the true class, in nats.
        ece: expected calibration error in 15 equal-mass bins.
        counts: (C,) **train** samples a class, which make the groups.
        edges: the lowest and the highest train count of the medium group.
        yardstick: what the head is judged by.
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    right: Tensor
    tally: Tally
    nll: float
    ece: float
    counts: Tensor
    edges: tuple[float, float] = EDGES
    yardstick: Yardstick = BALANCED

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return len(self.counts)

    @cached_property
    def groups(self) -> dict[str, Tensor]:
        """The classes of ``many``, ``medium`` and ``few``, each (C,) bool."""
        return group_classes(self.counts, self.edges)

    @property
    def accuracy(self) -> float:
        """The share of samples predicted right."""
        return accuracy(self.tally)

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have a sample."""
        return balanced_accuracy(self.tally)

    @property
    def balanced_accuracy_ci(self) -> tuple[float, float]:
        """The 95% interval of balanced accuracy."""
        return balanced_interval(self.tally, counts=self.counts)

    @property
    def score(self) -> float:
        """What the head is worth by its `yardstick`: balanced accuracy by default."""
        return self.yardstick.score(self.labels, self.predicted, self.classes)

    @property
    def score_ci(self) -> tuple[float, float]:
        """The 95% interval of the score."""
        return self.yardstick.interval(self.labels, self.predicted, self.classes, self.counts)

    def group(self, name: str) -> float | None:
        """The mean recall within ``many``, ``medium`` or ``few``; None where the group has no sample."""
        return group_accuracy(self.tally, self.groups[name])

    @property
    def missing(self) -> list[int]:
        """The classes without a sample in this split, which no figure includes."""
        return (~self.tally.present).nonzero().flatten().tolist()

    def block(self, classes: Sequence[str], verbose: bool = False) -> dict[str, object]:
        """The figures as plain JSON values: None where there is none, never NaN.

        Args:
            classes: C class names, for `missing` and `per_class`.
            verbose: adds ``per_class``, a dict a class with its train and split samples.

        Returns:
            dict: accuracy, balanced_accuracy, balanced_accuracy_ci, many, medium, few, macro_f1, worst_class,
            nll, ece; by another yardstick its score with an interval, and the mean ``cost``; then ``missing`` where a
            class has no sample, and ``per_class``.
        """
        found: dict[str, object] = {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_accuracy_ci": list(self.balanced_accuracy_ci),
            **{name: self.group(name) for name in GROUPS},
            "macro_f1": macro_f1(self.tally),
            "worst_class": worst_class(self.tally),
            "nll": self.nll,
            "ece": self.ece,
        }
        if self.yardstick is not BALANCED:
            found |= self.yardstick.record(self.score, self.score_ci)
        if self.missing:
            found["missing"] = [classes[c] for c in self.missing]
        if verbose:
            found["per_class"] = self._per_class(classes)
        return found

    def _per_class(self, classes: Sequence[str]) -> list[dict[str, object]]:
        columns = (self.counts, self.tally.actual, self.tally.right, recall(self.tally))
        return [
            {"class": name, "train": train, "n": n, "right": right, "recall": share if n else None}
            for name, train, n, right, share in zip(classes, *(c.tolist() for c in columns), strict=True)
        ]


def evaluate(
    head: Head,
    features: Features,
    counts: Tensor,
    edges: tuple[float, float] = EDGES,
    yardstick: Yardstick = BALANCED,
) -> Evaluation:
    """Run a head over a labelled split, in one pass by chunks.

    Logits are computed in the head's own dtype, so predictions are those it makes once deployed;
    probabilities, softmax(z) at temperature 1, are taken from them in float64.

    Args:
        head: C classes, D dimensions.
        features: N labelled samples.
        counts: (C,) **train** samples a class.
        edges: the lowest and the highest train count of the medium group.
        yardstick: what the head is judged by.

    Raises:
        PosthocError: the split is empty or unlabelled, sizes do not fit, or a feature is not finite.

    >>> sure = evaluate(Head(torch.eye(2), torch.zeros(2)), Features(torch.eye(2), torch.tensor([0, 1])), torch.ones(2))
    >>> sure.balanced_accuracy, round(sure.nll, 4)
    (1.0, 0.3133)
    """
    _check(head, features, counts, edges)
    labels, head = features.labels.cpu(), head.to(features.device)
    made = Columns(torch.int64, torch.float64, torch.float64)
    for rows, x in features.own_chunks(head.classes, head.weight.dtype):
        logits = head(x)
        if logits.device.type == "mps":  # which has no float64
            logits = logits.cpu()
        best, log_p = logits.argmax(1, keepdim=True), logits.double().log_softmax(1)
        own = log_p.gather(1, labels[rows, None].to(log_p.device))
        made.append(best[:, 0], log_p.gather(1, best)[:, 0].exp(), own[:, 0])
    predicted, confidence, likelihood = map(gathered, made.whole())
    if not all(bool((confidence[rows] + likelihood[rows]).isfinite().all()) for rows in blocks(len(features))):
        raise PosthocError(
            "features with NaN or infinite values (or so large that the logits overflow)",
            "finite features",
            "extract them again, and check the images and the checkpoint",
        )
    right = computed(len(features), lambda rows: predicted[rows] == labels[rows])
    return Evaluation(
        labels=labels,
        predicted=predicted,
        confidence=confidence,
        right=right,
        tally=tally(labels, predicted, head.classes),
        nll=-float(likelihood.mean()),
        ece=expected_calibration_error(confidence, right),
        counts=counts.cpu(),
        edges=edges,
        yardstick=yardstick,
    )


def difference(baseline: Evaluation, other: Evaluation) -> Paired:
    """What `other` gains over `baseline` by the baseline's yardstick, paired sample by sample.

    Raises:
        PosthocError: they are not of the same split.
    """
    _same_split(baseline, other)
    return baseline.yardstick.difference(baseline.labels, baseline.predicted, other.predicted, baseline.classes)


def group_difference(baseline: Evaluation, other: Evaluation, group: str) -> Paired | None:
    """The mean recall that it gains within ``many``, ``medium`` or ``few``; None where the group has no sample.

    Raises:
        PosthocError: they are not of the same split, or there is no such group.
    """
    _same_split(baseline, other)
    if group not in GROUPS:
        raise PosthocError(f"group {show(group)!r}", "one of " + ", ".join(GROUPS), "name one of them")
    mask = baseline.groups[group]
    if not bool((mask & baseline.tally.present).any()):
        return None
    return paired(baseline.labels, baseline.right, other.right, baseline.classes, mask)


def _check(head: Head, features: Features, counts: Tensor, edges: tuple[float, float]) -> None:
    group_classes(counts, edges)
    features.require_labelled(head)
    if counts.shape != (head.classes,):
        raise PosthocError(
            f"train counts of shape {tuple(counts.shape)}",
            f"one count for each of the {head.classes} classes",
            "write one number a class, in the order of the head's rows",
        )


def _same_split(baseline: Evaluation, other: Evaluation) -> None:
    if not torch.equal(baseline.labels, other.labels) or baseline.classes != other.classes:
        raise PosthocError(
            f"evaluations of {len(baseline)} and {len(other)} samples with different labels",
            "two heads evaluated on the same split",
            "evaluate both on the same features",
        )
