"""What a terminal can show: colours, where they are wanted, and characters that its encoding lacks, spelled out."""

from __future__ import annotations

import codecs
import os
from typing import TextIO

SPELLED = "spelled"
"""The name of the error handler for streams that people read."""

_SPELLINGS = {
    **{"±": "+-", "…": "...", "→": "->", "−": "-", "×": "x", "·": "*", "τ": "tau", "γ": "gamma", "α": "alpha"},
    **dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True)),
}


def colourful(stream: TextIO | None) -> bool:
    """Whether to colour: only on a terminal that knows how, and not where NO_COLOR is set (no-color.org)."""
    there = stream is not None and stream.isatty()  # none where the shell has closed it
    return there and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Our own characters in ASCII, others, as class names may hold, as escapes."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    spelled = (_SPELLINGS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(spelled), error.end


codecs.register_error(SPELLED, _spelled)
