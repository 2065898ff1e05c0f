"""One method, fitted on train, its knob chosen on validation, judged on every split."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields, replace

import torch

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.evaluation import Evaluation, evaluate
from posthoc_lt.family import Certificate, Family, KeptBias, Line, Path, Power
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.methods.method import Method
from posthoc_lt.metrics import EDGES, group_classes
from posthoc_lt.pipeline.source import Source, as_features
from posthoc_lt.report import Row
from posthoc_lt.search import BOUNDS, Choice, Constraint, Goal, choose, match_prior, misses

CHOSEN_BY_VALIDATION = ("metric", "likelihood", "guard")
"""What decides where validation labels do, whose figures then flatter."""


@dataclass(frozen=True)
class Selection:
    """How knobs and methods are chosen, and the edges of the groups reported.

    Args:
        metric: one of `posthoc_lt.search.FIGURES`.
        rule: ``guarded``, ``nll`` or ``metric``.
        subject_to: floors of figures on validation, such as ``many>=0.60``.
        edges: the lowest and the highest train count of the medium group.
        seed: of the folds that methods are ranked over.

    Raises:
        PosthocError: an unknown metric or rule, or a constraint of another form.
    """

    metric: str = "balanced-accuracy"
    rule: str = "guarded"
    subject_to: tuple[str, ...] = ()
    edges: tuple[float, float] = EDGES
    seed: int = 0

    def __post_init__(self) -> None:
        self._goal()

    def goal(self, features: FeatureSet) -> Goal:
        """What a knob is chosen for on these features."""
        return replace(self._goal(), groups=group_classes(features.counts, self.edges))

    def free(self) -> Selection:
        """The same without constraints."""
        return replace(self, subject_to=())

    def _goal(self) -> Goal:
        return Goal(self.metric, self.rule, tuple(map(Constraint.parse, self.subject_to)))


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
        changed = (
            f"{field.name}={getattr(self.method, field.name)}"
            for field in fields(self.method)
            if field.name != self.method.knob and getattr(self.method, field.name) != field.default is not MISSING
        )
        return ", ".join(changed)

    @property
    def label(self) -> str:
        """The name with the options: what tells two settings of one method apart."""
        return f"{self.name} ({self.options})" if self.options else self.name

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
            control=self.method.control,
            chosen=chosen,
            val=self.val,
            test=self.test,
        )


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
    family = method.fit(features.head, features.training)
    choice = _choice(method, family, features, knob, selection)
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
        return choose(family, val, selection.goal(features))
    if isinstance(family, Line | Power | KeptBias) and not selection.subject_to:
        return _choose_without_labels(family, val)
    raise PosthocError(
        "features without a labelled validation split",
        f"validation samples to choose {method.knob} on (train samples, which the network has learned by heart, "
        "and test samples, which must judge the choice, will not do)",
        f"extract again with a val/ folder, or set --{method.knob} yourself",
    )


def _choose_without_labels(family: Line | Power | KeptBias, val: Features | None) -> Choice:
    """From unlabelled validation samples the knob that spreads predictions evenly; from none, 1, as in the papers."""
    if val is None or not len(val):
        return Choice(1.0, family.at(1.0), "untuned")
    classes = family.at(0.0).classes
    knob = match_prior(family, val, torch.full((classes,), 1.0 / classes, dtype=torch.float64), BOUNDS)
    return Choice(knob, family.at(knob), "label-free")


def _judge(head: Head, split: Features | None, features: FeatureSet, selection: Selection) -> Evaluation | None:
    if split is None or split.y is None or not len(split):
        return None
    return evaluate(head, split, features.counts, selection.edges)
