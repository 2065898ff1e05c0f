"""Printing: results on standard output, in the form asked for; notes on standard error."""

from __future__ import annotations

import hashlib
import shlex
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from posthoc_lt import __version__
from posthoc_lt.checkpoint import read
from posthoc_lt.cli import options, terminal
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import container_kind, find, require_writable, save_head
from posthoc_lt.files.container import is_file
from posthoc_lt.head import Head
from posthoc_lt.pipeline import Comparison, Fitted
from posthoc_lt.pipeline.result import saved_head
from posthoc_lt.report import Table, dump, render
from posthoc_lt.report.spark import class_lines, curve_lines


def preamble(inputs: Mapping[str, Path | None]) -> dict[str, object]:
    """What every JSON object begins with: the command, its version, arguments and the hashes of inputs given."""
    context = click.get_current_context()
    arguments = {"format" if name == "form" else name: _argument(value) for name, value in context.params.items()}
    return {"command": context.info_name, "version": __version__, "arguments": arguments, "inputs": hashed(inputs)}


def hashed(inputs: Mapping[str, Path | None]) -> dict[str, dict[str, str]]:
    """Where each input that was given lies, and its hash."""
    found = {name: None if path is None else find(path) for name, path in inputs.items()}
    return {name: {"path": str(path), "sha256": _sha256(path)} for name, path in found.items() if path is not None}


def typed() -> str:
    """The command as it was typed."""
    return show(shlex.join(click.get_current_context().find_root().obj), 1000)


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
        found |= {**choice.outer, knob: choice.knob}
    found |= {"metric": context["metric"], "select": context["select"], "decided_by": choice.decided_by}
    if choice.best is not None:
        found["best"] = {"value": choice.best[0], "plateau": list(choice.best[1])}
    if choice.plateau is not None:
        found["plateau"] = list(choice.plateau)
    if choice.interval is not None:
        found[f"{knob}_interval"] = list(choice.interval)
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


def note_skipped(found: Comparison, quiet: bool) -> None:
    """Say which methods these features cannot carry, and why."""
    for name, reason in found.skipped.items():
        note(f"Left out {name}: {reason}", quiet)


def protect(out: Path | None, kind: str | None, *inputs: Path) -> None:
    """Find out before any work that writing `out` would cost an input or another kind of file, or cannot be done.

    Args:
        out: where the command writes, if it does.
        kind: the `container_kind` of what it writes, None for a checkpoint.
        inputs: the files that the command reads, beside those that its options name.

    Raises:
        PosthocError: `out` is an input, a folder, a file of another kind, or cannot be written.
    """
    if out is None:
        return
    require_writable(out)
    if not out.exists():
        return
    try:
        same = any(is_file(path) and out.samefile(path) for path in (*inputs, *_named_files()))
    except FileNotFoundError:  # another process has just removed it
        return
    if same or not out.is_file() or _is_other(out, kind):
        what = "an input of this command" if same else "something else than this command writes"
        raise PosthocError(
            f"--out {show(out)}, which is {what}",
            "a file of its own (--force does not change that)",
            "give another --out",
        )


def _named_files() -> list[Path]:
    """What the command's options name: `--out` beside it may be none of these."""
    context = click.get_current_context()
    values = [value for name, value in context.params.items() if name != "out"] + context.meta.get(options.READ, [])
    each = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return [Path(part) for part in each if isinstance(part, str | Path)]


def _is_other(path: Path, kind: str | None) -> bool:
    """Whether a file is plainly another thing: of ours but another kind, or a checkpoint where we write ours."""
    found = container_kind(path)
    if found is not None or kind is None:
        return found != kind
    try:
        read(path)
    except PosthocError:
        return False  # junk, or a file of ours cut short: --force may replace it
    return True


def note_bias(head: Head, features: FeatureSet, quiet: bool) -> None:
    """Say in time that the network's layer has no bias for this head."""
    if not features.head.has_bias and bool(head.bias.any()):
        note(
            "This head has a bias and the network's layer has none: export it with --add-bias, which the code that "
            "loads the checkpoint must expect, or choose a method without one, such as tau-norm.",
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
    print_tables([table], form, verbose)


def print_tables(tables: Sequence[Table], form: str, verbose: bool) -> None:
    """Comparisons one below the other; as CSV under one header, so that a reader finds one table."""
    if form == "csv":
        texts = [table.csv().splitlines(keepends=True) for table in tables]
        click.echo("".join([*texts[0], *(line for text in texts[1:] for line in text[1:])]), nl=False)
        return
    for table in tables:
        click.echo(table.markdown() if form == "md" else table.text(color=terminal.colourful(sys.stdout)))
        if form == "table":
            _print_classes(table)
        if verbose:
            row = next((row for row in table.rows if row.chosen), table.rows[-1])
            classes = table.shown(row).block(table.classes, verbose=True)["per_class"]
            assert isinstance(classes, list)
            shown = render(classes, form, percent={"recall"})
            click.echo(f"\n{show(row.method)}, each class of {table.split}:\n{shown}")


def _print_classes(table: Table) -> None:
    """Who gains and who pays, from the rarest class to the most frequent, where a head was chosen."""
    found = {row.method: row for row in table.rows if row.chosen or row.method == "baseline"}
    if len(found) == 2 and "baseline" in found:
        before, after = (table.shown(row) for row in (found.pop("baseline"), *found.values()))
        told, *lines = class_lines(before, after)
        say(f"\n{told}")
        click.echo("\n".join(lines))


def print_curve(fitted: Fitted) -> None:
    """The validation curve that the knob was chosen on, where there is one."""
    if fitted.choice.curve is not None and fitted.method.knob is not None:
        click.echo("\n".join([*curve_lines(fitted.choice, fitted.method.knob), ""]))


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


def notes(texts: Iterable[str], quiet: bool = False) -> None:
    """Words beside the result, a paragraph each, wrapped to 80 columns."""
    for text in texts:
        note(textwrap.fill(text, 80, break_long_words=False, break_on_hyphens=False), quiet)


def _argument(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
