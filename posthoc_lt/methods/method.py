"""What a method is."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Protocol

from posthoc_lt.family import Family
from posthoc_lt.features import Training
from posthoc_lt.head import Head


class Method(Protocol):
    """A post-hoc method: a frozen dataclass, its options as fields, that fits a family of heads.

    Every field has a default, a help text in its metadata, and one of the types float, int, bool, a
    `Literal` of strings, or ``float | None``: the command line is made from them.
    The file's docstring opens with `summary`.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    name: ClassVar[str]
    """In kebab-case, as on the command line; the file has the same name in snake_case."""
    summary: ClassVar[str]
    """One line for help."""
    paper: ClassVar[str]
    """Its arXiv id, or nothing."""
    formula: ClassVar[str]
    """The new head, in short."""
    knob: ClassVar[str | None]
    """What the family's one parameter is called: ``tau``, ``l2`` or None."""
    control: ClassVar[bool]
    """Whether it is there to compare with, rather than to rebalance."""

    def fit(self, head: Head, training: Training) -> Family:
        """The family of heads that validation then chooses from.

        Args:
            head: the untouched head.
            training: train counts and, where cached, train features.

        Raises:
            PosthocError: the head, the training data or the options do not allow it.
        """
