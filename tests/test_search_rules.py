"""Worst class, class weights, the vote of halves and the confidence set of the best knob, against slow restatements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import posthoc_lt.features
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import KeptBias, Line, Path, Power
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search import BOUNDS, Constraint, Goal, choose, cross_fit, stratified_folds, value
from posthoc_lt.search import path as path_search
from posthoc_lt.search.evidence import gather
from posthoc_lt.search.figures import FIGURES, paired_error
from posthoc_lt.search.folds import vote
from posthoc_lt.search.least import least_of_stretches

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LOG_PRIOR = np.log(np.array([200, 60, 20, 5]) / 285)
WEIGHTS = np.array([1.0, 0.0, 2.0, 5.0])
GRID = np.linspace(0.0131, 3.9869, 211)


def problem(seed: int, per_class: int = 6) -> tuple[Floats, Ints, Head]:
    """Noisy class means, and a head that leans to the frequent classes."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(4, 5))
    y = np.repeat(np.arange(4), per_class)
    x = means[y] + rng.normal(size=(len(y), 5))
    weight = means * np.array([1.5, 1.2, 1.0, 0.8])[:, None]
    return x, y, Head(torch.from_numpy(weight), torch.from_numpy(LOG_PRIOR))


def adjustable(head: Head) -> Line:
    return Line(head, Head(torch.zeros_like(head.weight), torch.from_numpy(-LOG_PRIOR)))


def normable(head: Head) -> Power:
    return Power(Head.without_bias(head.weight), head.weight.norm(dim=1).log())


def keeping(head: Head) -> KeptBias:
    return KeptBias(head, head.weight.norm(dim=1).log())


def features(x: Floats, y: Ints) -> Features:
    return Features(torch.from_numpy(x), torch.from_numpy(y))


def predictions(family: Line | Power | KeptBias, x: Floats, knob: float) -> Ints:
    if isinstance(family, Line):
        scores = x @ family.origin.weight.numpy().T + LOG_PRIOR - knob * LOG_PRIOR
    else:
        scores = x @ family.head.weight.numpy().T * np.exp(-knob * family.log_scale.numpy())
        scores = scores + (family.head.bias.numpy() if isinstance(family, KeptBias) else 0)
    found: Ints = scores.argmax(axis=1)
    return found


def recalls(predicted: Ints, y: Ints) -> Floats:
    return np.array([(predicted[y == c] == c).mean() for c in range(4)])


KINDS: list[Callable[[Head], Line | Power | KeptBias]] = [adjustable, normable, keeping]


@pytest.mark.parametrize("rule", ["metric", "cross-fit", "guarded"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_worst_class_and_weighted_accuracy_are_maximised_exactly(
    kind: Callable[[Head], Line | Power | KeptBias], rule: str
) -> None:
    figures: dict[str, Callable[[Floats], float]] = {
        "worst-class": lambda r: float(r.min()),
        "weighted-accuracy": lambda r: float(np.average(r, weights=WEIGHTS)),
    }
    for name, figure in figures.items():
        x, y, head = problem(3)
        family = kind(head)
        choice = choose(family, features(x, y), Goal(name, rule, class_weight=torch.from_numpy(WEIGHTS)))
        assert choice.best is not None
        assert choice.knob is not None
        assert choice.curve is not None
        at = [figure(recalls(predictions(family, x, t), y)) for t in (choice.knob, sum(choice.best[1]) / 2)]
        assert choice.curve.at(choice.knob) == pytest.approx(at[0], abs=1e-12)
        assert choice.best[0] == pytest.approx(at[1], abs=1e-12)
        assert choice.best[0] >= max(figure(recalls(predictions(family, x, t), y)) for t in GRID) - 1e-12


def test_the_error_of_the_worst_class_is_that_of_the_class_moved_most() -> None:
    x, y, head = problem(5)
    y[:4] = 3  # classes of different sizes
    family, knob, goal = keeping(head), 0.41, Goal("worst-class")
    size = np.bincount(y)
    judged = gather(family, features(x, y), goal, BOUNDS).judge(goal)
    found, here = judged.error(knob), predictions(family, x, knob) == y
    rows = [predictions(family, x, t) for t in GRID[::20]]
    wanted = [
        max(np.sqrt(((row == y) != here)[y == c].sum()) / size[c] for c in range(4))  # of a class
        for row in rows
    ]
    assert max(wanted) > 0
    assert [float(found[judged.curve.cell(t)]) for t in GRID[::20]] == pytest.approx(wanted)
    reference = torch.from_numpy(predictions(family, x, knob))
    stacked = paired_error(
        FIGURES["worst-class"], torch.from_numpy(y), torch.from_numpy(np.stack(rows)), reference, classes=4
    )
    assert stacked.tolist() == pytest.approx(wanted)


def test_a_class_without_a_sample_is_never_the_worst() -> None:
    labels, predicted = torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])
    assert value(FIGURES["worst-class"], labels, predicted, 4) == 0.5
    weighted = Goal("weighted-accuracy", class_weight=torch.tensor([1.0, 9.0, 3.0, 9.0]).double()).figure
    assert value(weighted, labels, predicted, 4) == pytest.approx((0.5 + 3) / 4)


