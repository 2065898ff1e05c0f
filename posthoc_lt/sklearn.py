"""The toolkit as a scikit-learn classifier, for features that come from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.head import Head
from posthoc_lt.pipeline import fit, rebalance
from posthoc_lt.pipeline.source import as_head
from posthoc_lt.search import stratified_folds

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
except ImportError:
    raise PosthocError("no scikit-learn", "scikit-learn 1.6 or later", "pip install 'scikit-learn>=1.6'") from None


class PosthocClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A rebalanced linear classifier: ``predict(X) = argmax W'x + b'``.

    A share of the samples is held out, every class of at least two keeping one or more to fit on. The rest fits
    every method, the held-out share chooses, as in `posthoc_lt.rebalance`. Without a head of your own the
    untouched head is a multinomial logistic regression on the same samples, its penalty chosen on the held-out share.

    Args:
        head: the head to rebalance, as (weight (C, D), bias (C,)) or weight alone, rows in the order of the sorted
            class labels; None fits one.
        methods: names of methods; None for all that rebalance.
        metric: what is chosen by; see `posthoc_lt.rebalance`.
        select: how a knob is chosen; see `posthoc_lt.rebalance`.
        validation: the share to hold out, above 0 and below 1; as 1/k for a whole k.
        random_state: of the split, an int or None.

    Attributes:
        classes_: (C,) the labels, sorted.
        result_: what `posthoc_lt.rebalance` returned.
        coef_, intercept_: W' (C, D) and b' (C,).

    >>> import numpy as np
    >>> x, y = np.eye(2).repeat(20, axis=0) + np.linspace(0, 0.1, 40)[:, None], np.repeat(["cat", "owl"], 20)
    >>> PosthocClassifier(methods="ncm", random_state=0).fit(x, y).predict(x[[0, -1]]).tolist()
    ['cat', 'owl']
    """

    def __init__(
        self,
        head: Any = None,
        *,
        methods: str | Sequence[str] | None = None,
        metric: str = "balanced-accuracy",
        select: str = "guarded",
        validation: float = 0.2,
        random_state: Any = None,
    ) -> None:
        self.head = head
        self.methods = methods
        self.metric = metric
        self.select = select
        self.validation = validation
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> PosthocClassifier:  # scikit-learn's name
        """Fit on features (N, D) and labels (N,).

        Raises:
            ValueError: no such data, labels that are no classes, or a single class.
            PosthocError: the head, the methods or the share do not fit.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"one class, {self.classes_[0]!r}, where a classifier needs at least two classes")
        if not 0 < self.validation < 1:
            raise PosthocError(f"validation = {self.validation}", "a share between 0 and 1", "give validation=0.2")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        train, val = self._split(torch.tensor(X), torch.tensor(labels), seed)
        self.result_ = rebalance(
            FeatureSet(self._untouched(train, val), train, val, classes=tuple(map(str, self.classes_))),
            methods=self.methods,
            metric=self.metric,
            select=self.select,
            seed=seed,
        )
        found = self.result_.head.to(torch.float64)
        self.coef_, self.intercept_ = found.weight.numpy(), found.bias.numpy()
        return self

    def _split(self, x: Tensor, y: Tensor, seed: int) -> tuple[Features, Features]:
        held = stratified_folds(y, max(2, round(1 / self.validation)), seed) == 0
        held &= torch.bincount(y)[y] > 1  # a class's only sample is fitted on
        if not bool(held.any()):
            raise ValueError(f"n_samples={len(y)}: no class has a second sample to hold out and choose by")
        return Features(x[~held], y[~held]), Features(x[held], y[held])

    def _untouched(self, train: Features, val: Features) -> Head:
        if self.head is not None:
            return as_head(self.head)
        blank = Head.without_bias(torch.zeros(len(self.classes_), train.dimensions, dtype=train.x.dtype))
        return fit("refit", FeatureSet(replace(blank, has_bias=True), train, val)).head

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """The logits (N, C); for two classes their difference (N,), as scikit-learn has it."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        logits: NDArray[np.float64] = X @ self.coef_.T + self.intercept_
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The predicted labels (N,)."""
        scores = self.decision_function(X)
        index = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[index]
        return chosen

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """The softmax of the logits, (N, C): right where it counts most, and no calibrated probability."""
        scores = self.decision_function(X)
        logits = np.stack([np.zeros_like(scores), scores], axis=1) if scores.ndim == 1 else scores
        shares: NDArray[np.float64] = softmax(logits, axis=1)
        return shares
