"""``rebalance``, ``compare`` and ``evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

import posthoc_lt
from posthoc_lt.cli import options, output
from posthoc_lt.evaluation import Evaluation
from posthoc_lt.evaluation import evaluate as evaluate_head
from posthoc_lt.files import load_head
from posthoc_lt.methods import METHODS
from posthoc_lt.pipeline import as_features
from posthoc_lt.report import Row, Table

_methods = click.option(
    "--methods",
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="Only these, once each; all by default.",
)


@click.command()
@options.together(
    options.features,
    _methods,
    options.metric,
    options.select,
    options.subject_to,
    options.groups,
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
    result = posthoc_lt.rebalance(
        features,
        methods=methods or None,
        metric=metric,
        select=select,
        subject_to=subject_to,
        edges=groups,
        seed=seed,
        device=device,
    )
    for each in result.fitted:
        output.warn_unsolved(each, quiet)
    if out is not None:
        result.save(out, force)
    if form == "json":
        context = {"metric": metric, "select": select}
        record = output.fitted_record(result.chosen, result.fitted[0], result.features, context, verbose)
        output.print_json(
            {
                **output.preamble({"features": features}),
                **record,
                "head": None if out is None else str(out),
                "cross_fitted": dict(result.scores),
                "optimism": result.optimism,
                "skipped": dict(result.skipped),
                "verdict": result.verdict,
                "table": result.comparison.records(verbose),
            }
        )
        return
    output.print_table(result.comparison, form, verbose)
    if form == "table":
        output.say(f"\n{result.reason}\n{result.verdict}")
    for name, reason in result.skipped.items():
        output.note(f"Left out {name}: {reason}", quiet)
    if out is not None:
        output.note(f"Wrote {out}", quiet)


@click.command()
@options.together(
    options.features,
    _methods,
    options.metric,
    options.select,
    options.subject_to,
    options.groups,
    options.device,
    options.form,
    options.verbose,
)
def compare(
    features: Path,
    methods: tuple[str, ...],
    metric: str,
    select: str,
    subject_to: tuple[str, ...],
    groups: tuple[float, float],
    device: str,
    form: str,
    verbose: bool,
) -> None:
    """Fit every method, choose each one's knob on validation, and set them side by side."""
    table = posthoc_lt.compare(
        features,
        methods=methods or None,
        metric=metric,
        select=select,
        subject_to=subject_to,
        edges=groups,
        device=device,
    )
    if form == "json":
        output.print_json({**output.preamble({"features": features}), "table": table.records(verbose)})
    else:
        output.print_table(table, form, verbose)


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
    heads = {"baseline": cached.head}
    if head is not None:
        saved = load_head(head)
        heads[saved.provenance.get("method", "head")] = saved.head
    splits = {name: split for name, split in cached.splits().items() if name != "train" and split.y is not None}
    judged = {
        name: {split: evaluate_head(each, rows, cached.counts, groups) for split, rows in splits.items()}
        for name, each in heads.items()
    }
    if form == "json":
        blocks = {
            name: {split: found.block(cached.classes, verbose) for split, found in each.items()}
            for name, each in judged.items()
        }
        inputs = {"features": features} if head is None else {"features": features, "head": head}
        output.print_json({**output.preamble(inputs), "heads": blocks})
        return
    for split in splits:
        rows = [_row(name, split, each[split]) for name, each in judged.items()]
        output.print_table(Table.against(rows, cached.classes), form, verbose)


def _row(name: str, split: str, judged: Evaluation) -> Row:
    val, test = (judged if split == wanted else None for wanted in ("val", "test"))
    return Row(name, control=name == "baseline", val=val, test=test)
