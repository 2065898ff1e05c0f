from __future__ import annotations

import pytest
import torch

from posthoc_lt import Features, FeatureSet, Head, PosthocError

HEAD = Head(torch.eye(3, 4), torch.zeros(3))


def split(labels: list[int], dimensions: int = 4) -> Features:
    return Features(torch.arange(len(labels) * dimensions).reshape(-1, dimensions).half(), torch.tensor(labels))


def test_chunks_cover_every_row_once_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    features = split([0, 1, 2, 0, 1])
    monkeypatch.setattr("posthoc_lt.features.CHUNK_ELEMENTS", 8)
    blocks = list(features.chunks(3))
    assert [rows for rows, _ in blocks] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert torch.equal(torch.cat([x for _, x in blocks]), features.x.float())
    assert all(x.dtype == torch.float32 for _, x in blocks)


def test_no_chunk_is_wider_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posthoc_lt.features.CHUNK_ELEMENTS", 100)
    assert all(len(x) * 20 <= 100 for _, x in split([0] * 37).chunks(20))
    assert all(len(x) == 1 for _, x in split([0] * 3).chunks(1000))


def test_counts_come_from_train_labels_or_stand_in_for_them() -> None:
    assert FeatureSet(HEAD, train=split([0, 0, 2])).counts.tolist() == [2, 0, 1]
    alone = FeatureSet(HEAD, train_counts=torch.tensor([5, 2, 1]))
    assert alone.counts.tolist() == [5, 2, 1]
    assert alone.training.features is None
    with pytest.raises(PosthocError, match="train counts"):
        _ = FeatureSet(HEAD, val=split([0])).counts


def test_training_names_the_class_without_samples() -> None:
    training = FeatureSet(HEAD, train=split([0, 0, 2])).training
    with pytest.raises(PosthocError, match="no train sample of class 1"):
        training.require("ncm")
    with pytest.raises(PosthocError, match="without a labelled train split"):
        FeatureSet(HEAD, train_counts=torch.tensor([1, 1, 1])).training.require("ncm")


def test_subset_keeps_the_order_asked_for() -> None:
    part = split([0, 1, 2]).subset(torch.tensor([2, 0]))
    assert part.labels.tolist() == [2, 0]
    assert part.x[:, 0].tolist() == [8.0, 0.0]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Features(torch.ones(3)), r"shape \(3,\)"),
        (lambda: Features(torch.ones(3, 2, dtype=torch.int64)), "int64"),
        (lambda: Features(torch.ones(3, 2), torch.zeros(2, dtype=torch.int64)), "3 samples"),
        (lambda: Features(torch.ones(2, 2), torch.tensor([0, -1])), "class index >= 0"),
        (lambda: Features(torch.ones(2, 2), torch.tensor([0.0, 1.0])), "float32"),
        (lambda: FeatureSet(HEAD, val=split([0], dimensions=5)), "5 dimensions for a head of 4"),
        (lambda: FeatureSet(HEAD, test=split([3])), "label 3 for a head of 3 classes"),
        (lambda: FeatureSet(HEAD, classes=("a", "b")), "2 class names for a head of 3"),
        (lambda: FeatureSet(HEAD, train_counts=torch.tensor([1, 2])), r"shape \(2,\)"),
        (lambda: Features(torch.ones(2, 2)).labels, "without labels"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, named: str) -> None:
    assert callable(make)
    with pytest.raises(PosthocError, match=named):
        make()
