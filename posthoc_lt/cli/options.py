"""Options that several commands share, each defined once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from posthoc_lt.choices import METRICS, RULES
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.text import read_text

if TYPE_CHECKING:
    from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


class _File(click.Path):
    """A path, refused as wrong usage where no file can have that name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        try:
            return super().convert(value, param, ctx)
        except ValueError:  # a NUL, or characters that the file system's encoding lacks
            self.fail(f"{show(value)!r} is no name that a file can have.", param, ctx)


FILE = _File(path_type=Path)

READ = "posthoc_lt.read"
"""The key of a context's `meta` under which lie the names of files that were read while options were parsed."""


def numbers(text: str) -> tuple[float, ...]:
    """Numbers separated by commas; click turns a ValueError into a usage error."""
    return tuple(float(part) for part in text.split(","))


def size(text: str) -> int:
    """Bytes, such as ``5GB`` or ``200MB``; click turns a ValueError into a usage error."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number = int(text[:-2]) * units[text[-2:].upper()] if text[-2:].upper() in units else int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _words(path: Path) -> list[str]:
    """What a text file holds, separated by white space or commas, or as a JSON list."""
    return read_text(path).replace(",", " ").strip().strip("[]").split()


def read_counts(path: Path) -> list[int]:
    """Whole numbers from a text file, separated by white space or commas, or a JSON list of them.

    Raises:
        PosthocError: the file cannot be read, or holds something else.
    """
    try:
        words = _words(path)
        counts = [int(word) for word in words]
    except (OSError, ValueError) as error:
        raise PosthocError(
            f"{show(path)}, which is no list of whole numbers ({show(error)})",
            "one train count a class, in the order of the class folders",
            "write such as: 500, 299, 179",
        ) from None
    return counts


def read_weights(text: str) -> tuple[float, ...]:
    """Class weights from a file of one number a class.

    Raises:
        PosthocError: the file cannot be read, or holds something else.
    """
    if (context := click.get_current_context(silent=True)) is not None:
        context.meta.setdefault(READ, []).append(text)
    try:
        return tuple(float(word) for word in _words(Path(text)))
    except (OSError, ValueError) as error:
        raise PosthocError(
            f"{show(text)}, which is no list of numbers ({show(error)})",
            "a file of one number >= 0 a class, in the order of the class folders",
            "correct --class-weight",
        ) from None


def read_costs(text: str) -> tuple[tuple[float, ...], ...]:
    """A cost matrix from a file: a row a true class, a column a predicted one.

    Raises:
        PosthocError: the file cannot be read, or holds something else.
    """
    if (context := click.get_current_context(silent=True)) is not None:
        context.meta.setdefault(READ, []).append(text)
    path = Path(text)
    try:
        if path.suffix.lower() == ".npy":
            from posthoc_lt.files.arrays import read_arrays  # here, so that help costs no torch

            (rows,) = (array.tolist() for array in read_arrays(path).values())
        else:
            rows = [line.replace(",", " ").split() for line in read_text(path).splitlines() if line.strip()]
        return tuple(tuple(float(word) for word in row) for row in rows)
    except (OSError, TypeError, ValueError) as error:
        raise PosthocError(
            f"{show(text)}, which is no matrix of numbers ({show(error)})",
            "a .npy file, or text with a line a true class and a number a predicted class",
            "correct --cost",
        ) from None


def edges(text: str) -> tuple[float, float]:
    """The two edges of the medium group, such as ``20,100``."""
    try:
        low, high = numbers(text)
    except ValueError:
        raise click.BadParameter(f"{show(text)!r} is not two train counts such as 20,100.") from None
    return low, high


_WORDS = {"--prior": "counts, uniform, model"}
"""What an option of class frequencies takes beside a file."""


def read_shares(path: Path, classes: int, option: str = "--deploy") -> Tensor:
    """Class frequencies (C,) from a file of one number >= 0 a class, in any unit, that an option named.

    Raises:
        PosthocError: the file cannot be read, or holds something else.
    """
    import torch  # here, so that help costs no torch

    try:
        words = _words(path)
        shares = torch.tensor([float(word) for word in words], dtype=torch.float64)
    except (OSError, ValueError) as error:
        raise PosthocError(
            f"{option} {show(path)}, which is none of its words and no list of numbers ({show(error)})",
            f"{_WORDS.get(option, 'uniform, train, em')}, or a file of one number a class",
            f"correct {option}",
        ) from None
    if len(shares) != classes or not bool((shares.isfinite() & (shares >= 0)).all()):
        raise PosthocError(
            f"{show(path)} with {len(shares)} numbers", f"{classes} numbers >= 0, one a class", "correct the file"
        )
    return shares


features = click.option(
    "--features", type=FILE, default="feats.safetensors", show_default=True, help="The feature file."
)
ckpt = click.option(
    "--ckpt",
    "--checkpoint",
    "ckpt",
    type=FILE,
    required=True,
    help="The trained checkpoint; a file, or a folder of Hugging Face.",
)
allow_pickle = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Load even a pickled module or .pt2 file, which may run any code in it: only if you trust who made it.",
)
force = click.option("--force", is_flag=True, help="Overwrite an existing, different file.")


def _one_table(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The value, of either option, where the other agrees; whichever is parsed last finds out."""
    given = {**context.params, parameter.name: value}
    if given.get("form") == "csv" and given.get("verbose"):
        raise click.UsageError("--format csv has no place for each class's figures; give --format json with -v.")
    return value


