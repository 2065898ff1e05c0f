"""Label shift against a slow EM, Wilson's interval and simulation; the network's prior against eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest

import posthoc_lt.features
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.shift import EstimatedPrior, estimate_prior, model_prior

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Given:
    """A calibration that is known."""

    scale: float = 1.0
    prior_strength: float = 1.0


class Gaussians:
    """Unit Gaussians on a circle, and the exact posteriors of a skewed train prior as an affine head."""

    def __init__(self, classes: int, radius: float) -> None:
        angle = 2 * np.pi * np.arange(classes) / classes
        self.means = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self.train = np.arange(classes, 0, -1.0) ** 2
        self.train /= self.train.sum()
        bias = np.log(self.train) - (self.means**2).sum(axis=1) / 2
        self.head = Head(torch.from_numpy(self.means), torch.from_numpy(bias))
        self.log_prior = torch.from_numpy(np.log(self.train))

    def draw(self, prior: Floats, samples: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
        y = rng.choice(len(prior), samples, p=prior).astype(np.int64)
        return self.means[y] + rng.normal(size=(samples, 2)), y

    def estimate(self, x: Floats, concentration: float | None = None) -> EstimatedPrior:
        return estimate_prior(
            self.head, Features(torch.from_numpy(x)), self.log_prior, calibration=Given(), concentration=concentration
        )

    def likelihood(self, x: Floats) -> Floats:
        distance = ((x[:, None] - self.means) ** 2).sum(axis=2) / 2
        found: Floats = np.exp(distance.min(axis=1, keepdims=True) - distance)
        return found


def saerens(likelihood: Floats, concentration: float, steps: int) -> Floats:
    """The EM as published, with pseudo-counts, from equal shares."""
    samples, classes = likelihood.shape
    prior = np.full(classes, 1 / classes)
    for _ in range(steps):
        joint = prior * likelihood
        responsible = joint / joint.sum(axis=1, keepdims=True)
        prior = (responsible.sum(axis=0) + concentration - 1) / (samples + classes * (concentration - 1))
    return prior


def log_likelihood(likelihood: Floats, prior: Floats) -> float:
    return float(np.log(likelihood @ prior).sum())


TRUE = np.array([0.05, 0.15, 0.3, 0.5])


@pytest.mark.parametrize("concentration", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("radius", [1.5, 4.0])
def test_the_optimum_is_the_fixed_point_of_em(radius: float, concentration: float) -> None:
    world = Gaussians(4, radius)
    x, _ = world.draw(TRUE, 300, np.random.default_rng(0))
    found = world.estimate(x, concentration)
    likelihood = world.likelihood(x)
    prior = found.prior.numpy()
    assert prior == pytest.approx(saerens(likelihood, concentration, 20_000), abs=1e-6)
    responsible = prior * likelihood / (likelihood @ prior)[:, None]
    again = (responsible.sum(axis=0) + concentration - 1) / (300 + 4 * (concentration - 1))
    assert np.abs(again - prior).max() < 1e-8
    assert found.residual == pytest.approx(np.abs(again - prior).max(), abs=1e-12)
    assert found.converged


def test_every_pass_climbs_and_the_last_is_as_high_as_the_optimum() -> None:
    world = Gaussians(4, 1.0)
    x, _ = world.draw(TRUE, 500, np.random.default_rng(1))
    found = world.estimate(x)
    likelihood = world.likelihood(x)
    heights = np.array(found.objectives)
    assert 3 < len(heights) <= 12  # where EM alone takes hundreds
    assert (np.diff(heights) >= -1e-9).all()
    uniform, best = np.full(4, 0.25), saerens(likelihood, 1.0, 50_000)
    won = log_likelihood(likelihood, best) - log_likelihood(likelihood, uniform)
    assert heights[-1] - heights[0] == pytest.approx(won, abs=1e-6)
    assert won > 1.0


def test_a_known_shift_is_recovered_within_its_interval() -> None:
    world = Gaussians(4, 2.5)
    x, _ = world.draw(TRUE, 4000, np.random.default_rng(2))
    found = estimate_prior(world.head, Features(torch.from_numpy(x)), world.log_prior, calibration=Given(), level=0.999)
    assert ((found.low.numpy() <= TRUE) & (found.high.numpy() >= TRUE)).all()
    assert found.prior.numpy() == pytest.approx(TRUE, abs=0.03)
    assert float(found.prior.sum()) == pytest.approx(1, abs=1e-12)
    # The train prior, which the head holds, is nowhere near: it was taken out.
    assert np.abs(world.train - TRUE).max() > 0.4
    narrow = world.estimate(x)
    assert bool((narrow.high - narrow.low < 0.65 * (found.high - found.low)).all())


def test_a_variance_of_its_own_widens_the_interval_by_its_equation() -> None:
    """(ρ̂ − ρ)² = z²(A + ρ(1 − ρ)/N) at both ends; without the variance the same with a smaller A."""
    world = Gaussians(4, 2.5)
    x = torch.from_numpy(world.draw(TRUE, 400, np.random.default_rng(2))[0])
    added = torch.tensor([0.0, 1e-4, 4e-4, 1e-3]).double()

    def spread(variance: torch.Tensor | None) -> torch.Tensor:
        found = estimate_prior(world.head, Features(x), world.log_prior, calibration=Given(), variance=variance)
        ends = torch.stack([found.low, found.high])
        return ((found.prior - ends) / 1.959963984540054).square() - ends * (1 - ends) / 400

    assert (spread(added) - spread(None)).numpy() == pytest.approx(np.stack([added, added]), abs=1e-9)


@pytest.mark.parametrize(("radius", "samples"), [(1.5, 300), (4.0, 80)])
def test_intervals_cover(radius: float, samples: int) -> None:
    """200 draws of 4 classes: a class's 95% interval misses on 10 draws in the mean, on 22 once in 4000 times."""
    world, rng = Gaussians(4, radius), np.random.default_rng(3)
    covered = np.zeros(4)
    for _ in range(200):
        found = world.estimate(world.draw(TRUE, samples, rng)[0])
        covered += (found.low.numpy() <= TRUE) & (found.high.numpy() >= TRUE)
    assert (covered >= 178).all()
    assert 0.93 <= covered.mean() / 200 <= 0.985


