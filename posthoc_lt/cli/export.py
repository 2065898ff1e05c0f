"""``export``: a head folded into a checkpoint of the same kind."""

from __future__ import annotations

from pathlib import Path

import click

from posthoc_lt.checkpoint import INDEX
from posthoc_lt.cli import options, output
from posthoc_lt.cli.heads import open_head
from posthoc_lt.export import export as export_head
from posthoc_lt.files import load_features
from posthoc_lt.report import dump


@click.command()
@options.together(
    options.ckpt,
    click.option("--head", type=options.FILE, default="head.safetensors", show_default=True, help="The saved head."),
    options.features,
    options.out(None, "The checkpoint to write; balanced.pt, or with the suffix of --ckpt."),
    click.option("--data", type=options.FILE, help="The images to verify on; by default the extracted ones."),
    click.option("--add-bias", is_flag=True, help="Add a bias to a layer that has none; its code must expect it."),
    options.allow_pickle,
    options.force,
    click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True),
)
def export(
    ckpt: Path,
    head: Path,
    features: Path,
    out: Path | None,
    data: Path | None,
    add_bias: bool,
    allow_pickle: bool,
    force: bool,
    form: str,
) -> None:
    """Fold a head into a checkpoint, and prove on real images that the patched network computes it."""
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
