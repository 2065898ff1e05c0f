"""What a method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from posthoc_lt.family import Family
from posthoc_lt.features import Training
from posthoc_lt.head import Head


@dataclass(frozen=True)
class Method(ABC):
    """A post-hoc method: a frozen dataclass, its options as fields, that fits a family of heads.

    Every field has a default, a help text in its metadata, and one of the types float, int, bool, a
    `Literal` of strings, such a one or `posthoc_lt.priors.Shares`, or ``float | None``: the command line is made
    from them. The first line of its file says in a sentence what it does.
    """

    name: ClassVar[str]
    """In kebab-case, as on the command line; by default that of its file."""
    paper: ClassVar[str] = ""
    """Its arXiv id, or nothing."""
    formula: ClassVar[str] = ""
    """The new head, in short."""
    knob: ClassVar[str | None] = None
    """What the family's one parameter is called, such as ``tau`` or ``l2``; None where it has none."""
    control: ClassVar[bool] = False
    """Whether it is there to compare with, rather than to rebalance."""
    default: ClassVar[bool] = True
    """Whether it is fitted where no methods are named: off for what real data has not borne out."""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__module__.rpartition(".")[2].replace("_", "-")

    @abstractmethod
    def fit(self, head: Head, training: Training) -> Family:
        """The family of heads that validation then chooses from.

        Args:
            head: the untouched head.
            training: train counts and, where cached, train features.

        Raises:
            PosthocError: the head, the training data or the options do not allow it.
        """

    def target(self, training: Training) -> Tensor | None:
        """The class frequencies (C,) that its heads are meant for, summing to 1; None where all are equal."""
        return None
