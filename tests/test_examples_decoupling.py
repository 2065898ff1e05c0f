"""The decoupling example runs at small size, and its rows and planes are those of independent formulas."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid

from posthoc_lt import Features, FeatureSet

Floats = np.ndarray[Any, np.dtype[np.float64]]

pytestmark = pytest.mark.usefixtures("beside")


@pytest.fixture(scope="module")
def example(beside: None) -> ModuleType:
    return importlib.import_module("decoupling")


def arrays(split: Features | None) -> tuple[Floats, Floats]:
    assert split is not None
    return split.x.double().numpy(), split.labels.numpy()


def knobs(row: list[str]) -> dict[str, float]:
    return {name: float(value) for name, value in (cell.split("=") for cell in row if "=" in cell)}


def balanced(row: list[str]) -> float:
    """The printed balanced accuracy on test, before the difference with its interval."""
    end = next((k for k, cell in enumerate(row) if cell[0] in "+-" and "." in cell), len(row))
    return float(row[end - 1])


def test_the_table(
    example: ModuleType, case: Path, features: FeatureSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(["--features", str(case / "feats.safetensors"), "--epochs", "2", "--plot", str(tmp_path)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {" ".join(cell for cell in row[:4] if not set(cell) & set("=.0123456789")): row for row in lines if row}
    (x, y), (x_test, y_test) = arrays(features.train), arrays(features.test)

    def correct(predicted: Any) -> float:
        return round(100 * float(balanced_accuracy_score(y_test, predicted)), 1)

    head = features.head
    untouched = x_test @ head.weight.double().numpy().T + head.bias.double().numpy()
    assert balanced(rows["untouched joint"]) == correct(untouched.argmax(axis=1))
    assert balanced(rows["any ncm, Euclidean"]) == correct(NearestCentroid().fit(x, y).predict(x_test))
    centroids = NearestCentroid().fit(x, y).centroids_
    assert balanced(rows["any ncm, cosine"]) == correct(cosine_similarity(x_test, centroids).argmax(axis=1))

    chosen = knobs(rows["control refit + logit-adjust"])
    scale = np.sqrt(x.var(axis=0).mean())
    peer = LogisticRegression(C=1 / (chosen["l2"] * len(y)), tol=1e-6, max_iter=5000).fit(x / scale, y)
    scores, prior = peer.decision_function(x_test / scale), np.bincount(y) / len(y)
    # The knobs are printed with three digits, which may turn a sample of the thousand.
    assert balanced(rows["control refit"]) == pytest.approx(correct(scores.argmax(axis=1)), abs=0.11)
    adjusted = correct((scores - chosen["tau"] * np.log(prior)).argmax(axis=1))
    assert balanced(rows["control refit + logit-adjust"]) == pytest.approx(adjusted, abs=0.11)
    for sampling in ("instance", "class", "square-root", "progressive"):
        assert {f"{sampling} {name}" for name in ("joint", "tau-norm", "lws")} <= rows.keys()
    for name, width in (("norms.png", 1000), ("boundaries.png", 2000)):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > width
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_each_sampling_keeps_its_own_head_and_test_chooses_nothing(example: ModuleType, features: FeatureSet) -> None:
    heads = example.joint_heads(features, epochs=1, seed=0)
    few = {name: heads[name] for name in ("class", "progressive")}
    assert features.test is not None
    half = features.test.subset(torch.arange(0, len(features.test), 2))
    entries = example.design(replace(features, test=half), few)
    x = half.x.double().numpy()
    for name, head in few.items():
        own = {entry.classifier: entry.fitted for entry in entries if entry.sampling == name}
        w, b = head.weight.double().numpy(), head.bias.double().numpy()
        tau = own["tau-norm"].knobs["tau"]
        np.testing.assert_array_equal(own["joint"].test.predicted, (x @ w.T + b).argmax(axis=1))
        normed = w / np.linalg.norm(w, axis=1, keepdims=True) ** tau
        np.testing.assert_array_equal(own["tau-norm"].test.predicted, (x @ normed.T).argmax(axis=1))
        ratio = own["lws"].head.weight / head.weight
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    shuffled = Features(half.x, half.labels.flip(0))
    again = example.design(replace(features, test=shuffled), few)
    assert [entry.knobs for entry in again] == [entry.knobs for entry in entries]


def test_the_plane_keeps_the_distances_of_the_means(example: ModuleType, features: FeatureSet) -> None:
    where, (x, y) = example.plane(features), arrays(features.train)
    assert where.counts.tolist() == [500, 38, 5]
    means = np.stack([x[y == c].mean(axis=0) for c in where.classes])
    flat, labels = arrays(where.train)
    seen = np.stack([flat[labels == c].mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(seen.sum(axis=0), 0, atol=1e-9)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(seen[a] - seen[b]) == pytest.approx(np.linalg.norm(means[a] - means[b]))


def test_boundaries_are_those_of_the_five_classifiers(example: ModuleType, features: FeatureSet) -> None:
    where = example.plane(features)
    heads = example.boundaries(where)
    (x, y), (grid, _) = arrays(where.train), arrays(where.test)
    centroids = NearestCentroid().fit(x, y)
    predicted = {name: head(where.test.x).argmax(dim=1).numpy() for name, head in heads.items()}
    np.testing.assert_array_equal(predicted["Euclidean NCM"], centroids.predict(grid))
    near = cosine_similarity(grid, centroids.centroids_).argmax(axis=1)
    np.testing.assert_array_equal(predicted["cosine NCM"], near)
    plain, half, whole = (heads[f"tau = {tau}"] for tau in ("0", "0.5", "1"))
    norm = plain.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(whole.weight, plain.weight / norm)
    torch.testing.assert_close(half.weight, plain.weight / norm.sqrt())
    assert not any(head.bias.any() for head in (plain, half, whole))
