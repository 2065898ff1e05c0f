"""The selection rules against slow restatements of their definitions, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import f1_score

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Family, Line, Path, Point, Power
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search import BOUNDS, Constraint, Goal, choose, cross_fit, stratified_folds
from posthoc_lt.search.evidence import Judgement, gather

COUNTS = np.array([200, 60, 20, 5])
LOG_PRIOR = np.log(COUNTS / COUNTS.sum())


def problem(seed: int, per_class: int = 6, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray, Head]:
    """Noisy class means, and a head that leans to the frequent classes."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(4, 5)) * spread
    y = np.repeat(np.arange(4), per_class)
    x = means[y] + rng.normal(size=(len(y), 5))
    weight = means * np.array([1.5, 1.2, 1.0, 0.8])[:, None]
    return x, y, Head(torch.from_numpy(weight), torch.from_numpy(LOG_PRIOR))


def adjustable(head: Head) -> Line:
    return Line(head, Head(torch.zeros_like(head.weight), torch.from_numpy(-LOG_PRIOR)))


def normable(head: Head) -> Power:
    return Power(Head.without_bias(head.weight), head.weight.norm(dim=1).log())


def features(x: np.ndarray, y: np.ndarray) -> Features:
    return Features(torch.from_numpy(x), torch.from_numpy(y))


def scores(family: Line | Power, x: np.ndarray, knob: float) -> np.ndarray:
    made: np.ndarray
    if isinstance(family, Line):
        made = x @ family.origin.weight.numpy().T + LOG_PRIOR - knob * LOG_PRIOR
    else:
        u = family.log_scale.numpy()
        made = x @ family.head.weight.numpy().T * np.exp(-knob * (u - u.mean()))
    return made


def negative_log_posterior(family: Line | Power, x: np.ndarray, y: np.ndarray, knob: float, log_scale: float) -> float:
    """n_eff Σ w NLL plus the two priors, for 4 present classes with class-balanced weights."""
    counts = np.bincount(y)
    w = 1.0 / (len(counts) * counts[y])
    logs = log_softmax(np.exp(log_scale) * scores(family, x, knob), axis=1)[np.arange(len(y)), y]
    effective = w.sum() ** 2 / (w**2).sum()
    mean, deviation = (1.25, 0.5) if isinstance(family, Line) else (1.0, 1.0)
    penalty = (knob - mean) ** 2 / (2 * deviation**2)
    return float(-effective * (w * logs).sum() + penalty + log_scale**2 / (2 * 0.7**2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [adjustable, normable])
def test_nll_is_the_posterior_mode(kind: type, seed: int) -> None:
    x, y, head = problem(seed)
    family = kind(head)
    knob = choose(family, features(x, y), Goal(rule="nll")).knob
    assert knob is not None

    def profile(t: float) -> float:
        return min(negative_log_posterior(family, x, y, t, log_a) for log_a in np.linspace(-2, 2, 801))

    here = profile(knob)
    # Beyond 0.02 to either side (a point may be moved by 0.01 off an edge) nothing is better.
    assert all(here <= profile(t) + 1e-4 for t in knob + np.array([-0.5, -0.1, -0.02, 0.02, 0.1, 0.5]))


def balanced(right: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([right[y == c].mean() for c in np.unique(y)]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", [adjustable, normable])
def test_guarded_is_the_nearest_point_that_the_metric_supports(kind: type, seed: int) -> None:
    x, y, head = problem(seed, per_class=3)
    family = kind(head)
    likely = choose(family, features(x, y), Goal(rule="nll")).knob
    guarded = choose(family, features(x, y), Goal(rule="guarded"))
    best = choose(family, features(x, y), Goal(rule="metric"))
    assert likely is not None
    assert guarded.knob is not None
    assert best.knob is not None
    w, optimum = 1.0 / (4 * np.bincount(y)[y]), best.knob

    def right(t: float) -> np.ndarray:
        made: np.ndarray = scores(family, x, t).argmax(axis=1) == y
        return made

    def supported(t: float) -> bool:
        error = np.sqrt((w**2 * (right(t) != right(optimum))).sum())
        return bool(balanced(right(t), y) >= balanced(right(optimum), y) - 2 * error - 1e-9)

    assert supported(guarded.knob)
    assert guarded.decided_by == ("likelihood" if supported(likely) else "guard")
    if guarded.decided_by == "guard":
        gap = abs(guarded.knob - likely)
        nearer = likely + np.linspace(-1, 1, 401) * max(gap - 0.011, 0)
        assert not any(supported(t) for t in nearer if 0 < t < 4)


def test_metric_takes_the_middle_of_the_widest_best_plateau() -> None:
    """Logits in one dimension: sample 1 is right for t < 3, sample 2 for t > 1, so 1 < t < 3 has both."""
    family = Line(
        Head.without_bias(torch.eye(2, dtype=torch.float64)),
        Head(torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)),
    )
    val = Features(torch.tensor([[3.0, 0.0], [1.0, 0.0]], dtype=torch.float64), torch.tensor([0, 1]))
    choice = choose(family, val, Goal(rule="metric"))
    assert choice.best == (1.0, (1.0, 3.0))
    assert choice.knob == pytest.approx(2.0)
    assert choice.plateau == (1.0, 3.0)


def test_accuracy_and_balanced_accuracy_choose_apart() -> None:
    """Nine samples of class 0 are lost where the one of class 1 is won: the metric decides which way."""
    family = Line(
        Head.without_bias(torch.eye(2, dtype=torch.float64)),
        Head(torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)),
    )
    x = torch.tensor([[1.0, 0.0]] * 5 + [[9.0, 0.0]] * 4 + [[2.0, 0.0]], dtype=torch.float64)
    val = Features(x, torch.tensor([0] * 9 + [1]))
    plain = choose(family, val, Goal("accuracy", "metric")).knob
    fair = choose(family, val, Goal(rule="metric")).knob
    assert plain is not None
    assert fair is not None
    assert plain < 1.0
    assert fair > 2.0


def test_a_path_is_chosen_by_likelihood_inside_the_guard() -> None:
    x, y, head = problem(1, per_class=10)
    sharp, wrong = Head(head.weight * 3, head.bias * 0), Head(-head.weight, head.bias)
    path = Path((1.0, 0.1, 0.01), (wrong, Head(head.weight, head.bias * 0), sharp))
    for rule in ("guarded", "nll", "metric"):
        choice = choose(path, features(x, y), Goal(rule=rule))
        assert choice.knob in (0.1, 0.01)
    # Two heads of equal argmax: `metric` takes the first, more regularised one.
    assert choose(path, features(x, y), Goal(rule="metric")).knob == 0.1


def test_a_point_leaves_nothing_to_choose() -> None:
    x, y, head = problem(0)
    choice = choose(Point(head), features(x, y))
    assert (choice.knob, choice.decided_by, choice.head) == (None, "none", head)


def test_folds_hold_every_class_evenly() -> None:
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 3 + [3] * 2)
    fold = stratified_folds(labels)
    for label, per_fold in ((0, {4}), (1, {2}), (2, {0, 1}), (3, {0, 1})):
        counts = torch.bincount(fold[labels == label], minlength=5)
        assert set(counts.tolist()) == per_fold
    assert set(torch.bincount(fold, minlength=5).tolist()) == {7}
    assert torch.equal(fold, stratified_folds(labels))


