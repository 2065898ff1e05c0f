from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

from posthoc_lt.errors import PosthocError
from posthoc_lt.metrics import (
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

Sample = tuple[list[int], list[int], int]


@st.composite
def predictions(draw: st.DrawFn) -> Sample:
    """Labels and predictions of 2 to 6 classes, some of them often absent from one or the other."""
    classes = draw(st.integers(2, 6))
    label = st.integers(0, classes - 1)
    labels = draw(st.lists(label, min_size=1, max_size=30))
    return labels, draw(st.lists(label, min_size=len(labels), max_size=len(labels))), classes


def counted(labels: list[int], predicted: list[int], classes: int) -> Tally:
    return tally(torch.tensor(labels), torch.tensor(predicted), classes)


@given(predictions())
def test_figures_are_those_of_scikit_learn_over_present_classes(sample: Sample) -> None:
    labels, predicted, _ = sample
    present = sorted(set(labels))
    seen = counted(*sample)
    assert accuracy(seen) == pytest.approx(accuracy_score(labels, predicted))
    recalls = recall_score(labels, predicted, labels=present, average=None)
    assert balanced_accuracy(seen) == pytest.approx(np.mean(recalls))
    assert worst_class(seen) == pytest.approx(np.min(recalls))
    peer = f1_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert macro_f1(seen) == pytest.approx(peer)


def test_balanced_accuracy_is_scikit_learns_when_every_class_is_there() -> None:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(7), rng.integers(0, 7, 200)])
    predicted = np.where(rng.random(207) < 0.6, labels, rng.integers(0, 7, 207))
    seen = tally(torch.from_numpy(labels), torch.from_numpy(predicted), 7)
    assert balanced_accuracy(seen) == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-15)


@given(predictions(), st.randoms(use_true_random=False))
def test_order_of_samples_and_names_of_classes_do_not_matter(sample: Sample, random: Random) -> None:
    labels, predicted, classes = sample
    order, names = list(range(len(labels))), list(range(classes))
    random.shuffle(order)
    random.shuffle(names)
    other = counted([names[labels[i]] for i in order], [names[predicted[i]] for i in order], classes)
    seen = counted(*sample)
    for figure in (accuracy, balanced_accuracy, macro_f1, worst_class):
        assert figure(other) == pytest.approx(figure(seen), abs=1e-15)
    torch.testing.assert_close(recall(other)[names], recall(seen), equal_nan=True)


def test_a_class_without_samples_is_left_out_and_not_zero() -> None:
    seen = counted([0, 0, 2, 2], [0, 0, 2, 1], 4)
    assert [math.isnan(share) for share in recall(seen).tolist()] == [False, True, False, True]
    assert seen.present.tolist() == [True, False, True, False]
    assert seen.total == 4
    assert balanced_accuracy(seen) == 0.75
    assert worst_class(seen) == 0.5


def test_group_accuracy_is_the_mean_recall_within_and_none_where_empty() -> None:
    seen = counted([0] * 8 + [1, 1, 2], [0] * 8 + [1, 0, 0], 4)
    assert group_accuracy(seen, torch.tensor([True, True, False, True])) == 0.75  # not 9 of 10; class 3 has none
    assert group_accuracy(seen, torch.tensor([False, False, True, False])) == 0.0
    assert group_accuracy(seen, torch.tensor([False, False, False, True])) is None
    assert group_accuracy(seen, torch.zeros(4, dtype=torch.bool)) is None


@pytest.mark.parametrize(
    ("labels", "predicted", "given_part"),
    [
        ([], [], "labels of shape (0,)"),
        ([0, 1], [0], "labels of shape (2,)"),
        ([0, 3], [0, 1], "label 3 for 3 classes"),
        ([0, -1], [0, 1], "label -1 for 3 classes"),
        ([0, 1], [0, 5], "prediction 5 for 3 classes"),
    ],
)
def test_a_tally_of_misfits_says_so(labels: list[int], predicted: list[int], given_part: str) -> None:
    with pytest.raises(PosthocError) as caught:
        tally(torch.tensor(labels, dtype=torch.int64), torch.tensor(predicted, dtype=torch.int64), 3)
    assert given_part in caught.value.given


