"""Printing: results on standard output, in the form asked for; notes on standard error."""

from __future__ import annotations

import hashlib
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from posthoc_lt import __version__
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import save_head
from posthoc_lt.pipeline import Fitted
from posthoc_lt.pipeline.result import saved_head
from posthoc_lt.report import Table, dump, render


def preamble(inputs: Mapping[str, Path]) -> dict[str, object]:
    """What every JSON object begins with: the command, its version, arguments and input hashes."""
    context = click.get_current_context()
    arguments = {"format" if name == "form" else name: _argument(value) for name, value in context.params.items()}
    hashes = {name: {"path": str(path), "sha256": _sha256(path)} for name, path in inputs.items()}
    return {"command": context.info_name, "version": __version__, "arguments": arguments, "inputs": hashes}


def fitted_record(
    fitted: Fitted, baseline: Fitted, features: FeatureSet, context: Mapping[str, Any], verbose: bool
) -> dict[str, object]:
    """The JSON of a fitted method: its knob, how it was chosen, its figures and the baseline's."""
    knob, choice = fitted.method.knob, fitted.choice

    def blocks(each: Fitted) -> dict[str, object]:
        splits = {"val": each.val, "test": each.test}
        return {name: split and split.block(features.classes, verbose) for name, split in splits.items()}

    found: dict[str, object] = {"method": fitted.name}
    if knob is not None:
        found[knob] = choice.knob
    found |= {"metric": context["metric"], "select": context["select"], "decided_by": choice.decided_by}
    if choice.best is not None:
        found["best"] = {"value": choice.best[0], "plateau": list(choice.best[1])}
    if choice.plateau is not None:
        found["plateau"] = list(choice.plateau)
    if fitted.certificate is not None:
        found["certificate"] = fitted.certificate
    return {**found, "baseline": blocks(baseline), **blocks(fitted)}


def warn_unsolved(each: Fitted, quiet: bool) -> None:
    """Say where a fit stopped short of its minimum: its figures are those of the head as it is."""
    found = each.certificate
    if found is not None and not found.converged:
        note(
            f"{each.name} stopped after {found.iterations} steps at relative gradient {found.gradient_norm:.1e}, "
            "short of its minimum; another --l2 may fit better.",
            quiet,
        )


def write_head(fitted: Fitted, features: FeatureSet, path: Path | None, force: bool) -> str | None:
    """Save a fitted head where a path was given; the path written to, else None."""
    if path is None:
        return None
    save_head(saved_head(fitted, features), path, force)
    return str(path)


def print_table(table: Table, form: str, verbose: bool) -> None:
    """The comparison in a form other than JSON; with `verbose` each class of the last row below it."""
    if form == "csv":
        click.echo(table.csv(), nl=False)
        return
    text = table.markdown() if form == "md" else table.text(color=_colour())
    click.echo(text)
    if verbose:
        row = next((row for row in table.rows if row.chosen), table.rows[-1])
        classes = table.shown(row).block(table.classes, verbose=True)["per_class"]
        assert isinstance(classes, list)
        click.echo(f"\n{row.method}, each class of {table.split}:\n{render(classes, form)}")


def print_json(record: Mapping[str, object]) -> None:
    """One JSON object."""
    click.echo(dump(record))


def say(text: str) -> None:
    """Prose on standard output, its lines wrapped to 80 columns."""
    for line in text.splitlines():
        click.echo(textwrap.fill(line, 80, break_long_words=False, break_on_hyphens=False))


def note(text: str, quiet: bool = False) -> None:
    """A word beside the result."""
    if not quiet:
        click.echo(text, err=True)


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _argument(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
