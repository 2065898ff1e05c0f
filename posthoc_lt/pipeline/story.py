"""A result told as one page."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

from posthoc_lt.errors import show
from posthoc_lt.pipeline.figures import compared, draw, drawable
from posthoc_lt.report.page import Figure, Story
from posthoc_lt.report.svg import svg

if TYPE_CHECKING:
    from posthoc_lt.pipeline.result import Result


def story(result: Result) -> Story:
    """Everything that the page of a result tells.

    Raises:
        PosthocError: matplotlib is missing.
    """
    before, after = compared(result)
    skipped = [f"{name} was left out: {reason}" for name, reason in result.skipped.items()]
    unsolved = [
        f"{each.label} did not fully converge: relative gradient norm {each.certificate.gradient_norm:.1e}."
        for each in result.fitted
        if each.certificate is not None and not each.certificate.converged
    ]
    return Story(
        title=f"Rebalanced by {result.chosen.label}{_knobs(result)}",
        verdict=result.verdict,
        reason=result.reason,
        notes=[*result.notes, *unsolved, *skipped],
        table=result.comparison,
        before=before,
        after=after,
        figures=[_figure(result, kind) for kind in drawable(result)],
        facts=_facts(result),
    )


def _knobs(result: Result) -> str:
    return "".join(f", {name} = {value:.3g}" for name, value in result.knobs.items())


def _figure(result: Result, kind: str) -> Figure:
    from matplotlib import pyplot

    with pyplot.ioff():
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


_CAPTIONS = {
    "tau": "The exact validation metric at every value of the knob, no grid. Blue: where every value gives the chosen "
    "one's result.",
    "classes": "Accuracy of every class before and after, against its train samples: what rare classes gain is paid by "
    "frequent ones.",
    "norms": "Training leaves frequent classes with longer weight vectors; methods that change weights change this. "
    "Each head is scaled to a mean of 1; those that move only the bias are the untouched head's.",
    "pareto": "Lines: every trade that a knob offers on validation, exactly. Points: the heads chosen. Validation "
    "chose them, so it flatters.",
    "reliability": "Points under the diagonal are too sure of themselves. A head that decides well need not know how "
    "sure it may be.",
    "confusion": "The mistakes whose number changed most.",
}

_SET = " Grey: the 95% set of the best value, which few validation samples leave wide."
