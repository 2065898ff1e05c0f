"""``rebalance``, ``compare`` and ``evaluate``."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import click

import posthoc_lt
from posthoc_lt.cli import options, output
from posthoc_lt.cli.heads import open_head
from posthoc_lt.errors import PosthocError
from posthoc_lt.evaluation import Evaluation
from posthoc_lt.evaluation import evaluate as evaluate_head
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import HEAD, SavedHead
from posthoc_lt.head import Head
from posthoc_lt.methods import DEFAULT_METHODS, METHODS
from posthoc_lt.pipeline import Comparison, Result, as_features
from posthoc_lt.pipeline.fit import CHOSEN_BY_VALIDATION
from posthoc_lt.report import Row, Table

_methods = click.option(
    "--methods",
    multiple=True,
    type=click.Choice(list(METHODS)),
    help=f"Only these, once each; by default all but {', '.join(sorted(METHODS.keys() - set(DEFAULT_METHODS)))}.",
)


choosing = options.together(
    options.features, _methods, options.metric, options.select, options.subject_to, options.class_weight, options.groups
)


@click.command()
@options.together(
    choosing,
    options.seed,
    options.device,
    options.out(None, "Write the chosen head to this file."),
    options.force,
    options.form,
    options.verbose,
    options.quiet,
)
def rebalance(
    features: Path,
    methods: tuple[str, ...],
    metric: str,
    select: str,
    subject_to: tuple[str, ...],
    class_weight: tuple[float, ...] | None,
    groups: tuple[float, float],
    seed: int,
    device: str,
    out: Path | None,
    force: bool,
    form: str,
    verbose: bool,
    quiet: bool,
) -> None:
    """Fit every method and take the one that validation supports; test only judges."""
    output.protect(out, HEAD, features)
    result = posthoc_lt.rebalance(
        features,
        methods=methods or None,
        metric=metric,
        select=select,
        subject_to=subject_to,
        class_weight=class_weight,
        edges=groups,
        seed=seed,
        device=device,
    )
    for each in result.fitted:
        output.warn_unsolved(each, quiet)
    output.note_bias(result.head, result.features, quiet)
    output.notes(result.notes, quiet)
    opening = output.preamble({"features": features}) if form == "json" else {}
    if out is not None:
        result.save(out, force)
    if form == "json":
        output.print_json({**opening, **_record(result, verbose), "head": None if out is None else str(out)})
        return
    output.print_table(result.comparison, form, verbose)
    if form == "table":
        output.say(f"\n{result.reason}\n{result.verdict}")
    _note_skipped(result, quiet)
    if out is not None:
        output.note(f"Wrote {out}", quiet)


def _record(result: Result, verbose: bool) -> dict[str, object]:
    selection = result.selection
    context = {"metric": selection.metric, "select": selection.rule}
    return {
        **output.fitted_record(result.chosen, result.fitted[0], result.features, context, verbose),
        "cross_fitted": dict(result.scores),
        "procedure": result.procedure.figure,
        "optimism": result.optimism,
        "notes": list(result.notes),
        "skipped": dict(result.skipped),
        "verdict": result.verdict,
        "table": result.comparison.records(verbose),
    }


def _note_skipped(found: Comparison, quiet: bool) -> None:
    for name, reason in found.skipped.items():
        output.note(f"Left out {name}: {reason}", quiet)


@click.command()
@options.together(
    choosing,
    options.device,
    options.form,
    options.verbose,
    options.quiet,
)
def compare(
    features: Path,
    methods: tuple[str, ...],
    metric: str,
    select: str,
    subject_to: tuple[str, ...],
    class_weight: tuple[float, ...] | None,
    groups: tuple[float, float],
    device: str,
    form: str,
    verbose: bool,
    quiet: bool,
) -> None:
    """Fit every method, choose each one's knob on validation, and set them side by side."""
    found = posthoc_lt.compare(
        features,
        methods=methods or None,
        metric=metric,
        select=select,
        subject_to=subject_to,
        class_weight=class_weight,
        edges=groups,
        device=device,
    )
    for each in found.fitted:
        output.warn_unsolved(each, quiet)
    output.notes(found.notes, quiet)
    if form == "json":
        table = {
            "notes": list(found.notes),
            "skipped": dict(found.skipped),
            "table": found.comparison.records(verbose),
        }
        output.print_json({**output.preamble({"features": features}), **table})
    else:
        output.print_table(found.comparison, form, verbose)
        _note_skipped(found, quiet)


@click.command()
@options.together(
    options.features,
    click.option("--head", type=options.FILE, default=None, help="A saved head; the untouched one by default."),
    options.groups,
    options.device,
    options.form,
    options.verbose,
)
def evaluate(
    features: Path, head: Path | None, groups: tuple[float, float], device: str, form: str, verbose: bool
) -> None:
    """Judge a saved head beside the untouched one on every labelled split."""
    cached = as_features(features, device=device)
    heads, rows = {"baseline": cached.head}, {"baseline": Row("baseline", control=True)}
    if head is not None:
        saved = open_head(head, cached)
        name = _saved_name(saved)
        heads[name], rows[name] = saved.head, _saved_row(saved)
    judged = _judge(heads, cached, groups)
    if form == "json":
        blocks = {
            name: {split: found.block(cached.classes, verbose) for split, found in each.items()}
            for name, each in judged.items()
        }
        output.print_json({**output.preamble({"features": features, "head": head}), "heads": blocks})
        return
    chosen_on = "val" if head is not None and saved.provenance.get("decided_by") in CHOSEN_BY_VALIDATION else None
    tables = [
        Table.against(
            [_on(split, row, judged[name][split]) for name, row in rows.items()],
            cached.classes,
            chosen_on=chosen_on,
        )
        for split in judged["baseline"]
    ]
    output.print_tables(tables, form, verbose)


def _saved_name(saved: SavedHead) -> str:
    method, chosen = (saved.provenance.get(key) for key in ("method", "options"))
    return f"saved: {method or 'head'}" + (f" ({chosen})" if chosen else "")


def _on(split: str, row: Row, judged: Evaluation) -> Row:
    return replace(row, val=judged) if split == "val" else replace(row, test=judged)


def _saved_row(saved: SavedHead) -> Row:
    """The table's line of a saved head, with the method and the knobs that its file tells of."""
    method, chosen = saved.provenance.get("method", "head"), saved.provenance.get("options")
    own = METHODS[method].knob if method in METHODS else None
    known = {each.knob for each in METHODS.values()}
    knobs = {name: _number(text) for name, text in saved.provenance.items() if name in known}
    value = None if own is None else knobs.pop(own, None)
    return Row(method, own, value, outer=knobs, options=f"{chosen}, saved" if chosen else "saved")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _judge(
    heads: dict[str, Head], features: FeatureSet, edges: tuple[float, float]
) -> dict[str, dict[str, Evaluation]]:
    """Each head on each labelled split but train, which a network has learned by heart."""
    splits = {
        name: split
        for name, split in features.splits().items()
        if name != "train" and split.y is not None and len(split)
    }
    if not splits:
        raise PosthocError(
            "features without a labelled val or test split", "one to judge on", "extract again with a test/ folder"
        )
    return {
        name: {split: evaluate_head(head, rows, features.counts, edges) for split, rows in splits.items()}
        for name, head in heads.items()
    }
