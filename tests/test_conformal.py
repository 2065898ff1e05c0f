"""Conformal sets: quantiles by brute force, guarantees by simulation, and their file."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

import posthoc_lt.features
from posthoc_lt.conformal import (
    KINDS,
    Thresholds,
    evaluate_sets,
    fit_thresholds,
    load_thresholds,
    prediction_sets,
    save_thresholds,
)
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.files import SavedHead, save_head
from posthoc_lt.files.container import read_container, write_container
from posthoc_lt.head import Head

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

COUNTS = torch.tensor([400, 60, 30, 5])
MEANS = 1.3 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.7, 0.7, 0]], dtype=np.float64)
# Not the likelihoods of the samples: conformal sets must cover with a head that is wrong.
HEAD = Head(torch.from_numpy(2 * MEANS), torch.tensor([1.5, 0.0, -0.5, -1.5], dtype=torch.float64))
TAIL = np.array([0.7, 0.2, 0.07, 0.03])


def draw(prior: Floats, samples: int, rng: np.random.Generator) -> Features:
    y = rng.choice(4, samples, p=prior).astype(np.int64)
    return Features(torch.from_numpy(MEANS[y] + rng.normal(size=(samples, 3))), torch.from_numpy(y))


def each(samples: int, rng: np.random.Generator) -> Features:
    """So many samples of each class."""
    y = np.repeat(np.arange(4), samples)
    return Features(torch.from_numpy(MEANS[y] + rng.normal(size=(len(y), 3))), torch.from_numpy(y))


def probabilities(features: Features, head: Head = HEAD) -> tuple[Floats, Labels]:
    p: Floats = softmax(features.x.numpy() @ head.weight.numpy().T + head.bias.numpy(), axis=1)
    return p, features.labels.numpy()


def textbook(conformity: Floats, alpha: str) -> float:
    """1 − the ⌈(n + 1)(1 − α)⌉-th smallest nonconformity 1 − p, and −∞ (here 0) where n is too small for it."""
    n = len(conformity)
    rank = math.ceil((n + 1) * (1 - Fraction(alpha)))
    return float(np.sort(conformity)[::-1][rank - 1]) if rank <= n else 0.0


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 120), st.sampled_from(["0.1", "0.05", "0.29", "0.3", "0.5", "0.9"]))
def test_floors_are_the_textbook_quantiles(seed: int, samples: int, alpha: str) -> None:
    features = draw(TAIL, samples, np.random.default_rng(seed))
    p, y = probabilities(features)
    own = p[np.arange(samples), y]
    marginal = fit_thresholds(HEAD, features, "marginal", alpha=float(alpha)).floor.numpy()
    assert marginal == pytest.approx(np.full(4, textbook(own, alpha)), abs=1e-12)
    classwise = fit_thresholds(HEAD, features, alpha=float(alpha))
    expected = np.array([textbook(own[y == c], alpha) for c in range(4)])
    assert classwise.floor.numpy() == pytest.approx(expected, abs=1e-12)
    assert classwise.supported.tolist() == [
        bool(float(alpha) * (n + 1) >= 1 - 1e-9) for n in np.bincount(y, minlength=4)
    ]
    mixed = fit_thresholds(HEAD, features, "interpolated", alpha=float(alpha), weight=0.3).floor.numpy()
    assert mixed == pytest.approx(0.3 * expected + 0.7 * marginal, abs=1e-12)
    prevalent = fit_thresholds(HEAD, features, "prevalence", alpha=float(alpha), prevalence=COUNTS)
    share = COUNTS.numpy() / COUNTS.sum().item()
    assert prevalent.floor.numpy() == pytest.approx(np.full(4, textbook(own / share[y], alpha)), rel=1e-12)


def test_the_rank_takes_alpha_as_it_is_written() -> None:
    """0.29 · 100 is 28.999… in floating point: one rank, and one sample of coverage, would be lost."""
    features = Features(torch.linspace(-1, 1, 99, dtype=torch.float64)[:, None], torch.zeros(99, dtype=torch.int64))
    head = Head(torch.tensor([[1.0], [0.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    floor = fit_thresholds(head, features, "marginal", alpha=0.29).floor[0]
    assert float(floor) == pytest.approx(float(torch.sigmoid(features.x[28, 0])))


@pytest.mark.parametrize("kind", ["marginal", "prevalence"])
@pytest.mark.parametrize(("alpha", "samples"), [(0.1, 25), (0.2, 60)])
def test_marginal_coverage_is_what_the_theorem_says(kind: str, alpha: float, samples: int) -> None:
    """In the mean over samples to calibrate on, exactly 1 − ⌊α(n + 1)⌋/(n + 1)."""
    rng, prevalence = np.random.default_rng(0), COUNTS if kind == "prevalence" else None
    test, found = draw(TAIL, 4000, rng), []
    for _ in range(250):
        fitted = fit_thresholds(HEAD, draw(TAIL, samples, rng), kind, alpha=alpha, prevalence=prevalence)
        found.append(evaluate_sets(HEAD, fitted, test, COUNTS).coverage)
    error = math.sqrt(np.var(found) / 250 + alpha * (1 - alpha) / 4000)
    exact = 1 - math.floor(alpha * (samples + 1) + 1e-9) / (samples + 1)
    assert 1 - alpha <= exact <= 1 - alpha + 1 / (samples + 1)
    assert np.mean(found) == pytest.approx(exact, abs=4 * error)
    assert error < 0.01


def test_classwise_sets_cover_every_class_under_any_shift() -> None:
    """Calibrated on a long tail, tested on balanced classes: 90% of each, the wrong head notwithstanding."""
    rng = np.random.default_rng(1)
    test, per_class, overall = each(1500, rng), [], []
    sizes = np.array([140, 40, 14, 9])
    index = torch.cat([torch.arange(140 * c, 140 * c + n) for c, n in enumerate(sizes.tolist())])
    for _ in range(200):
        val = each(140, rng).subset(index)
        per_class.append(evaluate_sets(HEAD, fit_thresholds(HEAD, val), test, COUNTS).class_coverage.numpy())
        overall.append(evaluate_sets(HEAD, fit_thresholds(HEAD, val, "marginal"), test, COUNTS).class_coverage.numpy())
    exact = 1 - np.floor(0.1 * (sizes + 1) + 1e-9) / (sizes + 1)
    error = np.sqrt(np.var(per_class, axis=0) / 200 + 0.09 / 1500)
    assert (np.abs(np.mean(per_class, axis=0) - exact) < 4 * error).all()
    assert error.max() < 0.012
    # What classwise is for: one floor for all leaves the tail behind.
    assert np.mean(overall, axis=0)[3] < 0.8


def test_interpolated_sets_lie_between_and_cover_1_minus_2_alpha() -> None:
    rng = np.random.default_rng(2)
    val, test = draw(TAIL, 300, rng), draw(TAIL, 3000, rng)
    reports = {
        weight: evaluate_sets(HEAD, fit_thresholds(HEAD, val, "interpolated", weight=weight), test, COUNTS)
        for weight in (0.0, 0.5, 1.0)
    }
    ends = [evaluate_sets(HEAD, fit_thresholds(HEAD, val, kind), test, COUNTS) for kind in ("marginal", "classwise")]
    assert (reports[0.0].coverage, reports[0.0].size) == (ends[0].coverage, ends[0].size)
    assert (reports[1.0].coverage, reports[1.0].size) == (ends[1].coverage, ends[1].size)
    assert reports[0.5].coverage > 0.8
    tail = [reports[weight].class_coverage[3] for weight in (0.0, 0.5, 1.0)]
    assert tail[0] < tail[1] < tail[2]


def test_prevalence_serves_classes_better_than_larger_marginal_sets() -> None:
    """Exact posteriors under the tail: at 90%, PAS covers the mean class better than marginal sets that are larger."""
    bias = torch.from_numpy(np.log(TAIL) - (MEANS**2).sum(axis=1) / 2)
    head, rng = Head(torch.from_numpy(MEANS), bias), np.random.default_rng(3)
    val, tail, balanced = draw(TAIL, 4000, rng), draw(TAIL, 4000, rng), each(2000, rng)

    def size_and_macro_coverage(fitted: Thresholds) -> tuple[float, float]:
        size = evaluate_sets(head, fitted, tail, COUNTS).size
        return size, evaluate_sets(head, fitted, balanced, COUNTS).macro_coverage

    adjusted = fit_thresholds(head, val, "prevalence", alpha=0.1, prevalence=torch.from_numpy(TAIL))
    size, fair = size_and_macro_coverage(adjusted)
    marginal = [size_and_macro_coverage(fit_thresholds(head, val, "marginal", alpha=k / 200)) for k in range(1, 20)]
    larger, plain = min(pair for pair in marginal if pair[0] >= size)
    assert size <= larger < 1.1 * size
    assert fair > plain + 0.02


def test_a_class_with_too_few_samples_is_in_every_set_and_said_to_be() -> None:
    rng = np.random.default_rng(4)
    val = each(9, rng).subset(torch.tensor([*range(9), *range(9, 17), *range(27, 36)]))
    fitted = fit_thresholds(HEAD, val, alpha=0.1)
    assert fitted.supported.tolist() == [True, False, False, True]
    assert fitted.samples.tolist() == [9, 8, 0, 9]
    assert "n/a for 2" in repr(fitted)
    sets = prediction_sets(HEAD, fitted, 100 * torch.randn(50, 3, dtype=torch.float64))
    assert bool(sets[:, [1, 2]].all())
    assert not bool(sets[:, [0, 3]].all())
    nothing = fit_thresholds(HEAD, val.subset(torch.arange(5)), "marginal")
    assert not bool(nothing.supported.any())
    assert bool(prediction_sets(HEAD, nothing, torch.randn(9, 3)).all())


def test_the_report_is_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    val, test = draw(TAIL, 200, rng), draw(np.array([0.5, 0.3, 0.2, 0.0]), 97, rng)
    for kind in KINDS:
        fitted = fit_thresholds(HEAD, val, kind, alpha=0.3, prevalence=COUNTS)
        p, y = probabilities(test)
        score = p / (COUNTS.numpy() / COUNTS.sum().item()) if kind == "prevalence" else p
        sets = score >= fitted.floor.numpy()
        assert np.array_equal(prediction_sets(HEAD, fitted, test.x).numpy(), sets)
        covered, size = sets[np.arange(97), y], sets.sum(axis=1)
        with monkeypatch.context() as patch:
            patch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", 16 * 7)
            report = evaluate_sets(HEAD, fitted, test, COUNTS)
        assert report.coverage == pytest.approx(covered.mean())
        assert report.size == pytest.approx(size.mean())
        assert report.empty == pytest.approx((size == 0).mean())
        per_class = np.array([covered[y == c].mean() for c in range(3)])
        assert report.class_coverage.numpy()[:3] == pytest.approx(per_class)
        assert report.sizes.numpy()[:3] == pytest.approx([size[y == c].mean() for c in range(3)])
        assert math.isnan(report.class_coverage[3])
        assert math.isnan(report.sizes[3])
        assert report.macro_coverage == pytest.approx(per_class.mean())
        groups = {"many": per_class[0], "medium": per_class[1:].mean(), "few": None}
        assert report.group_coverage == {k: v if v is None else pytest.approx(v) for k, v in groups.items()}
        assert report.tally.predicted.tolist() == sets.sum(axis=0).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_all_of_it(kind: str, tmp_path: Path) -> None:
    val = draw(TAIL, 60, np.random.default_rng(6))
    fitted = fit_thresholds(HEAD, val, kind, alpha=0.15, weight=0.9, prevalence=COUNTS)
    save_thresholds(fitted, tmp_path / "sets.safetensors")
    found = load_thresholds(tmp_path / "sets.safetensors", HEAD)
    for part in dataclasses.fields(Thresholds):
        was, now = getattr(fitted, part.name), getattr(found, part.name)
        assert torch.equal(was, now) if isinstance(was, torch.Tensor) else was == now
    save_thresholds(fitted, tmp_path / "sets.safetensors")  # the same again is no conflict
    other = dataclasses.replace(fitted, floor=fitted.floor / 2)
    with pytest.raises(PosthocError, match="give --force"):
        save_thresholds(other, tmp_path / "sets.safetensors")


def test_other_files_are_refused(tmp_path: Path) -> None:
    fitted, path = fit_thresholds(HEAD, draw(TAIL, 60, np.random.default_rng(7))), tmp_path / "sets.safetensors"
    save_thresholds(fitted, path)
    with pytest.raises(PosthocError, match="made for another head"):
        load_thresholds(path, Head(HEAD.weight, HEAD.bias + 1))
    with pytest.raises(PosthocError, match="which is no file"):
        load_thresholds(tmp_path / "nothing")
    save_head(SavedHead(HEAD), tmp_path / "head.safetensors")
    with pytest.raises(PosthocError, match="which is a head file"):
        load_thresholds(tmp_path / "head.safetensors")
    whole = path.read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-5])
    (tmp_path / "changed").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for name in ("cut", "changed"):
        with pytest.raises(PosthocError, match="posthoc-lt conformal"):
            load_thresholds(tmp_path / name)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("kind", "other"),
        ("kind", "prevalence"),
        ("alpha", "much"),
        ("alpha", "1.5"),
        ("weight", "NaN"),
        ("floor", None),
        ("samples", torch.zeros(3, dtype=torch.int64)),
        ("floor", torch.zeros(4, 1)),
    ],
)
def test_parts_that_do_not_fit_are_refused(part: str, value: str | torch.Tensor | None, tmp_path: Path) -> None:
    path = tmp_path / "sets.safetensors"
    save_thresholds(fit_thresholds(HEAD, draw(TAIL, 60, np.random.default_rng(8))), path)
    tensors, metadata = read_container(path, "posthoc-lt-conformal", "1", "")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if value is None:
        del tensors[part]
    elif isinstance(value, str):
        metadata[part] = value
    else:
        tensors[part] = value
    write_container(tmp_path / "other", tensors, metadata)
    with pytest.raises(PosthocError, match="parts that do not fit"):
        load_thresholds(tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "exact"}, "kind 'exact'"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"alpha": math.nan}, "alpha = nan"),
        ({"kind": "interpolated", "weight": 1.5}, "weight = 1.5"),
        ({"kind": "prevalence"}, "no prevalence"),
        ({"kind": "prevalence", "prevalence": torch.ones(3)}, r"prevalence of shape \(3,\)"),
        ({"kind": "prevalence", "prevalence": torch.tensor([1, 0, 1, 1])}, "prevalence of class 1"),
        ({"features": Features(torch.zeros(2, 3))}, "without labels"),
        ({"features": Features(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))}, "no labelled sample"),
        ({"features": Features(torch.zeros(1, 2), torch.tensor([0]))}, "2 dimensions"),
        ({"features": Features(torch.zeros(1, 3), torch.tensor([7]))}, "label 7"),
        ({"features": Features(torch.full((1, 3), math.nan), torch.tensor([0]))}, "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], named: str) -> None:
    asked: dict[str, object] = {"features": Features(torch.zeros(1, 3), torch.tensor([0]))} | options
    with pytest.raises(PosthocError, match=named):
        fit_thresholds(HEAD, **asked)  # type: ignore[arg-type]


def test_thresholds_of_another_number_of_classes_are_refused() -> None:
    fitted = fit_thresholds(HEAD, draw(TAIL, 60, np.random.default_rng(9)))
    with pytest.raises(PosthocError, match="thresholds of 4 classes for a head of 2"):
        prediction_sets(Head(torch.zeros(2, 3), torch.zeros(2)), fitted, torch.zeros(1, 3))
