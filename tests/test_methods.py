"""Every method against the case table, the contract that all of them keep, and peers for some."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path as FilePath
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import CASES, Array, Case, Problem, class_means, penalty_unit, problem, sample_weights
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

import posthoc_lt.features
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Path
from posthoc_lt.features import Features, Training
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.methods.method import Method
from posthoc_lt.solver import L2_PATH

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def made(case: Case) -> Method:
    return METHODS[case.method](**case.options)


def heads(case: Case, head: Head, training: Training) -> list[tuple[float | None, Head]]:
    """Every head that the table speaks of: at the case's knobs, or all along a path."""
    family = made(case).fit(head, training)
    knobs: tuple[float | None, ...] = family.knobs if isinstance(family, Path) else case.knobs
    return [(knob, family.at(knob)) for knob in knobs]


def arrays(head: Head) -> tuple[Array, Array]:
    return head.weight.double().numpy(), head.bias.double().numpy()


# The table


def test_every_method_has_a_row() -> None:
    assert {case.method for case in CASES} == set(METHODS)


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_the_stated_formula_or_a_vanishing_gradient(case: Case, seed: int) -> None:
    given_problem = problem(seed)
    for knob, head in heads(case, given_problem.head(), given_problem.training()):
        weight, bias = arrays(head)
        t = 0.0 if knob is None else knob
        if case.formula is not None:
            expected_weight, expected_bias = case.formula(given_problem, t)
            np.testing.assert_allclose(weight, expected_weight, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(bias, expected_bias, rtol=1e-12, atol=1e-13)
        else:
            assert case.gradient is not None
            at_zero = case.gradient(given_problem, t, 0 * weight, 0 * bias)
            assert np.linalg.norm(case.gradient(given_problem, t, weight, bias)) < 1e-7 * np.linalg.norm(at_zero)


# The contract


def test_the_order_of_every_table() -> None:
    assert list(METHODS)[:2] == ["baseline", "refit"]
    assert list(METHODS)[2:] == sorted(list(METHODS)[2:])
    assert [name for name, method in METHODS.items() if method.control] == ["baseline", "refit"]


def test_one_file_a_method_named_alike() -> None:
    files = {
        path.stem
        for path in FilePath(posthoc_lt.methods.__file__).parent.glob("*.py")
        if path.stem not in ("__init__", "method")
    }
    assert files == {name.replace("-", "_") for name in METHODS}
    for name, method in METHODS.items():
        assert method.__module__ == f"posthoc_lt.methods.{name.replace('-', '_')}"
        assert method.name == name


@every_method
def test_class_attributes_say_what_it_is(method: type[Method]) -> None:
    assert (sys.modules[method.__module__].__doc__ or "").splitlines()[0].endswith(".")
    assert method.knob in ("tau", "l2", None)
    assert method.formula
    assert not method.paper or (len(method.paper) == 10 and method.paper[4] == ".")


@every_method
def test_options_can_become_flags(method: type[Method]) -> None:
    hints = get_type_hints(method)
    for option in dataclasses.fields(method):
        hint = hints[option.name]
        assert option.metadata["help"].endswith(".")
        assert option.default is not dataclasses.MISSING
        if get_origin(hint) is Literal:
            assert option.default in get_args(hint)
        else:
            assert hint in (float, int, bool, float | None)


@every_method
def test_methods_are_frozen_values(method: type[Method]) -> None:
    assert method() == method()
    assert hash(method()) == hash(method())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method(), next((f.name for f in dataclasses.fields(method)), "anything"), 1)


@every_method
def test_fitting_cannot_see_validation_or_test_data(method: type[Method]) -> None:
    hints = get_type_hints(method.fit)
    assert list(inspect.signature(method.fit).parameters) == ["self", "head", "training"]
    assert (hints["head"], hints["training"]) == (Head, Training)
    assert {f.name for f in dataclasses.fields(Training)} == {"counts", "features"}


