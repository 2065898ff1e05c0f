"""What a person points at, told by what is there, made one `Data`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType

from posthoc_lt.data.dataset import Data
from posthoc_lt.data.folder import read_folder
from posthoc_lt.data.hugging_face import read_saved
from posthoc_lt.data.labels import encode, read_names
from posthoc_lt.data.own import is_own_data, own_splits
from posthoc_lt.data.path_list import read_list
from posthoc_lt.data.samples import Found, printable, split_of
from posthoc_lt.data.shards import by_split, find_shards, read_shards
from posthoc_lt.data.subsets import held_out
from posthoc_lt.data.table import SUFFIXES, read_table
from posthoc_lt.data.unpacked import SUFFIXES as TARS
from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.features import SPLITS

FORMS = (
    "a folder with train/ val/ test/ (at least one), a folder a class in each; a table with a split column (.csv .tsv "
    ".parquet); tar or Parquet shards; a Hugging Face data set on disk; or module:factory"
)


@dataclass(frozen=True)
class DataSpec:
    """Which data, as a person says it.

    Args:
        data: any of `FORMS`, ``data`` where nothing else is said; beside `train`, `val` or `test` the folder that
            their paths start from.
        train, val, test: one split each: a list of ``path label``, a table (of its rows with a split those of this
            one), tar shards, a folder of class folders or of bare images, or a saved Hugging Face Dataset.
        classes: a file of class names, one a line, in the network's order.
        holdout: the share of train that becomes val.
        seed: of what is held out.
        exif: turn images as their EXIF orientation says.
    """

    data: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    classes: str | None = None
    holdout: float | None = None
    seed: int = 0
    exif: bool = False

    def __post_init__(self) -> None:
        if (self.data, self.train, self.val, self.test) == (None,) * 4:
            object.__setattr__(self, "data", "data")

    def provenance(self) -> dict[str, str]:
        """What a feature file says of it, from which `from_provenance` gives it back."""
        place = {} if self.data is None else {"data": printable(self.data)}
        chosen = {
            field.name: printable(value) if isinstance(value, str) else value
            for field in fields(self)
            if field.name != "data" and (value := getattr(self, field.name)) != field.default
        }
        return {**place, **({"data_options": json.dumps(chosen, sort_keys=True)} if chosen else {})}

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, str]) -> DataSpec | None:
        """The data that features came from, or None where they do not tell.

        Raises:
            PosthocError: their options are not what extract wrote.
        """
        if "data" not in provenance and "data_options" not in provenance:
            return None
        try:
            options = {"data": provenance.get("data"), **json.loads(provenance.get("data_options", "{}"))}
            if any(not isinstance(value, _KINDS[name]) for name, value in options.items()):
                raise TypeError
            return cls(**options)
        except (ValueError, TypeError, LookupError, RecursionError):
            raise PosthocError(
                f"data options {show(provenance['data_options'])!r}", "those of extract", "extract the features again"
            ) from None


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("data", *SPLITS, "classes"), (str, NoneType)),
    "holdout": (float, NoneType),
    "seed": (int,),
    "exif": (bool,),
}
"""What each of the options may be."""


def open_data(spec: DataSpec | Path | str = "data", classes: Sequence[str] = ()) -> Data:
    """List the samples of every split; none of them is read.

    Args:
        spec: which data.
        classes: the network's own class names, by which labels are known that are among them or are numbers.

    Raises:
        PosthocError: nothing there, nothing of a form that is known, or labels that do not fit together.

    >>> open_data("nowhere")
    Traceback (most recent call last):
    posthoc_lt.errors.PosthocError: data folder nowhere, which does not exist. Wanted: ...
    """
    spec = spec if isinstance(spec, DataSpec) else DataSpec(str(spec))
    given = {name: what for name in SPLITS if (what := getattr(spec, name)) is not None}
    if given:
        root = None if spec.data is None else Path(spec.data)
        found = {name: _one_split(what, root, name) for name, what in given.items()}
    else:
        found = _every_split(spec.data or "")
    place = spec.data if spec.data is not None and not given else ", ".join(given.values())
    data = _made(place, {name: found[name] for name in SPLITS if name in found}, spec, tuple(classes))
    return data if spec.holdout is None else held_out(data, spec.holdout, spec.seed)


def _made(place: str, found: Mapping[str, Found], spec: DataSpec, classes: tuple[str, ...]) -> Data:
    kinds = {each.kind for each in found.values()}
    if len(kinds) > 1:
        raise PosthocError(f"{show(place)} with splits of {listed(sorted(kinds))}", "one kind", "correct the columns")
    own = next((each.names for each in found.values() if each.names), ())
    named = {each.named for each in found.values() if each.labels is not None}
    if len(named) > 1 and spec.classes is None:
        raise PosthocError(
            f"{show(place)}, where some splits have class folders and others lists",
            "to know which folder is which number",
            "give --classes with the folders' names, one a line, in the network's order",
        )
    names = own or _known(found, classes) if spec.classes is None else read_names(spec.classes)
    labels, classes = encode({name: each.labels for name, each in found.items()}, names, True in named)
    splits = {name: each.make(labels[name]) for name, each in found.items()}
    return Data(place, splits, tuple(map(printable, classes)), next(iter(kinds)), spec.exif)


def _known(found: Mapping[str, Found], classes: tuple[str, ...]) -> tuple[str, ...]:
    """The network's class names where these data's labels are among them, or are numbers; else none."""
    texts = {text for each in found.values() for text in each.labels or ()}
    numbers = all(text.isdecimal() for text in texts) and not any(each.named for each in found.values())
    return classes if numbers or texts <= set(classes) else ()


def _every_split(what: str) -> dict[str, Found]:
    place = Path(what)
    if is_own_data(what):
        return own_splits(what)
    if place.suffix.lower() in SUFFIXES:
        tables = _tables(what)
        return _by_column(place, read_table(tables)) if len(tables) == 1 else _by_name(tables)
    if _is_pattern(what):
        return {name: read_shards(shards) for name, shards in by_split(find_shards(what)).items()}
    if not place.is_dir():
        raise _no_folder(place)
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return _by_column(place, read_saved(place))
    if shards := _tars(place):
        return {name: read_shards(paths) for name, paths in by_split(shards).items()}
    if tables := sorted(place.glob("*.parquet")) or sorted(place.glob("data/*.parquet")):
        return _by_name(tables)
    return {name: _one_split(str(folder), None, name) for name, folder in _split_folders(place).items()}


def _one_split(what: str, root: Path | None, name: str) -> Found:
    place = Path(what)
    if place.suffix.lower() in SUFFIXES:
        return _pick(place, read_table(_tables(what), root), name)
    if _is_pattern(what):
        return read_shards(find_shards(what))
    if not place.is_dir():
        return read_list(place, root)
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return _pick(place, read_saved(place), name)
    if shards := _tars(place):
        return read_shards(shards)
    tables = sorted(place.glob("*.parquet"))
    return _pick(place, read_table(tables, root), name) if tables else read_folder(place)


def _is_pattern(what: str) -> bool:
    return what.endswith(TARS) or (not Path(what).exists() and any(mark in what for mark in "*?{"))


def _tars(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.name.endswith(TARS))


def _tables(what: str) -> list[Path]:
    """The one table, or all that a pattern names."""
    return find_shards(what) if _is_pattern(what) else [Path(what)]


def _by_name(tables: Sequence[Path]) -> dict[str, Found]:
    """Tables without a split column, a split's by their names."""
    splits = {name: (paths[0], read_table(paths)) for name, paths in by_split(tables).items()}
    return {name: _pick(path, found, name) for name, (path, found) in splits.items()}


