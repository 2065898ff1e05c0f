"""The one exception a user meets, and text made safe to show."""

from __future__ import annotations

from collections.abc import Iterable


class PosthocError(Exception):
    """Bad input, told in three parts: what was given, what is wanted, what to do next.

    Every part is a phrase without its full stop. The command line prints the message as one
    paragraph and exits with status 1; nothing has been written by then.

    >>> str(PosthocError("tau is -1", "a number >= 0", "give --tau 1.0"))
    'tau is -1. Wanted: a number >= 0. Next: give --tau 1.0.'
    """

    def __init__(self, given: str, wanted: str, then: str) -> None:
        super().__init__(f"{given}. Wanted: {wanted}. Next: {then}.")
        self.given, self.wanted, self.then = given, wanted, then


def show(text: object, limit: int = 120) -> str:
    r"""Text from a file (a name, a label, a key) without control characters, cut to `limit`.

    File names and labels are untrusted: an escape sequence in one must not reach a terminal.

    >>> show("cat\x1b[31m")
    'cat\\x1b[31m'
    """
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def listed(items: Iterable[object], limit: int = 5) -> str:
    """A short enumeration for a message: the first `limit` items, then how many more.

    >>> listed(range(7), limit=3)
    '0, 1, 2 and 4 more'
    """
    names = [show(item) for item in items]
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
