"""Every method side by side, and the one that validation supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from posthoc_lt.errors import PosthocError
from posthoc_lt.features import FeatureSet
from posthoc_lt.methods import METHODS
from posthoc_lt.methods.method import Method
from posthoc_lt.metrics import EDGES
from posthoc_lt.pipeline.fit import Fitted, Selection, fit
from posthoc_lt.pipeline.result import Result
from posthoc_lt.pipeline.source import Source, as_features
from posthoc_lt.report import Table
from posthoc_lt.search import cross_fit, value


def compare(
    source: Source,
    train: Any = None,
    val: Any = None,
    test: Any = None,
    *,
    methods: Sequence[str | Method] | None = None,
    metric: str = "balanced-accuracy",
    select: str = "guarded",
    subject_to: Sequence[str] = (),
    edges: tuple[float, float] = EDGES,
    device: str | torch.device = "auto",
) -> Table:
    """Fit every method, choose each one's knob on validation, and set them side by side; choose none.

    Arguments are those of `rebalance`.
    """
    features = as_features(source, train, val, test, device=device)
    fitted, _ = _fit_all(features, methods, Selection(metric, select, tuple(subject_to), edges))
    return Table.against([each.row() for each in fitted], features.classes)


def rebalance(
    source: Source,
    train: Any = None,
    val: Any = None,
    test: Any = None,
    *,
    methods: Sequence[str | Method] | None = None,
    metric: str = "balanced-accuracy",
    select: str = "guarded",
    subject_to: Sequence[str] = (),
    edges: tuple[float, float] = EDGES,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Result:
    """The best post-hoc fix for a trained network's rare classes, chosen on validation data.

    Each method is fitted on train and its knob chosen on val. Methods are then ranked by the metric
    cross-fitted on val (every sample judged under a knob chosen without it); controls are shown and,
    but for the untouched head itself, not chosen. Test judges and never chooses.

    Args:
        source: a feature file's path, a FeatureSet, a network (train and val are then loaders), or a
            head: `Head`, weight (C, D) or (weight, bias) (train and val are then pairs (x, y)).
        train: the train split, where `source` does not hold it; class counts (C,) will do for a head.
        val: the validation split.
        test: the test split, which only judges.
        methods: names, or methods with options; all of `posthoc_lt.METHODS` by default.
        metric: what is chosen by: ``balanced-accuracy``, ``accuracy``, ``macro-f1``, ``g-mean``,
            ``harmonic-mean``, ``many``, ``medium`` or ``few``.
        select: ``guarded``, ``nll`` or ``metric``, how a knob is chosen.
        subject_to: floors on validation, such as ``many>=0.60``; methods that cannot meet them are left out.
        edges: the lowest and the highest train count of the medium group.
        seed: of the folds that methods are ranked over.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        PosthocError: the parts do not fit, or there is nothing to choose on.
    """
    features = as_features(source, train, val, test, device=device)
    selection = Selection(metric, select, tuple(subject_to), edges, seed)
    fitted, skipped = _fit_all(features, methods, selection)
    scores = {each.name: _cross_fitted(each, features, selection) for each in fitted if _eligible(each)}
    chosen = max((each for each in fitted if _eligible(each)), key=lambda each: scores[each.name])
    return Result(
        features=features,
        fitted=tuple(fitted),
        chosen=chosen,
        selection=selection,
        scores=scores,
        skipped=skipped,
        model=source if isinstance(source, nn.Module) else None,
    )


def _eligible(fitted: Fitted) -> bool:
    """Whether a method may be chosen: not the refit control, but the untouched head where nothing beats it."""
    return fitted.name == "baseline" or not fitted.method.control


def _fit_all(
    features: FeatureSet, methods: Sequence[str | Method] | None, selection: Selection
) -> tuple[list[Fitted], dict[str, str]]:
    """Every method asked for after the baseline, and the reason for each that could not be fitted.

    A method asked for by name must fit; of the default ones, those that these features cannot carry
    (no train features, a class without samples) are left out and said to be.
    """
    wanted: list[str | Method] = ["baseline", *(name for name in methods or METHODS if name != "baseline")]
    if features.val is None or features.val.y is None or not len(features.val):
        raise PosthocError(
            "features without a labelled validation split",
            "validation samples, which the network was not trained on, to choose methods and knobs by",
            "extract again with a val/ folder, or fit one method with its knob set: posthoc-lt logit-adjust --tau 1.0",
        )
    fitted: list[Fitted] = []
    skipped: dict[str, str] = {}
    for each in wanted:
        made = _attempt(each, features, selection, strict=bool(methods) or each == "baseline")
        if isinstance(made, Fitted):
            fitted.append(made)
        else:
            skipped[str(each)] = made
    return fitted, skipped


def _attempt(method: str | Method, features: FeatureSet, selection: Selection, strict: bool) -> Fitted | str:
    """The fitted method, or why these features cannot carry it."""
    try:
        return fit(method, features, selection=selection)
    except PosthocError as error:
        if strict:
            raise
        return str(error)


def _cross_fitted(fitted: Fitted, features: FeatureSet, selection: Selection) -> float:
    assert features.val is not None  # _fit_all has seen to it
    goal = selection.goal(features, fitted.method.control)
    predicted = cross_fit(fitted.family, features.val, goal, seed=selection.seed)
    return value(goal.figure, features.val.labels, predicted, features.head.classes, goal.groups)
