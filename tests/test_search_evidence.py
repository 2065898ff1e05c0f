"""What samples say of a goal at every knob, over groups and under constraints, against brute-force predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import posthoc_lt.columns
import posthoc_lt.features
from posthoc_lt.columns import Columns
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import KeptBias, Line
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search import Constraint, Goal, value
from posthoc_lt.search.envelope import walk
from posthoc_lt.search.evidence import Judgement, gather
from posthoc_lt.search.figures import FIGURES, Figure, paired_error
from posthoc_lt.search.trace import spread, trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Family = Line | KeptBias
BOUNDS = (0.0, 3.0)
KNOBS = np.linspace(0.0131, 2.9869, 41)
MEMBERS: Mapping[str, tuple[int, ...]] = {"many": (0,), "medium": (1, 2), "few": (3, 4)}
GROUPS = {name: torch.tensor([c in members for c in range(5)]) for name, members in MEMBERS.items()}
COST = np.random.default_rng(3).integers(1, 9, size=(5, 5)).astype(float)


@pytest.fixture(autouse=True)
def seven_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posthoc_lt.columns, "BLOCK", 7)
    monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", 7 * 8 * 5)


def problem(seed: int = 0) -> tuple[Floats, Ints]:
    """Overlapping classes of 9, 5, 4 and 6 samples, and one of the rare ones without any."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1, 2, 3], [9, 5, 4, 6])
    x = rng.normal(size=(5, 3))[y] + rng.normal(size=(len(y), 3))
    return x.astype(np.float16).astype(np.float64), y


def adjustable(seed: int = 0) -> Line:
    rng = np.random.default_rng(seed + 50)
    weight = torch.from_numpy(rng.normal(size=(5, 3)))
    return Line(
        Head.without_bias(weight), Head(torch.zeros(5, 3).double(), torch.tensor([0.0, 0.4, 0.5, 1.0, 1.3]).double())
    )


def keeping(seed: int = 0) -> KeptBias:
    rng = np.random.default_rng(seed + 50)
    weight = torch.from_numpy(rng.normal(size=(5, 3)) * rng.uniform(0.3, 3.0, size=(5, 1)))
    return KeptBias(Head(weight, torch.from_numpy(rng.normal(size=5))), weight.norm(dim=1).log())


def predictions(family: Family, x: Floats, knob: float) -> Ints:
    if isinstance(family, Line):
        scores = x @ family.origin.weight.numpy().T + knob * family.direction.bias.numpy()
    else:
        scores = x @ family.head.weight.numpy().T * np.exp(-knob * family.log_scale.numpy()) + family.head.bias.numpy()
    found: Ints = scores.argmax(axis=1)
    return found


def share(name: str, predicted: Ints, y: Ints) -> float:
    """Plain accuracy, or the mean recall of a group's classes that have a sample."""
    if name == "accuracy":
        return float((predicted == y).mean())
    return float(np.mean([(predicted[y == c] == c).mean() for c in MEMBERS[name] if (y == c).any()]))


def worth(name: str, y: Ints) -> Floats:
    """What each sample adds to its group's mean recall where it is right."""
    present = [c for c in MEMBERS[name] if (y == c).any()]
    return np.array([1 / (len(present) * (y == c).sum()) if c in present else 0.0 for c in y])


def val(x: Floats, y: Ints) -> Features:
    return Features(torch.from_numpy(x).half(), torch.from_numpy(y))  # which holds them exactly


FLOORS = (Constraint("many", 0.7), Constraint("accuracy", 0.45))


def assert_judged(judged: Judgement, family: Family, x: Floats, y: Ints, goal: Goal) -> None:
    knob = float(KNOBS[17])
    error, here = judged.error(knob), predictions(family, x, knob) == y
    for t in KNOBS:
        cell, predicted = judged.curve.cell(t), predictions(family, x, t)
        assert float(judged.curve.values[cell]) == pytest.approx(share(goal.metric, predicted, y), abs=1e-12)
        slack = min([0.0, *(share(each.figure, predicted, y) - each.floor for each in goal.subject_to)])
        assert float(judged.slack[cell]) == pytest.approx(slack, abs=1e-12)
        flipped = worth(goal.metric, y)[(predicted == y) != here]
        assert float(error[cell]) == pytest.approx(np.sqrt(np.square(flipped).sum()), abs=1e-8)


