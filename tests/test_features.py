from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

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


X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])


@pytest.mark.parametrize(
    "x",
    [
        X,
        X.astype(np.float16),
        X.astype(">f4"),
        X.tolist(),
        X.astype(int).tolist(),
        np.asfortranarray(X),
        X[::-1].copy()[::-1],
        pandas.DataFrame(X, index=[7, 8, 9]),
        torch.tensor(X, requires_grad=True),
    ],
)
def test_any_table_of_numbers_makes_features(x: Tensor | ArrayLike) -> None:
    features = Features(x, pandas.Series([0, 1, 0], index=[3, 2, 1]))
    assert features.x.tolist() == X.tolist()
    assert not features.x.requires_grad
    assert features.labels.tolist() == [0, 1, 0]
    assert [block.tolist() for _, block in features.chunks(1)] == [X.tolist()]


@pytest.mark.parametrize(
    "y",
    [
        *(np.array([2, 0, 1]).astype(kind) for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">i4")),
        np.array([1, 0, 2])[::-1],
        pandas.Series([2, 0, 1], dtype="Int64"),
        [2, 0, 1],
        torch.tensor([2, 0, 1], dtype=torch.uint64),
    ],
)
def test_labels_of_any_integer_type_become_int64(y: Tensor | ArrayLike) -> None:
    labels = Features(X, y).labels
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0, 1]


def test_a_memory_mapped_array_stays_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert Features(mapped).x.data_ptr() == mapped.ctypes.data


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Features(pandas.DataFrame({"file": ["a", "b"]})), "features of type DataFrame"),
        (lambda: Features(X, pandas.Series(["a", "b", "a"], dtype="category")), "labels of type Series"),
        (lambda: Features(X, [[0], [1, 2]]), "labels of type list"),
        (lambda: Features(X, np.array([0, 1, 2], dtype=complex)), "labels of type ndarray"),
        (lambda: Features(X.astype(int)), "int64"),
        (lambda: Features(torch.zeros(2, 2, dtype=torch.float8_e4m3fn)), "float8"),
        (lambda: Features(X, np.array([0, 1, 2**64 - 1], dtype=np.uint64)), "uint64"),
    ],
)
def test_what_holds_no_features_or_labels_is_refused(make: object, named: str) -> None:
    assert callable(make)
    with pytest.raises(PosthocError, match=named):
        make()


@pytest.mark.parametrize(
    "counts",
    [torch.tensor([5, 2, 1], dtype=torch.int32), torch.tensor([5.0, 2.0, 1.0]), np.array([5, 2, 1], dtype=np.uint8)],
)
def test_train_counts_become_int64(counts: Any) -> None:
    made = FeatureSet(HEAD, train_counts=counts).counts
    assert made.dtype == torch.int64
    assert made.tolist() == [5, 2, 1]


@pytest.mark.parametrize(
    "counts",
    [
        torch.tensor([5.0, 2.5, 1.0]),
        torch.tensor([5.0, float("nan"), 1.0]),
        torch.tensor([5.0, float("inf"), 1.0]),
        torch.tensor([5, -1, 1]),
        torch.tensor([True, False, True]),
        np.array([5, 2**64 - 1, 1], dtype=np.uint64),
    ],
)
def test_train_counts_that_count_nothing_are_refused(counts: Any) -> None:
    with pytest.raises(PosthocError, match="whole number >= 0"):
        FeatureSet(HEAD, train_counts=counts)


def test_train_counts_below_the_samples_at_hand_are_refused() -> None:
    train = split([0, 0, 2])
    assert FeatureSet(HEAD, train, train_counts=torch.tensor([2, 0, 9])).counts.tolist() == [2, 0, 9]
    with pytest.raises(PosthocError, match="train count 1 of class 0, of which 2 samples are there"):
        FeatureSet(HEAD, train, train_counts=torch.tensor([1, 0, 9]))
    assert FeatureSet(HEAD, Features(train.x), train_counts=torch.tensor([1, 0, 0])).counts.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_two_splits_of_the_same_rows_are_refused(one: str, other: str, dtype: torch.dtype) -> None:
    first = split([0, 1, 2])
    same = Features(first.x.clone().to(dtype), first.labels.clone())
    pair: dict[str, Any] = {one: first, other: same}
    with pytest.raises(PosthocError, match=f"{one} and {other}.* same"):
        FeatureSet(HEAD, **pair)


def test_splits_that_differ_in_their_last_value_or_label_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posthoc_lt.features.CHUNK_ELEMENTS", 8)
    val = split([0, 1, 2] * 8)
    x, y = val.x.clone(), val.labels.clone()
    x[-1, -1] += 1
    y[-1] = 0
    for other in (Features(x, val.y), Features(val.x, y), Features(val.x)):
        assert FeatureSet(HEAD, val=val, test=other).test is other
    x[-1, -1] -= 1
    with pytest.raises(PosthocError, match="val and test"):
        FeatureSet(HEAD, val=val, test=Features(x, val.y))


def test_empty_splits_are_not_the_same_rows() -> None:
    nothing = Features(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert len(FeatureSet(HEAD, val=nothing, test=nothing).splits()) == 2
