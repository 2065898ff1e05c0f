"""How a knob came about, in words."""

from __future__ import annotations

from posthoc_lt.pipeline.fit import Fitted, Selection
from posthoc_lt.report.text import metric_name


def told(fitted: Fitted, selection: Selection, goal_metric: str) -> list[str]:
    """The knob and who decided it; what validation gives there and at best; how sure that is. A phrase each.

    Args:
        fitted: the method.
        selection: what was asked for.
        goal_metric: what the knob was chosen for, another than was asked for where the method has a target of its own.
    """
    knob, choice = fitted.method.knob, fitted.choice
    if knob is None or choice.knob is None:
        return [fitted.name]
    knobs = ", ".join(f"{name} = {number:.4g}" for name, number in fitted.knobs.items())
    recipes = choice.decided_by == "given" and getattr(fitted.method, knob, choice.knob) is None
    phrases = [f"{fitted.name}: {knobs} ({'of the recipe' if recipes else _REASONS[choice.decided_by]})"]
    if choice.curve is not None and choice.best is not None and choice.plateau is not None:
        metric = "accuracy under the target prior" if goal_metric != selection.metric else metric_name(goal_metric)
        value, (low, high) = choice.best
        phrases.append(
            f"Validation {metric} {100 * choice.curve.at(choice.knob):.1f}%, the same from "
            f"{choice.plateau[0]:.4g} to {choice.plateau[1]:.4g}; "
            f"its exact maximum {100 * value:.1f}% lies from {low:.4g} to {high:.4g}"
        )
    if choice.interval is not None:
        phrases.append(f"95% confidence set of the best {knob}: {choice.interval[0]:.4g} to {choice.interval[1]:.4g}")
    return phrases


_REASONS = {
    "given": "given",
    "metric": "the maximum of the validation metric",
    "likelihood": "the validation likelihood's choice",
    "guard": "the nearest to the validation likelihood's choice that the metric supports",
    "cross-fit": "the median of the best on 20 halves of the validation samples",
    "label-free": "without labels: spreads predictions over validation as the target says, right only if its classes "
    "occur so",
    "untuned": "untuned: no validation split to choose on; extract again with a val/ folder",
    "none": "nothing to choose",
}