@pytest.mark.parametrize("floors", [(), FLOORS[:1], FLOORS])
@pytest.mark.parametrize("metric", MEMBERS)
@pytest.mark.parametrize("make", [adjustable, keeping])
def test_groups_and_floors_are_judged_at_every_knob(
    make: Callable[[], Family], metric: str, floors: tuple[Constraint, ...]
) -> None:
    (x, y), family = problem(), make()
    goal = Goal(metric, subject_to=floors, groups=GROUPS)
    evidence = gather(family, val(x, y), goal, BOUNDS)
    assert_judged(evidence.judge(goal), family, x, y, goal)
    kept = np.random.default_rng(1).random(len(y)) < 0.7
    assert_judged(evidence.subset(torch.from_numpy(kept)).judge(goal), family, x[kept], y[kept], goal)


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_a_group_without_a_sample_is_no_figure(groups: dict[str, torch.Tensor] | None) -> None:
    x, y = problem()
    common = y < 3
    with pytest.raises(PosthocError, match="without a sample of the few-shot classes"):
        gather(adjustable(), val(x[common], y[common]), Goal("few", groups=groups), BOUNDS).judge(
            Goal("few", groups=groups)
        )


@pytest.mark.parametrize("make", [adjustable, keeping])
@pytest.mark.parametrize("group", [None, "medium"])
def test_what_mistakes_cost_is_counted_within_a_group_too(make: Callable[[], Family], group: str | None) -> None:
    (x, y), family = problem(2), make()
    figure: Figure = replace(FIGURES["balanced-accuracy"], worth=torch.from_numpy(1 - COST / 9), group=group)
    members = [c for c in (MEMBERS[group] if group else range(5)) if (y == c).any()]
    weigh = np.array([1 / (len(members) * (y == c).sum()) if c in members else 0.0 for c in y])

    def each(predicted: Ints) -> Floats:
        return np.asarray(weigh * (1 - COST[y, predicted] / 9))

    walked, knob = walk(family, val(x, y), BOUNDS), float(KNOBS[5])
    curve, error = trace(walked, figure, GROUPS), spread(walked, figure, knob, GROUPS)
    rows, reference = [predictions(family, x, t) for t in KNOBS], predictions(family, x, knob)
    labels, stacked = torch.from_numpy(y), torch.from_numpy(np.stack(rows))
    paired = paired_error(figure, labels, stacked, torch.from_numpy(reference), 5, GROUPS)
    for t, row, between in zip(KNOBS, rows, paired.tolist(), strict=True):
        wanted, apart = each(row).sum(), np.sqrt(np.square(each(row) - each(reference)).sum())
        assert value(figure, labels, torch.from_numpy(row), 5, GROUPS) == pytest.approx(wanted)
        assert curve.at(t) == pytest.approx(wanted)
        assert [between, float(error[curve.cell(t)])] == pytest.approx([apart, apart], abs=1e-8)
    assert max(paired.tolist()) > 0


def test_columns_hold_whatever_was_appended_however_much() -> None:
    rng = np.random.default_rng(0)
    sizes = (3, 0, 65_532, 2, 1, 200_000, 7, 300_000)
    parts = [(rng.integers(0, 9, n), rng.normal(size=n)) for n in sizes]
    made = Columns(torch.int64, torch.float64)
    for part in parts:
        made.append(*map(torch.from_numpy, part))
        before = made.whole()
    for column, found in enumerate(before):
        np.testing.assert_array_equal(found.numpy(), np.concatenate([part[column] for part in parts]))
    assert [each.dtype for each in before] == [torch.int64, torch.float64]


@pytest.mark.parametrize(
    ("labels", "metric", "left"),
    [
        ([0, 1, 4], "medium", ["many", "few", "weighted-accuracy"]),
        ([0, 4, 4], "balanced-accuracy", ["many", "few", "weighted-accuracy"]),
        ([1, 3], "medium", ["few"]),
        ([1], "medium", []),
    ],
)
def test_a_goal_is_cut_to_what_the_samples_can_say(labels: list[int], metric: str, left: list[str]) -> None:
    floors = tuple(Constraint(name, 0.5) for name in ("many", "few", "weighted-accuracy"))
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0])
    goal = Goal("medium", "nll", floors, GROUPS, class_weight=weight, seed=7).on(torch.tensor(labels))
    assert (goal.metric, goal.rule, goal.seed) == (metric, "nll", 7)
    assert [each.figure for each in goal.subject_to] == left
