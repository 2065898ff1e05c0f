"""The exact curve against argmax of the folded head, cell by cell, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import posthoc_lt.columns
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Family, Line, Path, Power
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search import step_curve, winning_intervals
from posthoc_lt.search.curve import RESOLUTION, Curve
from posthoc_lt.search.intervals import Intervals

BOUNDS = (0.0, 4.0)


def brute_force(family: Family, x: np.ndarray, y: np.ndarray, weights: np.ndarray, knobs: np.ndarray) -> np.ndarray:
    """F at each knob: scores written out, numpy's argmax (the first of equals)."""
    knobs = np.asarray(knobs)[:, None, None]
    if isinstance(family, Line):
        slope = x @ family.direction.weight.numpy().T + family.direction.bias.numpy()
        scores = x @ family.origin.weight.numpy().T + family.origin.bias.numpy() + knobs * slope
    else:
        assert isinstance(family, Power)
        scores = x @ family.head.weight.numpy().T + family.head.bias.numpy()
        scores = scores * np.exp(-knobs * family.log_scale.numpy())
    values: np.ndarray = (scores.argmax(axis=2) == y) @ weights
    return values


def highest(curve: Curve) -> tuple[float, tuple[float, float]]:
    return curve.maximum(torch.ones(len(curve.values), dtype=torch.bool))


def assert_exact(family: Line | Power, x: np.ndarray, y: np.ndarray) -> None:
    weights = 1.0 / np.bincount(y)[y] / len(set(y.tolist()))
    features = Features(torch.from_numpy(x), torch.from_numpy(y))
    curve = step_curve(winning_intervals(family, features), torch.from_numpy(weights), BOUNDS)
    edges, values = curve.edges.numpy(), curve.values.numpy()
    assert edges[0] == BOUNDS[0]
    assert edges[-1] == BOUNDS[1]
    wide = np.diff(edges) > 2 * RESOLUTION
    assert wide.any()
    middles = (edges[:-1] + edges[1:])[wide] / 2
    assert values[wide] == pytest.approx(brute_force(family, x, y, weights, middles), abs=1e-12)


def heads(rng: np.random.Generator, classes: int, dimensions: int) -> tuple[Head, torch.Tensor]:
    weight = torch.from_numpy(rng.normal(size=(classes, dimensions)) * rng.uniform(0.3, 3, size=(classes, 1)))
    return Head(weight, torch.from_numpy(rng.normal(size=classes))), weight.norm(dim=1).log()


def families(rng: np.random.Generator, classes: int, dimensions: int) -> list[Line | Power]:
    head, log_scale = heads(rng, classes, dimensions)
    other, _ = heads(rng, classes, dimensions)
    prior = torch.from_numpy(rng.dirichlet(np.ones(classes))).log()
    flat = torch.zeros_like(head.weight)
    blend = Head(other.weight - head.weight, other.bias - head.bias)
    return [
        Line(head, Head(flat, -prior)),
        Line(head, blend),
        Power(Head.without_bias(head.weight), log_scale),
        Power(head, log_scale),
        Power(head, prior),
    ]


@pytest.mark.parametrize("kind", range(5))
def test_every_cell_of_random_problems_equals_brute_force(kind: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(2, 9))
        x, y = rng.normal(size=(60, 4)), rng.integers(0, classes, size=60)
        assert_exact(families(rng, classes, 4)[kind], x, y)


@pytest.mark.parametrize("kind", [0, 2, 3])
def test_exact_maximum_is_no_less_than_a_fine_grid_on_200_problems(kind: int) -> None:
    above = 0
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        x, y = rng.normal(size=(40, 3)), rng.integers(0, 5, size=40)
        family = families(rng, 5, 3)[kind]
        weights = 1.0 / np.bincount(y)[y] / len(set(y.tolist()))
        intervals = winning_intervals(family, Features(torch.from_numpy(x), torch.from_numpy(y)))
        best, (low, high) = highest(step_curve(intervals, torch.from_numpy(weights), BOUNDS))
        grid = brute_force(family, x, y, weights, np.linspace(*BOUNDS, 2001)).max()
        assert best >= grid - 1e-12
        inside = np.array([low + (high - low) * 0.487])
        assert best == pytest.approx(brute_force(family, x, y, weights, inside)[0], abs=1e-12)
        above += best > grid + 1e-12
    assert above > 0, "a 2,001-point grid misses the optimum at times: else this test compares nothing"


