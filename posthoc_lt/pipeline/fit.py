"""One method, fitted on train, its knob chosen on validation, judged on every split."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields, replace

import torch
from torch import Tensor

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.evaluation import Evaluation, evaluate
from posthoc_lt.family import Certificate, Continuous, Family, Path
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.methods.method import Method
from posthoc_lt.metrics import EDGES, group_classes
from posthoc_lt.pipeline.source import Source, as_features
from posthoc_lt.precision import full_precision
from posthoc_lt.report import Row
from posthoc_lt.search import BOUNDS, UTILITY, WEIGHTED, Choice, Constraint, Goal, choose, match_prior, misses
from posthoc_lt.yardstick import BALANCED, Yardstick

CHOSEN_BY_VALIDATION = ("metric", "likelihood", "guard", "cross-fit")
"""What decides where validation labels do, whose figures then flatter."""


@dataclass(frozen=True)
class Selection:
    """How knobs and methods are chosen, and the edges of the groups reported.

    Args:
        metric: one of `posthoc_lt.search.FIGURES`.
        rule: one of `posthoc_lt.search.RULES`.
        subject_to: floors of figures on validation, such as ``many>=0.60``.
        edges: the lowest and the highest train count of the medium group.
        seed: of the folds that methods are ranked over, and of the halves that ``cross-fit`` chooses on.
        class_weight: how much each class counts in ``weighted-accuracy``, a number >= 0 a class.
        cost: what each mistake costs in ``utility``, a row a true and a column a predicted class, numbers >= 0.
        target: the class frequencies that heads are judged under, a number >= 0 a class; equal ones by default.

    Raises:
        PosthocError: an unknown metric or rule, a constraint of another form, or class weights or costs without a
            use or missing where they are wanted.
    """

    metric: str = "balanced-accuracy"
    rule: str = "guarded"
    subject_to: tuple[str, ...] = ()
    edges: tuple[float, float] = EDGES
    seed: int = 0
    class_weight: tuple[float, ...] | None = None
    cost: tuple[tuple[float, ...], ...] | None = None
    target: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        goal = self._goal()
        if self.class_weight is not None and not goal.weighted:
            raise PosthocError(
                f"class weights with --metric {self.metric}, which takes none",
                "weighted-accuracy as the metric or in a floor",
                "give --metric weighted-accuracy, or drop --class-weight",
            )
        if self.cost is not None and not goal.costed:
            raise PosthocError(
                f"costs with --metric {self.metric}, which takes none",
                "utility as the metric or in a floor",
                "give --metric utility, or drop --cost",
            )

    def goal(self, features: FeatureSet) -> Goal:
        """What a knob is chosen for on these features.

        Raises:
            PosthocError: there are not as many class weights, or rows of costs, as classes.
        """
        for what, option, given in (
            ("class weights", "--class-weight", self.class_weight),
            ("rows of costs", "--cost", self.cost),
            ("frequencies", "--target-prior", self.target),
        ):
            if given is not None and len(given) != features.head.classes:
                raise PosthocError(
                    f"{len(given)} {what} for {features.head.classes} classes",
                    "one a class, in their order",
                    f"correct {option}",
                )
        goal = replace(self._goal(), groups=group_classes(features.counts, self.edges))
        return goal if self.target is None else _under(goal, torch.tensor(self.target, dtype=torch.float64))

    def goal_of(self, method: Method, features: FeatureSet) -> Goal:
        """What a method's knob is chosen for: the goal, for the class frequencies that its heads are meant for.

        Those are the method's own where the selection names none.

        Raises:
            PosthocError: class weights for a floor beside a target: a goal has one set of them.
        """
        goal, target = self.goal(features), method.target(features.training)
        return goal if target is None or self.target is not None else _under(goal, target.cpu())

    @property
    def yardstick(self) -> Yardstick:
        """What heads are judged by, whatever chose them: utility where they are chosen by it, under the target."""
        cost = None if self.cost is None or self.metric != UTILITY else _matrix(self.cost)
        target = None if self.target is None else torch.tensor(self.target, dtype=torch.float64)
        return BALANCED if cost is None and target is None else Yardstick(target, cost)

    def free(self) -> Selection:
        """The same without constraints."""
        weight = self.class_weight if self.metric == WEIGHTED else None
        return replace(self, subject_to=(), class_weight=weight, cost=self.cost if self.metric == UTILITY else None)

    def _goal(self) -> Goal:
        weight = None if self.class_weight is None else torch.tensor(self.class_weight, dtype=torch.float64)
        floors = tuple(map(Constraint.parse, self.subject_to))
        cost = None if self.cost is None else _matrix(self.cost)
        return Goal(self.metric, self.rule, floors, class_weight=weight, cost=cost, seed=self.seed)


def _under(goal: Goal, target: Tensor) -> Goal:
    """A goal for other class frequencies (C,).

    Balanced accuracy is accuracy where all classes are equally frequent: accuracy under the target stands in for it,
    and utility is that under the target. Any other metric stays what was asked for.

    Raises:
        PosthocError: the goal has class weights of its own.
    """
    if goal.metric not in ("balanced-accuracy", UTILITY):
        return goal
    if goal.class_weight is not None:
        raise PosthocError(
            "class weights beside a target prior, whose accuracy would be chosen by",
            "one of the two",
            "give --metric weighted-accuracy to choose by the class weights, or leave out --class-weight",
        )
    return replace(goal, metric=UTILITY if goal.metric == UTILITY else WEIGHTED, class_weight=target)


def _matrix(cost: tuple[tuple[float, ...], ...]) -> Tensor:
    if len({len(row) for row in cost}) > 1:
        raise PosthocError("costs with rows of different lengths", "a row and a column a class", "correct --cost")
    return torch.tensor(cost, dtype=torch.float64)


def described(method: Method) -> str:
    """The options of a method that differ from their defaults, such as ``bias=scale``, but for the knob."""
    changed = (
        f"{field.name}={getattr(method, field.name)}"
        for field in fields(method)
        if field.name != method.knob and getattr(method, field.name) != field.default is not MISSING
    )
    return ", ".join(changed)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted method: its family, the head chosen from it, and what that head does."""

    method: Method
    family: Family
    choice: Choice
    val: Evaluation | None
    test: Evaluation | None

    @property
    def name(self) -> str:
        """The method's name, as on the command line."""
        return self.method.name

    @property
    def options(self) -> str:
        """The options that differ from their defaults, such as ``bias=scale``; the knob has its own column."""
        return described(self.method)

    @property
    def label(self) -> str:
        """The name with the options: what tells two settings of one method apart."""
        return f"{self.name} ({self.options})" if self.options else self.name

    @property
    def knobs(self) -> dict[str, float]:
        """Its knobs by name, the outer one first; empty where it has none."""
        knob, value = self.method.knob, self.choice.knob
        return {**self.choice.outer, **({} if knob is None or value is None else {knob: value})}

    @property
    def head(self) -> Head:
        """The chosen head."""
        return self.choice.head

    @property
    def certificate(self) -> Certificate | None:
        """How well the chosen head was solved for; None where nothing had to be solved."""
        if not isinstance(self.family, Path) or self.choice.knob is None or not self.family.certificates:
            return None
        return self.family.certificates[self.family.knobs.index(self.choice.knob)]

    @property
    def chosen_on_val(self) -> bool:
        """Whether the head was chosen by its validation figures, which then flatter."""
        return self.choice.decided_by in CHOSEN_BY_VALIDATION

    def misses(self, goal: Goal) -> float:
        """By how much the chosen head misses the constraints on validation; 0 where it meets them."""
        if not goal.subject_to or self.val is None:
            return 0.0
        return misses(goal, self.val.labels, self.val.predicted, self.val.classes)

    def row(self, chosen: bool = False) -> Row:
        """This method's line of the comparison table."""
        return Row(
            method=self.name,
            options=self.options,
            knob=self.method.knob,
            value=self.choice.knob,
            outer=self.choice.outer,
            control=self.method.control,
            chosen=chosen,
            val=self.val,
            test=self.test,
        )

    def __repr__(self) -> str:
        knobs = "".join(f", {name}={number:.3g}" for name, number in self.knobs.items())
        judged = [(split, getattr(self, split)) for split in ("val", "test")]
        figures = "".join(f", {split} {100 * seen.balanced_accuracy:.1f}%" for split, seen in judged if seen)
        return f"Fitted({self.label}{knobs} by {self.choice.decided_by}{figures})"