form = click.option(
    "--format",
    "form",
    callback=_one_table,
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
    type=click.Choice(METRICS),
    default="balanced-accuracy",
    show_default=True,
    help="What validation chooses by. Under --select guarded the likelihood leads and the metric only guards; "
    "--select metric follows it fully.",
)
class_weight = click.option(
    "--class-weight",
    type=read_weights,
    metavar="FILE",
    default=None,
    help="How much each class counts in weighted-accuracy: a file of one number >= 0 a class.",
)
cost = click.option(
    "--cost",
    type=read_costs,
    metavar="FILE",
    default=None,
    help="What mistakes cost, for utility = 1 - mean cost/highest cost: a .npy file, or one of a line of numbers >= 0 "
    "a true class, one number a predicted class.",
)
select = click.option(
    "--select",
    type=click.Choice(RULES),
    default="guarded",
    show_default=True,
    help="How a knob is chosen: the likelihood's choice where the metric supports it, the likelihood alone, "
    "the exact maximum of the metric, or the median of its maxima on halves of validation.",
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
    type=edges,
    metavar="LOW,HIGH",
    default="20,100",
    show_default=True,
    help="Train counts: few is below the first, many above the second.",
)
verbose = click.option("-v", "--verbose", is_flag=True, callback=_one_table, help="Add the figures of every class.")


def _silence(context: click.Context, _: click.Parameter, value: bool) -> bool:
    if value:
        from posthoc_lt.progress import silence

        context.with_resource(silence())
    return value


quiet = click.option(
    "-q", "--quiet", is_flag=True, callback=_silence, help="No progress and no notes on standard error."
)

prior = click.option(
    "--prior",
    metavar="counts|uniform|model|FILE",
    help="Class frequencies to take off: those of train (default), all equal (none to take off), the network's own "
    "as its confusions on val show them, or a file of one number a class.",
)
target_prior = click.option(
    "--target-prior",
    metavar="uniform|train|em|FILE",
    help="Class frequencies to be right under: all equal (default), those of train, those of unlabelled deployment "
    "samples, estimated by EM, or a file of one number a class.",
)
zero_count = click.option(
    "--zero-count",
    type=click.Choice(["refuse", "mask", "smooth"]),
    help="Classes without a train sample: an error (default), never predicted, or half a sample more for every class.",
)
deploy_features = click.option(
    "--deploy-features",
    type=FILE,
    help="A feature file of deployment samples, for em, which looks at no label; by default an unlabelled test split.",
)
PRIORS = {"prior": prior, "target_prior": target_prior, "zero_count": zero_count, "deploy_features": deploy_features}
"""By parameter; what is left out is left to the method."""


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