def test_group_edges_are_those_of_the_literature() -> None:
    groups = group_classes(torch.tensor([101, 100, 20, 19, 0, 1280]))
    assert list(groups) == ["many", "medium", "few"]
    assert groups["many"].tolist() == [True, False, False, False, False, True]
    assert groups["medium"].tolist() == [False, True, True, False, False, False]
    assert groups["few"].tolist() == [False, False, False, True, True, False]


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=20),
    st.tuples(st.integers(0, 200), st.integers(0, 200)).map(lambda pair: (min(pair), max(pair))),
)
def test_groups_cover_each_class_once(counts: list[int], edges: tuple[int, int]) -> None:
    masks = torch.stack(list(group_classes(torch.tensor(counts), edges).values()))
    assert (masks.sum(0) == 1).all()


@pytest.mark.parametrize("edges", [(100, 20), (-1, 5), (math.nan, 5), (1, math.inf), (1, 2, 3), ()])
def test_edges_out_of_order_are_refused(edges: tuple[float, float]) -> None:
    with pytest.raises(PosthocError, match="group edges"):
        group_classes(torch.tensor([5]), edges)


def slow_ece(confidence: list[float], right: list[bool], bins: int) -> float:
    """By exact fractions, one sample at a time, over numpy's own split."""
    shared = {}
    for value in set(confidence):
        outcomes = [r for c, r in zip(confidence, right, strict=True) if c == value]
        shared[value] = Fraction(sum(outcomes), len(outcomes))
    error = Fraction(0)
    for part in np.array_split(sorted(confidence), bins):
        error += abs(sum((shared[float(c)] - Fraction(float(c)) for c in part), Fraction(0)))
    return float(error / len(confidence))


calibrated = st.lists(
    st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]) | st.floats(0, 1), st.booleans()), min_size=1, max_size=50
)


@given(calibrated, st.integers(1, 20))
def test_calibration_error_is_its_definition(sample: list[tuple[float, bool]], bins: int) -> None:
    confidence, right = [c for c, _ in sample], [r for _, r in sample]
    found = expected_calibration_error(torch.tensor(confidence, dtype=torch.float64), torch.tensor(right), bins)
    assert found == pytest.approx(slow_ece(confidence, right, bins), abs=1e-12)
    assert 0 <= found <= 1 + 1e-12


def test_calibration_error_without_ties_is_the_textbook_one() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(1003)
    right = rng.random(1003) < confidence**2
    order = np.argsort(confidence)
    textbook = sum(
        len(part) / 1003 * abs(right[part].mean() - confidence[part].mean()) for part in np.array_split(order, 15)
    )
    found = expected_calibration_error(torch.from_numpy(confidence), torch.from_numpy(right))
    assert found == pytest.approx(textbook, abs=1e-12)
    assert 0.1 < found < 0.25  # E|c - c²| = 1/6


def test_calibration_error_does_not_depend_on_the_order_of_tied_samples() -> None:
    confidence = torch.full((100,), 0.5, dtype=torch.float64)
    assert expected_calibration_error(confidence, torch.arange(100) < 50) == 0
    assert expected_calibration_error(confidence, torch.arange(100) % 2 == 0) == 0
    assert expected_calibration_error(torch.ones(9), torch.zeros(9, dtype=torch.bool)) == 1


@pytest.mark.parametrize(("samples", "outcomes", "bins"), [(0, 0, 15), (3, 2, 15), (3, 3, 0)])
def test_calibration_error_of_nothing_is_refused(samples: int, outcomes: int, bins: int) -> None:
    with pytest.raises(PosthocError, match="confidences"):
        expected_calibration_error(torch.ones(samples), torch.ones(outcomes, dtype=torch.bool), bins)
