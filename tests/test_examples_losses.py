"""The examples of the losses run, at small size, and their tables hold what an independent computation gives."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from posthoc_lt import FeatureSet
from posthoc_lt.losses import ClassBalanced, LogitAdjusted, cross_entropy, initialise_bias
from posthoc_lt.priors import effective_number_weights, log_prior

pytestmark = pytest.mark.usefixtures("beside")


@pytest.fixture(scope="module")
def embedded(beside: None) -> ModuleType:
    return importlib.import_module("embedded_case")


def cells(output: str, first: str) -> list[list[str]]:
    """The cells of the rows whose first cell, a mark aside, is `first`."""
    rows = [line.removeprefix(">").split() for line in output.splitlines()]
    return [row for row in rows if row and row[0] == first]


def test_class_balanced_loss(case: Path, features: FeatureSet, capsys: pytest.CaptureFixture[str]) -> None:
    example = importlib.import_module("class_balanced_loss")
    example.main(["--features", str(case / "feats.safetensors"), "--betas", "0", "0.999", "--l2", "0.1"])
    output = capsys.readouterr().out
    (largest,) = cells(output, "500")
    expected = [(1 - b**500) / (1 - b) for b in example.BETAS]
    np.testing.assert_allclose([float(cell) for cell in largest[1:6]], expected, atol=0.05)
    assert features.test is not None
    untouched = features.head(features.test.x.float()).argmax(dim=1)
    accuracy = 100 * balanced_accuracy_score(features.test.labels, untouched)
    assert f"{accuracy:.1f}" in cells(output, "untouched")[0]
    for kind in ("softmax", "sigmoid", "focal"):
        plain, weighted = cells(output, kind)
        assert (plain[1], weighted[1]) == ("0", "0.999")
        assert len([line for line in output.splitlines() if line.startswith(">") and kind in line]) == 1


def test_logit_adjustment(case: Path, features: FeatureSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, file = importlib.import_module("logit_adjustment"), tmp_path / "figure.png"
    small = ["--taus", "0", "1", "--l2", "0.1", "--epochs", "3"]
    example.main(["--features", str(case / "feats.safetensors"), *small, "--plot", str(file)])
    output = capsys.readouterr().out
    assert features.test is not None
    logits = features.head(features.test.x.float()).double() - log_prior(features.counts)
    error = 100 - 100 * balanced_accuracy_score(features.test.labels, logits.argmax(dim=1))
    assert f"/ {error:.1f}" in next(line for line in output.splitlines() if line.split()[:1] == ["1"])
    norm = features.head.weight.norm(dim=1)
    assert cells(output, "500")[0][1] == f"{norm[features.counts.argmax()]:.2f}"
    with Image.open(file) as picture:
        assert min(picture.size) > 500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_fit_reaches_the_minimum_of_scikit_learn(features: FeatureSet, embedded: ModuleType) -> None:
    assert features.train is not None
    train = features.train.subset(torch.arange(0, len(features.train), 3))
    x, y = train.x.double(), train.labels
    centred = x - x.mean(dim=0)
    scaled = (centred / centred.square().mean().sqrt()).numpy()
    peer = LogisticRegression(C=1 / (0.1 * len(y)), tol=1e-10, max_iter=10_000).fit(scaled, y.numpy())
    ours = embedded.fit(train, 10, cross_entropy, 0.1)(x).softmax(dim=1).numpy()
    np.testing.assert_allclose(ours, peer.predict_proba(scaled), atol=1e-5)


def test_the_adjusted_loss_and_adjustment_of_a_refitted_head_are_one(
    features: FeatureSet, embedded: ModuleType
) -> None:
    prior = log_prior(features.counts)
    assert features.train is not None
    refitted = embedded.fit(features.train, 10, cross_entropy, 0.1)
    trained = embedded.fit(features.train, 10, LogitAdjusted(prior, 1.5), 0.1)
    x = features.train.x.double()
    expected = (refitted(x) - 1.5 * prior).log_softmax(dim=1)
    torch.testing.assert_close(trained(x).log_softmax(dim=1), expected, atol=1e-4, rtol=1e-4)


def test_heads_of_the_sigmoid_kind_start_at_the_prior(features: FeatureSet, embedded: ModuleType) -> None:
    loss = ClassBalanced(effective_number_weights(features.counts, 0.99), "sigmoid")
    assert features.train is not None
    head = embedded.fit(features.train, 10, loss, 0.1, initialise_bias, steps=0)
    assert head.weight.abs().max() == 0
    np.testing.assert_allclose(head.bias.numpy(), -math.log(9))
