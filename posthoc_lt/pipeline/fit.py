"""One method, fitted on train, its knob chosen on validation, judged on every split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.evaluation import Evaluation, evaluate
from posthoc_lt.family import Certificate, Family, KeptBias, Line, Path, Power
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.methods.method import Method
from posthoc_lt.metrics import EDGES, group_classes
from posthoc_lt.report import Row
from posthoc_lt.search import BOUNDS, Choice, Constraint, Goal, choose, match_prior


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
        self._goal(control=True)
        tuple(map(Constraint.parse, self.subject_to))

    def goal(self, features: FeatureSet, control: bool) -> Goal:
        """What a method's knob is chosen for; a control is held to no constraint."""
        return replace(self._goal(control), groups=group_classes(features.counts, self.edges))

    def _goal(self, control: bool) -> Goal:
        constraints = () if control else tuple(map(Constraint.parse, self.subject_to))
        return Goal(self.metric, self.rule, constraints)


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
    def head(self) -> Head:
        """The chosen head."""
        return self.choice.head

    @property
    def certificate(self) -> Certificate | None:
        """How well the chosen head was solved for; None where nothing had to be solved."""
        if not isinstance(self.family, Path) or self.choice.knob is None or not self.family.certificates:
            return None
        return self.family.certificates[self.family.knobs.index(self.choice.knob)]

    def row(self, chosen: bool = False) -> Row:
        """This method's line of the comparison table."""
        return Row(
            method=self.name,
            knob=self.method.knob,
            value=self.choice.knob,
            control=self.method.control,
            chosen=chosen,
            val=self.val,
            test=self.test,
        )


def make(name: str | Method) -> Method:
    """A method with its default options from its name; a method itself passes through.

    Raises:
        PosthocError: there is no such method.
    """
    if not isinstance(name, str):
        return name
    if name not in METHODS:
        raise PosthocError(f"method {show(name)!r}", "one of " + ", ".join(METHODS), "drop it, or correct its name")
    return METHODS[name]()


def fit(
    method: str | Method, features: FeatureSet, *, knob: float | None = None, selection: Selection | None = None
) -> Fitted:
    """Fit one method and choose its knob.

    Args:
        method: a name, or a method with its options.
        features: train to fit on, val to choose on, test to judge on.
        knob: the knob's value, where you set it yourself; else validation chooses it.
        selection: how validation chooses.

    Raises:
        PosthocError: the method is unknown or cannot be fitted, or there is nothing to choose on.
    """
    method, selection = make(method), selection or Selection()
    family = method.fit(features.head, features.training)
    choice = _choice(method, family, features, knob, selection)
    return Fitted(
        method,
        family,
        choice,
        val=_judge(choice.head, features.val, features, selection),
        test=_judge(choice.head, features.test, features, selection),
    )


def _choice(method: Method, family: Family, features: FeatureSet, knob: float | None, selection: Selection) -> Choice:
    val = features.val
    if isinstance(family, Path) and len(family.heads) == 1:
        knob = family.knobs[0]
    if knob is not None:
        return Choice(knob, family.at(knob), "given")
    if method.knob is None and (method.control or not selection.subject_to):
        return Choice(None, family.at(None), "none")
    if val is not None and val.y is not None:
        return choose(family, val, selection.goal(features, method.control))
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
