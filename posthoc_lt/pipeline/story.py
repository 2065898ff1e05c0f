"""A result told as one page."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING

from posthoc_lt.errors import show
from posthoc_lt.pipeline.figures import compared, draw, drawable
from posthoc_lt.pipeline.knob import told
from posthoc_lt.progress import through
from posthoc_lt.report.page import Figure, Story
from posthoc_lt.report.svg import svg
from posthoc_lt.report.text import shortfall

if TYPE_CHECKING:
    from posthoc_lt.pipeline.result import Result


def story(result: Result, facts: Mapping[str, str] | None = None) -> Story:
    """Everything that the page of a result tells.

    Args:
        result: what to tell of.
        facts: what else to tell of where it comes from.

    Raises:
        PosthocError: matplotlib is missing.
    """
    before, after = compared(result)
    goal = result.selection.goal_of(result.chosen.method, result.features)
    skipped = [f"{name} was left out: {reason}" for name, reason in result.skipped.items()]
    unsolved = [
        f"{each.label} did not fully converge: relative gradient norm {each.certificate.gradient_norm:.1e}."
        for each in result.fitted
        if each.certificate is not None and not each.certificate.converged
    ]
    return Story(
        title=f"Rebalanced by {result.chosen.label}{_knobs(result)}",
        verdict=result.verdict,
        wrong=shortfall(before, result.comparison.split),
        reason=result.reason,
        knob=" ".join(f"{phrase}." for phrase in told(result.chosen, result.selection, goal.metric)),
        notes=[*result.notes, *unsolved, *skipped],
        table=result.comparison,
        before=before,
        after=after,
        figures=[_figure(result, kind) for kind in through(drawable(result), "drawing", "figures")],
        facts={**(facts or {"call": _call(result)}), **_facts(result)},
    )


def _knobs(result: Result) -> str:
    return "".join(f", {name} = {value:.3g}" for name, value in result.knobs.items())


def _figure(result: Result, kind: str) -> Figure:
    from matplotlib import pyplot, rc_context

    with pyplot.ioff(), rc_context({"figure.figsize": _SIZE}):
        axes = draw(result, kind)
        try:
            title, caption = axes.get_title(), _caption(result, kind)
            made = svg(axes, kind, f"{title}. {caption}")
        finally:
            pyplot.close(axes.figure)  # type: ignore[arg-type]  # a subfigure has no window to close
    return Figure(title, made, caption)


def _caption(result: Result, kind: str) -> str:
    with_set = kind == "tau" and result.chosen.choice.interval is not None
    return _CAPTIONS[kind] + _SET * with_set


def _call(result: Result) -> str:
    """The call that makes the result again."""
    selection, plain = result.selection, [each.name for each in result.fitted[1:] if not each.options]
    methods = plain if len(plain) == len(result.fitted) - 1 else [each.method for each in result.fitted[1:]]
    asked = {field.name: getattr(selection, field.name) for field in fields(selection)}
    asked["select"] = asked.pop("rule")
    usual = {field.name: field.default for field in fields(selection)}
    usual["select"] = usual.pop("rule")
    given = "".join(f", {name}={value!r}" for name, value in asked.items() if value != usual[name])
    return show(f"posthoc_lt.rebalance(features, methods={methods!r}{given})", 600)


def _facts(result: Result) -> dict[str, str]:
    """Versions, where the features come from, and what was asked for."""
    features, selection = result.features, result.selection
    splits = {name: f"{len(split)} samples" for name, split in features.splits().items()}
    asked = {
        "metric": selection.metric,
        "selection": selection.rule,
        "floors": " and ".join(selection.subject_to) or "none",
        "groups": "few < {:g}, many > {:g} train samples".format(*selection.edges),
        "seed": str(selection.seed),
    }
    versions = {name: version(name) for name in ("posthoc-lt", "torch", "numpy", "scipy")}
    known = {name.replace("_", " "): show(value, 300) for name, value in sorted(features.provenance.items())}
    return {
        **{name.replace("_", " "): value for name, value in asked.items()},
        "classes": f"{features.head.classes}, {features.head.dimensions} features",
        **splits,
        **known,
        **versions,
        "Python": platform.python_version(),
    }


_SIZE = (5.6, 4.2)
"""Inches of a figure: small, so that its text is readable on a phone too."""

_CAPTIONS = {
    "tau": "The exact validation metric at every value of the knob, no grid. Blue: where every value gives the chosen "
    "one's result.",
    "classes": "Accuracy of every class before (rings) and after (arrows), against its train samples: what rare "
    "classes gain is paid by frequent ones.",
    "norms": "Training leaves frequent classes with longer weight vectors; methods that change weights change this. "
    "Each head is scaled to a mean of 1; those that move only the bias are the untouched head's.",
    "pareto": "Lines: every trade that a knob offers on validation, exactly. Points: each method's head, "
    "the chosen one filled. Validation chose them, so it flatters.",
    "reliability": "Points under the diagonal are too sure of themselves. A head that decides well need not know how "
    "sure it may be.",
    "confusion": "The mistakes whose number changed most, true class → predicted class.",
}

_SET = " Grey: the 95% set of the best value, which few validation samples leave wide."
