"""What ``report`` does: the comparison and the choice as one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import posthoc_lt
from posthoc_lt.cli import output
from posthoc_lt.cli.compare import arguments
from posthoc_lt.errors import show


def report(features: Path, out: Path, force: bool, quiet: bool, **choice: Any) -> None:
    """Rebalance, write the page, and print the verdict."""
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