def make(method: str | Method | type[Method]) -> Method:
    """A method with its default options from its name or its class; a method itself passes through.

    Raises:
        PosthocError: there is no such method.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if method not in METHODS:
        raise PosthocError(f"method {show(method)!r}", "one of " + ", ".join(METHODS), "drop it, or correct its name")
    return METHODS[method]()


def fit(
    method: str | Method | type[Method],
    features: Source,
    *,
    knob: float | None = None,
    selection: Selection | None = None,
) -> Fitted:
    """Fit one method and choose its knob.

    Args:
        method: a name, a method's class, or a method with its options.
        features: train to fit on, val to choose on, test to judge on; in any form of `as_features`.
        knob: the knob's value, where you set it yourself; else validation chooses it.
        selection: how validation chooses.

    Raises:
        PosthocError: the method is unknown or cannot be fitted, there is nothing to choose on, or the
            constraints are not met.
    """
    method, selection = make(method), selection or Selection()
    features = as_features(features)
    if knob is not None and not math.isfinite(knob):
        raise PosthocError(f"{method.knob} = {knob}", "a finite number", f"give --{method.knob} 1.0, or leave it out")
    with full_precision():
        family = method.fit(features.head, features.training)
        choice = _choice(method, family, features, knob, selection)  # which solves what was only drafted
    fitted = Fitted(
        method,
        family,
        choice,
        val=_judge(choice.head, features.val, features, selection),
        test=_judge(choice.head, features.test, features, selection),
    )
    if (short := fitted.misses(selection.goal(features))) > 0:
        raise PosthocError(
            f"{method.name} as given, which misses --subject-to {' and '.join(selection.subject_to)} on validation "
            f"by {short:.3f}",
            "a head that keeps to the floors",
            f"leave out --{method.knob or 'subject-to'}, or give a lower floor",
        )
    return fitted


def _choice(method: Method, family: Family, features: FeatureSet, knob: float | None, selection: Selection) -> Choice:
    val = features.val
    if isinstance(family, Path) and len(family.heads) == 1:
        knob = family.knobs[0]
    if knob is not None:
        return Choice(knob, family.at(knob), "given")
    if method.knob is None:
        return Choice(None, family.at(None), "none")
    if val is not None and val.y is not None:
        return choose(family, val, selection.goal_of(method, features))
    # A tau of 1 is the papers'; without any validation samples no other knob has such a value.
    blind = method.knob == "tau" or (method.knob == "gamma" and val is not None and len(val) > 0)
    if blind and isinstance(family, Continuous) and not selection.subject_to:
        return _choose_without_labels(family, val, method.target(features.training))
    raise PosthocError(
        "features without a labelled validation split",
        f"validation samples to choose {method.knob} on (train samples, which the network has learned by heart, "
        "and test samples, which must judge the choice, will not do)",
        f"extract again with a val/ folder, or set --{method.knob} yourself",
    )


def _choose_without_labels(family: Continuous, val: Features | None, target: Tensor | None) -> Choice:
    """From unlabelled validation samples the knob that spreads predictions as the target says, evenly by default.

    From none, 1, as in the papers.
    """
    if val is None or not len(val):
        return Choice(1.0, family.at(1.0), "untuned")
    taking_part = (~family.at(0.0).masked).double().cpu()
    shares = taking_part / taking_part.sum() if target is None else target.cpu()
    knob = match_prior(family, val, shares, BOUNDS)
    return Choice(knob, family.at(knob), "label-free")


def _judge(head: Head, split: Features | None, features: FeatureSet, selection: Selection) -> Evaluation | None:
    if split is None or split.y is None or not len(split):
        return None
    return evaluate(head, split, features.counts, selection.edges, selection.yardstick)
