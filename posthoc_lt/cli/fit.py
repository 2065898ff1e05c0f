"""What ``tau-search`` and the commands of the methods do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from posthoc_lt.cli import output
from posthoc_lt.cli.shares import resolve
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import HEAD
from posthoc_lt.methods import METHODS
from posthoc_lt.metrics import GROUPS, group_classes
from posthoc_lt.pipeline import Fitted, as_features, fit
from posthoc_lt.pipeline import knob as knobs
from posthoc_lt.pipeline.fit import Selection
from posthoc_lt.pipeline.notes import notes
from posthoc_lt.report import Table, render
from posthoc_lt.search import BOUNDS
from posthoc_lt.search import pareto as pareto_curve


def run(
    method: str,
    own: Mapping[str, Any],
    knob: float | None,
    *,
    features: Path,
    metric: str,
    select: str,
    subject_to: tuple[str, ...],
    class_weight: tuple[float, ...] | None,
    cost: tuple[tuple[float, ...], ...] | None,
    groups: tuple[float, float],
    device: str,
    out: Path | None,
    force: bool,
    form: str,
    verbose: bool,
    quiet: bool,
    pareto: bool = False,
    deploy_features: Path | None = None,
) -> None:
    """Fit one method on a feature file, print it beside the baseline, and save its head if asked."""
    output.protect(out, HEAD, features)
    cached = as_features(features, device=device)
    made = resolve(METHODS[method], own, deploy_features, cached)
    made.note(cached, quiet)
    target = made.method.target(cached.training)
    aim = None if target is None else tuple(target.tolist())
    selection = Selection(metric, select, subject_to, groups, class_weight=class_weight, cost=cost, target=aim)
    baseline = fit("baseline", cached, selection=selection.free())
    fitted = fit(made.method, cached, knob=knob, selection=selection)
    output.warn_unsolved(fitted, quiet)
    output.note_bias(fitted.head, cached, quiet)
    output.notes(notes(cached, baseline), quiet)
    trades = _trades(fitted, cached, groups) if pareto else None
    opening = output.preamble({"features": features, "deploy_features": deploy_features}) if form == "json" else {}
    written = output.write_head(fitted, cached, out, force)
    if form == "json":
        context = {"metric": selection.goal_of(made.method, cached).metric, "select": select}
        record = {**output.fitted_record(fitted, baseline, cached, context, verbose), **made.record()}
        if trades is not None:
            record["pareto"] = trades
        output.print_json({**opening, **record, "head": written})
        return
    if form == "table":
        output.say("\n".join(knobs.told(fitted, selection, selection.goal_of(made.method, cached).metric)))
        output.print_curve(fitted)
    if fitted.val is not None or fitted.test is not None:
        rows = [baseline.row(), fitted.row(chosen=True)] if fitted.name != "baseline" else [baseline.row()]
        chosen_on = "val" if fitted.chosen_on_val else None
        output.print_table(Table.against(rows, cached.classes, chosen_on=chosen_on), form, verbose)
    if trades is not None:
        click.echo(f"\nvalidation, best trades:\n{render(trades, form, set(GROUPS))}")
    if written is not None:
        output.note(f"Wrote {written}", quiet)


def _trades(fitted: Fitted, features: FeatureSet, edges: tuple[float, float]) -> list[dict[str, float]]:
    """The exact Pareto curve of many-shot against few-shot accuracy on validation."""
    if features.val is None or features.val.y is None or not len(features.val):
        raise PosthocError(
            "--pareto on features without a labelled validation split",
            "validation samples to trace the trades on",
            "extract again with a val/ folder",
        )
    found = pareto_curve(fitted.family, features.val, group_classes(features.counts, edges), BOUNDS)
    return [
        {**each.outer, "tau_from": each.low, "tau_to": each.high, "many": each.head, "few": each.tail} for each in found
    ]
