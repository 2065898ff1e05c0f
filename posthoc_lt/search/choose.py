"""The rule that turns exact validation curves into one knob value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import torch
from torch import Tensor

from posthoc_lt.columns import picked
from posthoc_lt.errors import PosthocError
from posthoc_lt.family import Continuous, Family, Line, Offsets, Path, Point, Sheet
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.curve import TIE, Curve, rounded
from posthoc_lt.search.evidence import Evidence, gather
from posthoc_lt.search.figures import value
from posthoc_lt.search.folds import vote
from posthoc_lt.search.goal import GUARD, Goal
from posthoc_lt.search.likelihood import fit_knob
from posthoc_lt.search.offsets import learn_offsets
from posthoc_lt.search.path import Profile, pick, predict, profile_path
from posthoc_lt.search.sheet import costs

_LEVEL = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, eq=False)
class Choice:
    """A head chosen on validation data, and why.

    Args:
        knob: the chosen value, None where there was nothing to choose.
        head: the head at it.
        decided_by: ``none`` (nothing to choose), ``given``, ``metric``, ``likelihood``, ``guard``
            where the likelihood's choice lay outside what the metric, or a constraint, supports,
            ``cross-fit``, ``label-free``, or ``untuned``.
        plateau: the stretch of the knob around it on which the validation metric does not change.
        interval: the 95% confidence set of the knob that is best for the population, from its lowest to its
            highest value: all t that the paired test does not tell from the best, F(t) ≥ F* − 1.96·SE(t).
        best: the maximum of the validation metric (under the constraints), and where it is reached.
        curve: the exact validation metric at every knob value.
        outer: the value of the outer knob by name, where the family has one; there is then no interval.
    """

    knob: float | None
    head: Head
    decided_by: str
    plateau: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None
    best: tuple[float, tuple[float, float]] | None = None
    curve: Curve | None = None
    outer: Mapping[str, float] = field(default_factory=dict)


def choose(
    family: Family,
    val: Features,
    goal: Goal | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    strict: bool = True,
) -> Choice:
    """Choose the knob of a family on validation features.

    Rules: ``metric`` takes the middle of the widest plateau on which F, the exact validation metric,
    is largest. ``nll`` takes the likelihood's knob (`likelihood.fit_knob`). ``guarded`` takes the knob
    nearest to the likelihood's inside {t : F(t) ≥ F* − 2·SE(t)}, SE² = Σ wᵢ²(1[right at t] − 1[right at t*])²
    (linearised for metrics that are no sums over samples). ``cross-fit`` takes the median of the knobs that
    are best on 20 random halves of the samples (`folds.vote`). All stay within the constraints.
    The line of a `Sheet`, and the offsets of an `Offsets`, are the likelihood's under every rule; only ``metric``
    takes the line on which F reaches most.

    Args:
        family: what a method was fitted to.
        val: labelled features that the network was not trained on.
        goal: the metric, the rule and the constraints.
        bounds: the range that a continuous knob is searched in; the family's own by default.
        strict: whether constraints that no knob meets are an error; else the least violation is taken.

    Raises:
        PosthocError: no validation samples, bounds that hold nothing, or constraints that nothing meets.
    """
    goal = goal or Goal()
    _check(val, bounds)
    if isinstance(family, Sheet):
        return _choose_on_sheet(family, val, goal, bounds, strict)
    if isinstance(family, Offsets):
        learned = learn_offsets(family, val, goal.weights(val.labels), bounds)
        # What is true of t along a line is no confidence set where the line was chosen on the same samples.
        return replace(choose(learned, val, goal, bounds=bounds, strict=strict), interval=None)
    if isinstance(family, Point):
        return _choose_point(family, val, goal, strict)
    if isinstance(family, Path):
        return _choose_on_path(family, val, goal, strict)
    return _choose_on_line(family, val, goal, bounds or family.bounds, strict)


def _choose_on_line(family: Continuous, val: Features, goal: Goal, bounds: tuple[float, float], strict: bool) -> Choice:
    evidence = gather(family, val, goal, bounds)
    judged = evidence.judge(goal)
    curve, inside = judged.curve, _inside(judged.slack, goal, strict)
    best, (low, high) = curve.maximum(inside)
    optimum = curve.nearest((low + high) / 2, inside & (curve.values >= best - TIE))
    error = judged.error(optimum)
    if goal.rule == "metric":
        knob, decided_by = optimum, "metric"
    elif goal.rule == "cross-fit":
        knob, decided_by = curve.nearest(_vote(evidence, goal), inside), "cross-fit"
    else:
        supported = inside
        if goal.rule == "guarded":
            supported = inside & (curve.values >= best - GUARD * error - TIE)
        likely = _likeliest(family, val, goal, bounds)
        knob = curve.nearest(likely, supported)
        decided_by = "likelihood" if supported[curve.cell(likely)] else "guard"
    interval = curve.hull(inside & (curve.values >= best - _LEVEL * error - TIE))
    return Choice(knob, family.at(knob), decided_by, curve.plateau(knob), interval, (best, (low, high)), curve)


def _likeliest(family: Continuous, val: Features, goal: Goal, bounds: tuple[float, float]) -> float:
    """The likelihood's knob."""
    fitted = fit_knob(family, val, goal.weights(val.labels), bounds).knob
    if not math.isfinite(fitted):
        raise PosthocError(
            "validation features with NaN or infinite values (or so large that the logits overflow)",
            "finite features",
            "extract them again, and check the images and the checkpoint",
        )
    # Further digits are the optimiser's, and change with the number of threads that the logits are computed on.
    return float(rounded(torch.tensor(fitted, dtype=torch.float64)))


