"""``tau-search`` and one command a method, its options made from the method's fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from posthoc_lt.cli import method_summaries, options, output
from posthoc_lt.cli.shares import Resolved, resolve
from posthoc_lt.errors import PosthocError
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import HEAD
from posthoc_lt.methods import METHODS
from posthoc_lt.methods.method import Method
from posthoc_lt.metrics import GROUPS, group_classes
from posthoc_lt.pipeline import Fitted, as_features, fit
from posthoc_lt.pipeline import knob as knobs
from posthoc_lt.pipeline.fit import Selection
from posthoc_lt.pipeline.notes import notes
from posthoc_lt.report import Table, render
from posthoc_lt.search import BOUNDS
from posthoc_lt.search import pareto as pareto_curve

_shared = options.together(
    options.features,
    options.metric,
    options.select,
    options.subject_to,
    options.class_weight,
    options.cost,
    options.groups,
    options.device,
    options.out(None, "Write the fitted head to this file."),
    options.force,
    options.form,
    options.verbose,
    options.quiet,
)


def method_command(name: str) -> click.Command:
    """The command of a method: its knob, an option for each of its fields, and the shared ones."""
    method = METHODS[name]

    def callback(**given: Any) -> None:
        own = {field.name: given.pop(field.name) for field in fields(method)}
        knob = given.pop(method.knob, None) if method.knob else None
        run(partial(resolve, method, own, given.get("deploy_features")), knob, **given)

    made = options.together(*_knob_option(method), *_own_options(method), _shared)(callback)
    text = f"{method_summaries()[name]}\n\nHead: {method.formula}" + (f" ({method.paper})" if method.paper else "")
    return click.command(name, help=text)(made)


@click.command("tau-search")
@click.option(
    "--method",
    type=click.Choice([name for name, method in METHODS.items() if method.knob == "tau"]),
    default="logit-adjust",
    show_default=True,
    help="Whose tau to choose.",
)
@click.option(
    "--bias",
    type=click.Choice(["drop", "keep", "scale"]),
    help="What tau-norm does with the bias; it drops it by default.",
)
@options.together(*options.PRIORS.values())
@click.option("--pareto", is_flag=True, help="Add every trade of many-shot against few-shot accuracy on validation.")
@_shared
def tau_search(method: str, bias: str | None, deploy_features: Path | None, **given: Any) -> None:
    """Choose tau on validation data, exactly: every breakpoint of the metric, not a grid."""
    asked = {"bias": bias, **{name: given.pop(name) for name in ("prior", "target_prior", "zero_count")}}
    own = {name: value for name, value in asked.items() if value is not None}
    for name in own.keys() - {field.name for field in fields(METHODS[method])}:
        other = "tau-norm" if name == "bias" else "logit-adjust"
        raise click.UsageError(f"{method} has no --{name.replace('_', '-')}; give --method {other} with it.")
    if given["pareto"] and given["form"] == "csv":
        raise click.UsageError("--format csv has no place for two tables; give --format json with --pareto.")
    run(partial(resolve, METHODS[method], own, deploy_features), None, deploy_features=deploy_features, **given)


def run(
    make: Callable[[FeatureSet], Resolved],
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
    made = make(cached)
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


def _own_options(method: type[Method]) -> list[Callable[[Any], Any]]:
    hints, own = get_type_hints(method), {field.name: field for field in fields(method)}
    made = [
        options.PRIORS.get(name) or _option(name, hints[name], field.default, field.metadata["help"])
        for name, field in own.items()
    ]
    return [*made, options.deploy_features] if "target_prior" in own else made


def _option(name: str, hint: Any, default: Any, text: str) -> Callable[[Any], Any]:
    flag = "--" + name.replace("_", "-")
    if hint is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=default, show_default=True, help=text)
    if get_origin(hint) is Literal:
        kind: Any = click.Choice(get_args(hint))
    else:
        kind = next(kind for kind in (int, float, str) if hint is kind or kind in get_args(hint))
    return click.option(flag, name, type=kind, default=default, show_default=default is not None, help=text)


def _knob_option(method: type[Method]) -> list[Callable[[Any], Any]]:
    """The knob as an option, where it is not already a field of the method."""
    if method.knob is None or method.knob in {field.name for field in fields(method)}:
        return []
    text = f"Set {method.knob} yourself; by default validation chooses it."
    return [click.option(f"--{method.knob}", method.knob, type=float, default=None, help=text)]
