"""What makes figures doubtful: samples in two splits or drawn anew, validation data that the network has seen."""

from __future__ import annotations

from posthoc_lt.errors import show
from posthoc_lt.evaluation import Evaluation, evaluate
from posthoc_lt.features import FeatureSet
from posthoc_lt.pipeline.fit import Fitted

_SURE = 0.97
"""What the interval of balanced accuracy, and the mean confidence, must exceed to look learned by heart."""

_LIKE_TRAIN = 3.0
"""How many times the train likelihood loss a validation loss may be and still be train's."""

_REPEATED = 0.2
"""The share of train samples that are others' copies before it is told: data has duplicates, a resampler makes many."""

_APART = 0.10
"""How much better than test validation may be before it is told."""


def notes(features: FeatureSet, baseline: Fitted) -> list[str]:
    """A sentence for each sign that train's counts are not its own or validation is not held out; none is a proof.

    Args:
        features: the splits.
        baseline: the untouched head, judged on them.
    """
    splits = features.splits()
    found = [
        f"{count} of {len(splits[other])} {other} samples are {one} samples, bit for bit: duplicates in the data, or "
        "splits that were not kept apart."
        for (one, other), count in features.shared.items()
    ]
    found += _resampled(features)
    val, test = baseline.val, baseline.test
    if val is not None and _learned(features, val):
        found.append(
            f"The untouched head is right on {100 * val.balanced_accuracy:.1f}% of validation and sure of it, as on "
            "data that the network was trained on. If it was, choose on other data: no knob can be chosen on this."
        )
    elif val is not None and test is not None and _apart(val, test):
        found.append(
            f"The untouched head has {100 * val.balanced_accuracy:.1f}% balanced accuracy on val and "
            f"{100 * test.balanced_accuracy:.1f}% on test. If the network was trained on val, choose on other data; "
            "else the two differ in kind, and what val chooses may not suit test."
        )
    return found


def _resampled(features: FeatureSet) -> list[str]:
    """What tells of splits that do not hold every sample once."""
    found, drawn = [], features.provenance.get("drawn")
    if drawn is not None:
        found.append(
            f"A loader did not give every sample of its data set once ({show(drawn)}), for drop_last or a sampler: "
            "class counts and figures are those of the samples given."
        )
    train = features.plain_train
    again = 0 if train is None else train.repeated()
    if train is not None and again > _REPEATED * len(train):
        found.append(
            f"{again} of {len(train)} train samples are copies of others, bit for bit. If a sampler drew them, class "
            "counts are not those that the network was trained on: give every sample once."
        )
    return found


def _learned(features: FeatureSet, val: Evaluation) -> bool:
    """Whether the head is nearly always right and sure on validation, and no less so than on train."""
    if val.balanced_accuracy_ci[0] < _SURE or float(val.confidence.mean()) < _SURE:
        return False
    train = features.plain_train
    if train is None or train.y is None or not len(train):
        return True
    return val.nll <= _LIKE_TRAIN * evaluate(features.head, train, features.counts).nll


def _apart(val: Evaluation, test: Evaluation) -> bool:
    """Whether the head does far better on val than on test, of the same classes, beyond the intervals of both."""
    if val.missing != test.missing:
        return False
    clear = val.balanced_accuracy_ci[0] > test.balanced_accuracy_ci[1]
    return clear and val.balanced_accuracy - test.balanced_accuracy > _APART
