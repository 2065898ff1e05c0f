"""Methods of two knobs and more: exact along the inner one, likely along the others, judged without peeking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_cases import Problem, problem
from scipy.optimize import minimize
from scipy.special import log_softmax

import posthoc_lt
from posthoc_lt import METHODS, Features, FeatureSet, PosthocError
from posthoc_lt.family import Line, Offsets, Sheet
from posthoc_lt.metrics import group_classes
from posthoc_lt.pipeline import fit
from posthoc_lt.pipeline.result import saved_head
from posthoc_lt.search import Constraint, Goal, choose, cross_fit, stratified_folds

COUNTS = np.array([40, 17, 8, 3])
LOG_PRIOR = np.log(COUNTS / COUNTS.sum())


def held_out(p: Problem, per_class: int, seed: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Fresh noise around the class means of a problem."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(4), per_class)
    means = np.array([p.x[p.y == c].mean(axis=0) for c in range(4)])
    return means[y] + rng.normal(size=(len(y), 5)), y


def features(x: np.ndarray, y: np.ndarray | None = None) -> Features:
    return Features(torch.from_numpy(x), None if y is None else torch.from_numpy(y))


def sheet(name: str, p: Problem) -> Sheet:
    family = METHODS[name]().fit(p.head(), p.training())
    assert isinstance(family, Sheet)
    return family


def scaled(p: Problem, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    norms = np.linalg.norm(p.w, axis=1)
    ratio = (norms / np.exp(np.log(norms).mean())) ** gamma
    return p.w / ratio[:, None], p.b / ratio


def balanced(right: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([right[y == c].mean() for c in np.unique(y)]))


def best_by_brute_force(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """The head folded anew between every two values of τ at which any two classes of any sample tie."""
    z = x @ weight.T + bias
    with np.errstate(divide="ignore", invalid="ignore"):
        ties = (z[:, :, None] - z[:, None, :]) / (LOG_PRIOR[:, None] - LOG_PRIOR[None, :])
    edges = np.unique(np.concatenate([[0.0, 4.0], ties[(ties > 0) & (ties < 4)]]))
    middles = ((edges[1:] + edges[:-1]) / 2)[np.diff(edges) > 1e-4]
    return max(balanced((x @ weight.T + bias - t * LOG_PRIOR).argmax(axis=1) == y, y) for t in middles)


# tau-norm × logit adjustment


@pytest.mark.parametrize("seed", range(4))
def test_the_joint_optimum_is_that_of_brute_force_over_folded_heads(seed: int) -> None:
    p = problem(seed)
    x, y = held_out(p, 5, seed)
    family = sheet("tau-norm-adjust", p)
    best = max(best_by_brute_force(*scaled(p, gamma), x, y) for gamma in family.values)
    choice = choose(family, features(x, y), Goal(rule="metric"))
    assert choice.best is not None
    assert choice.best[0] == pytest.approx(best, abs=1e-12)
    assert balanced(choice.head(x).argmax(axis=1) == y, y) == pytest.approx(best, abs=1e-12)
    assert choice.knob is not None
    weight, bias = scaled(p, choice.outer["gamma"])
    np.testing.assert_allclose(choice.head.weight.numpy(), weight, rtol=1e-12)
    np.testing.assert_allclose(choice.head.bias.numpy(), bias - choice.knob * LOG_PRIOR, rtol=1e-12)
    assert choice.interval is None  # along one line, chosen on the same samples, it would be too narrow


def negative_log_posterior(z: np.ndarray, slope: np.ndarray, y: np.ndarray, point: np.ndarray, ridge: float) -> float:
    """Of (τ, log a, δ), every class weighing the same; offsets δ of deviation `ridge`."""
    tau, log_scale, offsets = point[0], point[1], np.append(point[2:], np.zeros(6 - len(point)))
    logs = log_softmax(np.exp(log_scale) * (z + tau * slope + offsets), axis=1)[np.arange(len(y)), y]
    prior = ((tau - 1.25) / 0.5) ** 2 + (log_scale / 0.7) ** 2 + (offsets @ offsets) / ridge**2
    w = 1 / (4 * np.bincount(y)[y])
    return float(-(w @ logs) / (w @ w) + prior / 2)


def mode(z: np.ndarray, y: np.ndarray, ridge: float | None = None) -> tuple[np.ndarray, float]:
    start = np.zeros(2 if ridge is None else 6)
    start[0] = 1.25

    def objective(point: np.ndarray) -> float:
        return negative_log_posterior(z, -LOG_PRIOR, y, point, ridge or 1.0)

    # Nothing holds τ within its bounds: on these problems the mode lies inside.
    found = minimize(objective, start, method="BFGS", options={"gtol": 1e-6})
    assert 0 < found.x[0] < 4
    return found.x, float(found.fun)


@pytest.mark.parametrize("seed", range(3))
def test_both_knobs_are_the_joint_posterior_mode(seed: int) -> None:
    p = problem(seed)
    x, y = held_out(p, 6, seed)
    modes = {}
    for gamma in np.arange(11) / 5:
        weight, bias = scaled(p, gamma)
        point, value = mode(x @ weight.T + bias, y)
        modes[gamma] = value + (gamma / 0.5) ** 2 / 2, point[0]
    likeliest = min(modes, key=lambda gamma: modes[gamma][0])
    choice = choose(sheet("tau-norm-adjust", p), features(x, y), Goal(rule="nll"))
    assert choice.outer == {"gamma": pytest.approx(likeliest)}
    assert choice.knob == pytest.approx(modes[likeliest][1], abs=0.011)  # kept off the edges of its cell


def test_a_floor_chooses_among_lines_that_can_keep_it() -> None:
    p = problem(1)
    x, y = held_out(p, 10)
    groups = group_classes(torch.from_numpy(COUNTS), (10, 20))
    family = sheet("tau-norm-adjust", p)
    free = choose(family, features(x, y), Goal(groups=groups))
    many = float((free.head(x).argmax(axis=1) == y)[y == 0].mean())
    reach = {}
    for gamma in family.values:
        weight, bias = scaled(p, gamma)
        reach[gamma] = max(
            float(((x @ weight.T + bias - t * LOG_PRIOR).argmax(axis=1) == y)[y == 0].mean())
            for t in np.linspace(0.01, 3.99, 200)
        )
    floor = max(reach.values())
    assert floor > max(many, min(reach.values()))  # so that it binds, and some lines cannot keep it
    held = choose(family, features(x, y), Goal(subject_to=(Constraint("many", floor),), groups=groups))
    assert reach[held.outer["gamma"]] == floor
    assert (held.head(x).argmax(axis=1) == y)[y == 0].mean() == floor
    with pytest.raises(PosthocError, match=r"subject-to many>=1\.01"):
        choose(family, features(x, y), Goal(subject_to=(Constraint("many", 1.01),), groups=groups))


# Blend


@pytest.mark.parametrize("other", ["crt", "refit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_a_blend_are_the_two_heads(other: str, dtype: torch.dtype) -> None:
    p = problem(3)
    head, training = p.head(dtype), p.training()
    family = METHODS["blend"](**{"other": other}).fit(head, training)
    path = METHODS[other]().fit(head, training)
    assert isinstance(family, Sheet)
    assert family.name == "l2"
    for l2, line in zip(family.values, family.lines, strict=True):
        start, end, expected = line.at(0.0), line.at(1.0), path.at(l2)
        assert torch.equal(start.weight, head.weight)
        assert torch.equal(start.bias, head.bias)
        rounding = 2 * torch.finfo(torch.float64).eps * 100 if dtype == torch.float64 else 0.0
        torch.testing.assert_close(end.weight, expected.weight, rtol=0, atol=rounding)
        torch.testing.assert_close(end.bias, expected.bias, rtol=0, atol=rounding)


@pytest.mark.parametrize("rule", ["guarded", "nll", "metric"])
def test_a_blend_stays_between_its_ends(rule: str) -> None:
    """Validation that one end alone explains, and more of it still better, is given that end."""
    p = problem(0)
    x, _ = held_out(p, 40)
    near = METHODS["ncm"]().fit(p.head(), p.training()).at(None)
    family = METHODS["blend"](**{"other": "ncm"}).fit(p.head(), p.training())
    for best, place in ((p.head(), 0.0), (near, 1.0)):
        y = best(x).argmax(axis=1)
        knob = choose(family, features(x, y), Goal(rule=rule)).knob
        assert knob is not None
        assert 0 <= knob <= 1
        assert abs(knob - place) < (0.3 if rule == "metric" else 0.5)


# Offsets


def learned(x: np.ndarray, y: np.ndarray, p: Problem, deviation: float) -> np.ndarray:
    """The bias that offsets and τ give at their joint posterior mode."""
    point, _ = mode(x @ p.w.T + p.b, y, deviation)
    return np.asarray(p.b - point[0] * LOG_PRIOR + point[2:])


def offsets(p: Problem, deviation: float) -> Offsets:
    family = METHODS["offsets"](**{"deviation": deviation}).fit(p.head(), p.training())
    assert isinstance(family, Offsets)
    return family


@pytest.mark.parametrize("deviation", [0.2, 1.0])
def test_offsets_are_the_joint_posterior_mode(deviation: float) -> None:
    p = problem(2)
    x, y = held_out(p, 8)
    choice = choose(offsets(p, deviation), features(x, y), Goal(rule="nll"))
    off = choice.head.bias.numpy() - learned(x, y, p, deviation)
    np.testing.assert_allclose(off, off.mean(), atol=0.02)  # τ is kept off the edges of its cell


def test_offsets_that_may_not_stray_are_logit_adjustment() -> None:
    p = problem(2)
    val = features(*held_out(p, 8))
    one = choose(offsets(p, 0.0), val)
    two = choose(METHODS["logit-adjust"]().fit(p.head(), p.training()), val)
    assert one.knob == two.knob
    assert torch.equal(one.head.bias, two.head.bias)
    tight = choose(offsets(p, 1e-4), val)
    torch.testing.assert_close(tight.head.bias, two.head.bias, rtol=0, atol=1e-5)


def test_cross_fitting_learns_offsets_without_the_samples_that_it_judges() -> None:
    """Every fold against the oracle on the others, on features so small that offsets decide."""
    p = problem(2)
    x, y = held_out(p, 4)
    x, whole, told_apart = 0.2 * x, learned(0.2 * x, y, p, 2.0), 0
    fold = stratified_folds(torch.from_numpy(y)).numpy()
    predicted = cross_fit(offsets(p, 2.0), features(x, y), Goal(rule="nll")).numpy()
    for index in range(5):
        rest = fold != index
        own, leaky = (x[~rest] @ p.w.T + bias for bias in (learned(x[rest], y[rest], p, 2.0), whole))
        top = np.sort(own, axis=1)
        clear = top[:, -1] - top[:, -2] > 0.03
        assert (predicted[~rest] == own.argmax(axis=1))[clear].all()
        told_apart += int((own.argmax(axis=1) != leaky.argmax(axis=1))[clear].sum())
    assert told_apart > 0


# In the pipeline


@pytest.fixture(scope="module")
def cached() -> FeatureSet:
    p = problem(4)
    return FeatureSet(p.head(), p.training().features, features(*held_out(p, 6, 1)), features(*held_out(p, 6, 2)))


@pytest.fixture(scope="module")
def fitted_unnamed(cached: FeatureSet) -> list[str]:
    return [each.name for each in posthoc_lt.compare(cached).fitted]


def test_both_knobs_are_told_everywhere(cached: FeatureSet) -> None:
    result = posthoc_lt.rebalance(cached, methods=["tau-norm-adjust"])
    (row,) = [each for each in result.comparison.records() if each["method"] == "tau-norm-adjust"]
    fitted = result.fitted[1]
    gamma, tau = fitted.choice.outer["gamma"], fitted.choice.knob
    assert fitted.knobs == {"gamma": gamma, "tau": tau}
    assert (row["gamma"], row["tau"]) == (gamma, tau)
    assert f"gamma={gamma:.3g} tau={tau:.3g}" in result.comparison.text(120)
    frame = result.table.set_index("method")
    assert frame.loc["tau-norm-adjust", "gamma"] == gamma
    assert "gamma" in result.comparison.csv().splitlines()[0].split(",")
    provenance = saved_head(fitted, cached).provenance
    assert (float(provenance["gamma"]), float(provenance["tau"])) == (gamma, tau)


def test_a_knob_given_needs_the_other(cached: FeatureSet) -> None:
    with pytest.raises(PosthocError, match=r"without gamma.*--gamma"):
        fit("tau-norm-adjust", cached, knob=1.0)
    given = fit(METHODS["tau-norm-adjust"](**{"gamma": 0.3}), cached, knob=1.0)
    assert given.knobs == {"tau": 1.0}
    assert given.options == "gamma=0.3"
    with pytest.raises(PosthocError, match=r"without l2.*--l2"):
        fit("blend", cached, knob=0.5)
    with pytest.raises(PosthocError, match="use logit-adjust"):
        fit("offsets", cached, knob=1.0)


@pytest.mark.parametrize("name", ["tau-norm-adjust", "blend", "offsets"])
def test_they_are_fitted_where_named_and_need_labels(name: str, cached: FeatureSet, fitted_unnamed: list[str]) -> None:
    assert "logit-adjust" in fitted_unnamed
    assert name not in fitted_unnamed
    assert [each.name for each in posthoc_lt.compare(cached, methods=name).fitted] == ["baseline", name]
    assert cached.val is not None
    unlabelled = FeatureSet(cached.head, cached.train, Features(cached.val.x))
    with pytest.raises(PosthocError, match="labelled validation"):
        fit(name, unlabelled)


def test_a_mix_is_not_chosen_without_labels(cached: FeatureSet) -> None:
    with pytest.raises(PosthocError, match=r"labelled validation.*--mix"):
        fit(METHODS["blend"](**{"other": "ncm"}), FeatureSet(cached.head, cached.train))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_options_that_are_no_numbers_are_refused(bad: float) -> None:
    p = problem()
    with pytest.raises(PosthocError, match="--gamma"):
        METHODS["tau-norm-adjust"](**{"gamma": bad}).fit(p.head(), p.training())
    with pytest.raises(PosthocError, match="--deviation"):
        METHODS["offsets"](**{"deviation": bad}).fit(p.head(), p.training())
    with pytest.raises(PosthocError, match="--deviation"):
        METHODS["offsets"](**{"deviation": -1.0}).fit(p.head(), p.training())


def test_an_outer_value_given_is_a_line() -> None:
    p = problem()
    assert isinstance(METHODS["tau-norm-adjust"](**{"gamma": 0.5}).fit(p.head(), p.training()), Line)
    assert isinstance(METHODS["blend"](**{"l2": 0.1}).fit(p.head(), p.training()), Line)
