"""Calibration against scipy and scikit-learn on plain formulas, and recovery of what was put in."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import sklearn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

import posthoc_lt.features
from posthoc_lt.calibration import Calibration, calibrate, calibration_report, correct_bias, probability_head
from posthoc_lt.calibration.report import weighted_calibration_error
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.head import Head
from posthoc_lt.metrics import expected_calibration_error, group_classes
from posthoc_lt.priors import log_prior

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

COUNTS = torch.tensor([400, 90, 15, 4])
LOG_TRAIN = log_prior(COUNTS)
TRAIN = LOG_TRAIN.exp().numpy()
MEANS = 1.5 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]], dtype=np.float64)
UNIFORM = np.full(4, 0.25)

NO_TEMPERATURE = tuple(int(part) for part in sklearn.__version__.split(".")[:2]) < (1, 8)


def draw(labels: Labels, seed: int) -> Features:
    """Unit Gaussians around the means of `labels`."""
    x = MEANS[labels] + np.random.default_rng(seed).normal(size=(len(labels), 3))
    return Features(torch.from_numpy(x), torch.from_numpy(labels))


def sampled(prior: Floats, samples: int, seed: int) -> Features:
    return draw(np.random.default_rng(seed).choice(4, samples, p=prior).astype(np.int64), seed + 1)


def network(scale: float, strength: float) -> Head:
    """Logits that a = `scale` and c = `strength` make the exact likelihoods."""
    bias = -(MEANS**2).sum(axis=1) / 2 + strength * LOG_TRAIN.numpy()
    return Head(torch.from_numpy(MEANS / scale), torch.from_numpy(bias / scale))


def logits(head: Head, features: Features) -> Floats:
    found: Floats = features.x.numpy() @ head.weight.numpy().T + head.bias.numpy()
    return found


def objective(head: Head, features: Features, share: Floats | None, priors: bool) -> Callable[[Floats], float]:
    """n_eff Σ w NLL plus the priors at (log a, c), where labels have the frequencies `share`."""
    z, y = logits(head, features), features.labels.numpy()
    counts = np.bincount(y, minlength=4)
    v = np.where(counts > 0, counts if share is None else share, 0.0)
    v /= v.sum()
    w = (v / np.maximum(counts, 1))[y]
    effective = w.sum() ** 2 / (w**2).sum()
    with np.errstate(divide="ignore"):
        offset = np.log(v)

    def value(point: Floats) -> float:
        log_p: Floats = log_softmax(math.exp(point[0]) * z - point[1] * LOG_TRAIN.numpy() + offset, axis=1)
        nll = -float(w[w > 0] @ log_p[np.arange(len(y)), y][w > 0])
        penalty = point[0] ** 2 / (2 * 0.7**2) + (point[1] - 1) ** 2 / (2 * 0.5**2)
        return float(effective * nll + (penalty if priors else 0.0))

    return value


@pytest.mark.parametrize("val", [UNIFORM, TRAIN, np.array([0.1, 0.1, 0.1, 0.7])], ids=["balanced", "train", "other"])
@pytest.mark.parametrize(("scale", "strength"), [(1.0, 1.0), (0.4, 0.6), (2.0, 0.0)])
def test_what_was_put_in_comes_out_whatever_validation_is(val: Floats, scale: float, strength: float) -> None:
    found = calibrate(network(scale, strength), sampled(val, 20_000, 0), LOG_TRAIN)
    assert found.samples == pytest.approx(20_000)
    assert abs(math.log(found.scale / scale)) < 4 * found.deviations[0] < 0.25
    assert abs(found.prior_strength - strength) < 4 * found.deviations[1] < 0.25


@pytest.mark.parametrize("under", [UNIFORM, TRAIN])
def test_under_another_distribution_the_limit_is_the_same(under: Floats) -> None:
    val = sampled(np.array([0.4, 0.3, 0.2, 0.1]), 20_000, 2)
    found = calibrate(network(0.5, 0.7), val, LOG_TRAIN, under=torch.from_numpy(under))
    assert math.log(found.scale / 0.5) == pytest.approx(0, abs=0.1)
    assert found.prior_strength == pytest.approx(0.7, abs=0.15)
    assert found.samples < 20_000


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("samples", [3, 12, 200])
@pytest.mark.parametrize("under", [None, UNIFORM, np.array([0.7, 0.3, 0.0, 0.0])])
def test_the_fit_is_the_optimum_of_the_plain_formula(under: Floats | None, samples: int, seed: int) -> None:
    """Small samples lack classes; a wrong model (logits to the power of nothing) keeps the two weightings apart."""
    val = sampled(np.array([0.6, 0.3, 0.05, 0.05]), samples, seed)
    head = Head(torch.from_numpy(MEANS[:, ::-1].copy() + MEANS), torch.from_numpy(np.array([1.0, 0.0, 0.5, -1.0])))
    share = None if under is None else torch.from_numpy(under)
    found = calibrate(head, val, LOG_TRAIN, under=share)
    plain = objective(head, val, under, priors=True)
    best = minimize(plain, [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    assert [math.log(found.scale), found.prior_strength] == pytest.approx(best.x, abs=1e-4)
    assert plain(np.array([math.log(found.scale), found.prior_strength])) <= best.fun + 1e-9
    assert found.certificate is not None
    assert found.certificate.converged


def test_deviations_are_those_of_laplace() -> None:
    val, head = sampled(UNIFORM, 300, 3), network(0.7, 0.8)
    found = calibrate(head, val, LOG_TRAIN)
    plain, h = objective(head, val, None, priors=True), 1e-3
    at = np.array([math.log(found.scale), found.prior_strength])
    steps = np.eye(2) * h
    curvature = [
        [(plain(at + s + t) - plain(at + s - t) - plain(at - s + t) + plain(at - s - t)) / (4 * h * h) for t in steps]
        for s in steps
    ]
    assert found.deviations == pytest.approx(np.sqrt(np.diag(np.linalg.inv(curvature))), rel=1e-3)


def test_tiny_validation_stays_near_the_priors_and_none_decides_nothing() -> None:
    one = calibrate(network(1.0, 1.0), sampled(UNIFORM, 1, 4), LOG_TRAIN)
    assert (one.scale, one.prior_strength) == pytest.approx((1.0, 1.0))
    assert one.deviations == pytest.approx((0.7, 0.5))
    # Labels that have nothing to do with the samples: the scale of the truth is 0.
    few, many = (sampled(UNIFORM, n, 5) for n in (8, 800))
    scales = [calibrate(network(0.2, 0.0), Features(val.x, val.labels.flip(0)), LOG_TRAIN).scale for val in (few, many)]
    assert scales[1] < 0.05 < scales[0] < 1.0


def test_equal_train_counts_leave_the_strength_to_its_prior() -> None:
    val = sampled(UNIFORM, 100, 6)
    found = calibrate(network(0.5, 0.0), val, torch.zeros(4), strength_prior=(0.3, 0.5))
    assert found.prior_strength == pytest.approx(0.3, abs=1e-6)
    assert found.deviations[1] == pytest.approx(0.5)
    free = calibrate(network(0.5, 0.0), val, torch.zeros(4), strength_prior=None)
    assert free.scale == pytest.approx(found.scale, abs=1e-6)
    assert free.deviations[1] == math.inf


def fixed(c: float) -> tuple[float, float]:
    """A prior that holds the strength there."""
    return c, 1e-6


def test_with_the_strength_held_it_is_temperature_scaling() -> None:
    """log π of validation itself at strength 1 cancels its frequencies: the softmax of a·z alone is left."""
    head, val = network(0.4, 1.0), sampled(TRAIN, 500, 7)
    own = log_prior(val.counts(4))
    found = calibrate(head, val, own, scale_prior=None, strength_prior=fixed(1.0))
    z, y = logits(head, val), val.labels.numpy()
    best = minimize_scalar(
        lambda t: -log_softmax(math.exp(t) * z, axis=1)[np.arange(len(y)), y].sum(), options={"xtol": 1e-12}
    )
    assert math.log(found.scale) == pytest.approx(best.x, abs=1e-6)


@pytest.mark.skipif(NO_TEMPERATURE, reason="scikit-learn has temperature scaling from 1.8 on")
def test_scikit_learn_agrees_on_temperature_and_scores() -> None:
    from sklearn.frozen import FrozenEstimator

    train, val, test = (sampled(UNIFORM, n, seed) for n, seed in ((60, 8), (300, 9), (200, 10)))
    peer = LogisticRegression(C=1e4).fit(train.x.numpy(), train.labels.numpy())
    scaled = CalibratedClassifierCV(FrozenEstimator(peer), method="temperature", ensemble=False)
    scaled.fit(val.x.numpy(), val.labels.numpy())
    expected = scaled.predict_proba(test.x.numpy())
    head = Head(torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_))
    own = log_prior(val.counts(4))
    found = calibrate(head, val, own, scale_prior=None, strength_prior=fixed(1.0))
    calibrated = probability_head(head, found, own, val.counts(4))
    assert softmax(logits(calibrated, test), axis=1) == pytest.approx(expected, abs=1e-6)
    report = calibration_report(calibrated, test, COUNTS)
    assert report.nll == pytest.approx(log_loss(test.labels.numpy(), expected), abs=1e-6)
    brier = brier_score_loss(test.labels.numpy(), expected, scale_by_half=False)
    assert report.brier == pytest.approx(brier, abs=1e-6)


@pytest.mark.parametrize("deploy", [None, torch.tensor([4.0, 3.0, 2.0, 1.0])])
def test_the_probability_head_holds_bayes_rule(deploy: torch.Tensor | None) -> None:
    """Exact likelihoods times the frequencies of the deployment, normalised."""
    x = sampled(UNIFORM, 50, 11).x
    head = probability_head(network(0.5, 0.7), Calibration(0.5, 0.7), LOG_TRAIN, deploy)
    likelihood = np.exp(-((x.numpy()[:, None] - MEANS) ** 2).sum(axis=2) / 2)
    joint = likelihood * (1.0 if deploy is None else deploy.numpy())
    assert torch.softmax(head(x), dim=1).numpy() == pytest.approx(joint / joint.sum(axis=1, keepdims=True), abs=1e-12)


def test_the_probability_head_keeps_dtype_and_absence_of_bias() -> None:
    head = Head.without_bias(torch.eye(4))
    found = probability_head(head, Calibration(2.0, 1.0), LOG_TRAIN)
    assert found.weight.dtype == found.bias.dtype == torch.float32
    assert not found.has_bias
    assert bool(found.bias.any())


def population(seed: int) -> tuple[Head, Features, Floats, Labels]:
    """A head that is too sure, samples without the third class, and its probabilities."""
    features = sampled(np.array([0.5, 0.3, 0.0, 0.2]), 90, seed)
    head = network(0.3, 0.9)
    return head, features, softmax(logits(head, features), axis=1), features.labels.numpy()


def test_the_report_is_the_plain_formulas() -> None:
    head, features, p, y = population(12)
    report = calibration_report(head, features, COUNTS)
    right, confidence = p.argmax(axis=1) == y, p.max(axis=1)
    assert report.nll == pytest.approx(-np.log(p[np.arange(90), y]).mean())
    assert report.brier == pytest.approx(((p - np.eye(4)[y]) ** 2).sum(axis=1).mean())
    assert report.gap == pytest.approx((confidence - right).mean())
    order = np.argsort(confidence)
    bins = np.split((right - confidence)[order], 15)
    assert report.ece == pytest.approx(sum(abs(part.sum()) for part in bins) / 90)
    for name, mask in group_classes(COUNTS).items():
        inside = mask.numpy()[y]
        expected = (confidence - right)[inside].mean() if inside.any() else None
        assert report.groups[name] == (expected if expected is None else pytest.approx(expected))
    assert report.groups["few"] is not None
    assert report.missing == (2,)
    nobody = calibration_report(head, features, torch.tensor([500, 500, 1, 500])).groups
    assert (nobody["medium"], nobody["few"]) == (None, None)


def test_weights_stand_for_copies() -> None:
    """A population in which class c has k_c times the samples: the same report as with the copies written out."""
    head, features, _, y = population(13)
    copies = np.array([1, 3, 7, 2])
    index = torch.from_numpy(np.repeat(np.arange(90), copies[y]))
    # 15 copies of all of it make bins of whole samples.
    written = calibration_report(head, features.subset(index.repeat(15)), COUNTS)
    weighed = calibration_report(head, features, COUNTS, under=torch.from_numpy(copies * np.bincount(y, minlength=4)))
    for name in ("nll", "brier", "ece", "gap"):
        assert getattr(weighed, name) == pytest.approx(getattr(written, name), abs=1e-12)
    assert weighed.groups == pytest.approx(written.groups, abs=1e-12)
    assert weighed.ece != pytest.approx(calibration_report(head, features, COUNTS).ece, abs=1e-4)


def test_a_uniform_population_weighs_classes_alike() -> None:
    head, features, p, y = population(14)
    report = calibration_report(head, features, COUNTS, under=torch.ones(4))
    excess = p.max(axis=1) - (p.argmax(axis=1) == y)
    assert report.gap == pytest.approx(np.mean([excess[y == c].mean() for c in (0, 1, 3)]))


def test_fitting_under_a_distribution_stands_for_copies() -> None:
    head, features, _, y = population(15)
    copies = np.array([1, 3, 7, 2])
    index = torch.from_numpy(np.repeat(np.arange(90), copies[y]))
    written = calibrate(head, features.subset(index), LOG_TRAIN, scale_prior=None, strength_prior=None)
    share = torch.from_numpy(copies * np.bincount(y, minlength=4))
    weighed = calibrate(head, features, LOG_TRAIN, under=share, scale_prior=None, strength_prior=None)
    assert (weighed.scale, weighed.prior_strength) == pytest.approx((written.scale, written.prior_strength), abs=1e-7)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(1, 8), st.booleans())
def test_equal_weights_give_the_unweighted_error(seed: int, per_bin: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    confidence = torch.from_numpy(np.round(rng.uniform(size=15 * per_bin), 1 if ties else 9))
    right = torch.from_numpy(rng.uniform(size=15 * per_bin) < 0.6)
    found = weighted_calibration_error(confidence, right, torch.full_like(confidence, 0.7))
    assert found == pytest.approx(expected_calibration_error(confidence, right), abs=1e-9)


def test_offsets_are_the_optimum_and_give_every_class_its_mean_probability() -> None:
    """Where σ is large the mean probability of each class is its frequency; at any σ the gradient vanishes."""
    head, val = network(0.5, 0.3), sampled(TRAIN, 400, 18)
    found = calibrate(head, val, LOG_TRAIN)
    z, y = logits(head, val), val.labels.numpy()
    counts = np.bincount(y, minlength=4)
    start = found.prior_strength * LOG_TRAIN.numpy()
    for deviation in (1000.0, 1.0, 0.1):
        g = correct_bias(head, val, LOG_TRAIN, found, deviation).numpy()
        p = softmax(found.scale * z - g + np.log(counts), axis=1)
        assert p.sum(axis=0) - counts + (start - g) / deviation**2 == pytest.approx(0, abs=1e-3)
    assert correct_bias(head, val, LOG_TRAIN, found, 1e-4).numpy() == pytest.approx(start, abs=1e-5)
    some = val.subset((val.labels != 2).nonzero().flatten())
    assert float(correct_bias(head, some, LOG_TRAIN, found)[2]) == pytest.approx(start[2], abs=1e-9)


def test_calibration_error_is_that_of_netcal() -> None:
    """Figures that netcal 1.4.0 gives, ``ECE(15, equal_intervals=False).measure(confidence, right)``."""
    i = np.arange(1, 3001)
    confidence, right = 0.2 + 0.8 * (i * 0.6180339887498949 % 1), torch.from_numpy(i * 0.41421356237309515 % 1)
    outcome = right < torch.from_numpy(confidence) ** 2
    for values, peer in ((confidence, 0.18733342870717434), (np.round(confidence, 2), 0.18733333333333327)):
        sure = torch.from_numpy(values)
        assert expected_calibration_error(sure, outcome) == pytest.approx(peer, abs=1e-12)
        assert weighted_calibration_error(sure, outcome, torch.ones(3000)) == pytest.approx(peer, abs=1e-12)


def test_a_masked_class_takes_no_part_in_the_fit_and_stays_masked() -> None:
    """The fit is that of the other classes alone; samples of the masked one would only drive the scale to 0."""
    val, last = sampled(UNIFORM, 300, 17), torch.tensor([False, False, False, True])
    found = calibrate(network(0.5, 0.7).masking(last), val, LOG_TRAIN)
    kept = val.subset((val.labels != 3).nonzero().flatten())
    whole = network(0.5, 0.7)
    alone = calibrate(Head(whole.weight[:3], whole.bias[:3]), kept, LOG_TRAIN[:3])
    assert (found.scale, found.prior_strength) == pytest.approx((alone.scale, alone.prior_strength), abs=1e-7)
    made = probability_head(whole.masking(last), found, LOG_TRAIN, torch.tensor([1.0, 2.0, 3.0, 0.0]))
    assert made.masked.tolist() == last.tolist()
    assert float(torch.softmax(made(val.x), dim=1)[:, 3].max()) == 0
    assert math.isfinite(calibration_report(made, val, COUNTS).nll)


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    head, features, _, _ = population(16)
    fitted, report = calibrate(head, features, LOG_TRAIN), calibration_report(head, features, COUNTS)
    monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", 16 * 7)
    again, anew = calibrate(head, features, LOG_TRAIN), calibration_report(head, features, COUNTS)
    assert (again.scale, again.prior_strength) == pytest.approx((fitted.scale, fitted.prior_strength), abs=1e-9)
    assert (anew.nll, anew.brier, anew.ece, anew.gap) == pytest.approx(
        (report.nll, report.brier, report.ece, report.gap), abs=1e-12
    )


def test_on_the_real_case_probabilities_get_better(features: FeatureSet) -> None:
    """Fitted on val, judged on test, both balanced: against the untouched softmax, which expects train's classes."""
    assert features.val is not None
    assert features.test is not None
    counts = features.counts
    fitted = calibrate(features.head, features.val, log_prior(counts))
    calibrated = probability_head(features.head, fitted, log_prior(counts))
    before, after = (calibration_report(head, features.test, counts) for head in (features.head, calibrated))
    assert after.nll < before.nll - 0.1
    assert after.brier < before.brier
    assert after.ece < before.ece / 2
    assert abs(after.gap) < abs(before.gap) / 2


