"""Fitted heads: their paths and certificates, the peers that agree, and the data that cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from method_cases import Array, arrays, penalty_unit, problem, sample_weights
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as PeerRidge

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Path
from posthoc_lt.features import Features, Training
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.solver import blocks, penalties


@pytest.mark.parametrize("name", ["affine", "crt", "lws", "refit"])
def test_a_path_carries_a_certificate_for_every_head(name: str) -> None:
    p = problem()
    family = METHODS[name]().fit(p.head(), p.training())
    assert isinstance(family, Path)
    assert family.knobs == penalties(None)
    assert len(family.knobs) == len(family.heads) == len(family.certificates) == 13
    assert list(family.knobs) == sorted(family.knobs, reverse=True)
    assert all(c.converged and c.gradient_norm <= 1e-8 for c in family.certificates)
    objectives = [c.objective for c in family.certificates]
    assert objectives == sorted(objectives, reverse=True)  # less penalty, lower minimum


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.knob == "l2"])
def test_one_penalty_is_one_head_and_that_of_the_path(name: str) -> None:
    p = problem()
    family = METHODS[name](**{"l2": 0.01}).fit(p.head(), p.training())
    whole = METHODS[name]().fit(p.head(), p.training())
    assert isinstance(family, Path)
    assert family.knobs == (0.01,)
    torch.testing.assert_close(family.at(0.01).weight, whole.at(0.01).weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "weakest"), [("crt", 1e-5), ("refit", 1e-5), ("lws", 1e-5), ("affine", 1e-5), ("ridge", 1e-8)]
)
@pytest.mark.parametrize("large", [False, True])
def test_penalties_fall_from_10_by_half_a_decade_or_a_whole_one(
    name: str, weakest: float, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(blocks, "LARGE", 0)
    p, steps = problem(), round(np.log10(10 / weakest)) * (1 if large else 2)
    family = METHODS[name]().fit(p.head(), p.training())
    assert isinstance(family, Path)
    assert family.knobs == pytest.approx(np.geomspace(10, weakest, steps + 1))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.knob == "l2"])
@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_not_positive_is_refused(name: str, l2: float) -> None:
    p = problem()
    with pytest.raises(PosthocError, match="Wanted: a number above 0"):
        METHODS[name](**{"l2": l2}).fit(p.head(), p.training())


@pytest.mark.parametrize(("name", "balanced"), [("crt", True), ("refit", False)])
@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
def test_logistic_heads_are_those_of_scikit_learn(name: str, balanced: bool, l2: float) -> None:
    p = problem(4)
    peer = LogisticRegression(
        C=1 / (len(p.y) * l2 * penalty_unit(p, balanced)),
        class_weight="balanced" if balanced else None,
        solver="newton-cg",
        tol=1e-12,
        max_iter=1000,
    ).fit(p.x, p.y)
    weight, bias = arrays(METHODS[name](**{"l2": l2}).fit(p.head(), p.training()).at(l2))
    np.testing.assert_allclose(weight, peer.coef_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias - bias.mean(), peer.intercept_ - peer.intercept_.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
def test_lws_is_the_minimum_that_scipy_finds(l2: float) -> None:
    p = problem(5)
    z, rows, weights = p.x @ p.w.T + p.b, np.arange(len(p.y)), sample_weights(p, balanced=True)

    def objective(s: Array) -> float:
        logits = s * z
        log_sums = np.log(np.exp(logits).sum(axis=1))
        return float(weights @ (log_sums - logits[rows, p.y]) + l2 / 2 * s @ s)

    peer = scipy.optimize.minimize(objective, np.ones(len(p.b)), method="BFGS", options={"gtol": 1e-7})
    weight, bias = arrays(METHODS["lws"](**{"l2": l2}).fit(p.head(), p.training()).at(l2))
    np.testing.assert_allclose(weight, peer.x[:, None] * p.w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, peer.x * p.b, rtol=1e-3, atol=1e-4)


def test_balanced_weights_are_those_of_features_at_hand_not_of_the_counts() -> None:
    p = problem()
    training = p.training()
    more = Training(training.counts * 3, training.features)
    one, other = (METHODS["crt"](**{"l2": 0.1}).fit(p.head(), t).at(0.1) for t in (training, more))
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
def test_affine_is_the_minimum_that_scipy_finds(l2: float) -> None:
    p = problem(5)
    z, rows, weights = p.x @ p.w.T + p.b, np.arange(len(p.y)), sample_weights(p, balanced=True)

    def objective(point: Array) -> float:
        s, beta = point.reshape(2, -1)
        logits = s * z + beta
        log_sums = np.log(np.exp(logits).sum(axis=1))
        return float(weights @ (log_sums - logits[rows, p.y]) + l2 / 2 * ((s - 1) @ (s - 1) + beta @ beta))

    start = np.concatenate([np.ones(len(p.b)), np.zeros(len(p.b))])
    peer = scipy.optimize.minimize(objective, start, method="BFGS", options={"gtol": 1e-7})
    s, beta = peer.x.reshape(2, -1)
    weight, bias = arrays(METHODS["affine"](**{"l2": l2}).fit(p.head(), p.training()).at(l2))
    np.testing.assert_allclose(weight, s[:, None] * p.w, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(bias, s * p.b + beta, rtol=1e-3, atol=1e-3)


def test_a_strong_penalty_leaves_affine_at_the_untouched_head() -> None:
    p = problem()
    weight, bias = arrays(METHODS["affine"](**{"l2": 1e5}).fit(p.head(), p.training()).at(1e5))
    np.testing.assert_allclose(weight, p.w, rtol=1e-4)
    np.testing.assert_allclose(bias, p.b, rtol=1e-4, atol=1e-5)


def test_a_strong_penalty_keeps_the_checkpoint_s_weights_where_crt_is_drawn_to_them() -> None:
    p = problem()
    weight, _ = arrays(METHODS["crt"](**{"l2": 1e5, "towards": "checkpoint"}).fit(p.head(), p.training()).at(1e5))
    np.testing.assert_allclose(weight, p.w, rtol=1e-4, atol=1e-5)


def test_the_logit_adjusted_loss_is_refit_with_its_bias_adjusted() -> None:
    p = problem()
    refit = METHODS["refit"](**{"l2": 0.1}).fit(p.head(), p.training()).at(0.1)
    expected = METHODS["logit-adjust"]().fit(refit, p.training()).at(1.0)
    adjusted = METHODS["crt"](**{"l2": 0.1, "sampler": "instance", "loss": "logit-adjusted"})
    head = adjusted.fit(p.head(), p.training()).at(0.1)
    torch.testing.assert_close(head.weight, expected.weight)
    torch.testing.assert_close(head.bias, expected.bias)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
def test_lda_separates_classes_as_scikit_learn(shrinkage: float, solver: str) -> None:
    p = problem(3)
    # its covariance is pooled by the priors it is given: those of train here, taken off its intercepts below
    priors = p.counts / p.counts.sum()
    peer = LinearDiscriminantAnalysis(solver=solver, shrinkage=shrinkage, priors=priors).fit(p.x, p.y)
    found = p.x @ peer.coef_.T + peer.intercept_ - np.log(priors)
    weight, bias = arrays(METHODS["lda"](**{"shrinkage": shrinkage}).fit(p.head(), p.training()).at(shrinkage))
    logits = p.x @ weight.T + bias
    np.testing.assert_allclose(logits[:, :1] - logits, found[:, :1] - found, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("l2", [1.0, 0.01, 1e-4])
def test_ridge_is_that_of_scikit_learn(l2: float) -> None:
    p = problem(3)
    peer = PeerRidge(alpha=l2 * penalty_unit(p, balanced=True))
    peer.fit(p.x, np.eye(len(p.b))[p.y], sample_weight=sample_weights(p, balanced=True))
    weight, bias = arrays(METHODS["ridge"](**{"l2": l2}).fit(p.head(), p.training()).at(l2))
    np.testing.assert_allclose(weight, peer.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(bias, peer.intercept_, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, float("nan")])
def test_a_shrinkage_outside_0_to_1_is_refused(shrinkage: float) -> None:
    p = problem()
    with pytest.raises(PosthocError, match="Wanted: a number from 0 to 1"):
        METHODS["lda"](**{"shrinkage": shrinkage}).fit(p.head(), p.training())


def _training(x: torch.Tensor, y: list[int]) -> Training:
    labels = torch.tensor(y)
    return Training(torch.bincount(labels), Features(x, labels))


def test_lda_without_shrinkage_refuses_a_covariance_without_inverse() -> None:
    p = problem()
    x = torch.tensor(p.x)
    training = _training(torch.cat([x, x[:, :1]], dim=1), p.y.tolist())
    head = Head(torch.ones(4, 6, dtype=torch.float64), torch.zeros(4))
    with pytest.raises(PosthocError, match=r"no inverse.*give --shrinkage 0.01"):
        METHODS["lda"](**{"shrinkage": 0.0}).fit(head, training)
    assert METHODS["lda"]().fit(head, training).at(0.01).weight.isfinite().all()


FITTED = ("affine", "crt", "lda", "lws", "ncm", "refit", "ridge")


@pytest.mark.parametrize("name", ["crt", "refit", "ridge", "lda"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_features_that_are_all_alike_are_refused(name: str, value: float) -> None:
    training = _training(torch.full((6, 3), value), [0, 0, 0, 1, 1, 2])
    with pytest.raises(PosthocError, match=r"all alike|do not differ within any class"):
        METHODS[name]().fit(Head(torch.ones(3, 3), torch.zeros(3)), training)


@pytest.mark.parametrize("name", FITTED)
def test_one_sample_a_class_is_fitted_or_refused_in_words(name: str) -> None:
    head = Head(torch.eye(3), torch.zeros(3))
    training = _training(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]]), [0, 1, 2])
    if name == "lda":
        with pytest.raises(PosthocError, match="use ncm"):
            METHODS[name]().fit(head, training)
        return
    family = METHODS[name]().fit(head, training)
    knobs: tuple[float | None, ...] = family.knobs if isinstance(family, Path) else (None,)
    assert training.features is not None
    for knob in knobs:
        assert family.at(knob)(training.features.x).argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", FITTED)
def test_a_rare_class_of_one_sample_and_separable_ones_are_fitted(name: str) -> None:
    p = problem(counts=(60, 20, 1))
    p.x[:, 0] += 50.0 * p.y
    family = METHODS[name]().fit(p.head(), p.training())
    knobs: tuple[float | None, ...] = family.knobs if isinstance(family, Path) else (None,)
    assert all(family.at(knob).weight.isfinite().all() for knob in knobs)
    assert not isinstance(family, Path) or all(each.converged for each in family.certificates)


@pytest.mark.parametrize("loss", ["cross-entropy", "logit-adjusted", "class-balanced"])
@pytest.mark.parametrize(("sampler", "q"), [("class", 0.0), ("square-root", 0.5), ("instance", 1.0)])
def test_the_paper_s_recipe_learns_what_its_expectation_learns(loss: str, sampler: str, q: float) -> None:
    p = problem(1, counts=(600, 200, 60), dimensions=4)
    n = np.array([600.0, 200.0, 60.0])
    weight = n**q / (n**q).sum() / n
    if loss == "class-balanced":
        weight /= 1 - 0.9999**n
    share = weight * n / (weight * n).sum() if loss == "logit-adjusted" else np.ones(3)
    options = {"recipe": "paper", "sampler": sampler, "loss": loss, "l2": 0.01}
    family = METHODS["crt"](**options).fit(p.head(), p.training())
    assert isinstance(family, Path)
    assert (family.knobs, family.certificates) == ((0.01,), ())

    def objective(head: Head) -> float:
        logits = p.x @ head.weight.double().numpy().T + head.bias.double().numpy() + np.log(share)
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(p.y)), p.y]
        return float((weight[p.y] * losses).sum() / weight[p.y].sum())

    convex = METHODS["crt"](**{"sampler": sampler, "loss": loss, "l2": 1e-3}).fit(p.head(), p.training()).at(1e-3)
    best = objective(convex)
    assert best - 0.01 < objective(family.at(0.01)) < best + 0.4 * (objective(p.head()) - best)


@pytest.mark.parametrize("name", ["crt", "lws"])
def test_the_paper_s_recipe_has_the_paper_s_decay_and_takes_another(name: str) -> None:
    p = problem()
    paper, own = METHODS[name](**{"recipe": "paper"}), METHODS[name](**{"recipe": "paper", "l2": 0.5})
    families = [each.fit(p.head(), p.training()) for each in (paper, own)]
    assert [each.knobs for each in families if isinstance(each, Path)] == [(5e-4,), (0.5,)]
    norms = [float(f.at(k).weight.norm()) for f, k in zip(families, (5e-4, 0.5), strict=True)]
    assert norms[1] < norms[0]


def test_the_paper_s_recipe_starts_from_the_checkpoint_where_asked() -> None:
    p = problem()
    head = Head(torch.tensor(100 * p.w), torch.tensor(p.b))
    fresh, warm = (
        METHODS["crt"](**{"recipe": "paper", "init": init}).fit(head, p.training()).at(5e-4)
        for init in ("fresh", "checkpoint")
    )
    assert float((warm.weight - head.weight).norm()) < 0.5 * float((fresh.weight - head.weight).norm())


def test_the_paper_s_recipe_draws_to_zero_and_says_so() -> None:
    p = problem()
    with pytest.raises(PosthocError, match=r"--recipe paper with --towards checkpoint.*--init checkpoint"):
        METHODS["crt"](**{"recipe": "paper", "towards": "checkpoint"}).fit(p.head(), p.training())


@pytest.mark.parametrize("options", [{}, {"loss": "logit-adjusted", "sampler": "instance"}, {"towards": "checkpoint"}])
def test_a_convex_fit_ends_at_one_minimum_wherever_it_starts_and_at_once_from_there(options: dict[str, str]) -> None:
    p = problem()
    fresh = METHODS["crt"](**{"l2": 0.01, **options}).fit(p.head(), p.training())
    solved, warm = fresh.at(0.01), {"l2": 0.01, "init": "checkpoint", **options}
    again = METHODS["crt"](**warm).fit(p.head(), p.training())
    torch.testing.assert_close(again.at(0.01).weight, solved.weight, atol=1e-6, rtol=1e-6)
    offset = again.at(0.01).bias - solved.bias
    torch.testing.assert_close(offset, offset.mean().expand_as(offset), atol=1e-6, rtol=0)
    if "towards" not in options:  # which the start is then, too
        there = METHODS["crt"](**warm).fit(solved, p.training())
        assert isinstance(there, Path)
        assert there.certificates[0].iterations <= 1


@pytest.mark.parametrize("loss", ["cross-entropy", "logit-adjusted", "class-balanced"])
@pytest.mark.parametrize(("sampler", "q"), [("class", 0.0), ("square-root", 0.5), ("instance", 1.0)])
def test_without_features_the_paper_s_recipe_learns_the_frequencies_that_it_draws(
    loss: str, sampler: str, q: float
) -> None:
    """Then the bias is all there is: the log of how often a class is drawn, and weighed, less what the loss adds."""
    n = np.array([6000.0, 1500.0, 300.0])
    labels = torch.arange(3).repeat_interleave(torch.tensor([6000, 1500, 300]))
    training = Training(torch.bincount(labels), Features(torch.zeros(len(labels), 1), labels))
    options = {"recipe": "paper", "sampler": sampler, "loss": loss, "l2": 1e-9}
    bias = METHODS["crt"](**options).fit(Head(torch.ones(3, 1), torch.zeros(3)), training).at(1e-9).bias.double()
    drawn = {"cross-entropy": n**q, "logit-adjusted": n**0, "class-balanced": n**q / (1 - 0.9999**n)}[loss]
    np.testing.assert_allclose(bias.softmax(dim=0).numpy(), drawn / drawn.sum(), atol=0.04)


@pytest.mark.parametrize("name", ["affine", "crt", "lws", "refit"])
def test_one_penalty_is_solved_to_the_end_on_large_problems_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p, options = problem(4, counts=(400, 90, 30, 4), dimensions=8), {"l2": 1e-4}
    exact = METHODS[name](**options).fit(p.head(), p.training())
    monkeypatch.setattr(blocks, "LARGE", 0)
    family, whole = (METHODS[name](**each).fit(p.head(), p.training()) for each in (options, {}))
    assert isinstance(exact, Path)
    assert isinstance(family, Path)
    assert isinstance(whole, Path)
    assert not all(each.converged for each in whole.certificates)
    assert family.certificates[0].converged
    least = exact.certificates[0].objective
    assert abs(family.certificates[0].objective - least) <= 1e-6 * least + 1e-3**2 / (2 * 1e-4)  # ‖∇‖²/2λ, and float32


@pytest.mark.parametrize("noise", [1e-8, 1e-3])
def test_lda_takes_differences_that_are_only_rounding_for_none(noise: float) -> None:
    p = problem()
    training = _training(torch.tensor(1e6 * np.eye(4)[p.y] + noise * p.x[:, :4]), p.y.tolist())
    method, head = METHODS["lda"](), Head(torch.ones(4, 4, dtype=torch.float64), torch.zeros(4))
    if noise > 1e-6:
        assert method.fit(head, training).at(0.01).weight.isfinite().all()
    else:
        with pytest.raises(PosthocError, match="do not differ within any class"):
            method.fit(head, training)