def _by_column(place: Path, found: Mapping[str | None, Found]) -> dict[str, Found]:
    if None in found:
        raise PosthocError(
            f"{show(place)}, which does not tell train, val and test apart",
            "a column split, or for a Hugging Face data set a DatasetDict",
            f"add it, or say which split it is: --train {show(place)}",
        )
    return {name: each for name, each in found.items() if name is not None}


def _pick(place: Path, found: Mapping[str | None, Found], name: str) -> Found:
    """The one split asked for, of a table that holds several; all of a table that holds one."""
    if None in found:
        return found[None]
    if name not in found:
        raise PosthocError(
            f"{show(place)}, which holds {listed(sorted(map(str, found)))}", f"a split {name}", f"drop --{name}"
        )
    return found[name]


def _no_folder(place: Path) -> PosthocError:
    try:
        there = place.exists()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        return PosthocError(
            f"data folder {show(place)}, which does not exist", FORMS, "give --data with the folder of your images"
        )
    return PosthocError(
        f"data folder {show(place)}, which is no folder",
        FORMS,
        "give a list of paths as --train, --val or --test, and the images' folder as --data",
    )


def _split_folders(place: Path) -> dict[str, Path]:
    inside = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    found: dict[str, Path] = {}
    for path in inside:
        name = split_of(path.name) if path.is_dir() else None
        if name is None or (path.name != name and (place / name).is_dir()):
            continue
        if name in found:
            raise PosthocError(
                f"{show(place)}, where {show(found[name].name)} and {show(path.name)} both mean {name}",
                "one folder a split",
                f"rename one of them, or give --{name} with the right one",
            )
        found[name] = path
    if not found:
        names = listed([path.name for path in inside]) or "nothing"
        raise PosthocError(
            f"data folder {show(place)}, which holds {names}", FORMS, "move the images into one of these forms"
        )
    return {name: found[name] for name in SPLITS if name in found}
