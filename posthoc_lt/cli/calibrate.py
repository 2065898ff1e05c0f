"""What ``calibrate`` does: a head whose softmax can be believed, under the class frequencies it will meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from torch import Tensor

from posthoc_lt.calibration import Calibration, CalibrationReport, calibration_report, probability_head
from posthoc_lt.calibration import calibrate as fit_calibration
from posthoc_lt.cli import options, output, shares
from posthoc_lt.cli.heads import judging_split, labelled_val, open_head, without_samples
from posthoc_lt.errors import listed
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import HEAD, SavedHead, save_head
from posthoc_lt.head import Head
from posthoc_lt.metrics import GROUPS
from posthoc_lt.pipeline import as_features
from posthoc_lt.pipeline.deployment import deployment_prior, estimated_shares
from posthoc_lt.priors import ZeroCount, log_prior
from posthoc_lt.report import render
from posthoc_lt.shift import EstimatedPrior


def calibrate(
    features: Path,
    head: Path | None,
    deploy: str,
    deploy_features: Path | None,
    zero_count: ZeroCount | None,
    groups: tuple[float, float],
    device: str,
    out: Path | None,
    force: bool,
    form: str,
    quiet: bool,
) -> None:
    """Fit on val, judge on the judging split, and write the head for the frequencies asked for."""
    policy = zero_count or "refuse"
    inputs = [path for path in (features, head, deploy_features) if path is not None]
    output.protect(out, HEAD, *inputs)
    cached = as_features(features, device=device)
    saved = open_head(head, cached)
    fitted = _fit(saved, cached, policy)
    estimate = None
    if deploy == "em":
        samples = shares.deployment_samples(cached, deploy_features)
        estimate = deployment_prior(cached, samples, head=saved.head, zero_count=policy)
    elif deploy_features is not None:
        shares.refuse_unused(deploy_features)
    populations = _populations(fitted, cached, deploy, estimate)
    split, rows = _judge(fitted, populations, cached, groups)
    missing = without_samples(cached, judging_split(cached)[1])
    read = {"features": features, "head": head, "deploy_features": deploy_features}
    opening = output.preamble(read) if form == "json" else {}
    if out is not None:
        provenance = {**saved.provenance, "method": "probability", "deploy": deploy, "decided_by": "likelihood"}
        save_head(SavedHead(fitted.head_for(populations[deploy]), provenance), out, force)
    if estimate is not None:
        output.note(shares.describe(estimate, cached.classes), quiet)
    if policy == "mask":
        shares.note_masked(cached, quiet)
    if form == "json":
        found = {"scale": fitted.calibration.scale, "prior_strength": fitted.calibration.prior_strength}
        guess = {} if estimate is None else {"estimate": shares.record(estimate)}
        written = None if out is None else str(out)
        output.print_json(
            {**opening, **found, "split": split, "rows": rows, "missing": missing, **guess, "head": written}
        )
        return
    if form == "table":
        output.say(_headline(fitted.calibration, split, deploy))
    click.echo(render(rows, form, {"ece", "gap", *(f"gap_{group}" for group in GROUPS)}), nl=form != "csv")
    if missing and form == "table":
        output.say(f"No {split} sample, not scored: {listed(missing)}")
    if out is not None:
        output.note(f"Wrote {out}", quiet)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A calibrated head: with log π it makes a probability head for any class frequencies."""

    head: Head
    calibration: Calibration
    log_prior: Tensor

    def head_for(self, frequencies: Tensor) -> Head:
        return probability_head(self.head, self.calibration, self.log_prior, frequencies)


def _fit(saved: SavedHead, features: FeatureSet, zero_count: ZeroCount) -> _Fitted:
    prior, head = log_prior(features.counts, zero_count), saved.head
    if zero_count == "mask":
        head = head.masking(features.counts.to(head.weight.device) == 0)
    # A head that was rebalanced has its prior taken off already; only the untouched one still carries it whole.
    strength = 1.0 if saved.provenance.get("method") == "baseline" else 0.0
    val = labelled_val(features, "to calibrate on")
    return _Fitted(head, fit_calibration(head, val, prior, strength_prior=(strength, 0.5)), prior)


def _populations(
    fitted: _Fitted, features: FeatureSet, deploy: str, estimate: EstimatedPrior | None
) -> dict[str, Tensor]:
    """Equal class frequencies, those of train, and those of --deploy where they are others; by name."""
    train = fitted.log_prior.exp().masked_fill(fitted.head.masked.to(fitted.log_prior.device), 0.0)
    found = {"uniform": train.new_ones(features.head.classes), "train": train}
    if estimate is not None:
        found[deploy] = estimated_shares(estimate).log(features.head.classes).exp()
    elif deploy not in found:
        found[deploy] = options.read_shares(Path(deploy), features.head.classes)
    return found


def _judge(
    fitted: _Fitted, populations: Mapping[str, Tensor], features: FeatureSet, edges: tuple[float, float]
) -> tuple[str, list[dict[str, object]]]:
    """The head as it was and calibrated, a row each for every population."""
    split, samples = judging_split(features)
    rows = []
    for under, frequencies in populations.items():
        shown = under if under in ("uniform", "train", "em") else Path(under).name
        for name, head in (("as it was", fitted.head), ("calibrated", fitted.head_for(frequencies))):
            report = calibration_report(head, samples, features.counts, edges, under=frequencies)
            rows.append({"under": shown, "head": name, **_figures(report)})
    return split, rows


def _figures(report: CalibrationReport) -> dict[str, object]:
    gaps = {f"gap_{group}": gap for group, gap in report.groups.items()}
    return {"nll": report.nll, "brier": report.brier, "ece": report.ece, "gap": report.gap, **gaps}


def _headline(fitted: Calibration, split: str, deploy: str) -> str:
    return (
        f"scale a = {fitted.scale:.3f}, prior strength c = {fitted.prior_strength:.3f}, fitted on val; on {split} "
        f"weighted to class frequencies, each time with the head made for them (--out writes that for {deploy}; "
        "gap: confidence minus accuracy, above 0 is too sure):"
    )
