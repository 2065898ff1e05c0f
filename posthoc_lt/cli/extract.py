"""What ``extract`` does: a checkpoint's features, cached."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from posthoc_lt.checkpoint import is_own_code
from posthoc_lt.cli import options, output
from posthoc_lt.cli.splits import split_rows
from posthoc_lt.data import DataSpec, Findings
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.extraction import Source, extract_to, is_current, open_source
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import FEATURES, discard, find, load_features
from posthoc_lt.report import render

_ASSUMED = (
    "Preprocessing was assumed, see the transform: give --mean, --std and --input-size where training used others."
)


def extract(
    ckpt: Path,
    out: Path,
    arch: str | None,
    weights: str | None,
    allow_pickle: bool,
    fit_head: bool,
    l2: float,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    input_size: int | None,
    views: int,
    precision: str,
    compiled: bool,
    batch_size: int,
    workers: int | None,
    on_error: str,
    limit: int | None,
    counts: Path | None,
    shard_size: int,
    device: str,
    force: bool,
    form: str,
    quiet: bool,
    **data: Any,
) -> None:
    """Extract, unless the features are there and current, and print what was found."""
    output.protect(out, FEATURES, ckpt)
    numbers = None if counts is None else options.read_counts(counts)
    features = None if force or find(out) is None else load_features(out)
    source = open_source(
        ckpt,
        DataSpec(**data),
        arch=arch,
        limit=limit,
        mean=mean,
        std=std,
        input_size=input_size,
        counts=numbers,
        weights=weights,
        allow_pickle=allow_pickle,
        l2=l2 if fit_head else None,
        skip=on_error == "skip",
        views=views,
        known=None if features is None else features.provenance,
    )
    for note in filter(None, (source.checkpoint.note, source.architecture.note)):
        output.note(note, quiet)
    if features is not None:
        _require_current(features, source, precision, out)
        discard(out)  # left by a run that was killed when all was done
        output.note(f"{out} is up to date: the same checkpoint, transform and data.", quiet)
    else:
        start = time.perf_counter()
        features = extract_to(
            out,
            source,
            force=force,
            device=device,
            precision=precision,
            compiled=compiled,
            batch_size=batch_size,
            workers=workers,
            shard_bytes=shard_size,
            progress=not quiet,
            note=partial(output.note, quiet=quiet),
        )
        many = f"{sum(map(len, features.splits().values()))} {features.provenance['source']}"
        output.note(f"Wrote {out}: {many} in {time.perf_counter() - start:.1f} s", quiet)
    _note_findings(features, quiet)
    if arch is not None and is_own_code(arch) and mean is None and std is None:
        output.note(_ASSUMED, quiet)
    _print(features, ckpt, out, form)


def _require_current(features: FeatureSet, source: Source, precision: str, out: Path) -> None:
    if not is_current(features, source, precision):
        raise PosthocError(
            f"{show(out)}, which holds the features of another checkpoint, transform or set of images",
            "a new file name, or leave to overwrite",
            "give --force to overwrite it, or --out with another name",
        )


def _note_findings(features: FeatureSet, quiet: bool) -> None:
    """What reading the data found out, as the feature file remembers it."""
    findings, splits = Findings.of(features.provenance), features.splits()
    for split, found in findings.skipped.items():
        total = len(found) + (len(splits[split]) if split in splits else 0)
        names = listed([f"{name} ({why})" for name, why in found.values()], 10)
        output.note(f"Skipped {len(found)} of {total} {split} samples, which cannot be read: {names}", quiet)
    for split, count in findings.several_frames.items():
        output.note(f"{count} {split} images have several frames; the first was taken.", quiet)
    if features.views > 1:
        output.note(f"train holds {features.views} rows of each image; its figures are those of the first.", quiet)
    spec = DataSpec.from_provenance(features.provenance)
    if spec is not None and spec.holdout is not None:
        output.note(
            f"val is {spec.holdout:g} of train, held out: what it chooses and shows is honest only if the network was "
            "not trained on these images.",
            quiet,
        )


def _print(features: FeatureSet, ckpt: Path, out: Path, form: str) -> None:
    """What was found, and each split's accuracy under the untouched head: a check on the preprocessing."""
    rows = split_rows(features)
    provenance = features.provenance
    if form == "json":
        output.print_json(
            {
                **output.preamble({"checkpoint": ckpt}),
                "features": str(out),
                "arch": provenance["arch"],
                "arch_chosen_by": provenance.get("arch_chosen_by"),
                "head": provenance["head_name"] or None,
                "transform": provenance["transform"],
                "splits": rows,
            }
        )
        return
    if form == "table":
        head = provenance["head_name"] or f"fitted here ({provenance.get('fitted_head')})"
        output.say(
            f"{show(provenance['arch'])}, head {show(head)}: {features.head.classes} classes, "
            f"{features.head.dimensions} dimensions; transform {show(provenance['transform'], 200)}\n"
            "The untouched head on these features (figures far from those of your training mean a wrong transform):"
        )
    click.echo(render(rows, form, {"accuracy", "balanced_accuracy"}), nl=form != "csv")
