"""Every method side by side, and the one that validation supports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.features import FeatureSet
from posthoc_lt.methods import DEFAULT_METHODS
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.methods.method import Method
from posthoc_lt.metrics import EDGES
from posthoc_lt.pipeline.fit import Fitted, Selection, described, fit, make
from posthoc_lt.pipeline.result import Comparison, Procedure, Result
from posthoc_lt.pipeline.source import Source, as_features
from posthoc_lt.priors import Prior, Target, ZeroCount
from posthoc_lt.progress import through
from posthoc_lt.search import cross_fit, stratified_folds, value

Methods: TypeAlias = "str | Sequence[str | Method | type[Method]] | None"

_NAME = attrgetter("name")


def compare(
    source: Source,
    train: Any = None,
    val: Any = None,
    test: Any = None,
    *,
    methods: Methods = None,
    metric: str = "balanced-accuracy",
    select: str = "guarded",
    subject_to: str | Sequence[str] = (),
    class_weight: Iterable[float] | None = None,
    cost: Iterable[Iterable[float]] | None = None,
    prior: Prior = "counts",
    target_prior: Target = "uniform",
    zero_count: ZeroCount = "refuse",
    edges: tuple[float, float] = EDGES,
    device: str | torch.device = "auto",
) -> Comparison:
    """Fit every method, choose each one's knob on validation, and set them side by side; choose none.

    Arguments are those of `rebalance`.
    """
    features = as_features(source, train, val, test, device=device)
    adjust = LogitAdjust(prior, target_prior, zero_count)
    target = _target(adjust, features)
    selection = Selection(metric, select, _floors(subject_to), edges, 0, _numbers(class_weight), _matrix(cost), target)
    return _fit_all(features, _wanted(methods, adjust), selection, strict=methods is not None)


def rebalance(
    source: Source,
    train: Any = None,
    val: Any = None,
    test: Any = None,
    *,
    methods: Methods = None,
    metric: str = "balanced-accuracy",
    select: str = "guarded",
    subject_to: str | Sequence[str] = (),
    class_weight: Iterable[float] | None = None,
    cost: Iterable[Iterable[float]] | None = None,
    prior: Prior = "counts",
    target_prior: Target = "uniform",
    zero_count: ZeroCount = "refuse",
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
        methods: names, or methods with options; by default all of `posthoc_lt.METHODS` whose `default` is set.
        metric: what is chosen by: ``balanced-accuracy``, ``accuracy``, ``weighted-accuracy``, ``utility``,
            ``macro-f1``, ``g-mean``, ``harmonic-mean``, ``worst-class``, ``many``, ``medium`` or ``few``. Under
            ``guarded`` the likelihood leads and the metric only guards; ``select="metric"`` follows it fully.
        select: ``guarded``, ``nll``, ``metric`` or ``cross-fit``, how a knob is chosen.
        subject_to: floors on validation, such as ``many>=0.60``; heads that miss one are not chosen.
        class_weight: how much each class counts in ``weighted-accuracy``, a number >= 0 a class.
        cost: (C, C) what a sample of the row's class costs where it is predicted as the column's, numbers >= 0;
            ``utility`` is 1 − mean cost/highest cost, and where it is chosen by, heads are judged by it.
        prior: the class frequencies that logit adjustment takes off: ``counts``, ``uniform``, or `Shares`, such as
            the network's own (`posthoc_lt.pipeline.deployment.network_shares`).
        target_prior: the class frequencies to be right under: ``uniform``, ``train``, or `Shares`, such as a
            deployment's (`posthoc_lt.pipeline.deployment.deployment_prior`). Logit adjustment aims at them, and every
            head is chosen and judged by accuracy under them in place of balanced accuracy.
        zero_count: a class without a train sample, in logit adjustment: ``refuse``, ``mask`` or ``smooth``.
        edges: the lowest and the highest train count of the medium group.
        seed: of the folds that methods are ranked over, and of the halves that ``cross-fit`` chooses on.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        PosthocError: the parts do not fit, there is nothing to choose on, or nothing meets the floors.
    """
    features = as_features(source, train, val, test, device=device)
    adjust = LogitAdjust(prior, target_prior, zero_count)
    target = _target(adjust, features)
    selection = Selection(
        metric, select, _floors(subject_to), edges, seed, _numbers(class_weight), _matrix(cost), target
    )
    found = _fit_all(features, _wanted(methods, adjust), selection, strict=methods is not None)
    candidates = _candidates(found, selection)
    predicted = [_cross_fitted(each, features, selection) for each in through(candidates, "judging", "methods", _NAME)]
    scores = [_figure(features, selection, row) for row in predicted]
    chosen = candidates[max(range(len(candidates)), key=scores.__getitem__)]
    return Result(
        features=features,
        fitted=found.fitted,
        skipped=found.skipped,
        chosen=chosen,
        selection=selection,
        scores={each.label: score for each, score in zip(candidates, scores, strict=True)},
        procedure=_judge_procedure(features, selection, predicted),
        model=source if isinstance(source, nn.Module) else None,
    )


def _floors(subject_to: str | Sequence[str]) -> tuple[str, ...]:
    return (subject_to,) if isinstance(subject_to, str) else tuple(subject_to)


def _numbers(class_weight: Iterable[float] | None) -> tuple[float, ...] | None:
    try:
        return None if class_weight is None else tuple(map(float, class_weight))
    except (TypeError, ValueError):
        raise PosthocError(
            f"class_weight {show(class_weight)}", "one number >= 0 a class", "give such as class_weight=[1, 1, 5]"
        ) from None


