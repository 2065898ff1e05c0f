"""Every figure at every cell against scikit-learn and plain formulas on the brute-force predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gmean, hmean
from sklearn.metrics import accuracy_score, f1_score, recall_score

from posthoc_lt.errors import PosthocError
from posthoc_lt.family import KeptBias, Line, Power
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.curve import RESOLUTION
from posthoc_lt.search.envelope import walk
from posthoc_lt.search.figures import FIGURES, Constraint
from posthoc_lt.search.goal import Goal
from posthoc_lt.search.trace import trace

BOUNDS = (0.0, 4.0)
WEIGHTS = np.array([1.0, 0.25, 3.0, 0.5, 2.0, 7.0])
COST = np.random.default_rng(7).integers(0, 9, size=(6, 6)).astype(float)
"""Not even 0 for what is right."""
UNDER_WEIGHTS = "utility under weights"


def scores(family: Line | Power | KeptBias, x: np.ndarray, knob: float) -> np.ndarray:
    made: np.ndarray
    if isinstance(family, Line):
        slope = x @ family.direction.weight.numpy().T + family.direction.bias.numpy()
        made = x @ family.origin.weight.numpy().T + family.origin.bias.numpy() + knob * slope
    elif isinstance(family, Power):
        made = x @ family.head.weight.numpy().T + family.head.bias.numpy()
        made = made * np.exp(-knob * family.log_scale.numpy())
    else:
        made = x @ family.head.weight.numpy().T * np.exp(-knob * family.log_scale.numpy())
        made = made + family.head.bias.numpy()
    return made


def oracle(name: str, y: np.ndarray, predicted: np.ndarray, groups: dict[str, np.ndarray]) -> float:
    present = np.unique(y)
    recalls = recall_score(y, predicted, labels=present, average=None, zero_division=0)
    if name == "accuracy":
        return float(accuracy_score(y, predicted))
    if name == "macro-f1":
        return float(f1_score(y, predicted, labels=present, average="macro", zero_division=0))
    if name == "g-mean":
        return float(gmean(recalls)) if recalls.min() > 0 else 0.0
    if name == "harmonic-mean":
        return float(hmean(recalls)) if recalls.min() > 0 else 0.0
    if name == "worst-class":
        return float(recalls.min())
    if name == "weighted-accuracy":
        return float(np.average(recalls, weights=WEIGHTS[present]))
    if name.startswith("utility"):
        worth = 1 - COST[y, predicted] / COST[: groups["many"].size, : groups["many"].size].max()
        return float(np.average(worth, weights=(WEIGHTS / np.bincount(y, minlength=6))[y] if "under" in name else None))
    if name in groups:
        recalls = recalls[groups[name][present]]
    return float(recalls.mean())


def families(rng: np.random.Generator, classes: int) -> list[Line | Power | KeptBias]:
    weight = torch.from_numpy(rng.normal(size=(classes, 3)) * rng.uniform(0.3, 3, size=(classes, 1)))
    head = Head(weight, torch.from_numpy(rng.normal(size=classes)))
    prior = torch.from_numpy(rng.dirichlet(np.ones(classes))).log()
    other = Head(torch.from_numpy(rng.normal(size=(classes, 3))), torch.from_numpy(rng.normal(size=classes)))
    return [
        Line(head, Head(torch.zeros_like(weight), -prior)),
        Line(head, other),
        Power(Head.without_bias(weight), weight.norm(dim=1).log()),
        Power(head, prior),
        KeptBias(head, weight.norm(dim=1).log()),
        KeptBias(Head(weight, 3 * head.bias), prior / 2),
    ]


def assert_traced(family: Line | Power | KeptBias, x: np.ndarray, y: np.ndarray, classes: int, name: str) -> None:
    groups = {
        "many": np.arange(classes) % 3 == 0,
        "medium": np.arange(classes) % 3 == 1,
        "few": np.arange(classes) % 3 == 2,
    }
    if name in groups and not groups[name][np.unique(y)].any():
        return
    made = walk(family, Features(torch.from_numpy(x), torch.from_numpy(y)), BOUNDS)
    weight = None if name == "utility" else torch.from_numpy(WEIGHTS[:classes])
    cost = torch.from_numpy(COST[:classes, :classes]) if name.startswith("utility") else None
    figure = Goal("utility" if name == UNDER_WEIGHTS else name, class_weight=weight, cost=cost).figure
    curve = trace(made, figure, {key: torch.from_numpy(mask) for key, mask in groups.items()})
    edges = curve.edges.numpy()
    for low, high, value in zip(edges[:-1], edges[1:], curve.values.tolist(), strict=True):
        if high - low > 2 * RESOLUTION:
            predicted = scores(family, x, (low + high) / 2).argmax(axis=1)
            assert value == pytest.approx(oracle(name, y, predicted, groups), abs=1e-9)


@pytest.mark.filterwarnings("ignore:divide by zero")  # the weights of classes without a sample
@pytest.mark.parametrize("name", [*FIGURES, UNDER_WEIGHTS])
@pytest.mark.parametrize("kind", range(6))
def test_every_figure_in_every_cell(kind: int, name: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(2, 7))
        x, y = rng.normal(size=(40, 3)), rng.integers(0, classes, size=40)
        assert_traced(families(rng, classes)[kind], x, y, classes, name)


quarters = st.integers(-6, 6).map(lambda n: n / 4)


@settings(max_examples=150)
@given(data=st.data(), classes=st.integers(1, 5), count=st.integers(1, 10), power=st.booleans())
def test_ties_zeros_and_meeting_lines(data: st.DataObject, classes: int, count: int, power: bool) -> None:
    rows = st.lists(st.lists(quarters, min_size=classes, max_size=classes), min_size=count, max_size=count)
    logits = np.array(data.draw(rows))
    slope = torch.tensor(data.draw(st.lists(quarters, min_size=classes, max_size=classes)), dtype=torch.float64)
    y = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    identity = Head.without_bias(torch.eye(classes, dtype=torch.float64))
    flat = torch.zeros(classes, classes, dtype=torch.float64)
    family = Power(identity, slope) if power else Line(identity, Head(flat, slope))
    for name in ("balanced-accuracy", "macro-f1", "g-mean", "worst-class", *["utility"] * (classes > 1)):
        assert_traced(family, logits, y, classes, name)


@settings(max_examples=150)
@given(data=st.data(), classes=st.integers(1, 4), count=st.integers(1, 8))
def test_a_kept_bias_that_crosses_twice_or_touches(data: st.DataObject, classes: int, count: int) -> None:
    """Eighths and small scales: turning points inside the range, equal scales, equal biases, zero logits."""
    row = st.lists(quarters, min_size=classes, max_size=classes)
    logits = np.array(data.draw(st.lists(row, min_size=count, max_size=count)))
    bias, scale = (torch.tensor(data.draw(row), dtype=torch.float64) for _ in range(2))
    y = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    family = KeptBias(Head(torch.eye(classes, dtype=torch.float64), bias), scale)
    for name in ("balanced-accuracy", "macro-f1"):
        assert_traced(family, logits, y, classes, name)


@pytest.mark.parametrize("text", ["many", "many>=x", "most>=0.5", "few>=2", "few<=0.5", ">=0.5"])
def test_a_constraint_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(PosthocError, match="subject-to"):
        Constraint.parse(text)
