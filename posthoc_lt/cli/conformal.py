"""What ``conformal`` does: sets of classes that hold the true one as often as asked, rare classes included."""

from __future__ import annotations

from pathlib import Path

import click

from posthoc_lt.cli import output
from posthoc_lt.cli.heads import judging_split, labelled_val, open_head, without_samples
from posthoc_lt.conformal import FORMAT, SetReport, Thresholds, evaluate_sets, fit_thresholds, save_thresholds
from posthoc_lt.errors import listed
from posthoc_lt.features import FeatureSet
from posthoc_lt.metrics import GROUPS
from posthoc_lt.pipeline import as_features
from posthoc_lt.report import render


def conformal(
    features: Path,
    head: Path | None,
    kind: str,
    alpha: float,
    groups: tuple[float, float],
    device: str,
    out: Path | None,
    force: bool,
    form: str,
    quiet: bool,
) -> None:
    """Fit on val, evaluate on the judging split, and write the thresholds if asked."""
    inputs = [path for path in (features, head) if path is not None]
    output.protect(out, FORMAT, *inputs)
    cached = as_features(features, device=device)
    saved = open_head(head, cached)
    val = labelled_val(cached, "to fit thresholds on")
    prevalence = cached.counts if kind == "prevalence" else None
    thresholds = fit_thresholds(saved.head, val, kind, alpha=alpha, prevalence=prevalence)
    split, samples = judging_split(cached)
    report = evaluate_sets(saved.head, thresholds, samples, cached.counts, groups)
    opening = output.preamble({"features": features, "head": head}) if form == "json" else {}
    if out is not None:
        save_thresholds(thresholds, out, force)
    rows = [{"kind": kind, "alpha": alpha, "split": split, **_figures(report)}]
    unsupported, missing = _unsupported(thresholds, cached), without_samples(cached, samples)
    if form == "json":
        found = {"rows": rows, "missing": missing, "unsupported": unsupported}
        output.print_json({**opening, **found, "thresholds": None if out is None else str(out)})
        return
    click.echo(render(rows, form, {"alpha", "coverage", "macro", *GROUPS}), nl=form != "csv")
    if missing and form == "table":
        output.say(f"No {split} sample, not scored: {listed(missing)}")
    if unsupported and form == "table":
        output.say(f"Always in the set, for want of validation samples: {listed(unsupported)}")
    if out is not None:
        output.note(f"Wrote {out}", quiet)


def _figures(report: SetReport) -> dict[str, object]:
    return {
        "coverage": report.coverage,
        "macro": report.macro_coverage,
        **report.group_coverage,
        "mean_size": report.size,
    }


def _unsupported(thresholds: Thresholds, features: FeatureSet) -> list[str]:
    return [name for name, fine in zip(features.classes, thresholds.supported.tolist(), strict=True) if not fine]