def test_intervals_of_a_regularised_estimate_cover() -> None:
    """60 classes of 1/rank shares, κ = 4 for 400 samples: a pull towards 1/60 of 180 samples in 580."""
    world, rng = Gaussians(60, 40.0), np.random.default_rng(4)
    true = 1 / np.arange(1, 61)
    true /= true.sum()
    covered = np.zeros(60)
    for _ in range(60):
        found = world.estimate(world.draw(true, 400, rng)[0], 4.0)
        covered += (found.low.numpy() <= true) & (true <= found.high.numpy())
    assert 0.93 <= covered.mean() / 60 <= 0.985
    assert covered[0] >= 50  # of the largest share, which is pulled most: 57 in the mean


def test_of_classes_never_confused_the_interval_is_wilsons() -> None:
    world = Gaussians(4, 30.0)
    y = np.repeat([0, 1, 2], [50, 9, 1])
    x = world.means[y]
    found = world.estimate(x)
    for c, count in enumerate([50, 9, 1, 0]):
        wilson = binomtest(count, 60).proportion_ci(0.95, "wilson")
        assert float(found.prior[c]) == pytest.approx(count / 60, abs=1e-7)
        assert float(found.low[c]) == pytest.approx(max(0.0, wilson.low), abs=1e-4)
        assert float(found.high[c]) == pytest.approx(wilson.high, abs=1e-4)


def test_confusion_widens_the_interval() -> None:
    near, far = (Gaussians(4, radius) for radius in (1.0, 6.0))
    rng = np.random.default_rng(5)
    wide, narrow = (w.estimate(w.draw(np.full(4, 0.25), 1000, rng)[0]) for w in (near, far))
    assert bool(((wide.high - wide.low) > 1.5 * (narrow.high - narrow.low)).all())


def test_only_calibrated_posteriors_count() -> None:
    """A head three times too sure that holds 0.7 of the prior: calibrated, it gives what the exact head gives."""
    world = Gaussians(3, 1.0)
    true = np.array([0.2, 0.2, 0.6])
    x, _ = world.draw(true, 2000, np.random.default_rng(6))
    likelihood_bias = world.head.bias - world.log_prior
    off = Head(3 * world.head.weight, 3 * (likelihood_bias + 0.7 * world.log_prior))
    features = Features(torch.from_numpy(x))
    right = estimate_prior(off, features, world.log_prior, calibration=Given(1 / 3, 0.7))
    wrong = estimate_prior(off, features, world.log_prior, calibration=Given())
    assert torch.allclose(right.prior, world.estimate(x).prior, atol=1e-6)
    assert float((wrong.prior - torch.from_numpy(true)).abs().max()) > 0.05