def test_no_optimum_without_priors_is_refused() -> None:
    sure = Features(torch.eye(4).double(), torch.arange(4))
    head = Head(torch.eye(4).double(), torch.zeros(4).double())
    with pytest.raises(PosthocError, match="do not bound its scale"):
        calibrate(head, sure, LOG_TRAIN, scale_prior=None)
    assert calibrate(head, sure, LOG_TRAIN).scale > 1


VAL = Features(torch.eye(4), torch.tensor([0, 0, 1, 2]))
HEAD = Head(torch.eye(4), torch.zeros(4))


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda: calibrate(HEAD, VAL, torch.zeros(3)), r"log prior of shape \(3,\)"),
        (lambda: calibrate(HEAD, VAL, torch.tensor([0.0, 0.0, 0.0, -math.inf])), "or not finite"),
        (lambda: calibrate(HEAD, VAL, LOG_TRAIN, under=torch.tensor([0.0, 0, 0, 1])), "without weight"),
        (lambda: calibrate(HEAD, VAL, LOG_TRAIN, under=torch.tensor([-1.0, 1, 1, 1])), "negative"),
        (lambda: calibrate(HEAD, VAL, LOG_TRAIN, under=torch.ones(2)), r"label distribution of shape \(2,\)"),
        (lambda: calibrate(HEAD, Features(torch.eye(4)), LOG_TRAIN), "without labels"),
        (lambda: calibrate(HEAD, VAL.subset(torch.arange(0)), LOG_TRAIN), "no labelled sample"),
        (lambda: calibrate(HEAD, Features(torch.zeros(1, 3), torch.tensor([0])), LOG_TRAIN), "3 dimensions"),
        (lambda: calibrate(HEAD, Features(torch.zeros(1, 4), torch.tensor([4])), LOG_TRAIN), "label 4"),
        (lambda: calibrate(HEAD, Features(torch.full((1, 4), math.nan), torch.tensor([0])), LOG_TRAIN), "NaN"),
        (lambda: calibration_report(HEAD, Features(torch.full((1, 4), math.inf), torch.tensor([0])), COUNTS), "NaN"),
        (lambda: probability_head(HEAD, Calibration(1.0, 1.0), LOG_TRAIN, torch.tensor([1.0, 0, 1, 1])), "of 0 for"),
        (lambda: probability_head(HEAD, Calibration(1.0, 1.0), torch.zeros(2)), r"log prior of shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(run: Callable[[], object], named: str) -> None:
    with pytest.raises(PosthocError, match=named):
        run()