@every_case
def test_the_same_fit_twice_is_the_same_to_the_bit(case: Case) -> None:
    p = problem()
    for (_, one), (_, other) in zip(
        heads(case, p.head(), p.training()), heads(case, p.head(), p.training()), strict=True
    ):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_dtype_shape_and_the_memory_of_a_bias_stay(case: Case, dtype: torch.dtype, has_bias: bool) -> None:
    p = problem()
    for _, head in heads(case, p.head(dtype, has_bias), p.training(torch.float32)):
        assert head.weight.dtype == head.bias.dtype == dtype
        assert head.weight.shape == p.w.shape
        assert head.has_bias == has_bias


@every_case
def test_half_precision_features_give_the_head_of_their_values(case: Case) -> None:
    p = problem()  # its features are exact in float16
    pairs = zip(
        heads(case, p.head(), p.training(torch.float16)), heads(case, p.head(), p.training(torch.float64)), strict=True
    )
    for (_, half), (_, full) in pairs:
        assert torch.equal(half.weight, full.weight)
        assert torch.equal(half.bias, full.bias)


@every_case
def test_any_chunk_size_gives_the_same_head(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem()
    whole = heads(case, p.head(), p.training())
    fitted = case.gradient is not None  # only as exact as its tolerance, and slow in small blocks
    tolerance = 1e-3 if fitted else 1e-12
    for rows in (25,) if fitted else (1, 7):
        monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", rows * 5)
        assert len(list(Features(torch.tensor(p.x)).chunks(4))) == -(-len(p.x) // rows)
        for (_, one), (_, other) in zip(whole, heads(case, p.head(), p.training()), strict=True):
            torch.testing.assert_close(one.weight, other.weight, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(one.bias, other.bias, rtol=tolerance, atol=tolerance)


@every_case
def test_the_inputs_stay_as_they_are(case: Case) -> None:
    p = problem()
    head, training = p.head(), p.training()
    heads(case, head, training)
    untouched_head, untouched = p.head(), p.training()
    assert training.features is not None
    assert untouched.features is not None
    pairs = [
        (head.weight, untouched_head.weight),
        (head.bias, untouched_head.bias),
        (training.counts, untouched.counts),
        (training.features.x, untouched.features.x),
        (training.features.labels, untouched.features.labels),
    ]
    assert all(torch.equal(one, other) for one, other in pairs)


@every_case
def test_counts_alone(case: Case) -> None:
    p = problem()
    alone = Training(p.training().counts)
    if case.needs_features:
        with pytest.raises(PosthocError, match=f"Wanted: train features, which {case.method} is fitted on"):
            made(case).fit(p.head(), alone)
    else:
        assert heads(case, p.head(), alone)


@every_case
def test_a_class_without_train_samples(case: Case) -> None:
    p = problem()
    keep = p.y != 2
    empty = Problem(p.w, p.b, p.x[keep], p.y[keep])
    if case.needs_every_class:
        with pytest.raises(PosthocError, match="no train sample of class 2"):
            made(case).fit(empty.head(), empty.training())
    else:
        assert heads(case, empty.head(), empty.training())


@every_case
def test_features_that_are_not_finite(case: Case) -> None:
    p = problem()
    for bad in (np.nan, np.inf):
        p.x[5, 1] = bad
        if case.needs_features:
            with pytest.raises(PosthocError, match="NaN or infinite"):
                made(case).fit(p.head(), p.training())
        else:
            assert heads(case, p.head(), p.training())


@every_case
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_head_of_the_cpu(case: Case) -> None:
    p, device = problem(), torch.device("cuda")
    training = p.training()
    assert training.features is not None
    there = Training(training.counts, training.features.to(device))
    pairs = zip(heads(case, p.head(), training), heads(case, p.head(), there), strict=True)
    for (_, one), (_, other) in pairs:
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.bias, other.bias, rtol=1e-5, atol=1e-6)


# Fitted heads: certificates, peers


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.knob == "l2"])
def test_a_path_carries_a_certificate_for_every_head(name: str) -> None:
    p = problem()
    family = METHODS[name]().fit(p.head(), p.training())
    assert isinstance(family, Path)
    assert family.knobs == L2_PATH
    assert len(family.knobs) == len(family.heads) == len(family.certificates) == 13
    assert list(family.knobs) == sorted(family.knobs, reverse=True)
    assert all(c.converged and c.gradient_norm <= 1e-8 for c in family.certificates)
    objectives = [c.objective for c in family.certificates]
    assert objectives == sorted(objectives, reverse=True)  # less penalty, lower minimum


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.knob == "l2"])
def test_one_penalty_is_one_head_and_that_of_the_path(name: str) -> None:
    p = problem()
    family = METHODS[name](**{"l2": 0.01}).fit(p.head(), p.training())
    whole = METHODS[name]().fit(p.head(), p.training())
    assert isinstance(family, Path)
    assert family.knobs == (0.01,)
    torch.testing.assert_close(family.at(0.01).weight, whole.at(0.01).weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.knob == "l2"])