def test_without_information_regularisation_gives_equal_shares() -> None:
    head, log_prior = Head(torch.zeros(5, 3), torch.zeros(5)), torch.zeros(5)
    features = Features(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)))
    found = estimate_prior(head, features, log_prior, calibration=Given(), concentration=1.5)
    assert found.prior.tolist() == pytest.approx([0.2] * 5, abs=1e-12)
    assert not bool(found.identifiable.any())
    assert bool((found.low < 0.01).all())
    assert bool((found.high > 0.99).all())
    with pytest.raises(PosthocError, match="do not tell the shares of class 0, 1, 2, 3, 4 apart"):
        estimate_prior(head, features, log_prior, calibration=Given(), concentration=1.0)


def test_classes_of_proportional_posteriors_are_refused_or_named() -> None:
    world = Gaussians(4, 4.0)
    twin = Head(
        torch.cat([world.head.weight, world.head.weight[2:3]]), torch.cat([world.head.bias, world.head.bias[2:3]])
    )
    log_prior = torch.cat([world.log_prior, world.log_prior[2:3]])
    features = Features(torch.from_numpy(world.draw(TRUE, 400, np.random.default_rng(7))[0]))
    with pytest.raises(PosthocError, match="shares of class 2, 4 apart"):
        estimate_prior(twin, features, log_prior, calibration=Given(), concentration=1.0)
    found = estimate_prior(twin, features, log_prior, calibration=Given(), concentration=1.5)
    assert found.identifiable.tolist() == [True, True, False, True, False]
    assert float(found.prior[2]) == pytest.approx(float(found.prior[4]), abs=1e-6)
    assert float(found.prior[2] + found.prior[4]) == pytest.approx(0.3, abs=0.08)
    assert bool((found.high - found.low)[[2, 4]].min() > 0.5)


def test_fewer_samples_than_classes_are_refused() -> None:
    world = Gaussians(6, 1.0)
    x, _ = world.draw(np.full(6, 1 / 6), 4, np.random.default_rng(8))
    with pytest.raises(PosthocError, match="4 unlabelled samples that do not tell"):
        world.estimate(x)
    assert not bool(world.estimate(x, 1.5).identifiable.all())


def test_past_100_classes_the_estimate_is_regularised() -> None:
    for classes, concentration in ((100, 1.0), (101, 1.5)):
        head = Head(100 * torch.eye(classes), torch.zeros(classes))
        features = Features(torch.eye(classes).repeat(2, 1))
        found = estimate_prior(head, features, torch.zeros(classes), calibration=Given())
        assert found.concentration == concentration
        assert bool(found.identifiable.all())


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Gaussians(4, 2.0)
    x, y = world.draw(TRUE, 301, np.random.default_rng(9))
    labelled = Features(torch.from_numpy(x), torch.from_numpy(y))
    whole, prior = world.estimate(x), model_prior(world.head, labelled)
    monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", 16 * 7)
    parts = world.estimate(x)
    assert torch.allclose(parts.prior, whole.prior, atol=1e-9)
    assert torch.allclose(parts.high, whole.high, atol=1e-9)
    assert torch.allclose(model_prior(world.head, labelled), prior, atol=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from([1.2, 2.0]))
