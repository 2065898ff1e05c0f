from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from torch import Tensor

from posthoc_lt import features as features_module
from posthoc_lt.errors import PosthocError
from posthoc_lt.evaluation import Evaluation, difference, evaluate, group_difference
from posthoc_lt.features import Features
from posthoc_lt.head import Head

COUNTS = torch.tensor([400, 120, 100, 20, 19, 2])
NAMES = ["cat", "dog", "=cmd", "bee", "ant\x1b[31m", "owl"]
KEYS = [
    "accuracy",
    "balanced_accuracy",
    "balanced_accuracy_ci",
    "many",
    "medium",
    "few",
    "macro_f1",
    "worst_class",
    "nll",
    "ece",
]


def case(seed: int = 0, samples: int = 90, dtype: torch.dtype = torch.float32) -> tuple[Head, Features]:
    """A head of 6 classes that is right about half the time, on 7 dimensions."""
    made = torch.Generator().manual_seed(seed)
    head = Head(torch.randn(6, 7, generator=made), torch.randn(6, generator=made))
    labels = torch.arange(samples) % 6
    x = 0.4 * head.weight[labels] + torch.randn(samples, 7, generator=made)
    return head, Features(x.to(dtype), labels)


def slow_logits(head: Head, features: Features) -> Tensor:
    return features.x.double() @ head.weight.double().T + head.bias.double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_figure_against_scikit_learn(dtype: torch.dtype) -> None:
    head, features = case(dtype=dtype)
    found = evaluate(head, features, COUNTS)
    logits, labels = slow_logits(head, features), features.labels.numpy()
    predicted, probability = logits.argmax(1).numpy(), logits.softmax(1).numpy()
    block = found.block(NAMES)
    assert block["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert block["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert block["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert block["nll"] == pytest.approx(log_loss(labels, probability), rel=1e-6)
    recalls = np.array([(predicted[labels == c] == c).mean() for c in range(6)])
    assert block["worst_class"] == pytest.approx(recalls.min())
    for name, members in {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}.items():
        assert block[name] == pytest.approx(recalls[members].mean())
    assert found.predicted.numpy().tolist() == predicted.tolist()
    assert found.right.numpy().tolist() == (predicted == labels).tolist()
    np.testing.assert_allclose(found.confidence.numpy(), probability.max(1), rtol=1e-5)
    order = np.argsort(probability.max(1))
    gaps = (predicted == labels) - probability.max(1)
    ece = sum(abs(gaps[part].sum()) for part in np.array_split(order, 15)) / 90
    assert block["ece"] == pytest.approx(ece, rel=1e-5)


def test_chunks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    head, features = case(samples=91)
    whole = evaluate(head, features, COUNTS)
    monkeypatch.setattr(features_module, "CHUNK_ELEMENTS", 7 * 4)
    parts = evaluate(head, features, COUNTS)
    assert len(list(features.chunks(6))) == 23
    assert torch.equal(parts.predicted, whole.predicted)
    torch.testing.assert_close(parts.confidence, whole.confidence, rtol=1e-6, atol=0)
    assert parts.nll == pytest.approx(whole.nll, rel=1e-6)


def test_predictions_are_those_of_the_heads_own_dtype() -> None:
    """A feature that differs from 1 in float64 alone: a float32 head deploys a tie, which the first class wins."""
    weight, bias = torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    features = Features(torch.full((4, 1), 1 + 1e-12, dtype=torch.float64), torch.tensor([0, 0, 1, 1]))
    exact, counts = Head(weight, bias), torch.tensor([5, 5])
    assert evaluate(exact, features, counts).predicted.tolist() == [1, 1, 1, 1]
    assert evaluate(exact.to(torch.float32), features, counts).predicted.tolist() == [0, 0, 0, 0]


def test_probabilities_of_a_float32_head_are_taken_in_float64() -> None:
    """Integer logits are exact in float32, so nothing but the softmax can round."""
    logits = torch.randint(-9, 10, (40, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(40) % 6
    found = evaluate(Head(torch.eye(6), torch.zeros(6)), Features(logits.float(), labels), COUNTS)
    rows = [[math.exp(z) for z in row] for row in logits.tolist()]
    assert found.confidence.tolist() == pytest.approx([max(row) / sum(row) for row in rows], rel=1e-13)
    nll = [-math.log(row[y] / sum(row)) for row, y in zip(rows, labels.tolist(), strict=True)]
    assert found.nll == pytest.approx(sum(nll) / 40, rel=1e-13)


def test_the_block_has_its_keys_in_order_and_no_nan() -> None:
    head, features = case()
    block = evaluate(head, features, COUNTS).block(NAMES)
    assert list(block) == KEYS
    low, high = block["balanced_accuracy_ci"]  # type: ignore[misc]
    assert 0 <= low < block["balanced_accuracy"] < high <= 1  # type: ignore[has-type]
    assert json.loads(json.dumps(block, allow_nan=False)) == block


def test_missing_classes_and_empty_groups_are_told() -> None:
    head, features = case()
    kept = features.subset(torch.tensor([i for i, y in enumerate(features.labels.tolist()) if y not in (2, 3, 5)]))
    block = evaluate(head, kept, COUNTS).block(NAMES, verbose=True)
    assert list(block) == [*KEYS, "missing", "per_class"]
    assert block["missing"] == ["=cmd", "bee", "owl"]
    assert block["medium"] is None
    recalls = [r["recall"] for r in block["per_class"]]  # type: ignore[attr-defined]
    assert recalls[2] is recalls[3] is recalls[5] is None
    assert block["few"] == recalls[4]
    assert block["balanced_accuracy"] == pytest.approx((recalls[0] + recalls[1] + recalls[4]) / 3)
    assert json.dumps(block, allow_nan=False)


def test_per_class_says_train_and_split_samples() -> None:
    head, features = case()
    block = evaluate(head, features, COUNTS).block(NAMES, verbose=True)
    predicted = slow_logits(head, features).argmax(1)
    right = [int(((predicted == c) & (features.labels == c)).sum()) for c in range(6)]
    assert block["per_class"] == [
        {"class": name, "train": train, "n": 15, "right": r, "recall": pytest.approx(r / 15)}
        for name, train, r in zip(NAMES, COUNTS.tolist(), right, strict=True)
    ]


def test_the_edges_of_the_groups_are_settable() -> None:
    head, features = case()
    found = evaluate(head, features, COUNTS, edges=(3, 300))
    assert found.groups["many"].tolist() == [True, False, False, False, False, False]
    assert found.groups["few"].tolist() == [False, False, False, False, False, True]
    assert len(found) == 90
    assert found.missing == []


def test_differences_pair_samples_overall_and_within_groups() -> None:
    head, features = case()
    before = evaluate(head, features, COUNTS)
    bias = head.bias + torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0])
    after = evaluate(Head(head.weight, bias), features, COUNTS)
    gain = difference(before, after)
    assert gain.delta == pytest.approx(after.balanced_accuracy - before.balanced_accuracy)
    changed = (after.right != before.right).sum()
    assert changed > 5
    better, worse = (int((after.right & ~before.right).sum()), int((before.right & ~after.right).sum()))
    middle = binomtest(better, better + worse).pvalue - binom.pmf(better, better + worse, 0.5)
    mcnemar = math.erfc(abs(better - worse) / math.sqrt(2 * int(changed)))
    assert gain.p == pytest.approx(max(middle, mcnemar))
    for name in ("many", "medium", "few"):
        within, a, b = group_difference(before, after, name), before.group(name), after.group(name)
        assert within is not None
        assert a is not None
        assert b is not None
        assert within.delta == pytest.approx(b - a)


def test_a_group_without_samples_has_no_difference() -> None:
    head, features = case()
    found = evaluate(head, features, COUNTS, edges=(0, 100))
    assert group_difference(found, found, "few") is None
    with pytest.raises(PosthocError, match="group 'tail'"):
        group_difference(found, found, "tail")


def test_evaluations_of_different_splits_are_not_compared() -> None:
    head, features = case()
    part = features.subset(torch.arange(30))
    a, b = evaluate(head, features, COUNTS), evaluate(head, part, COUNTS)
    with pytest.raises(PosthocError, match="90 and 30 samples"):
        difference(a, b)
    with pytest.raises(PosthocError, match="90 and 30 samples"):
        group_difference(a, b, "few")


def refused(head: Head, features: Features, counts: Tensor = COUNTS) -> str:
    with pytest.raises(PosthocError) as caught:
        evaluate(head, features, counts)
    return caught.value.given


def test_what_cannot_be_evaluated_is_refused() -> None:
    head, features = case()
    x, y = features.x, features.labels
    assert refused(head, Features(x[:0], y[:0])) == "no labelled sample"
    assert refused(head, Features(x)) == "a split without labels"
    assert refused(head, Features(x[:, :5], y)) == "features of 5 dimensions for a head of 7"
    assert refused(head, features, COUNTS[:4]) == "train counts of shape (4,)"
    assert refused(head, Features(x, y + 1)) == "label 6 for a head of 6 classes"
    for value in (math.nan, math.inf, -math.inf):
        broken = x.clone()
        broken[5, 2] = value
        assert "NaN or infinite" in refused(head, Features(broken, y))


def test_saturated_logits_keep_finite_figures() -> None:
    """A softmax in float32 would give log 0 here."""
    head = Head(torch.tensor([[1000.0], [-1000.0]]), torch.zeros(2))
    found: Evaluation = evaluate(head, Features(torch.ones(2, 1), torch.tensor([0, 1])), torch.tensor([9, 9]))
    assert found.nll == 1000.0
    assert found.confidence.tolist() == [1.0, 1.0]
    assert found.ece == 0.5
