from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from posthoc_lt import PosthocError
from posthoc_lt.sklearn import PosthocClassifier


@parametrize_with_checks([PosthocClassifier(methods=["logit-adjust", "ncm"], random_state=0)])  # type: ignore[untyped-decorator]
def test_it_keeps_the_rules_of_scikit_learn(estimator: PosthocClassifier, check: Callable[[Any], None]) -> None:
    check(estimator)


def long_tailed() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Digits, class c with about 100·0.6^c train samples, the rest to judge on."""
    x, y = load_digits(return_X_y=True)
    x = x + 0.01 * np.random.default_rng(0).standard_normal(x.shape)
    keep = np.concatenate([np.flatnonzero(y == c)[: int(100 * 0.6**c) + 4] for c in range(10)])
    rest = np.setdiff1d(np.arange(len(y)), keep)
    return x[keep], y[keep], x[rest], y[rest]


def test_rare_classes_gain_over_the_same_features_untouched() -> None:
    x, y, new, truth = long_tailed()
    model = PosthocClassifier(random_state=0).fit(x, y)
    plain = LogisticRegression(C=0.01, max_iter=3000).fit(x, y)
    ours, theirs = (balanced_accuracy_score(truth, each.predict(new)) for each in (model, plain))
    assert ours > theirs
    assert model.coef_.shape == (10, 64)
    logits = new @ model.coef_.T + model.intercept_
    np.testing.assert_allclose(model.decision_function(new), logits)
    assert (model.predict(new) == model.classes_[logits.argmax(1)]).all()
    p = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(model.predict_proba(new), p / p.sum(1, keepdims=True), atol=1e-12)


def test_a_head_of_ones_own_is_what_is_rebalanced() -> None:
    x, y, *_ = long_tailed()
    plain = LogisticRegression(C=0.01, max_iter=3000).fit(x, y)
    head = (torch.tensor(plain.coef_), torch.tensor(plain.intercept_))
    model = PosthocClassifier(head, methods="logit-adjust", random_state=0).fit(x, y)
    assert torch.equal(model.result_.fitted[0].head.weight, head[0])
    if model.result_.tau is not None:
        np.testing.assert_array_equal(model.coef_, plain.coef_)  # logit adjustment moves the bias alone
    with pytest.raises(PosthocError, match="dimensions"):
        PosthocClassifier((head[0][:, 1:], head[1])).fit(x, y)


def test_it_works_inside_scikit_learns_own_tools() -> None:
    x, y, new, truth = long_tailed()
    names = np.array([f"digit {c}" for c in range(10)])
    search = GridSearchCV(
        make_pipeline(StandardScaler(), PosthocClassifier(methods="logit-adjust", random_state=0)),
        {"posthocclassifier__select": ["guarded", "nll"]},
        cv=2,
        scoring="balanced_accuracy",
    ).fit(x, names[y])
    assert balanced_accuracy_score(names[truth], search.predict(new)) > 0.7


def test_a_single_sample_of_a_class_is_fitted_on_and_shares_must_be_shares() -> None:
    x, y, *_ = long_tailed()
    first = np.concatenate([np.flatnonzero(y < 9), np.flatnonzero(y == 9)[:1]])
    model = PosthocClassifier(methods="logit-adjust", random_state=0).fit(x[first], y[first])
    train, val = model.result_.features.train, model.result_.features.val
    assert train is not None
    assert val is not None
    assert (train.labels == 9).sum() == 1
    assert (val.labels == 9).sum() == 0
    assert len(train) + len(val) == len(first)
    with pytest.raises(PosthocError, match="share between 0 and 1"):
        PosthocClassifier(validation=1.5).fit(x, y)
    with pytest.raises(ValueError, match="no class has a second sample"):
        PosthocClassifier().fit(x[:2], [0, 1])