def test_random_problems_end_at_a_fixed_point(seed: int, classes: int, concentration: float) -> None:
    rng = np.random.default_rng(seed)
    weight, x = rng.normal(size=(classes, 3)) * rng.choice([0.3, 1, 5]), rng.normal(size=(rng.integers(1, 60), 3))
    head = Head(torch.from_numpy(weight), torch.zeros(classes, dtype=torch.float64))
    options = {"calibration": Given(), "concentration": concentration}
    found = estimate_prior(head, Features(torch.from_numpy(x)), torch.zeros(classes), **options)  # type: ignore[arg-type]
    prior, likelihood = found.prior.numpy(), softmax(x @ weight.T, axis=1)
    responsible = prior * likelihood / (likelihood @ prior)[:, None]
    again = (responsible.sum(axis=0) + concentration - 1) / (len(x) + classes * (concentration - 1))
    assert np.abs(again - prior).max() < 1e-7
    assert bool((found.low <= found.prior).all())
    assert bool((found.prior <= found.high).all())
    order = rng.permutation(classes)
    turned = Head(head.weight[order], head.bias)
    other = estimate_prior(turned, Features(torch.from_numpy(x)), torch.zeros(classes), **options)  # type: ignore[arg-type]
    assert other.prior.numpy() == pytest.approx(prior[order], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"concentration": 0.5}, "concentration 0.5"),
        ({"concentration": float("nan")}, "concentration nan"),
        ({"level": 1.0}, "confidence level 1.0"),
        ({"log_prior": torch.zeros(3)}, r"log prior of shape \(3,\)"),
        ({"log_prior": torch.tensor([0.0, float("-inf")])}, "or not finite"),
        ({"features": Features(torch.zeros(0, 2))}, "no unlabelled sample"),
        ({"features": Features(torch.zeros(1, 3))}, "features of 3 dimensions"),
        ({"features": Features(torch.full((1, 2), float("nan")))}, "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], named: str) -> None:
    asked: dict[str, object] = {"features": Features(torch.eye(2)), "log_prior": torch.zeros(2)} | options
    with pytest.raises(PosthocError, match=named):
        estimate_prior(Head(torch.eye(2), torch.zeros(2)), calibration=Given(), **asked)  # type: ignore[arg-type]


def test_the_models_prior_is_the_one_whose_posteriors_it_holds() -> None:
    """On balanced samples, where the mean softmax is nowhere near it."""
    world = Gaussians(4, 2.0)
    y = np.repeat(np.arange(4), 2500)
    x = world.means[y] + np.random.default_rng(10).normal(size=(len(y), 2))
    found = model_prior(world.head, Features(torch.from_numpy(x), torch.from_numpy(y))).numpy()
    mean = softmax(x @ world.head.weight.numpy().T + world.head.bias.numpy(), axis=1).mean(axis=0)
    assert found == pytest.approx(world.train, rel=0.1)
    assert mean[-1] > 3 * world.train[-1]


def test_the_models_prior_does_not_depend_on_label_frequencies() -> None:
    world = Gaussians(3, 1.5)
    x, y = world.draw(np.full(3, 1 / 3), 300, np.random.default_rng(11))
    often = np.concatenate([np.arange(300), np.flatnonzero(y == 2), np.flatnonzero(y == 2)])
    once, thrice = (Features(torch.from_numpy(x[i]), torch.from_numpy(y[i])) for i in (np.arange(300), often))
    assert torch.allclose(model_prior(world.head, once), model_prior(world.head, thrice), atol=1e-12)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_the_models_prior_is_the_eigenvector(classes: int) -> None:
    rng = np.random.default_rng(classes)
    weight, x = rng.normal(size=(classes, 4)), rng.normal(size=(60, 4))
    y = np.arange(60) % classes
    p = softmax(x @ weight.T, axis=1)
    matrix = np.stack([p[y == c].mean(axis=0) for c in range(classes)])
    values, vectors = np.linalg.eig(matrix.T)
    expected = np.real(vectors[:, np.argmax(np.real(values))])
    head = Head(torch.from_numpy(weight), torch.zeros(classes, dtype=torch.float64))
    found = model_prior(head, Features(torch.from_numpy(x), torch.from_numpy(y)))
    assert found.numpy() == pytest.approx(expected / expected.sum(), abs=1e-10)


def test_a_rare_class_of_a_sure_network_keeps_its_digits() -> None:
    """Two classes confused with probability 1e-13 one way and 1e-19 the other: shares 1 to 1e-6."""
    head = Head(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    x = torch.tensor([[0.0, np.log(1e-19)], [np.log(1e-13), 0.0]], dtype=torch.float64)
    found = model_prior(head, Features(x, torch.tensor([0, 1])))
    assert float(found[1] / found[0]) == pytest.approx(1e-6, rel=1e-9)


def test_a_prior_that_nothing_shows_is_refused() -> None:
    head = Head(torch.eye(2), torch.zeros(2))
    with pytest.raises(PosthocError, match="no sample of class 1"):
        model_prior(head, Features(torch.eye(2), torch.tensor([0, 0])))
    with pytest.raises(PosthocError, match="never takes class 1"):
        model_prior(head, Features(2000 * torch.eye(2), torch.tensor([0, 1])))
    with pytest.raises(PosthocError, match="NaN"):
        model_prior(head, Features(torch.full((2, 2), float("nan")), torch.tensor([0, 1])))
