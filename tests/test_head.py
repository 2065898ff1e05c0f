from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from posthoc_lt import Head, PosthocError


def test_logits_are_the_affine_map() -> None:
    rng = np.random.default_rng(0)
    weight, bias, x = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=(5, 4))
    head = Head(torch.from_numpy(weight), torch.from_numpy(bias))
    expected = np.array([[sum(x[n, d] * weight[c, d] for d in range(4)) + bias[c] for c in range(3)] for n in range(5)])
    assert np.allclose(head(torch.from_numpy(x)).numpy(), expected, atol=1e-12)
    assert isinstance(head(x), np.ndarray)
    assert np.allclose(head(x), expected, atol=1e-12)


def test_a_head_without_bias_remembers_it() -> None:
    head = Head.without_bias(torch.ones(2, 3))
    assert not head.has_bias
    assert head.bias.tolist() == [0.0, 0.0]
    assert not head.to(torch.float64).has_bias


def test_half_precision_weights_compute_in_float32() -> None:
    assert Head(torch.ones(2, 3).half(), torch.zeros(2).half())(torch.ones(1, 3).half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("weight", "bias", "named"),
    [
        (torch.ones(3), torch.ones(3), r"weight \(3,\)"),
        (torch.ones(3, 2), torch.ones(2), r"bias \(2,\)"),
        (torch.ones(0, 2), torch.ones(0), r"weight \(0, 2\)"),
        (torch.tensor([[float("nan")]]), torch.ones(1), "NaN or infinite"),
        (torch.ones(1, 1), torch.tensor([float("inf")]), "NaN or infinite"),
    ],
)
def test_what_is_no_head_is_refused(weight: torch.Tensor, bias: torch.Tensor, named: str) -> None:
    with pytest.raises(PosthocError, match=named):
        Head(weight, bias)


def test_a_head_does_not_change() -> None:
    with pytest.raises(AttributeError):
        Head(torch.ones(1, 1), torch.ones(1)).weight = torch.zeros(1, 1)  # type: ignore[misc]


NUMBERS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])


@pytest.mark.parametrize(
    "weight",
    [
        NUMBERS,
        NUMBERS.astype(np.float32),
        NUMBERS.astype(">f8"),
        NUMBERS.astype(np.int64),
        NUMBERS.tolist(),
        np.asfortranarray(NUMBERS),
        NUMBERS[::-1, ::-1].copy()[::-1, ::-1],
        pandas.DataFrame(NUMBERS, index=[7, 8, 9]),
        pandas.DataFrame({"a": NUMBERS[:, 0].astype(int), "b": NUMBERS[:, 1]}),
        torch.tensor(NUMBERS, requires_grad=True),
    ],
)
def test_any_table_of_numbers_makes_a_head(weight: Tensor | ArrayLike) -> None:
    head = Head(weight, pandas.Series([1, 0, -1]))
    assert head.weight.tolist() == NUMBERS.tolist()
    assert head.bias.tolist() == [1.0, 0.0, -1.0]
    assert not head.weight.requires_grad
    assert Head.without_bias(weight).bias.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "x",
    [
        np.array([[1.0, 0.0], [0.0, 1.0]])[::-1],
        np.array([[0.0, 1.0], [1.0, 0.0]], dtype=">f4"),
        pandas.DataFrame([[0.0, 1.0], [1.0, 0.0]]),
        [[0, 1], [1, 0]],
    ],
)
def test_a_head_reads_any_table_of_numbers(x: ArrayLike) -> None:
    logits = Head(NUMBERS, np.zeros(3))(x)
    assert isinstance(logits, np.ndarray)
    assert logits.tolist() == [[2.0, 4.0, 7.0], [1.0, 3.0, 5.0]]


@pytest.mark.parametrize(
    "weight",
    [
        "model.pt",
        None,
        object(),
        [[1.0], [2.0, 3.0]],
        np.array([["a", "b"]]),
        np.ones((2, 2), dtype=complex),
        torch.ones(2, 2, dtype=torch.complex64),
        pandas.DataFrame({"a": ["x", "y"]}),
    ],
)
def test_what_holds_no_numbers_is_refused_by_its_name(weight: ArrayLike) -> None:
    with pytest.raises(PosthocError, match="weight of type"):
        Head(weight, np.zeros(2))


def test_a_read_only_array_is_taken_without_a_word() -> None:
    weight = np.ones((2, 3))
    weight.flags.writeable = False
    assert Head(weight, np.zeros(2)).weight.tolist() == weight.tolist()


def test_a_notebook_shows_what_a_head_is_like() -> None:
    shown = Head([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]], [0.5, -1.0, 0.25])._repr_html_()
    assert "3 classes, 2 dimensions" in shown
    assert "<td>norm of a class's weights</td><td>1</td><td>5</td><td>10</td>" in shown
    assert "<td>bias</td><td>-1</td><td>0.25</td><td>0.5</td>" in shown
    bare = Head.without_bias(np.eye(2))._repr_html_()
    assert "no bias" in bare
    assert "<td>bias</td>" not in bare
