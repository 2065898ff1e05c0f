"""``calibrate``: a head whose softmax can be believed, under the class frequencies it will meet."""

from __future__ import annotations

from pathlib import Path

import click
from torch import Tensor

from posthoc_lt.calibration import Calibration, CalibrationReport, calibration_report, probability_head
from posthoc_lt.calibration import calibrate as fit_calibration
from posthoc_lt.cli import options, output
from posthoc_lt.cli.heads import judging_split, labelled_val, open_head
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import HEAD, SavedHead, save_head
from posthoc_lt.head import Head
from posthoc_lt.pipeline import as_features
from posthoc_lt.priors import log_prior
from posthoc_lt.report import render


@click.command()
@options.together(
    options.features,
    click.option("--head", type=options.FILE, default=None, help="A saved head; the untouched one by default."),
    click.option(
        "--deploy",
        default="uniform",
        show_default=True,
        metavar="uniform|train|FILE",
        help="Class frequencies that the head will meet: all equal, those of train, or a file of one number a class.",
    ),
    options.groups,
    options.device,
    options.out(None, "Write the probability head to this file."),
    options.force,
    options.form,
    options.quiet,
)
def calibrate(
    features: Path,
    head: Path | None,
    deploy: str,
    groups: tuple[float, float],
    device: str,
    out: Path | None,
    force: bool,
    form: str,
    quiet: bool,
) -> None:
    """Fit scale and prior strength on validation, so that softmax gives probabilities.

    p(y|x) ∝ exp(a z_y - c log pi_y + log deploy_y), with a and c fitted jointly. What decides best and what gives
    the best probabilities are two heads: this one is for probabilities.
    """
    inputs = [path for path in (features, head) if path is not None]
    output.protect(out, HEAD, *inputs)
    cached = as_features(features, device=device)
    saved = open_head(head, cached)
    target = _target(deploy, cached)
    # A head that was rebalanced has its prior taken off already; only the untouched one still carries it whole.
    strength = 1.0 if saved.provenance.get("method") == "baseline" else 0.0
    prior = log_prior(cached.counts)
    fitted = fit_calibration(saved.head, labelled_val(cached, "to calibrate on"), prior, strength_prior=(strength, 0.5))
    made = probability_head(saved.head, fitted, prior, target)
    split, rows = _judge({"as it was": saved.head, "calibrated": made}, cached, target, groups)
    opening = output.preamble({"features": features}) if form == "json" else {}
    if out is not None:
        provenance = {**saved.provenance, "method": "probability", "deploy": deploy, "decided_by": "likelihood"}
        save_head(SavedHead(made, provenance), out, force)
    _print(opening, fitted, split, rows, out, form, quiet)


def _target(deploy: str, features: FeatureSet) -> Tensor:
    if deploy == "train":
        return features.counts.double()
    if deploy == "uniform":
        return features.counts.new_ones(features.head.classes).double()
    return options.read_shares(Path(deploy), features.head.classes)


def _judge(
    heads: dict[str, Head], features: FeatureSet, target: Tensor, edges: tuple[float, float]
) -> tuple[str, list[dict[str, object]]]:
    split, samples = judging_split(features)
    reports = {
        name: calibration_report(head, samples, features.counts, edges, under=target) for name, head in heads.items()
    }
    return split, [{"head": name, **_figures(report)} for name, report in reports.items()]


def _figures(report: CalibrationReport) -> dict[str, object]:
    gaps = {f"gap_{group}": gap for group, gap in report.groups.items()}
    return {"nll": report.nll, "brier": report.brier, "ece": report.ece, "gap": report.gap, **gaps}


def _print(
    opening: dict[str, object],
    fitted: Calibration,
    split: str,
    rows: list[dict[str, object]],
    out: Path | None,
    form: str,
    quiet: bool,
) -> None:
    if form == "json":
        found = {"scale": fitted.scale, "prior_strength": fitted.prior_strength, "split": split, "rows": rows}
        output.print_json({**opening, **found, "head": None if out is None else str(out)})
        return
    if form == "table":
        output.say(
            f"scale a = {fitted.scale:.3f}, prior strength c = {fitted.prior_strength:.3f}, fitted on val; on {split} "
            "under the frequencies of --deploy (gap: confidence minus accuracy, above 0 is too sure):"
        )
    click.echo(render(rows, form), nl=form != "csv")
    if out is not None:
        output.note(f"Wrote {out}", quiet)
