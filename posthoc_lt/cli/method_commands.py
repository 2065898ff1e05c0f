"""``tau-search``, and one command a method, its options made from the method's fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from posthoc_lt.cli import options
from posthoc_lt.cli.described import Described, Field, methods

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
_FIELDS = {
    name: {each.name: each for each in method.fields} for name, method in methods().items() if method.knob == "tau"
}
"""Of the methods that have a tau."""


def method_command(method: Described) -> click.Command:
    """The command of a method: its knob, an option for each of its fields, and the shared ones."""

    def callback(**given: Any) -> None:
        from posthoc_lt.cli.fit import run  # here, so that help costs no torch

        own = {each.name: given.pop(each.name) for each in method.fields}
        knob = given.pop(method.knob, None) if method.knob else None
        run(method.name, own, knob, **given)

    made = options.together(*_knob_option(method), *_own_options(method), _shared)(callback)
    text = f"{method.summary}\n\nHead: {method.formula}" + (f" ({method.paper})" if method.paper else "")
    return click.command(method.name, help=text, short_help=method.summary)(made)


def _type(field: Field) -> Any:
    return click.Choice(field.kind) if isinstance(field.kind, tuple) else field.kind


@click.command("tau-search", short_help="Choose tau on validation data, exactly.")
@click.option(
    "--method",
    type=click.Choice(list(_FIELDS)),
    default="logit-adjust",
    show_default=True,
    help="Whose tau to choose.",
)
@click.option(
    "--bias",
    type=_type(_FIELDS["tau-norm"]["bias"]),
    help="What tau-norm does with the bias; it drops it by default.",
)
@options.together(*options.PRIORS.values())
@click.option("--pareto", is_flag=True, help="Add every trade of many-shot against few-shot accuracy on validation.")
@_shared
def tau_search(method: str, **given: Any) -> None:
    """Choose tau on validation data, exactly: every breakpoint of the metric, not a grid."""
    asked = {name: given.pop(name) for name in ("bias", "prior", "target_prior", "zero_count")}
    own = {name: value for name, value in asked.items() if value is not None}
    for name in own.keys() - _FIELDS[method].keys():
        other = "tau-norm" if name == "bias" else "logit-adjust"
        raise click.UsageError(f"{method} has no --{name.replace('_', '-')}; give --method {other} with it.")
    if given["pareto"] and given["form"] == "csv":
        raise click.UsageError("--format csv has no place for two tables; give --format json with --pareto.")
    from posthoc_lt.cli.fit import run  # here, so that help costs no torch

    run(method, own, None, **given)


def _own_options(method: Described) -> list[Callable[[Any], Any]]:
    made = [options.PRIORS.get(each.name) or _option(each) for each in method.fields]
    return [*made, options.deploy_features] if any(each.name == "target_prior" for each in method.fields) else made


def _option(field: Field) -> Callable[[Any], Any]:
    flag, text = "--" + field.name.replace("_", "-"), field.help
    if field.kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=field.default, show_default=True, help=text)
    shown = field.default is not None
    return click.option(flag, field.name, type=_type(field), default=field.default, show_default=shown, help=text)


def _knob_option(method: Described) -> list[Callable[[Any], Any]]:
    """The knob as an option, where it is not already a field of the method."""
    if method.knob is None or method.knob in {each.name for each in method.fields}:
        return []
    text = f"Set {method.knob} yourself; by default validation chooses it."
    return [click.option(f"--{method.knob}", method.knob, type=float, default=None, help=text)]
