"""Small text files that a user names: counts, frequencies, class names."""

from __future__ import annotations

from pathlib import Path

_LONGEST = 1 << 26


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The whole text of a small file; never more than 64 million characters of one that does not end.

    Raises:
        OSError, ValueError: it cannot be read, is no text, or is longer.
    """
    with path.open(encoding=encoding) as file:
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise ValueError("longer than any list of classes")
    return text
