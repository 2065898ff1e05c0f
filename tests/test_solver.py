"""The minimiser on functions with known minima, and logistic regression's certificate, units and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from by_path import load
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import logistic_gradient, penalty_unit, problem, sample_weights, softmax
from torch import Tensor

import posthoc_lt.features
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.methods import DEFAULT_METHODS
from posthoc_lt.priors import class_weights
from posthoc_lt.solver import blocks, curvature, fit_logistic, fit_scaling, minimise, path, penalties
from posthoc_lt.solver.blocks import Block, Blocks, sketch
from posthoc_lt.solver.minimise import Precondition


@dataclass(frozen=True)
class Given:
    """An objective from its value and gradient, with nothing known of its curvature."""

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    scale: float = 1.0
    noise: float = 1e-12

    def evaluate(self, point: Tensor) -> tuple[float, Tensor]:
        return self.value(point).item(), self.gradient(point)

    def precondition(self, point: Tensor) -> Precondition:
        return lambda g: g.clone()


def test_a_quadratic_ends_at_its_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    a, b = root @ root.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)
    point, certificate = minimise(Given(lambda x: x @ a @ x / 2 - b @ x, lambda x: a @ x - b), torch.zeros_like(b))
    assert certificate.converged
    np.testing.assert_allclose(point.numpy(), np.linalg.solve(a.numpy(), b.numpy()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("start", [-30.0, 0.0, 40.0, 4000.0])
def test_a_function_flat_far_from_its_minimum_and_steep_beside_it(start: float) -> None:
    # Σ kᵢ·softplus-like walls: slopes from 1e-3 to 1e3, minimum where the logistic function is 1/2
    k = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    objective = Given(
        lambda x: (k * (torch.logaddexp(x - 3, 3 - x))).sum(),
        lambda x: k * torch.tanh(x - 3),
        scale=1e-3,
    )
    point, certificate = minimise(objective, torch.full_like(k, start))
    assert certificate.converged
    torch.testing.assert_close(point, torch.full_like(k, 3.0), rtol=0, atol=1e-6)


def test_steps_that_run_out_are_told() -> None:
    p = problem()
    features = Features(torch.tensor(p.x), torch.tensor(p.y))
    (solution,) = fit_logistic(features, class_weights(torch.tensor(p.counts)), [1e-3], steps=2)
    assert not solution.certificate.converged
    assert solution.certificate.iterations == 2
    assert solution.certificate.gradient_norm > 1e-8


def test_a_gradient_that_points_uphill_ends_without_convergence() -> None:
    start = torch.ones(2, dtype=torch.float64)
    point, certificate = minimise(Given(lambda x: x.square().sum(), lambda x: -2 * x), start)
    assert not certificate.converged
    assert torch.equal(point, start)


def test_a_start_at_the_minimum_takes_no_step() -> None:
    objective = Given(lambda x: x.square().sum(), lambda x: 2 * x)
    _, certificate = minimise(objective, torch.zeros(2, dtype=torch.float64))
    assert (certificate.converged, certificate.iterations, certificate.gradient_norm) == (True, 0, 0.0)


@pytest.mark.parametrize("balanced", [True, False])
def test_the_certificate_says_what_an_independent_count_says(balanced: bool) -> None:
    p, l2 = problem(2), 0.01
    weights = class_weights(torch.tensor(p.counts), q=0.0 if balanced else 1.0)
    features = Features(torch.tensor(p.x), torch.tensor(p.y))
    (solution,) = fit_logistic(features, weights, [l2], tolerance=1e-2)
    weight, bias = solution.weight.numpy(), solution.bias.numpy()
    unit, w = penalty_unit(p, balanced), sample_weights(p, balanced)
    losses = [-np.log(softmax(weight @ x + bias)[y]) for x, y in zip(p.x, p.y, strict=True)]
    assert solution.certificate.objective == pytest.approx(w @ losses + l2 * unit / 2 * (weight**2).sum(), rel=1e-12)

    def norm(weight: np.ndarray, bias: np.ndarray) -> float:
        """The gradient in (x − m)/σ: the chain rule on the gradient in x."""
        gradient = logistic_gradient(balanced)(p, l2, weight, bias)
        g_weight, g_bias = gradient[: weight.size].reshape(weight.shape), gradient[weight.size :]
        g_weight = (g_weight - np.outer(g_bias, w @ p.x)) / unit**0.5
        return float(np.sqrt((g_weight**2).sum() + (g_bias**2).sum()))

    expected = norm(weight, bias) / norm(0 * weight, 0 * bias)
    assert 1e-6 < expected <= 1e-2
    assert solution.certificate.gradient_norm == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
@pytest.mark.parametrize("balanced", [True, False])
def test_large_problems_are_drafted_and_end_where_small_ones_do(
    balanced: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(4, counts=(400, 90, 30, 4), dimensions=8)
    features = Features(torch.tensor(p.x, dtype=torch.float16), torch.tensor(p.y))
    weights = class_weights(torch.tensor(p.counts), q=0.0 if balanced else 1.0)
    l2 = [1.0, 0.1, 1e-3]
    small = fit_logistic(features, weights, l2)
    monkeypatch.setattr(blocks, "LARGE", 0)
    monkeypatch.setattr(curvature, "BLOCK_WIDTH", 0)
    large = fit_logistic(features, weights, l2, tolerance=tolerance)
    for penalty, one, other in zip(l2, small, large, strict=True):
        assert other.certificate.converged
        gap = other.certificate.objective - one.certificate.objective
        assert abs(gap) <= 1e-6 * one.certificate.objective + tolerance**2 / (2 * penalty)  # ‖∇‖²/2λ, and float32
    default = fit_logistic(features, weights, l2)
    assert all(1e-8 < each.certificate.gradient_norm <= 1e-3 for each in default)


@pytest.mark.parametrize("offsets", [False, True])
def test_large_scalings_end_where_small_ones_do(offsets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(4, counts=(400, 90, 30, 4), dimensions=8)
    features, weights = Features(torch.tensor(p.x), torch.tensor(p.y)), class_weights(torch.tensor(p.counts))
    centre = torch.tensor([[1.0, 0.0]] if offsets else [[0.0]]).repeat(4, 1)
    small = fit_scaling(p.head(), features, weights, [1.0, 1e-3], centre)
    monkeypatch.setattr(blocks, "LARGE", 0)
    for one, other in zip(small, fit_scaling(p.head(), features, weights, [1.0, 1e-3], centre), strict=True):
        assert other.certificate.converged
        assert other.certificate.objective == pytest.approx(one.certificate.objective, rel=1e-4)
        torch.testing.assert_close(other.weight.double(), one.weight, rtol=1e-2, atol=1e-2)


@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6), share=st.floats(0.05, 1.0), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_a_sketch_keeps_rare_classes_whole_and_every_class_s_weight(counts: list[int], share: float, seed: int) -> None:
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    weight = class_weights(torch.tensor(counts))
    found = sketch(Blocks(Features(torch.arange(len(y)).double()[:, None], y), weight), torch.float64, share)
    rows = found.features.x[:, 0].long()
    assert torch.equal(found.features.labels, y[rows])
    assert rows.tolist() == sorted(set(rows.tolist()))
    kept = torch.bincount(y[rows], minlength=len(counts))
    cap = int(kept.max())
    assert kept.tolist() == [min(n, cap) for n in counts]
    assert len(rows) >= share * len(y) > sum(min(n, cap - 1) for n in counts)
    torch.testing.assert_close(found.class_weight * kept, weight * torch.tensor(counts))


def test_lws_and_affine_take_about_one_pass_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(0, counts=(200, 50, 10))
    features, weights = Features(torch.tensor(p.x), torch.tensor(p.y)), class_weights(torch.tensor(p.counts))
    passes, read = [], Blocks.__iter__

    def counted(each: Blocks) -> Iterator[Block]:
        passes.append(1)
        return read(each)

    monkeypatch.setattr(Blocks, "__iter__", counted)
    for centre in (torch.zeros(3, 1), torch.tensor([[1.0, 0.0]]).repeat(3, 1)):
        passes.clear()
        found = fit_scaling(p.head(), features, weights, penalties(None), centre)
        steps = sum(each.certificate.iterations for each in found)
        # one to weigh the start of all, two a penalty for its start and its Hessian, and one a step
        assert len(passes) <= 1 + 2 * len(found) + 1.2 * steps


@given(scale=st.floats(1e-4, 1e4), offset=st.floats(-100, 100), balanced=st.booleans())
@settings(max_examples=15)
def test_neither_unit_nor_offset_of_the_features_changes_a_logit(scale: float, offset: float, balanced: bool) -> None:
    p = problem(3)
    x, y = torch.tensor(p.x), torch.tensor(p.y)
    moved = scale * (x + offset)
    weights = class_weights(torch.tensor(p.counts), q=float(balanced))
    one, other = (fit_logistic(Features(f, y), weights, [0.05])[0] for f in (x, moved))
    logits = (x @ one.weight.T + one.bias, moved @ other.weight.T + other.bias)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_of_equal_minimisers_the_centred_one_is_given() -> None:
    p = problem()
    features = Features(torch.tensor(p.x), torch.tensor(p.y))
    (solution,) = fit_logistic(features, class_weights(torch.tensor(p.counts)), [1e-3])
    assert solution.weight.sum(dim=0).abs().max() < 1e-9
    assert abs(solution.bias.sum()) < 1e-9


def test_wide_features_are_preconditioned_otherwise_and_end_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(1)
    features, weights = Features(torch.tensor(p.x), torch.tensor(p.y)), class_weights(torch.tensor(p.counts))
    by_class = fit_logistic(features, weights, [1.0, 0.01], tolerance=1e-10)
    monkeypatch.setattr(curvature, "BLOCK_WIDTH", 0)
    likeness = fit_logistic(features, weights, [1.0, 0.01], tolerance=1e-10)
    for one, other in zip(by_class, likeness, strict=True):
        assert one.certificate.converged
        assert other.certificate.converged
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(one.bias, other.bias, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("width", [0, 10**6])
def test_more_dimensions_than_samples_dead_ones_and_copies(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "BLOCK_WIDTH", width)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    x[:, 3], x[:, 4], x[:, 5] = 0.0, 7.0, x[:, 6]
    y = torch.tensor([0] * 6 + [1] * 4 + [2] * 2)
    for solution in fit_logistic(Features(x, y), class_weights(torch.bincount(y)), [1.0, 1e-2, 1e-5]):
        assert solution.certificate.converged
        assert solution.weight[:, 3:5].abs().max() < 1e-4
        torch.testing.assert_close(solution.weight[:, 5], solution.weight[:, 6], rtol=1e-4, atol=1e-4)
        assert ((x @ solution.weight.T + solution.bias).argmax(dim=1) == y).all()


def test_features_that_are_all_alike_are_refused() -> None:
    features = Features(torch.full((4, 3), 0.1), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(PosthocError, match="all alike"):
        fit_logistic(features, class_weights(torch.tensor([2, 2])), [1.0])


def test_classes_that_do_not_differ_get_a_head_of_zeros() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 1)
    (solution,) = fit_logistic(Features(x, torch.tensor([0, 0, 1, 1])), torch.tensor([0.25, 0.25]), [0.1])
    assert solution.certificate.converged
    assert solution.weight.abs().max() < 1e-9
    assert solution.certificate.objective == pytest.approx(np.log(2))


def test_blocks_in_pieces_hold_the_samples_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.arange(20.0).reshape(10, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    passes = Blocks(Features(x, y), torch.tensor([0.1, 0.2, 0.3]))
    monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", 12)
    pieces = list(passes)
    assert [len(piece.x) for piece in pieces] == [4, 4, 2]
    assert torch.equal(torch.cat([piece.x for piece in pieces]), x.double())
    assert torch.equal(torch.cat([piece.y for piece in pieces]), y)
    torch.testing.assert_close(torch.cat([piece.w for piece in pieces]), 0.1 * (y + 1).double(), rtol=1e-6, atol=0)
    assert [len(piece.x) for piece in passes] == [4, 4, 2]


def test_penalties_run_from_strong_to_weak_by_half_decades() -> None:
    assert len(penalties(None)) == 13
    np.testing.assert_allclose(np.log10(penalties(None)), np.linspace(1, -5, 13), atol=1e-12)
    assert penalties(0.5) == (0.5,)


def test_a_path_is_in_the_dtype_and_form_of_the_head() -> None:
    p = problem()
    features = Features(torch.tensor(p.x), torch.tensor(p.y))
    solutions = fit_logistic(features, class_weights(torch.tensor(p.counts)), [1.0, 0.1])
    fitted = path(Head.without_bias(torch.ones(4, 5)), [1.0, 0.1], solutions)
    assert torch.equal(fitted.at(0.1).weight, solutions[1].weight.float())
    assert not fitted.at(0.1).has_bias


def test_the_benchmark_against_peers_compares_equal_objectives(capsys: pytest.CaptureFixture[str]) -> None:
    size = "--samples 300 --dimensions 8 --classes 3 --imbalance 8 --l2 0.1 --json"
    load("benchmarks/solver.py").main(size.split())
    (found,) = json.loads(capsys.readouterr().out)
    for peer in ("sklearn_objective", "torch_objective"):
        assert found["objective"] == pytest.approx(found[peer], rel=1e-4)
    assert found["relative_gradient"] <= 1.5e-3
    assert found["seconds_over_sklearn"] == found["seconds"] / found["sklearn_seconds"]


def test_the_benchmark_of_all_methods_fits_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    load("benchmarks/solver.py").main(["--size", "imagenet-lt", "--fraction", "0.004", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["dimensions"], found["classes"]) == (463, 8, 4)
    assert found["methods"] == list(DEFAULT_METHODS)
    assert found["compare_products"] == found["compare_seconds"] / found["product_seconds"]
    assert found["peak_anonymous_mib"] > 0
    assert (found["skipped"], found["unsolved"]) == ({}, [])
