"""A head for features that come without one."""

from __future__ import annotations

from posthoc_lt.choices import L2
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.precision import full_precision
from posthoc_lt.priors import class_weights
from posthoc_lt.solver import fit_logistic


def fit_head(train: Features | None, l2: float = L2) -> Head:
    """Multinomial logistic regression on train, every sample of equal weight.

    Args:
        train: labelled features.
        l2: the penalty in units of the feature variance. Large: nearly the class frequencies alone.

    Raises:
        PosthocError: no labelled train features, or a penalty of 0 or below.
    """
    if train is None or train.y is None:
        raise PosthocError("no labelled train features", "them, to fit a head on", "give --train, or --head")
    if not l2 > 0:
        raise PosthocError(f"l2 = {l2:g}", "a penalty above 0", "give --l2 0.01")
    counts = train.counts(int(train.y.max()) + 1 if len(train) else 0)
    with full_precision():
        (solution,) = fit_logistic(train, class_weights(counts, q=1.0), [l2])
    return Head(solution.weight.float(), solution.bias.float())


def fitted_head_note(l2: float) -> str:
    """What a feature file says of such a head."""
    return f"multinomial logistic regression on train, l2 = {l2:g}"