stretches = st.tuples(st.integers(0, 19), st.integers(1, 20), st.integers(-9, 9)).filter(lambda s: s[0] < s[1])


@settings(max_examples=200)
@given(st.lists(stretches, max_size=12))
def test_the_least_of_stretches_is_that_of_every_cell(given_stretches: list[tuple[int, int, int]]) -> None:
    first, last, values = (torch.tensor([each[k] for each in given_stretches], dtype=torch.int64) for k in range(3))
    wanted = [min((v for a, b, v in given_stretches if a <= cell < b), default=np.inf) for cell in range(20)]
    assert least_of_stretches(first, last, values.double(), 20).tolist() == wanted


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Goal("weighted-accuracy"), "without class weights"),
        (lambda: Goal(subject_to=(Constraint("weighted-accuracy", 0.5),)), "without class weights"),
        (lambda: Goal("weighted-accuracy", class_weight=torch.tensor([1.0, -1.0])), "class weights 1, -1"),
        (lambda: Goal("weighted-accuracy", class_weight=torch.zeros(2)), "class weights 0, 0"),
        (lambda: Goal("weighted-accuracy", class_weight=torch.tensor([1.0, torch.nan])), "nan"),
        (
            lambda: choose(
                adjustable(problem(0)[2]),
                features(np.zeros((2, 5)), np.array([0, 0])),
                Goal("weighted-accuracy", class_weight=torch.tensor([0.0, 1.0, 1.0, 1.0])),
            ),
            "0 for every class with a validation sample",
        ),
    ],
)
def test_weights_that_weigh_nothing_are_refused(make: Callable[[], object], named: str) -> None:
    with pytest.raises(PosthocError, match=named):
        make()


def halves(y: Ints, seed: int = 0) -> list[NDArray[np.bool_]]:
    folds = [stratified_folds(torch.from_numpy(y), 2, 10 * seed + repeat).numpy() for repeat in range(10)]
    return [fold == half for fold in folds for half in range(2)]


@pytest.mark.parametrize("metric", ["balanced-accuracy", "macro-f1"])
@pytest.mark.parametrize("kind", KINDS)
def test_cross_fit_is_the_median_of_what_halves_choose(
    kind: Callable[[Head], Line | Power | KeptBias], metric: str
) -> None:
    x, y, head = problem(1, per_class=8)
    family, votes = kind(head), []
    for half in halves(y, seed=3):
        best = choose(family, features(x[half], y[half]), Goal(metric, "metric")).best
        assert best is not None
        votes.append(sum(best[1]) / 2)
    choice = choose(family, features(x, y), Goal(metric, "cross-fit", seed=3))
    assert choice.decided_by == "cross-fit"
    assert choice.knob == pytest.approx(sorted(votes)[9], abs=0.011)  # a point is moved off an edge by up to 0.01
    assert len(set(votes)) > 1


def test_cross_fit_votes_on_a_path_too_and_within_constraints() -> None:
    x, y, head = problem(2, per_class=9)
    rng = np.random.default_rng(0)
    noisy = [head.weight + torch.from_numpy(rng.normal(size=(4, 5))) * size for size in (0.5, 0.4, 0.2, 0.0)]
    path = Path((1.0, 0.1, 0.01, 0.001), tuple(Head(weight, 0 * head.bias) for weight in noisy))
    right = np.stack([(x @ weight.numpy().T).argmax(axis=1) == y for weight in noisy])
    balanced = [[np.mean([row[half & (y == c)].mean() for c in range(4)]) for row in right] for half in halves(y)]
    votes = sorted(int(np.argmax(np.round(each, 12))) for each in balanced)
    assert votes[0] < votes[-1]
    assert choose(path, features(x, y), Goal(rule="cross-fit")).knob == path.knobs[votes[9]]
    floors = {float(row[y == 0].mean()) for row in right}
    groups = {"many": torch.tensor([True, False, False, False])}
    held = choose(
        path, features(x, y), Goal("balanced-accuracy", "cross-fit", (Constraint("many", max(floors)),), groups)
    )
    assert held.knob is not None
    assert right[path.knobs.index(held.knob)][y == 0].mean() == max(floors)


