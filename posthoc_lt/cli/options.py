"""Options that several commands share, each defined once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from posthoc_lt.errors import PosthocError, show

if TYPE_CHECKING:
    from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas; click turns a ValueError into a usage error."""
    return tuple(float(part) for part in text.split(","))


def read_counts(path: Path) -> list[int]:
    """Whole numbers from a text file, separated by white space or commas, or a JSON list of them.

    Raises:
        PosthocError: the file cannot be read, or holds something else.
    """
    try:
        words = path.read_text(encoding="utf-8").replace(",", " ").strip().strip("[]").split()
        counts = [int(word) for word in words]
    except (OSError, ValueError) as error:
        raise PosthocError(
            f"{show(path)}, which is no list of whole numbers ({show(error)})",
            "one train count a class, in the order of the class folders",
            "write such as: 500, 299, 179",
        ) from None
    return counts


def read_shares(path: Path, classes: int) -> Tensor:
    """Class frequencies (C,) from a file of one number >= 0 a class, in any unit.

    Raises:
        PosthocError: the file cannot be read, or holds something else.
    """
    import torch  # here, so that help costs no torch

    try:
        words = path.read_text(encoding="utf-8").replace(",", " ").strip().strip("[]").split()
        shares = torch.tensor([float(word) for word in words], dtype=torch.float64)
    except (OSError, ValueError) as error:
        raise PosthocError(
            f"{show(path)}, which is no list of numbers ({show(error)})",
            "uniform, train, or a file of one number a class",
            "correct --deploy",
        ) from None
    if len(shares) != classes or not bool((shares.isfinite() & (shares >= 0)).all()):
        raise PosthocError(
            f"{show(path)} with {len(shares)} numbers", f"{classes} numbers >= 0, one a class", "correct the file"
        )
    return shares


features = click.option(
    "--features", type=FILE, default="feats.safetensors", show_default=True, help="The feature file."
)
ckpt = click.option("--ckpt", "--checkpoint", "ckpt", type=FILE, required=True, help="The trained checkpoint.")
force = click.option("--force", is_flag=True, help="Overwrite an existing, different file.")
form = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "md"]),
    default="table",
    show_default=True,
    help="How to print the result.",
)
device = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|mps",
    help="Where to compute; auto takes CUDA where there is one.",
)
metric = click.option(
    "--metric",
    type=click.Choice(
        ["balanced-accuracy", "accuracy", "macro-f1", "g-mean", "harmonic-mean", "many", "medium", "few"]
    ),
    default="balanced-accuracy",
    show_default=True,
    help="What validation chooses by.",
)
select = click.option(
    "--select",
    type=click.Choice(["guarded", "nll", "metric"]),
    default="guarded",
    show_default=True,
    help="How a knob is chosen: the likelihood's choice where the metric supports it, the likelihood alone, "
    "or the exact maximum of the metric.",
)
subject_to = click.option(
    "--subject-to",
    multiple=True,
    metavar="FIGURE>=X",
    help="A floor on validation, such as 'many>=0.60'; may be given again.",
)
seed = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the cross-fitting folds."
)
groups = click.option(
    "--groups",
    type=(float, float),
    default=(20, 100),
    show_default=True,
    help="Train counts: few is below the first, many above the second.",
)
verbose = click.option("-v", "--verbose", is_flag=True, help="Add the figures of every class.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on standard error.")


def out(default: str | None, help_text: str) -> Callable[[F], F]:
    """``-o/--out``, where a command writes."""
    return click.option("-o", "--out", type=FILE, default=default, show_default=default is not None, help=help_text)


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Apply several options at once, in the order in which help lists them."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
