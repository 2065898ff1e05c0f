"""Closed forms: what the knob leaves alone, peers, and heads and options that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import json_of, out_of
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import class_means, problem
from sklearn.neighbors import NearestCentroid

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Line
from posthoc_lt.features import Features, Training
from posthoc_lt.files import load_head
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.priors import Shares


@pytest.mark.parametrize("prior", ["counts", "uniform"])
def test_tau_zero_of_logit_adjustment_is_the_baseline_to_the_bit(prior: str) -> None:
    for dtype in (torch.float32, torch.float64):
        head = problem().head(dtype)
        adjusted = METHODS["logit-adjust"](**{"prior": prior}).fit(head, problem().training()).at(0.0)
        assert torch.equal(adjusted.weight, head.weight)
        assert torch.equal(adjusted.bias, head.bias)


def test_tau_one_for_the_train_prior_is_the_baseline() -> None:
    head = problem().head()
    adjusted = METHODS["logit-adjust"](**{"target_prior": "train"}).fit(head, problem().training()).at(1.0)
    torch.testing.assert_close(adjusted.bias, head.bias, rtol=0, atol=1e-14)


@given(
    seed=st.integers(0, 2**32 - 1),
    tau=st.floats(-5, 5),
    classes=st.integers(2, 8),
    each=st.integers(1, 10**6),
)
@settings(max_examples=50)
def test_a_uniform_train_prior_changes_no_prediction(seed: int, tau: float, classes: int, each: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = Head(torch.randn(classes, 3, generator=generator), torch.randn(classes, generator=generator))
    x = torch.randn(50, 3, generator=generator).double()
    adjusted = METHODS["logit-adjust"]().fit(head, Training(torch.full((classes,), each))).at(tau)
    before, after = head.to(torch.float64)(x), adjusted.to(torch.float64)(x)
    sure = (before.topk(2).values @ torch.tensor([1.0, -1.0]).double()) > 1e-5  # beyond float32's rounding of b'
    assert torch.equal(before.argmax(1)[sure], after.argmax(1)[sure])
    assert sure.sum() > 40


@given(seed=st.integers(0, 2**32 - 1), tau=st.floats(0, 3))
@settings(max_examples=50)
def test_tau_norm_ignores_the_scale_of_all_weights(seed: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    training = Training(torch.ones(4, dtype=torch.int64))
    plain, scaled = (
        METHODS["tau-norm"]().fit(Head(w, torch.ones(4)), training).at(tau).weight for w in (weight, 1000 * weight)
    )
    torch.testing.assert_close(scaled, plain * 1000 ** (1 - tau), rtol=1e-9, atol=0)


def test_tau_norm_refuses_a_row_of_zeros() -> None:
    head = Head(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2))
    with pytest.raises(PosthocError, match="all zero for class 1"):
        METHODS["tau-norm"]().fit(head, Training(torch.tensor([3, 2])))


def test_euclidean_ncm_predicts_as_scikit_learn() -> None:
    p = problem(6)
    peer = NearestCentroid().fit(p.x, p.y)
    head = METHODS["ncm"]().fit(p.head(), p.training()).at(None)
    np.testing.assert_array_equal(head(p.x).argmax(axis=1), peer.predict(p.x))


@pytest.mark.parametrize("transform", ["un", "l2n", "cl2n"])
def test_cosine_ncm_predicts_as_the_cosine_itself(transform: str) -> None:
    p = problem(7)
    means, centre = class_means(p, transform)
    queries = p.x - centre
    cosines = queries @ means.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    method = METHODS["ncm"](**{"distance": "cosine", "transform": transform})
    head = method.fit(p.head(), p.training()).at(None)
    np.testing.assert_array_equal(head(p.x).argmax(axis=1), cosines.argmax(axis=1))


@pytest.mark.parametrize("transform", ["l2n", "cl2n"])
def test_euclidean_ncm_of_normalised_features_is_refused_with_a_way_out(transform: str) -> None:
    p = problem()
    with pytest.raises(PosthocError, match=f"no affine head can express.*--distance cosine --transform {transform}"):
        METHODS["ncm"](**{"transform": transform}).fit(p.head(), p.training())


def test_cosine_ncm_of_a_mean_without_direction_is_refused() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    training = Training(torch.tensor([2, 1]), Features(x, torch.tensor([0, 0, 1])))
    with pytest.raises(PosthocError, match="norm 0 for class 0"):
        METHODS["ncm"](**{"distance": "cosine"}).fit(Head(torch.eye(2), torch.zeros(2)), training)


def test_a_feature_of_norm_zero_adds_nothing_to_a_mean_of_directions() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    training = Training(torch.tensor([2, 1]), Features(x, torch.tensor([0, 0, 1])))
    method = METHODS["ncm"](**{"distance": "cosine", "transform": "l2n"})
    head = method.fit(Head(torch.eye(2), torch.zeros(2)), training).at(None)
    torch.testing.assert_close(head.weight, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


@pytest.mark.parametrize("bias", ["drop", "keep"])
def test_a_saved_head_remembers_its_options(there: Path, bias: str, capsys: pytest.CaptureFixture[str]) -> None:
    out_of(f"tau-norm --bias {bias} --tau 0.5 --out head.safetensors", capsys)
    saved = load_head(there / "head.safetensors")
    assert (saved.provenance["method"], saved.provenance["tau"]) == ("tau-norm", "0.5")
    assert saved.provenance.get("options") == (None if bias == "drop" else "bias=keep")
    shown = "saved: tau-norm" if bias == "drop" else "saved: tau-norm (bias=keep)"
    assert list(json_of("evaluate --head head.safetensors", capsys)["heads"]) == ["baseline", shown]


@pytest.mark.parametrize(
    ("target", "zero_count", "wanted"),
    [
        ("uniform", "mask", None),
        ("train", "refuse", (0.5, 0.3, 0.2)),
        ("train", "mask", (0.75, 0.0, 0.25)),
        ("train", "smooth", (30.5 / 41.5, 0.5 / 41.5, 10.5 / 41.5)),
        (Shares((1, 2, 3)), "mask", (1 / 4, 0.0, 3 / 4)),
        (Shares((1, 2, 3)), "smooth", (1 / 6, 2 / 6, 3 / 6)),
    ],
)
def test_the_target_leaves_out_what_is_masked(target: str | Shares, zero_count: str, wanted: tuple[float, ...]) -> None:
    counts = torch.tensor([50, 30, 20] if zero_count == "refuse" else [30, 0, 10])
    found = METHODS["logit-adjust"](**{"target_prior": target, "zero_count": zero_count}).target(Training(counts))
    assert (None if found is None else found.tolist()) == (None if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize("target", ["uniform", "train", Shares((1, 2, 3))])
def test_a_masked_class_is_adjusted_by_nothing_and_never_predicted(target: str | Shares) -> None:
    head, training = (
        Head(torch.eye(3).double(), torch.tensor([0.1, 5.0, 0.3]).double()),
        Training(torch.tensor([30, 0, 10])),
    )
    method = METHODS["logit-adjust"](**{"target_prior": target, "zero_count": "mask"})
    shares = {"uniform": (1.0, 1.0, 1.0), "train": (0.75, 1.0, 0.25)}.get(str(target), (1 / 6, 2 / 6, 3 / 6))
    for tau in (0.0, 1.0, 2.5):
        made = method.fit(head, training).at(tau)
        bias = made.bias.tolist()
        wanted = [b - tau * np.log(n / 40) + np.log(s) for b, n, s in ((0.1, 30, shares[0]), (0.3, 10, shares[2]))]
        assert made.masked.tolist() == [False, True, False]
        assert [bias[0], bias[2]] == pytest.approx(wanted)


def test_what_tau_multiplies_is_as_exact_as_float64_for_any_head() -> None:
    for head in (problem().head(torch.float32), problem().head(torch.float64)):
        line = METHODS["logit-adjust"]().fit(head, problem().training())
        assert isinstance(line, Line)
        assert line.direction.bias.tolist() == pytest.approx(-np.log(problem().counts / 68), rel=1e-15)
        assert line.direction.weight.dtype == line.direction.bias.dtype == torch.float64