def test_a_vote_is_the_lower_middle_one_and_holds_with_a_single_sample() -> None:
    counted: list[int] = []

    def ascending(kept: torch.Tensor) -> float:
        counted.append(int(kept.sum()))
        return float(len(counted))

    assert vote(torch.zeros(5, dtype=torch.int64), ascending) == 10
    assert counted == [3, 2] * 10
    assert vote(torch.zeros(1, dtype=torch.int64), lambda kept: float(kept.sum())) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_confidence_set_holds_all_that_the_paired_test_leaves(
    kind: Callable[[Head], Line | Power | KeptBias],
) -> None:
    x, y, head = problem(4, per_class=25)
    family = kind(head)
    choice = choose(family, features(x, y), Goal(rule="metric"))
    assert choice.interval is not None
    assert choice.knob is not None
    w, best = 1 / (4 * 25), predictions(family, x, choice.knob) == y

    def left(t: float) -> bool:
        right = predictions(family, x, t) == y
        return bool(w * (best.sum() - right.sum()) <= 1.959964 * w * np.sqrt((best != right).sum()) + 1e-12)

    inside = [t for t in GRID if left(t)]
    step = GRID[1] - GRID[0]
    low, high = choice.interval
    assert low <= inside[0]
    assert inside[-1] <= high
    assert not any(left(t) for t in GRID if t < low or t > high)
    assert all(left(end) for end in (low + 1e-5, high - 1e-5))
    assert high - low < 4 or inside[-1] - inside[0] > 4 - 3 * step


def test_the_confidence_set_covers_the_best_knob_of_the_population() -> None:
    """The population is a large sample; its best τ is in nearly every draw's set, which narrows as draws grow."""
    x, y, head = problem(11, per_class=5000)
    family = adjustable(head)
    whole = choose(family, features(x, y), Goal(rule="metric")).knob
    assert whole is not None
    rng, widths = np.random.default_rng(0), []
    for per_class, draws in ((3, 150), (100, 100)):
        sets = []
        for _ in range(draws):
            rows = np.concatenate([rng.choice(np.flatnonzero(y == c), per_class, replace=False) for c in range(4)])
            interval = choose(family, features(x[rows], y[rows]), Goal(rule="metric")).interval
            assert interval is not None
            sets.append(interval)
        assert np.mean([low <= whole <= high for low, high in sets]) >= 0.95
        widths.append(np.mean([high - low for low, high in sets]))
    assert widths[1] < 0.7 * widths[0]


def test_losses_at_every_scale_are_the_cross_entropies() -> None:
    logits = 30 * torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    logits[:, 4] = -torch.inf  # a masked class
    labels = torch.arange(50) % 4
    for scale, losses in zip(path_search.SCALES, path_search.scaled_losses(logits, labels), strict=True):
        slow = torch.nn.functional.cross_entropy(scale * logits.double(), labels, reduction="none")
        torch.testing.assert_close(losses, slow, rtol=1e-12, atol=1e-12)


def test_the_likeliest_head_is_that_of_a_fine_grid_of_scales() -> None:
    x, y, head = problem(3, per_class=4)
    heads = tuple(Head(head.weight * c, head.bias * c) for c in (0.3, 1.0, 1.1, 2.5, 40.0, 1e-3))
    val = Features(torch.from_numpy(x), torch.from_numpy(y))
    weights = torch.full((len(y),), 1 / len(y), dtype=torch.float64)
    found = path_search.least_losses(path_search.profile_path(Path(tuple(range(6)), heads), val), weights)
    grid = np.linspace(-3, 3, 4801) * np.log(2)
    for lowest, each in zip(found, heads, strict=True):
        logits = each(torch.from_numpy(x)).double()
        slow = [
            len(y) * torch.nn.functional.cross_entropy(np.exp(a) * logits, val.labels) + (a / 0.7) ** 2 / 2
            for a in grid
        ]
        assert abs(lowest - min(slow)) < 0.01


def test_a_loss_that_is_infinite_and_left_out_does_not_matter() -> None:
    """As of a class that a head never predicts."""
    losses = torch.rand(3, len(path_search.SCALES), dtype=torch.float64)
    losses[1] = torch.inf
    kept, weights = torch.tensor([True, False, True]), torch.tensor([0.25, 0.75], dtype=torch.float64)
    predicted = torch.zeros(3, dtype=torch.int64)
    part = path_search.Profile([predicted], [losses], 2).subset(kept)
    alone = path_search.Profile([predicted[:2]], [losses[kept]], 2)
    assert bool(path_search.least_losses(part, weights).isfinite().all())
    assert torch.equal(path_search.least_losses(part, weights), path_search.least_losses(alone, weights))


