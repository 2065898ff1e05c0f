"""What ``export`` does: a head folded into a checkpoint of the same kind."""

from __future__ import annotations

from pathlib import Path

import click

from posthoc_lt.checkpoint import INDEX
from posthoc_lt.cli import output
from posthoc_lt.cli.heads import open_head
from posthoc_lt.export import export as export_head
from posthoc_lt.files import load_features
from posthoc_lt.report import dump


def export(
    ckpt: Path,
    head: Path,
    features: Path,
    out: Path | None,
    arch: str | None,
    data: Path | None,
    add_bias: bool,
    allow_pickle: bool,
    force: bool,
    form: str,
) -> None:
    """Export, and print what was replaced and how closely it computes the head."""
    out = out or Path(f"balanced{_suffix(ckpt)}")
    if not ckpt.is_dir():  # a folder is written by other means
        output.protect(out, None, ckpt, head, features)
    cached = load_features(features)
    saved = open_head(head, cached)
    made = export_head(
        ckpt,
        saved.head,
        out,
        features=cached,
        arch=arch,
        data=data,
        force=force,
        add_bias=add_bias,
        allow_pickle=allow_pickle,
    )
    inputs = {"checkpoint": ckpt, "head": head, "features": features}
    if form == "json":
        click.echo(
            dump(
                {
                    **output.preamble(inputs),
                    "path": str(made.path),
                    "changed": list(made.changed),
                    "verified_on": made.samples,
                    "max_logit_difference": made.difference,
                }
            )
        )
        return
    output.say(
        f"Wrote {made.path}: {', '.join(made.changed)} replaced, every other tensor as it was. Reloaded and run on "
        f"{made.samples} images: logits equal the rebalanced head's to {made.difference:.1e}."
    )


def _suffix(ckpt: Path) -> str:
    """The checkpoint's own; of an index of shards, all of it."""
    if ckpt.is_dir():
        return ""
    return "".join(ckpt.suffixes[-3:]) if ckpt.name.endswith(INDEX) else ckpt.suffix or ".pt"