def _vote(evidence: Evidence, goal: Goal) -> float:
    def best(kept: Tensor) -> float:
        part = evidence.subset(kept)
        own = goal.on(part.labels)
        judged = part.judge(own)
        low, high = judged.curve.maximum(_inside(judged.slack, own, strict=False))[1]
        return (low + high) / 2

    return vote(evidence.labels, best, goal.seed)


def _choose_point(point: Point, val: Features, goal: Goal, strict: bool) -> Choice:
    if goal.subject_to:
        predicted = predict(point.head, val)
        _inside(_slack([predicted], val.labels, point.head.classes, goal), goal, strict)
    return Choice(None, point.head, "none")


def _choose_on_sheet(
    sheet: Sheet, val: Features, goal: Goal, bounds: tuple[float, float] | None, strict: bool
) -> Choice:
    """The line first, by the rule's own measure among those that meet the constraints, then the knob along it."""

    def chosen(line: Line, strict: bool) -> Choice:
        return choose(line, val, goal, bounds=bounds, strict=strict)

    short, cost = [0.0] * len(sheet.lines), []
    if goal.rule == "metric" or goal.subject_to:
        made = [chosen(line, strict=False) for line in sheet.lines]
        short = [misses(goal, val.labels, predict(each.head, val), each.head.classes) for each in made]
        cost = [-each.best[0] for each in made if each.best is not None]
    if goal.rule != "metric":
        cost = costs(sheet, val, goal.weights(val.labels), bounds)
    index = min(range(len(cost)), key=lambda k: (short[k], cost[k]))
    return replace(chosen(sheet.lines[index], strict), interval=None, outer={sheet.name: sheet.values[index]})


def _choose_on_path(path: Path, val: Features, goal: Goal, strict: bool) -> Choice:
    profile = profile_path(path, val)
    while True:
        inside = _inside(_slack(profile.predicted, val.labels, profile.classes, goal), goal, strict)
        index, best, decided_by = _pick(profile, val.labels, goal, inside)
        draft, head = path.heads[index], path.at(path.knobs[index])
        if head is draft:
            break
        profile.replace(index, head, val)  # no head is chosen for what its draft does
    reached = value(goal.figure, val.labels, profile.predicted[best], profile.classes, goal.groups)
    top = path.knobs[best]
    return Choice(path.knobs[index], head, decided_by, best=(reached, (top, top)))


def choose_index(profile: Profile, labels: Tensor, goal: Goal) -> int:
    """The head of a profiled path that `choose` would take, the least violation where no head meets the constraints."""
    inside = _inside(_slack(profile.predicted, labels, profile.classes, goal), goal, strict=False)
    return _pick(profile, labels, goal, inside)[0]


def _pick(profile: Profile, labels: Tensor, goal: Goal, inside: Tensor) -> tuple[int, int, str]:
    """As `path.pick`, with the rule that has halves of the samples vote."""
    if goal.rule != "cross-fit":
        return pick(profile, labels, goal, inside)

    def best(kept: Tensor) -> float:
        (own,), part = picked(kept, labels), profile.subset(kept)
        aim = replace(goal.on(own), rule="metric")
        within = _inside(_slack(part.predicted, own, part.classes, aim), aim, strict=False)
        return pick(part, own, aim, within)[0]

    chosen, able = vote(labels, best, goal.seed), inside.nonzero().flatten()
    top = pick(profile, labels, replace(goal, rule="metric"), inside)[1]
    return int(able[(able - chosen).abs().argmin()]), top, "cross-fit"


def misses(goal: Goal, labels: Tensor, predicted: Tensor, classes: int) -> float:
    """By how much predictions (N,) miss the constraints; 0 where they meet them."""
    short = -float(_slack([predicted], labels, classes, goal)[0])
    return short if short > TIE else 0.0


def _slack(predicted: Sequence[Tensor], labels: Tensor, classes: int, goal: Goal) -> Tensor:
    """By how much each of K predictions (N,) clears the constraints; at most 0."""
    slack = torch.zeros(len(predicted), dtype=torch.float64)
    for constraint in goal.subject_to:
        figure = goal.named(constraint.figure)
        figures = [value(figure, labels, row, classes, goal.groups) for row in predicted]
        slack = torch.minimum(slack, torch.tensor(figures, dtype=torch.float64) - constraint.floor)
    return slack


def _inside(slack: Tensor, goal: Goal, strict: bool) -> Tensor:
    """Which cells meet the constraints; where none does, an error or those that miss by least."""
    if bool((slack >= -TIE).any()):
        return slack >= -TIE
    if strict:
        wanted = " and ".join(f"{each.figure}>={each.floor:g}" for each in goal.subject_to)
        raise PosthocError(
            f"--subject-to {wanted}, which no head of this method meets on validation (the nearest misses by "
            f"{-float(slack.max()):.3f})",
            "floors that can be reached together",
            "give a lower floor, or another method",
        )
    return slack >= slack.max() - TIE


def _check(val: Features, bounds: tuple[float, float] | None) -> None:
    if not len(val):
        raise PosthocError("no validation sample", "at least one", "extract again with a val/ folder that holds images")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise PosthocError(
            f"a search from {bounds[0]:g} to {bounds[1]:g}", "a lower bound below the upper", "give bounds=(0, 4)"
        )