def slow_pick(heads: list[Head], x: Floats, y: Ints) -> tuple[int, int, str]:
    """The likeliest of heads, the best by balanced accuracy, and which of the two decided, as `choose` states it."""
    logits = [torch.from_numpy(x) @ head.weight.T + head.bias for head in heads]
    labels, grid = torch.from_numpy(y), np.linspace(-3, 3, 241) * np.log(2)
    w = torch.from_numpy(1 / (4 * np.bincount(y)[y]))

    def cost(z: torch.Tensor) -> float:
        own = [-torch.log_softmax(np.exp(a) * z, dim=1)[torch.arange(len(y)), labels] @ w for a in grid]
        return float(min(each / w.square().sum() + (a / 0.7) ** 2 / 2 for a, each in zip(grid, own, strict=True)))

    likely = int(np.argmin([cost(z) for z in logits]))
    right = np.stack([z.argmax(dim=1).numpy() == y for z in logits])
    values = np.array([np.mean([row[y == c].mean() for c in range(4)]) for row in right])
    best = int(np.flatnonzero(values >= values.max() - 1e-9)[0])
    error = np.sqrt((w.numpy() ** 2 * (right != right[best])).sum(axis=1))
    supported = np.flatnonzero(values >= values[best] - 2 * error - 1e-9)
    if likely in supported:
        return likely, best, "likelihood"
    return int(supported[np.abs(supported - likely).argmin()]), best, "guard"


def test_a_path_keeps_to_what_the_metric_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that lean more and more to the frequent classes, which few samples of rare classes can bear."""
    monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", 7 * 8 * 4)
    decided = set()
    for seed in range(12):
        x, y, head = problem(seed, per_class=12)
        y[:24], rng = np.where(y[:24] == 1, 0, y[:24]), np.random.default_rng(seed)
        y[:2] = 1
        lean = torch.from_numpy(rng.normal(size=4))
        heads = [Head(head.weight * (1 + k), head.bias * 0 + (k - 2) * lean) for k in rng.permutation(5)]
        x = x.astype(np.float16).astype(np.float64)
        index, best, by = slow_pick(heads, x, y)
        half = Features(torch.from_numpy(x).half(), torch.from_numpy(y))
        choice = choose(Path(tuple(range(5)), heads), half, Goal())
        assert (choice.knob, choice.decided_by) == (index, by)
        assert choice.best is not None
        assert choice.best[1] == (best, best)
        decided.add(by)
    assert decided == {"likelihood", "guard"}


@pytest.mark.parametrize("rule", ["guarded", "nll", "metric", "cross-fit"])
def test_no_head_is_chosen_for_what_its_draft_does(rule: str) -> None:
    x, y, head = problem(1, per_class=10)
    good, fair = Head(head.weight, 0 * head.bias), Head(head.weight + 0.5, head.bias)
    heads, finished = [good, fair, fair], [Head(-head.weight, head.bias), fair, fair]
    asked = []

    def finish(index: int) -> None:
        asked.append(index)
        heads[index] = finished[index]

    choice = choose(Path((1.0, 0.1, 0.01), heads, (), finish), features(x, y), Goal(rule=rule))
    assert 0 in asked
    assert choice.knob == 0.1
    assert choice.head is fair
    assert choice.best is not None
    right = (x @ fair.weight.numpy().T + fair.bias.numpy()).argmax(axis=1) == y
    assert choice.best[0] == pytest.approx(np.mean([right[y == c].mean() for c in range(4)]))


def test_cross_fitting_a_path_judges_each_fold_by_what_the_others_choose() -> None:
    x, y, head = problem(0, per_class=5)
    lean = torch.from_numpy(np.random.default_rng(0).normal(size=4))
    heads = [Head(head.weight, 0 * head.bias + k * lean) for k in (-0.6, -0.3, 0.0, 0.3, 0.6)]
    fold, expected, chosen = stratified_folds(torch.from_numpy(y)).numpy(), np.empty(len(y), dtype=np.int64), set()
    for index in range(5):
        held = fold == index
        pick = slow_pick(heads, x[~held], y[~held])[0]
        expected[held] = (x[held] @ heads[pick].weight.numpy().T + heads[pick].bias.numpy()).argmax(axis=1)
        chosen.add(pick)
    assert len(chosen) > 1
    for floors in ((), (Constraint("accuracy", 0.0),)):
        found = cross_fit(Path(tuple(range(5)), heads), features(x, y), Goal(subject_to=floors))
        assert found.tolist() == expected.tolist()
