"""Step curves against a walk over their cells, one at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posthoc_lt.family import Line, Offsets, Path
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.methods.blend import _in_unit_of
from posthoc_lt.search import Goal, choose, cross_fit, stratified_folds
from posthoc_lt.search.curve import Curve
from posthoc_lt.search.offsets import learn_offsets
from posthoc_lt.search.pareto import pareto
from posthoc_lt.search.unlabelled import match_prior


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    widths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    values = draw(st.lists(st.integers(-2, 2), min_size=len(widths), max_size=len(widths)))
    return Curve(torch.tensor(np.cumsum([0, *widths]) / 4), torch.tensor(values, dtype=torch.float64) / 3)


@given(curves(), st.data())
def test_the_maximum_is_on_the_widest_of_the_best_plateaus(curve: Curve, data: st.DataObject) -> None:
    size = len(curve.values)
    allowed = data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    best = max(v for v, may in zip(curve.values.tolist(), allowed, strict=True) if may)
    plateaus: list[tuple[float, float]] = []
    for k in range(size):
        low, high = float(curve.edges[k]), float(curve.edges[k + 1])
        if allowed[k] and float(curve.values[k]) == best:
            if plateaus and plateaus[-1][1] == low:
                low = plateaus.pop()[0]
            plateaus.append((low, high))
    widest = max(high - low for low, high in plateaus)
    first = next(each for each in plateaus if each[1] - each[0] == widest)
    assert curve.maximum(torch.tensor(allowed)) == (best, first)
    cells = [k for k in range(size) if allowed[k]]
    ends = (float(curve.edges[cells[0]]), float(curve.edges[cells[-1] + 1]))
    assert curve.hull(torch.tensor(allowed)) == ends


@given(curves(), st.integers(0, 200))
def test_a_plateau_is_all_that_has_the_same_value_around_a_knob(curve: Curve, step: int) -> None:
    knob = min(step / 16 + 1 / 32, float(curve.edges[-1]) - 1 / 32)
    points = np.arange(0, float(curve.edges[-1]), 1 / 16) + 1 / 32
    value = curve.at(knob)
    same = [curve.at(point) == value for point in points]
    here = int(knob * 16)
    low = here - next((k for k, each in enumerate(reversed(same[:here])) if not each), here)
    high = here + next((k for k, each in enumerate(same[here:]) if not each), len(same) - here)
    assert curve.plateau(knob) == (low / 16, high / 16)


def test_the_label_free_knob_is_that_of_a_fine_grid() -> None:
    rng = np.random.default_rng(4)
    x, weight = rng.normal(size=(80, 3)), rng.normal(size=(4, 3))
    slope, target = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.3, 0.4])
    origin, direction = Head.without_bias(torch.from_numpy(weight)), torch.from_numpy(slope)
    family = Line(origin, Head(torch.zeros(4, 3).double(), direction))

    def divergence(knob: float) -> float:
        logits = np.exp(x @ weight.T + knob * slope)
        mean = (logits / logits.sum(axis=1, keepdims=True)).mean(axis=0)
        return float((target * np.log(target / mean)).sum())

    found = match_prior(family, Features(torch.from_numpy(x)), torch.from_numpy(target), (-2.0, 2.0))
    best = min(np.linspace(-2, 2, 40_001), key=divergence)
    assert found == pytest.approx(best, abs=2e-4)


def test_what_a_path_could_reach_stands_beside_what_was_chosen() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(3, 4))
    y = np.repeat(np.arange(3), 8)
    x = means[y] + 2 * rng.normal(size=(24, 4))
    heads = [Head.without_bias(torch.from_numpy(means + 2 * rng.normal(size=(3, 4)))) for _ in range(6)]
    val = Features(torch.from_numpy(x), torch.from_numpy(y))
    recalls = [np.mean([((x @ h.weight.numpy().T).argmax(1) == y)[y == c].mean() for c in range(3)]) for h in heads]
    knobs = (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    choice = choose(Path(knobs, heads), val, Goal(rule="metric"))
    best = int(np.argmax(recalls))
    assert choice.knob == knobs[best]
    assert choice.best is not None
    assert choice.best[0] == pytest.approx(recalls[best])
    assert choice.best[1] == (knobs[best], knobs[best])


def test_folds_follow_their_seed() -> None:
    labels = torch.arange(60) % 3
    assert not torch.equal(stratified_folds(labels, 5, 0), stratified_folds(labels, 5, 1))
    rng = np.random.default_rng(2)
    val = Features(torch.from_numpy(rng.normal(size=(60, 3))), labels)
    origin = Head.without_bias(torch.from_numpy(rng.normal(size=(3, 3))))
    steep = Line(origin, Head(torch.zeros(3, 3).double(), torch.tensor([0.0, 1.0, 2.0]).double()))
    assert len({tuple(cross_fit(steep, val, Goal(rule="metric"), seed=seed).tolist()) for seed in range(8)}) > 1


def test_offsets_trade_along_the_line_that_validation_taught() -> None:
    rng = np.random.default_rng(5)
    val = Features(torch.from_numpy(rng.normal(size=(60, 3))), torch.arange(60) % 3)
    groups = {name: torch.arange(3) == k for k, name in enumerate(("many", "medium", "few"))}
    steep = Head(torch.zeros(3, 3).double(), torch.tensor([0.0, 1.0, 2.0]).double())
    family = Offsets(Line(Head.without_bias(torch.from_numpy(rng.normal(size=(3, 3)))), steep), 0.5)
    line = learn_offsets(family, val, Goal().weights(val.labels), (0.0, 2.0))
    assert line.origin.bias.any()
    assert pareto(family, val, groups, (0.0, 2.0)) == pareto(line, val, groups, (0.0, 2.0))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_blend_brings_the_other_head_to_the_unit_of_the_first(scale: float) -> None:
    rng = np.random.default_rng(6)
    x, one, two = rng.normal(size=(20, 3)), rng.normal(size=(4, 3)), scale * rng.normal(size=(4, 3))
    spreads = [np.square(z - z.mean(axis=1, keepdims=True)).sum() for z in (x @ one.T, x @ two.T)]
    head, other = (Head.without_bias(torch.from_numpy(each)) for each in (one, two))
    found = _in_unit_of(head, other, Features(torch.from_numpy(x)))
    np.testing.assert_allclose(found.weight.numpy(), two * np.sqrt(spreads[0] / spreads[1]), rtol=1e-6)