quarters = st.integers(-8, 8).map(lambda n: n / 4)


@settings(max_examples=300)
@given(data=st.data(), classes=st.integers(1, 5), count=st.integers(1, 12), power=st.booleans())
def test_ties_zeros_and_equal_slopes_equal_brute_force(
    data: st.DataObject, classes: int, count: int, power: bool
) -> None:
    """Quarters collide often: equal logits, zero logits, equal priors and shared breakpoints all occur."""
    logits = np.array(
        data.draw(st.lists(st.lists(quarters, min_size=classes, max_size=classes), min_size=count, max_size=count))
    )
    slope = np.array(data.draw(st.lists(quarters, min_size=classes, max_size=classes)))
    y = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    identity = Head.without_bias(torch.eye(classes, dtype=torch.float64))
    family: Line | Power
    if power:
        family = Power(identity, torch.from_numpy(slope))
    else:
        family = Line(identity, Head(torch.zeros(classes, classes, dtype=torch.float64), torch.from_numpy(slope)))
    assert_exact(family, logits, y)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_extreme_scales(scale: float) -> None:
    rng = np.random.default_rng(3)
    for family in families(rng, 6, 4)[2:]:
        assert_exact(family, rng.normal(size=(50, 4)) * scale, rng.integers(0, 6, size=50))


def test_missing_classes_carry_no_weight() -> None:
    rng = np.random.default_rng(4)
    for family in families(rng, 6, 4):
        assert_exact(family, rng.normal(size=(30, 4)), rng.integers(1, 3, size=30))


def test_chunks_do_not_change_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    family = families(rng, 5, 4)[2]
    features = Features(torch.from_numpy(rng.normal(size=(97, 4))), torch.from_numpy(rng.integers(0, 5, size=97)))
    whole = winning_intervals(family, features)
    monkeypatch.setattr("posthoc_lt.features.CHUNK_ELEMENTS", 8 * 5 * 10)
    pieces = winning_intervals(family, features)
    assert torch.allclose(whole.low, pieces.low, rtol=1e-12)
    assert torch.allclose(whole.high, pieces.high, rtol=1e-12)


def test_breakpoints_equal_but_for_rounding_open_no_cell() -> None:
    """One sample ends at 1/3, the next begins there: no knob has both right."""
    third = 1.0 / 3.0
    intervals = Intervals(torch.tensor([0.0, third - 1e-16]).double(), torch.tensor([third + 2e-16, 1.0]).double())
    best, _ = highest(step_curve(intervals, torch.ones(2).double(), (0.0, 1.0)))
    assert best == 1.0


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_blocks_of_any_size_add_up_to_the_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many breakpoints coincide, some intervals are empty, some reach past the bounds, weights have either sign."""
    monkeypatch.setattr(posthoc_lt.columns, "BLOCK", block)
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.integers(-4, 24, size=(2, 200)) / 4, axis=0)
    low[:20] += 3
    weights = rng.normal(size=200)
    curve = step_curve(Intervals(*map(torch.from_numpy, (low, high))), torch.from_numpy(weights), BOUNDS)
    edges = curve.edges.numpy()
    middles = (edges[:-1] + edges[1:])[:, None] / 2
    assert (np.diff(edges) > 0).all()
    assert len(edges) == 17
    assert curve.values.numpy() == pytest.approx(((low < middles) & (middles < high)) @ weights, abs=1e-12)


def test_a_path_has_no_intervals() -> None:
    path = Path((1.0,), (Head(torch.eye(2), torch.zeros(2)),))
    with pytest.raises(PosthocError, match="Next: give"):
        winning_intervals(path, Features(torch.eye(2), torch.tensor([0, 1])))