@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_not_positive_is_refused(name: str, l2: float) -> None:
    p = problem()
    with pytest.raises(PosthocError, match="Wanted: a number above 0"):
        METHODS[name](**{"l2": l2}).fit(p.head(), p.training())


@pytest.mark.parametrize(("name", "balanced"), [("crt", True), ("refit", False)])
@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
def test_logistic_heads_are_those_of_scikit_learn(name: str, balanced: bool, l2: float) -> None:
    p = problem(4)
    peer = LogisticRegression(
        C=1 / (len(p.y) * l2 * penalty_unit(p, balanced)),
        class_weight="balanced" if balanced else None,
        solver="newton-cg",
        tol=1e-12,
        max_iter=1000,
    ).fit(p.x, p.y)
    weight, bias = arrays(METHODS[name](**{"l2": l2}).fit(p.head(), p.training()).at(l2))
    np.testing.assert_allclose(weight, peer.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias - bias.mean(), peer.intercept_ - peer.intercept_.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
def test_lws_is_the_minimum_that_scipy_finds(l2: float) -> None:
    p = problem(5)
    z, rows, weights = p.x @ p.w.T + p.b, np.arange(len(p.y)), sample_weights(p, balanced=True)

    def objective(s: Array) -> float:
        logits = s * z
        log_sums = np.log(np.exp(logits).sum(axis=1))
        return float(weights @ (log_sums - logits[rows, p.y]) + l2 / 2 * s @ s)

    peer = scipy.optimize.minimize(objective, np.ones(len(p.b)), method="BFGS", options={"gtol": 1e-7})
    weight, bias = arrays(METHODS["lws"](**{"l2": l2}).fit(p.head(), p.training()).at(l2))
    np.testing.assert_allclose(weight, peer.x[:, None] * p.w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, peer.x * p.b, rtol=1e-3, atol=1e-4)


def test_balanced_weights_are_those_of_features_at_hand_not_of_the_counts() -> None:
    p = problem()
    training = p.training()
    more = Training(training.counts * 3, training.features)
    one, other = (METHODS["crt"](**{"l2": 0.1}).fit(p.head(), t).at(0.1) for t in (training, more))
    assert torch.equal(one.weight, other.weight)


# Closed forms


@pytest.mark.parametrize("target", ["uniform", "train"])
def test_tau_zero_of_logit_adjustment_is_the_baseline_to_the_bit(target: str) -> None:
    for dtype in (torch.float32, torch.float64):
        head = problem().head(dtype)
        adjusted = METHODS["logit-adjust"](**{"target": target}).fit(head, problem().training()).at(0.0)
        assert torch.equal(adjusted.weight, head.weight)
        assert torch.equal(adjusted.bias, head.bias)


@given(
    seed=st.integers(0, 2**32 - 1),
    tau=st.floats(-5, 5),
    classes=st.integers(2, 8),
    each=st.integers(1, 10**6),
)
@settings(max_examples=50, deadline=None)
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
@settings(max_examples=50, deadline=None)
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
