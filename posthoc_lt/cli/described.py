"""What the methods say of themselves, read from the text of their files, so that help costs no torch."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import fields as fields_of
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from posthoc_lt.cli import options

if TYPE_CHECKING:
    from posthoc_lt.methods.method import Method

_FOLDER = Path(__file__).parent.parent / "methods"
_BASE = _FOLDER / "method.py"
_NAMES = {"Literal": Literal, "bool": bool, "int": int, "float": float, "str": str}
_SAID = ("paper", "formula", "knob", "control", "default")


@dataclass(frozen=True)
class Field:
    """A field of a method.

    Args:
        name: its own.
        kind: the type of its value, or the words to choose from; None for an option that commands share.
        default: its own.
        help: of its metadata.
    """

    name: str
    kind: type | tuple[str, ...] | None
    default: Any
    help: str


@dataclass(frozen=True)
class Described:
    """What the command line has to know of a method: its file's first line, its class's constants and fields."""

    name: str
    summary: str
    paper: str
    formula: str
    knob: str | None
    control: bool
    default: bool
    fields: tuple[Field, ...]


class NotPlain(Exception):
    """A file leaves to Python what the command line has to know."""


def methods() -> dict[str, Described]:
    """Every method by name, in the order of `posthoc_lt.methods.METHODS`.

    Where the classes are loaded already, or a file is not plain enough to be read, they are asked instead.
    """
    if "posthoc_lt.methods" not in sys.modules:
        paths = [path for path in _FOLDER.glob("*.py") if path != _BASE and path.stem != "__init__"]
        try:
            found = [each for path in paths for each in read(path)]
            return {each.name: each for each in sorted(found, key=lambda each: (not each.control, each.name))}
        except NotPlain:
            pass
    from posthoc_lt.methods import METHODS  # here, so that help costs no torch

    return {name: of(method) for name, method in METHODS.items()}


def of(method: type[Method]) -> Described:
    """What a method's class says."""
    summary, hints = _first_line(sys.modules[method.__module__].__doc__), get_type_hints(method)
    fields = tuple(
        Field(each.name, _kind(each.name, hints[each.name]), each.default, each.metadata["help"])
        for each in fields_of(method)
    )
    return Described(method.name, summary, **{name: getattr(method, name) for name in _SAID}, fields=fields)


@cache
def read(path: Path) -> tuple[Described, ...]:
    """What a file says of the methods in it.

    Raises:
        NotPlain: a class inherits from others than `Method`, or what it says is not spelled out in it.
    """
    module = ast.parse(path.read_text(encoding="utf-8"))
    try:
        return tuple(
            _described(each, path.stem.replace("_", "-"), _first_line(ast.get_docstring(module)))
            for each in module.body
            if isinstance(each, ast.ClassDef) and _is_method(each)
        )
    except (AttributeError, LookupError, NameError, TypeError, ValueError) as error:
        raise NotPlain(str(path)) from error


def _is_method(found: ast.ClassDef) -> bool:
    bases = [ast.unparse(base) for base in found.bases]
    if bases not in ([], ["Method"]):
        raise TypeError(found.name)
    return bool(bases)


def _described(found: ast.ClassDef, name: str, summary: str) -> Described:
    said = {**_by_default(), **{name: value for name, _, value in _assigned(found)}}
    constants = {each: ast.literal_eval(said[each]) for each in _SAID}
    name = ast.literal_eval(said["name"]) if "name" in said else name
    return Described(name, summary, **constants, fields=tuple(_fields(found)))


@cache
def _by_default() -> dict[str, ast.expr]:
    """What a method says where it says nothing."""
    (method,) = (each for each in ast.parse(_BASE.read_text(encoding="utf-8")).body if isinstance(each, ast.ClassDef))
    return {name: value for name, _, value in _assigned(method)}


def _assigned(found: ast.ClassDef) -> Iterator[tuple[str, str, ast.expr]]:
    """Every name that a class gives a value, with its annotation."""
    for each in found.body:
        if isinstance(each, ast.AnnAssign) and each.value is not None:
            yield ast.unparse(each.target), ast.unparse(each.annotation), each.value
        elif isinstance(each, ast.Assign):
            yield from ((ast.unparse(target), "ClassVar", each.value) for target in each.targets)


def _fields(found: ast.ClassDef) -> Iterator[Field]:
    """The fields of a dataclass; a class that is none adds none."""
    for name, annotation, value in _assigned(found) if found.decorator_list else ():
        if not annotation.startswith("ClassVar"):
            if not isinstance(value, ast.Call):
                raise TypeError(name)
            given = {each.arg: ast.literal_eval(each.value) for each in value.keywords}
            yield Field(name, _kind(name, annotation), given["default"], given["metadata"]["help"])


def _kind(name: str, hint: Any) -> type | tuple[str, ...] | None:
    if name in options.PRIORS:
        return None
    if isinstance(hint, str):
        hint = eval(hint, {"__builtins__": {}}, _NAMES)
    if get_origin(hint) is Literal:
        return get_args(hint)
    found: list[type] = [kind for kind in (bool, int, float, str) if hint is kind or kind in get_args(hint)]
    return found[0]


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]
