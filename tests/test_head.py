from __future__ import annotations

import numpy as np
import pytest
import torch

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
