"""What ``import`` and ``dump`` do: features from other programs, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from posthoc_lt.cli import options, output
from posthoc_lt.cli.splits import split_rows
from posthoc_lt.data.labels import read_names
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.files import FEATURES, load_features, save_features
from posthoc_lt.importing import dump_features, import_features
from posthoc_lt.report import render


def import_(
    head: str | None,
    fit_head: bool,
    l2: float,
    counts: Path | None,
    classes: Path | None,
    out: Path,
    force: bool,
    form: str,
    quiet: bool,
    **splits: Any,
) -> None:
    """Import, save, and print a row a split."""
    named = [name for what in (*splits.values(), head) if what is not None for name in (what, *what.split(","))]
    files = [Path(name) for name in named if Path(name).is_file()]
    output.protect(out, FEATURES, *files)
    features = import_features(
        **splits,
        head=head,
        l2=l2 if fit_head else None,
        counts=None if counts is None else options.read_counts(counts),
        classes=() if classes is None else read_names(classes),
    )
    save_features(features, out, force)
    rows = split_rows(features)
    if form == "json":
        inputs = {str(path): path for path in files}
        output.print_json({**output.preamble(inputs), "features": str(out), "splits": rows})
        return
    if form == "table":
        fitted = features.provenance.get("fitted_head")
        which = "The given head" if fitted is None else f"A fitted head ({fitted})"
        output.say(
            f"{which}: {features.head.classes} classes, {features.head.dimensions} dimensions. On these features:"
        )
    click.echo(render(rows, form, {"accuracy", "balanced_accuracy"}), nl=form != "csv")
    output.note(f"Wrote {out}", quiet)


def dump(features: Path, out: Path, force: bool, quiet: bool) -> None:
    """Load and dump."""
    if out.suffix != ".npz":
        raise PosthocError(f"--out {show(out)}", "a name that ends in .npz", "give --out feats.npz")
    output.protect(out, FEATURES, features)
    dump_features(load_features(features), out, force)
    output.note(f"Wrote {out}", quiet)
