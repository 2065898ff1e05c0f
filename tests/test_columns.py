"""Columns in memory and in files, a block at a time: the same numbers as whole arrays, and no memory of their own."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from posthoc_lt import columns
from posthoc_lt.errors import PosthocError
from posthoc_lt.evaluation import Evaluation, difference, evaluate
from posthoc_lt.family import KeptBias, Line, Power
from posthoc_lt.family import Path as FinitePath
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.metrics import expected_calibration_error
from posthoc_lt.search import FIGURES, Constraint, Goal, choose, cross_fit, stratified_folds
from posthoc_lt.search.envelope import Walk, walk
from posthoc_lt.search.evidence import gather
from posthoc_lt.search.trace import predicted_at, spread, trace
from posthoc_lt.yardstick import Yardstick

BOUNDS = (0.0, 4.0)
CLASSES = 6
GROUPS = {name: torch.arange(CLASSES) % 3 == k for k, name in enumerate(("many", "medium", "few"))}
COST = torch.arange(float(CLASSES**2)).reshape(CLASSES, CLASSES) % 7
SMALL = [(1, 0), (7, 5), (64, 100)]
"""Rows of a block, and the most rows of a column in memory."""


@pytest.fixture
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    block, in_memory = request.param
    monkeypatch.setattr(columns, "BLOCK", block)
    monkeypatch.setattr(columns, "IN_MEMORY", in_memory)


everywhere = pytest.mark.parametrize("small", SMALL, indirect=True)
mostly = pytest.mark.parametrize("small", SMALL[1:], indirect=True)


def problem(seed: int) -> tuple[Features, list[Line | Power | KeptBias]]:
    """Overlapping classes, of which the last has no sample, and a family of each kind."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(CLASSES, 3))
    y = rng.integers(0, CLASSES - 1, size=90)
    val = Features(torch.from_numpy(means[y] + rng.normal(size=(90, 3))), torch.from_numpy(y))
    head = Head(torch.from_numpy(means), torch.from_numpy(rng.normal(size=CLASSES)))
    slope = Head(torch.zeros(CLASSES, 3).double(), torch.from_numpy(rng.normal(size=CLASSES)))
    scale = head.weight.norm(dim=1).log()
    return val, [Line(head, slope), Power(head, scale), KeptBias(head, scale)]


def predictions(family: Line | Power | KeptBias, x: np.ndarray, knob: float) -> np.ndarray:
    head = family.at(knob)
    found: np.ndarray = (x @ head.weight.numpy().T + head.bias.numpy()).argmax(axis=1)
    return found


@everywhere
def test_columns_are_what_was_put_into_them(small: None) -> None:
    rng = np.random.default_rng(0)
    whole, kept = rng.normal(size=200), rng.random(200) < 0.4
    assert np.array_equal(columns.computed(200, lambda rows: torch.from_numpy(whole[rows])), whole)
    numbers, order = columns.picked(*map(torch.from_numpy, (kept, whole, np.arange(200))))
    assert np.array_equal(numbers, whole[kept])
    assert np.array_equal(order, np.flatnonzero(kept))
    assert order.dtype == torch.int64
    assert len(columns.computed(0, lambda rows: torch.zeros(rows.stop, dtype=torch.bool))) == 0


@everywhere
def test_what_was_picked_is_placed_where_it_was(small: None) -> None:
    rng = np.random.default_rng(1)
    whole, kept = rng.normal(size=200), rng.random(200) < 0.4
    made = columns.placed(torch.from_numpy(kept), torch.from_numpy(whole[kept]))
    assert np.array_equal(made, np.where(kept, whole, 0.0))


@everywhere
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_taken_are_the_same_in_a_file(small: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(columns, "TAKEN", columns.IN_MEMORY)
    x, index = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).to(dtype), torch.tensor([49, 0, 7, 7])
    part = Features(x, torch.arange(50)).subset(index)
    assert part.x.tolist() == [x[i].tolist() for i in index.tolist()]
    assert part.labels.tolist() == index.tolist()
    assert Features(x, None).subset(index[:0]).x.shape == (0, 3)


