"""What ``rebalance``, ``compare`` and ``evaluate`` do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import posthoc_lt
from posthoc_lt.cli import output
from posthoc_lt.cli.heads import open_head
from posthoc_lt.cli.shares import Resolved, resolve
from posthoc_lt.errors import PosthocError
from posthoc_lt.evaluation import Evaluation
from posthoc_lt.evaluation import evaluate as evaluate_head
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import HEAD, SavedHead
from posthoc_lt.head import Head
from posthoc_lt.methods import METHODS
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.pipeline import Result, as_features
from posthoc_lt.pipeline.fit import CHOSEN_BY_VALIDATION
from posthoc_lt.report import Row, Table


def arguments(
    features: Path,
    methods: tuple[str, ...],
    groups: tuple[float, float],
    deploy_features: Path | None,
    device: str,
    quiet: bool,
    **choice: Any,
) -> tuple[Resolved, dict[str, Any]]:
    """What `posthoc_lt.rebalance` takes, from these options' values; and the class frequencies among it, once told."""
    cached = as_features(features, device=device)
    named = {name: choice.pop(name) for name in ("prior", "target_prior", "zero_count")}
    made = resolve(LogitAdjust, named, deploy_features, cached)
    made.note(cached, quiet)
    frequencies = {name: getattr(made.method, name) for name in named}
    return made, {"source": cached, "methods": methods or None, "edges": groups, **choice, **frequencies}


def rebalance(
    features: Path,
    deploy_features: Path | None,
    out: Path | None,
    force: bool,
    form: str,
    verbose: bool,
    quiet: bool,
    **choice: Any,
) -> None:
    """Rebalance, save the chosen head if asked, and print its figures, the table and the verdict."""
    output.protect(out, HEAD, features)
    made, chosen_by = arguments(features, deploy_features=deploy_features, quiet=quiet, **choice)
    result = posthoc_lt.rebalance(**chosen_by)
    for each in result.fitted:
        output.warn_unsolved(each, quiet)
    output.note_bias(result.head, result.features, quiet)
    output.notes(result.notes, quiet)
    opening = output.preamble({"features": features, "deploy_features": deploy_features}) if form == "json" else {}
    if out is not None:
        result.save(out, force)
    if form == "json":
        record = {**_record(result, verbose), **made.record()}
        output.print_json({**opening, **record, "head": None if out is None else str(out)})
        return
    output.print_table(result.comparison, form, verbose)
    if form == "table":
        output.say(f"\n{result.reason}\n{result.verdict}")
    output.note_skipped(result, quiet)
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


def compare(features: Path, deploy_features: Path | None, form: str, verbose: bool, quiet: bool, **choice: Any) -> None:
    """Compare, and print the table."""
    made, chosen_by = arguments(features, deploy_features=deploy_features, quiet=quiet, **choice)
    found = posthoc_lt.compare(**chosen_by)
    for each in found.fitted:
        output.warn_unsolved(each, quiet)
    output.notes(found.notes, quiet)
    if form == "json":
        table = {
            "notes": list(found.notes),
            "skipped": dict(found.skipped),
            "table": found.comparison.records(verbose),
        }
        opening = output.preamble({"features": features, "deploy_features": deploy_features})
        output.print_json({**opening, **table, **made.record()})
    else:
        output.print_table(found.comparison, form, verbose)
        output.note_skipped(found, quiet)


def evaluate(
    features: Path, head: Path | None, groups: tuple[float, float], device: str, form: str, verbose: bool
) -> None:
    """Evaluate on val and on test, and print a table for each."""
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
