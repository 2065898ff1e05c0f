"""``report``: the comparison and the choice as one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import posthoc_lt
from posthoc_lt.cli import options, output
from posthoc_lt.cli.compare import arguments, choosing
from posthoc_lt.errors import show


@click.command()
@options.together(
    choosing,
    options.seed,
    options.device,
    options.out("report.html", "Write the page to this file."),
    options.force,
    options.quiet,
)
def report(features: Path, out: Path, force: bool, quiet: bool, **choice: Any) -> None:
    """Fit every method, take the one that validation supports, and tell it as one HTML page.

    The page holds its styles, script and figures, and fetches nothing.
    """
    output.protect(out, "page", features)
    result = posthoc_lt.rebalance(**arguments(features, quiet=quiet, **choice)[1])
    read = output.hashed({"features": features})["features"]
    facts = {"command": output.typed(), "features": show(read["path"]), "features sha256": read["sha256"]}
    result.report(out, force, facts=facts)
    for each in result.fitted:
        output.warn_unsolved(each, quiet)
    output.say(result.verdict)
    output.notes(result.notes, quiet)
    output.note_skipped(result, quiet)
    output.note(f"Wrote {out}", quiet)