def anonymous() -> int:
    """This process's memory without mapped files, in MB."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) >> 10


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")


@linux
def test_long_columns_are_not_anonymous_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BLOCK", 1 << 16)
    monkeypatch.setattr(columns, "IN_MEMORY", 1 << 16)
    before, made = anonymous(), columns.Columns(torch.int64, torch.bool)
    for start in range(0, 1 << 23, 1 << 16):
        made.append(torch.arange(start, start + (1 << 16)), torch.ones(1 << 16, dtype=torch.bool))
    numbers, mask = made.whole()
    (again,) = columns.picked(mask, numbers)
    assert int(again[-1]) == (1 << 23) - 1
    assert anonymous() - before < 32  # MB, of the 64 that one column takes


@linux
@pytest.mark.parametrize("rule", ["guarded", "cross-fit"])
def test_choosing_on_a_path_holds_no_column(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    for name in ("BLOCK", "IN_MEMORY", "TAKEN"):
        monkeypatch.setattr(columns, name, 1 << 14)
    monkeypatch.setattr("posthoc_lt.features.CHUNK_ELEMENTS", 1 << 16)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(1 << 18) % 4
    x = torch.randn(len(y), 4, generator=generator) + torch.eye(4)[y]
    path = FinitePath(tuple(range(3)), [Head(torch.eye(4) * scale, torch.zeros(4)) for scale in (0.5, 1.0, 2.0)])
    before, done, highest = anonymous(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.001):
            highest[0] = max(highest[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        choose(path, Features(x, y), Goal(rule=rule))
    finally:
        done.set()
        thread.join()
    assert highest[0] - before < 40  # MB, of the 120 that the losses of the three take


@mostly
@pytest.mark.parametrize("rule", ["guarded", "nll", "metric", "cross-fit"])
def test_choices_on_a_path_are_those_of_columns_in_memory(
    small: None, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """And so what they are worth; other tests compare with brute force."""
    val, (line, power, _) = problem(2)
    heads = [line.at(knob) for knob in (0.0, 0.4, 0.9, 2.0)]
    path = FinitePath((0.0, 0.4, 0.9, 2.0), heads)
    floor = (Constraint("few", 0.1),)
    goals = [Goal("worst-class", rule), Goal("balanced-accuracy", rule), Goal("macro-f1", rule, floor, GROUPS)]
    for goal in goals[: 1 if rule == "cross-fit" else 3]:  # which chooses a hundred times
        for family in (path, power):
            found, judged = choose(family, val, goal), cross_fit(family, val, goal)
            with monkeypatch.context() as whole:
                for name in ("BLOCK", "IN_MEMORY"):
                    whole.setattr(columns, name, 1 << 20)
                wanted, again = choose(family, val, goal), cross_fit(family, val, goal)
            assert (found.knob, found.decided_by) == (wanted.knob, wanted.decided_by)
            assert torch.equal(judged, again)


def test_a_disk_that_is_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "IN_MEMORY", 10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(PosthocError, match="set TMPDIR"):
            columns.empty(1 << 18, torch.float64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@everywhere
@pytest.mark.parametrize("kind", range(3))
def test_a_walk_goes_through_the_predictions_of_every_head(kind: int, small: None) -> None:
    """Its half too, renumbered."""
    val, families = problem(kind)
    family, x = families[kind], val.x.numpy()
    made = walk(family, val, BOUNDS)
    half = torch.from_numpy(np.random.default_rng(3).random(90) < 0.5)
    part = made.subset(half)
    assert len(made.time) > 40
    assert torch.equal(part.labels, val.labels[half])
    for knob in np.linspace(0.0137, 3.9713, 23):
        wanted = predictions(family, x, knob)
        assert np.array_equal(predicted_at(made, knob), wanted)
        assert np.array_equal(predicted_at(part, knob), wanted[half.numpy()])


@mostly
def test_figures_and_their_errors_are_those_of_one_block(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which other tests compare with brute force. Counts are added up exactly, what a sample is worth to rounding."""
    for seed in range(3):
        val, families = problem(seed)
        for metric in FIGURES:
            goal = Goal(metric, groups=GROUPS, class_weight=torch.arange(1.0, 7.0), cost=COST)

            def told(made: Walk, goal: Goal = goal) -> list[torch.Tensor]:
                curve = trace(made, goal.figure, GROUPS)
                return [curve.edges, curve.values, spread(made, goal.figure, 1.2345, GROUPS).square()]

            found = told(walk(families[seed], val, BOUNDS))
            with monkeypatch.context() as whole:
                whole.setattr(columns, "BLOCK", 1 << 20)
                wanted = told(walk(families[seed], val, BOUNDS))
            exact = 1 if metric == "utility" else 2
            assert all(torch.equal(*pair) for pair in zip(found[:exact], wanted[:exact], strict=True)), metric
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@mostly
@pytest.mark.parametrize("rule", ["guarded", "cross-fit"])
def test_the_choice_is_that_of_one_block(rule: str, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    val, (line, power, kept) = problem(5)
    floor = (Constraint("few", 0.1),)
    cases = [(line, Goal("balanced-accuracy", rule)), (power, Goal("accuracy", rule)), (kept, Goal("macro-f1", rule))]
    for family, goal in [*cases, (line, Goal("worst-class", rule, floor, GROUPS))]:
        found = choose(family, val, goal)
        with monkeypatch.context() as whole:
            whole.setattr(columns, "BLOCK", 1 << 20)
            wanted = choose(family, val, goal)
        assert (found.knob, found.plateau, found.interval) == (wanted.knob, wanted.plateau, wanted.interval)
        assert found.best is not None
        assert wanted.best is not None
        assert found.best[0] == pytest.approx(wanted.best[0], abs=1e-12)


@everywhere
def test_where_each_sample_is_right(small: None) -> None:
    val, (line, *_) = problem(7)
    half = torch.from_numpy(np.random.default_rng(4).random(90) < 0.5)
    whole = gather(line, val, Goal(), BOUNDS)
    part = whole.subset(half)
    curve = part.judge(Goal()).curve
    y = val.labels.numpy()[half.numpy()]
    for knob in np.linspace(0.0137, 3.9713, 23):
        right = predictions(line, val.x.numpy(), knob)[half.numpy()] == y
        assert curve.at(knob) == pytest.approx(np.mean([right[y == c].mean() for c in np.unique(y)]), abs=1e-12)


@everywhere
@pytest.mark.parametrize("bins", [1, 4, 15, 100])
def test_calibration_error_is_that_of_samples_in_order(bins: int, small: None) -> None:
    """Few different confidences, so that nearly every edge of a bin lies among equal ones."""
    rng = np.random.default_rng(bins)
    confidence = rng.integers(0, 8, size=90) / 7
    right = rng.random(90) < confidence**2
    gap = [right[confidence == each].mean() - each for each in np.sort(confidence)]
    wanted = sum(abs(part.sum()) for part in np.array_split(gap, bins)) / 90
    found = expected_calibration_error(torch.from_numpy(confidence), torch.from_numpy(right), bins)
    assert found == pytest.approx(wanted, abs=1e-14)


@everywhere
def test_heads_are_judged_as_in_one_block(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their figures other tests compare with peers; what is counted is equal, what is added up is so to rounding."""
    val, (line, *_) = problem(1)
    counts, yardstick = torch.tensor([200, 90, 40, 30, 9, 3]), Yardstick(cost=COST)

    def judged() -> tuple[Evaluation, list[float]]:
        one, other = (evaluate(line.at(knob), val, counts, yardstick=yardstick) for knob in (0.0, 1.5))
        gain = difference(one, other)
        return other, [other.nll, other.ece, other.score, *other.score_ci, gain.delta, gain.low, gain.high, gain.p]

    made, found = judged()
    with monkeypatch.context() as whole:
        whole.setattr(columns, "BLOCK", 1 << 20)
        again, wanted = judged()
    assert torch.equal(made.predicted, again.predicted)
    assert torch.equal(made.tally.right, again.tally.right)
    assert found == pytest.approx(wanted, abs=1e-12)


@everywhere
@pytest.mark.parametrize("folds", [2, 5])
def test_folds_deal_a_shuffled_pack_out_class_by_class(folds: int, small: None) -> None:
    labels = torch.from_numpy(np.random.default_rng(folds).integers(0, 4, size=83))
    shuffled = torch.randperm(83, generator=torch.Generator().manual_seed(9)).tolist()
    pack = [i for c in range(4) for i in shuffled if int(labels[i]) == c]
    assert stratified_folds(labels, folds, seed=9).tolist() == [pack.index(i) % folds for i in range(83)]