def _matrix(cost: Iterable[Iterable[float]] | None) -> tuple[tuple[float, ...], ...] | None:
    try:
        return None if cost is None else tuple(tuple(map(float, row)) for row in cost)
    except (TypeError, ValueError):
        raise PosthocError(
            f"cost {show(cost)}", "a row and a column of numbers >= 0 a class", "give such as cost=[[0, 1], [5, 0]]"
        ) from None


def _target(adjust: LogitAdjust, features: FeatureSet) -> tuple[float, ...] | None:
    """The class frequencies that logit adjustment aims at, which all heads are then judged under."""
    found = adjust.target(features.training)
    return None if found is None else tuple(found.tolist())


def _wanted(methods: Methods, adjust: LogitAdjust) -> list[Method]:
    """The methods asked for, each once, after the baseline; logit adjustment without options of its own as `adjust`.

    Raises:
        PosthocError: `adjust` has a prior and is not among them, or two of them would have the same name.
    """
    asked = [methods] if isinstance(methods, str) else methods
    wanted = [adjust if each == LogitAdjust() else each for each in map(make, asked or DEFAULT_METHODS)]
    if adjust not in wanted and (adjust.prior, adjust.zero_count) != ("counts", "refuse"):
        raise PosthocError(
            "a prior, or what to do with a class without a train sample, but no logit adjustment",
            f"{adjust.name} among the methods, which alone takes these",
            f"add {adjust.name}, or leave them out",
        )
    wanted = [make("baseline"), *(each for each in dict.fromkeys(wanted) if each.name != "baseline")]
    labels = [(each.name, described(each)) for each in wanted]
    alike = next((label for label in labels if labels.count(label) > 1), None)
    if alike is not None:
        raise PosthocError(
            f"two methods that a table would both call {alike[0]} ({show(alike[1])})",
            "options that tell them apart",
            "give the frequencies of each a name of their own: Shares(values, 'field')",
        )
    return wanted


def _candidates(found: Comparison, selection: Selection) -> list[Fitted]:
    """What may be chosen: every head within the floors but the refit control; the untouched head too."""
    goal = selection.goal(found.features)
    eligible = [each for each in found.fitted if each.name == "baseline" or not each.method.control]
    within = [each for each in eligible if each.misses(goal) <= 0]
    if not within:
        raise PosthocError(
            f"--subject-to {' and '.join(selection.subject_to)}, which no method meets on validation",
            "floors that some head can reach",
            "give lower floors; tau-search --pareto shows what can be had",
        )
    return within


def _fit_all(features: FeatureSet, wanted: list[Method], selection: Selection, strict: bool) -> Comparison:
    """Every method wanted, and the reason for each that could not be fitted.

    A method asked for by name must fit; of the default ones, those that these features cannot carry
    (no train features, a class without samples, floors out of reach) are left out and said to be.
    Controls are there to compare with and held to no floor.
    """
    if features.val is None or features.val.y is None or not len(features.val):
        raise PosthocError(
            "features without a labelled validation split",
            "validation samples, which the network was not trained on, to choose methods and knobs by",
            "extract again with a val/ folder, or fit one method with its knob set: posthoc-lt logit-adjust --tau 1.0",
        )
    made = [
        (each, _attempt(each, features, selection, strict)) for each in through(wanted, "fitting", "methods", _NAME)
    ]
    return Comparison(
        features,
        tuple(each for _, each in made if isinstance(each, Fitted)),
        {method.name: reason for method, reason in made if isinstance(reason, str)},
    )


def _attempt(method: Method, features: FeatureSet, selection: Selection, strict: bool) -> Fitted | str:
    """The fitted method, or why these features cannot carry it."""
    try:
        return fit(method, features, selection=selection.free() if method.control else selection)
    except PosthocError as error:
        if strict or method.name == "baseline":
            raise
        return str(error)


def _cross_fitted(fitted: Fitted, features: FeatureSet, selection: Selection) -> Tensor:
    """Predictions (N,) on validation, each under a knob chosen without it."""
    assert features.val is not None  # _fit_all has seen to it
    if fitted.choice.decided_by in ("none", "given"):
        assert fitted.val is not None
        return fitted.val.predicted
    goal = selection.goal_of(fitted.method, features)
    return cross_fit(fitted.family, features.val, goal, seed=selection.seed)


def _figure(features: FeatureSet, selection: Selection, predicted: Tensor) -> float:
    goal = selection.goal(features)
    assert features.val is not None
    return value(goal.figure, features.val.labels, predicted, features.head.classes, goal.groups)


def _judge_procedure(features: FeatureSet, selection: Selection, predicted: list[Tensor]) -> Procedure:
    """What choosing the best of several methods is worth: each fold judged by the method best on the others."""
    assert features.val is not None
    labels, goal = features.val.labels, selection.goal(features)
    fold = stratified_folds(labels, seed=selection.seed)
    outcome = predicted[0].clone()
    for index in range(int(fold.max()) + 1):
        rest = fold != index
        if not bool(rest.any()):
            continue

        def on_the_rest(row: Tensor, rest: Tensor = rest) -> float:
            return value(goal.on(labels[rest]).figure, labels[rest], row[rest], features.head.classes, goal.groups)

        best = max(predicted, key=on_the_rest)
        outcome[~rest] = best[~rest]
    return Procedure(outcome, _figure(features, selection, outcome))
