"""Every method against the case table, and the contract that all of them keep."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path as FilePath
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from method_cases import CASES, Case, Problem, arrays, problem

import posthoc_lt.features
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Offsets, Path
from posthoc_lt.features import Features, Training
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.methods.method import Method
from posthoc_lt.priors import Shares

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def made(case: Case) -> Method:
    return METHODS[case.method](**case.options)


def heads(case: Case, head: Head, training: Training) -> list[tuple[float | None, Head]]:
    """Every head that the table speaks of: at the case's knobs, or all along a path; offsets as before validation."""
    family = made(case).fit(head, training)
    family = family.line if isinstance(family, Offsets) else family
    knobs: tuple[float | None, ...] = family.knobs if isinstance(family, Path) else case.knobs
    return [(knob, family.at(knob)) for knob in knobs]


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


DROPPED_IN = '''"""Halfway: the head halved."""

from dataclasses import dataclass

from posthoc_lt.family import Point
from posthoc_lt.methods.method import Method
from posthoc_lt.methods.ncm import NCM


@dataclass(frozen=True)
class Halfway(Method):
    control = {control}

    def fit(self, head, training):
        return Point(head)
'''


@pytest.mark.parametrize("control", [False, True])
def test_a_file_dropped_into_the_folder_is_a_method_in_its_place(
    control: bool, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_way.py").write_text(DROPPED_IN.format(control=control))
    monkeypatch.setattr(posthoc_lt.methods, "__path__", [*posthoc_lt.methods.__path__, str(tmp_path)])
    found = posthoc_lt.methods._discover()
    sys.modules.pop("posthoc_lt.methods.half_way")
    controls, others = ["baseline", "refit"], list(METHODS)[2:]
    ordered = [*sorted([*controls, "half-way"]), *others] if control else [*controls, *sorted([*others, "half-way"])]
    assert list(found) == ordered
    assert found["half-way"].__name__ == "Halfway"
    assert {name: method for name, method in found.items() if name != "half-way"} == METHODS


def test_a_name_of_its_own_stands_before_that_of_the_file() -> None:
    named: type[Method] = type("Named", (Method,), {"name": "own-name", "__module__": "any.other_file"})
    unnamed: type[Method] = type("Unnamed", (Method,), {"__module__": "any.other_file"})
    assert (named.name, unnamed.name) == ("own-name", "other-file")


@every_method
def test_class_attributes_say_what_it_is(method: type[Method]) -> None:
    assert (sys.modules[method.__module__].__doc__ or "").splitlines()[0].endswith(".")
    assert method.knob in ("tau", "gamma", "l2", "mix", "shrinkage", None)
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
        elif Shares in get_args(hint):
            assert option.default in get_args(get_args(hint)[0])
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