@pytest.mark.parametrize("kind", [adjustable, normable])
def test_cross_fit_judges_each_fold_by_a_choice_made_without_it(kind: type) -> None:
    x, y, head = problem(2, per_class=8)
    family: Family = kind(head)
    val = features(x, y)
    fold = stratified_folds(val.labels)
    expected = np.zeros(len(y), dtype=bool)
    for index in range(5):
        held = (fold == index).numpy()
        chosen = choose(family, features(x[~held], y[~held]), Goal(rule="metric")).head
        logits = x[held] @ chosen.weight.numpy().T + chosen.bias.numpy()
        expected[held] = logits.argmax(axis=1) == y[held]
    found = (cross_fit(family, val, Goal(rule="metric")) == val.labels).numpy()
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Goal(metric="f2"), "metric 'f2'"),
        (lambda: Goal(rule="best"), "selection rule 'best'"),
        (lambda: choose(adjustable(problem(0)[2]), features(*problem(0)[:2]), bounds=(2.0, 1.0)), "from 2 to 1"),
    ],
)
def test_unknown_choices_are_refused(make: Callable[[], object], named: str) -> None:
    with pytest.raises(PosthocError, match=named):
        make()


def test_an_empty_validation_split_is_refused() -> None:
    _, _, head = problem(0)
    empty = Features(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(PosthocError, match="no validation sample"):
        choose(adjustable(head), empty)


def macro_f1(predicted: np.ndarray, y: np.ndarray) -> float:
    return float(f1_score(y, predicted, average="macro", zero_division=0))


@pytest.mark.parametrize("kind", [adjustable, normable])
def test_macro_f1_is_chosen_at_its_maximum(kind: type) -> None:
    for seed in range(4):
        x, y, head = problem(seed)
        family = kind(head)
        choice = choose(family, features(x, y), Goal("macro-f1", "metric"))
        assert choice.knob is not None
        assert choice.best is not None
        reached = macro_f1(scores(family, x, choice.knob).argmax(axis=1), y)
        grid = max(macro_f1(scores(family, x, t).argmax(axis=1), y) for t in np.linspace(0, 4, 401))
        assert reached == pytest.approx(choice.best[0], abs=1e-9)
        assert reached >= grid - 1e-9


@pytest.mark.parametrize("rule", ["guarded", "nll", "metric", "cross-fit"])
@pytest.mark.parametrize("kind", [adjustable, normable])
def test_constraints_are_kept_whatever_the_rule(kind: type, rule: str) -> None:
    groups = {"many": torch.tensor([True, False, False, False])}
    for seed in range(6):
        x, y, head = problem(seed)
        family, floor = kind(head), 0.83
        free = choose(family, features(x, y), Goal(rule=rule))
        goal = Goal("balanced-accuracy", rule, (Constraint("many", floor),), groups)
        grid = [scores(family, x, t).argmax(axis=1) == y for t in np.linspace(0.003, 3.997, 401)]
        if max(right[y == 0].mean() for right in grid) < floor:
            with pytest.raises(PosthocError, match=r"subject-to many>=0\.83"):
                choose(family, features(x, y), goal)
            continue
        held = choose(family, features(x, y), goal)
        assert held.knob is not None
        assert free.knob is not None
        right = scores(family, x, held.knob).argmax(axis=1) == y
        assert right[y == 0].mean() >= floor
        if rule == "metric":
            best = max(balanced(right, y) for right in grid if right[y == 0].mean() >= floor)
            assert balanced(right, y) >= best - 1e-9


def test_a_constraint_binds_points_and_paths_too() -> None:
    x, y, head = problem(1, per_class=10)
    wrong = Head(-head.weight, head.bias)
    groups = {"many": torch.tensor([True, False, False, False])}
    goal = Goal(subject_to=(Constraint("many", 0.5),), groups=groups)
    with pytest.raises(PosthocError, match="no head of this method"):
        choose(Point(wrong), features(x, y), goal)
    assert choose(Path((1.0, 0.1), (wrong, head)), features(x, y), goal).knob == 0.1
    with pytest.raises(PosthocError, match="lower floor"):
        choose(Path((1.0,), (wrong,)), features(x, y), goal)


def judged(family: Line | Power, val: Features, goal: Goal) -> Judgement:
    return gather(family, val, goal, BOUNDS).judge(goal)


def test_the_two_ways_to_a_balanced_accuracy_agree() -> None:
    """The interval path and the walk give the same curve and the same standard errors."""
    for seed in range(5):
        x, y, head = problem(seed)
        val, family = features(x, y), adjustable(head)
        fast, slow = judged(family, val, Goal()), judged(family, val, Goal(subject_to=(FREE,)))
        for knob in np.linspace(0.013, 3.987, 23):
            assert fast.curve.at(knob) == pytest.approx(slow.curve.at(knob), abs=1e-12)
            one, two = fast.error(knob), slow.error(knob)
            for other in np.linspace(0.017, 3.983, 11):
                first, second = one[fast.curve.cell(other)], two[slow.curve.cell(other)]
                assert float(first) ** 2 == pytest.approx(float(second) ** 2, abs=1e-15)


FREE = Constraint("accuracy", 0.0)


def test_the_standard_error_of_macro_f1_is_its_linearisation() -> None:
    """Each sample's influence by finite differences of F1 in its counts, in plain numpy."""
    x, y, head = problem(3, per_class=8)
    family, knob, other = adjustable(head), 0.51, 1.73
    spread_there = judged(family, features(x, y), Goal("macro-f1"))
    here, there = (scores(family, x, t).argmax(axis=1) for t in (knob, other))

    def f1(right: np.ndarray, predicted: np.ndarray) -> float:
        return float(np.mean(2 * right / (np.bincount(y) + predicted)))

    right = np.array([((here == c) & (y == c)).sum() for c in range(4)], dtype=float)
    predicted, step = np.bincount(here, minlength=4).astype(float), 1e-6
    unit = np.eye(4) * step
    by_right = np.array([(f1(right + u, predicted) - f1(right - u, predicted)) / (2 * step) for u in unit])
    by_predicted = np.array([(f1(right, predicted + u) - f1(right, predicted - u)) / (2 * step) for u in unit])
    moved = [
        by_predicted[b] - by_predicted[a] + by_right[t] * (float(b == t) - float(a == t))
        for a, b, t in zip(here, there, y, strict=True)
    ]
    found = spread_there.error(knob)[spread_there.curve.cell(other)]
    assert float(found) == pytest.approx(np.sqrt(np.square(moved).sum()), abs=1e-7)
    assert float(found) > 0
