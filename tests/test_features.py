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


def rows(seed: int, samples: int, dtype: torch.dtype = torch.float32, width: int = 4) -> Features:
    """Random whole numbers: many rows share values, few are equal, and in floating point only upper bits differ."""
    x = torch.randint(0, 3, (samples, width), generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Features(x, torch.arange(samples) % 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("other", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 4, 9])
def test_shared_samples_are_counted_as_sets_count_them(
    dtype: torch.dtype, other: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posthoc_lt.features.CHUNK_ELEMENTS", 64)
    one, two = rows(0, 60, dtype, width), rows(1, 90, other, width)
    known = set(map(tuple, one.x.tolist()))
    found = [tuple(row) in known for row in two.x.tolist()]
    assert two.shared_with(one) == sum(found)
    assert two.shared_with(two) == 90


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 5])
def test_repeated_rows_are_counted(dtype: torch.dtype, width: int) -> None:
    made = rows(0, 90, dtype, width)
    drawn = made.subset(torch.randint(90, (120,), generator=torch.Generator().manual_seed(1)))
    assert drawn.repeated() == 120 - len(set(map(tuple, drawn.x.tolist())))
    assert Features(torch.zeros(0, 3)).repeated() == Features(torch.zeros(3, 0)).repeated() == 0
    assert Features(torch.zeros(4, 3)).repeated() == 3


def test_a_row_that_differs_in_its_last_bit_is_another() -> None:
    one = rows(0, 50, torch.float32, 7)
    x = one.x.clone()
    x[:, -1] = torch.nextafter(x[:, -1], torch.tensor(9.0))
    assert Features(x, one.y).shared_with(one) == 0
    x[3] = one.x[40]
    assert Features(x, one.y).shared_with(one) == 1


def test_rows_of_one_hash_are_compared_before_they_are_called_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posthoc_lt.identical._hashes", lambda x, kind: torch.zeros(len(x), dtype=torch.int64))
    one, other = Features(torch.zeros(5, 4)), Features(torch.ones(5, 4))
    assert other.shared_with(one) == 0
    assert one.shared_with(one) == 5
    assert Features(torch.arange(5.0)[:, None]).repeated() == 0


@pytest.mark.parametrize(("one", "other"), [("train", "val"), ("train", "test"), ("val", "test")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_splits_that_share_half_their_samples_are_refused(one: str, other: str, dtype: torch.dtype) -> None:
    first, own = split([0, 1, 2] * 4), torch.arange(100, 124).reshape(6, 4)
    for count, refused in ((6, True), (5, False)):
        x = torch.cat([first.x[:count].flip(0), own[: 11 - count].half()]).to(dtype)
        pair: dict[str, Any] = {one: first, other: Features(x, torch.zeros(11, dtype=torch.int64))}
        features = FeatureSet(HEAD, **pair)
        assert features.shared == {(one, other): count}
        if refused:
            with pytest.raises(PosthocError, match=f"{other} features, 6 of whose 11 samples are {one} samples"):
                features.require_apart()
        else:
            features.require_apart()


def test_samples_apart_unlabelled_or_absent_share_nothing() -> None:
    nothing = Features(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    val, test = split([0, 1, 2]), Features(split([0, 1, 2]).x)
    for made in (FeatureSet(HEAD, val=nothing, test=nothing), FeatureSet(HEAD, val=val, test=test), FeatureSet(HEAD)):
        assert made.shared == {}
        made.require_apart()


def test_a_set_where_it_should_be_is_not_made_again() -> None:
    """So that what was found of its samples, which costs a pass, is found once."""
    features = FeatureSet(HEAD, val=split([0, 1]))
    assert features.to(torch.device("cpu")) is features
    assert features.to(torch.device("meta")).val.device.type == "meta"  # type: ignore[union-attr]


def test_a_notebook_shows_a_set_split_by_split_and_its_names_as_text() -> None:
    x = torch.eye(2)
    made = FeatureSet(
        Head(torch.eye(2), torch.zeros(2)),
        Features(x.half(), torch.tensor([0, 1])),
        Features(x[:1]),
        classes=("<script>alert(1)</script>", "owl"),
    )
    shown = made._repr_html_()
    assert "<tr><td>train</td><td>2</td><td>2</td><td>float16</td><td>yes</td></tr>" in shown
    assert "<tr><td>val</td><td>1</td><td>2</td><td>float32</td><td>no</td></tr>" in shown
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_chunks_copied_ahead_are_the_same() -> None:
    x = torch.randn(50_000, 300, dtype=torch.float16)
    parts = list(Features(x).to(torch.device("cuda")).chunks(1))
    assert len(parts) > 2
    assert all(torch.equal(part.cpu(), x[rows].float()) for rows, part in parts)
