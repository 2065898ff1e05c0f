"""The selection rules against slow restatements of their definitions, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Family, Line, Path, Point, Power
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search import choose, cross_fit, stratified_folds

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
    return float(-effective * (w * logs).sum() + (knob - 1) ** 2 / (2 * 0.5**2) + log_scale**2 / (2 * 0.7**2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [adjustable, normable])
def test_nll_is_the_posterior_mode(kind: type, seed: int) -> None:
    x, y, head = problem(seed)
    family = kind(head)
    knob = choose(family, features(x, y), rule="nll").knob
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
    likely = choose(family, features(x, y), rule="nll").knob
    guarded = choose(family, features(x, y), rule="guarded")
    best = choose(family, features(x, y), rule="metric")
    assert likely is not None
    assert guarded.knob is not None
    assert best.knob is not None
    w, optimum = 1.0 / (4 * np.bincount(y)[y]), best.knob

    def right(t: float) -> np.ndarray:
        made: np.ndarray = scores(family, x, t).argmax(axis=1) == y
        return made

    def supported(t: float) -> bool:
        error = np.sqrt((w**2 * (right(t) != right(optimum))).sum())
        return bool(balanced(right(t), y) >= balanced(right(optimum), y) - error - 1e-9)

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
    choice = choose(family, val, rule="metric")
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
    plain = choose(family, val, rule="metric", metric="accuracy").knob
    fair = choose(family, val, rule="metric").knob
    assert plain is not None
    assert fair is not None
    assert plain < 1.0
    assert fair > 2.0


def test_a_path_is_chosen_by_likelihood_inside_the_guard() -> None:
    x, y, head = problem(1, per_class=10)
    sharp, wrong = Head(head.weight * 3, head.bias * 0), Head(-head.weight, head.bias)
    path = Path((1.0, 0.1, 0.01), (wrong, Head(head.weight, head.bias * 0), sharp))
    for rule in ("guarded", "nll", "metric"):
        choice = choose(path, features(x, y), rule=rule)
        assert choice.knob in (0.1, 0.01)
    # Two heads of equal argmax: `metric` takes the first, more regularised one.
    assert choose(path, features(x, y), rule="metric").knob == 0.1


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
        chosen = choose(family, features(x[~held], y[~held]), rule="metric").head
        logits = x[held] @ chosen.weight.numpy().T + chosen.bias.numpy()
        expected[held] = logits.argmax(axis=1) == y[held]
    found = cross_fit(family, val, metric="balanced-accuracy", rule="metric")
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"metric": "f1"}, "metric 'f1'"),
        ({"rule": "best"}, "selection rule 'best'"),
        ({"bounds": (2.0, 1.0)}, "from 2 to 1"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, object], named: str) -> None:
    x, y, head = problem(0)
    with pytest.raises(PosthocError, match=named):
        choose(adjustable(head), features(x, y), **options)  # type: ignore[arg-type]


def test_an_empty_validation_split_is_refused() -> None:
    _, _, head = problem(0)
    empty = Features(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(PosthocError, match="no validation sample"):
        choose(adjustable(head), empty)
