"""What the command line says before it works: without torch, and the same as the code that then works says."""

from __future__ import annotations

import importlib
import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import pytest
from commands import refusal_of

from posthoc_lt import METHODS
from posthoc_lt.choices import METRICS
from posthoc_lt.cli import described, options
from posthoc_lt.cli.commands import COMMANDS
from posthoc_lt.methods.method import Method
from posthoc_lt.search import FIGURES

PACKAGE = Path(described.__file__).parent.parent

PROBE = """
import sys
import click
from posthoc_lt.cli import cli, options, run

def status(*words):
    found = run([str(word) for word in words])
    heavy = {"torch", "numpy", "scipy", "pandas", "matplotlib", "safetensors", "PIL", "tqdm"} & set(sys.modules)
    assert not heavy, (words, heavy)
    return found

assert status("--help") == status("--version") == 0
assert status("no-such") == status("tau-serch") == status("--no-such") == 2
context = click.Context(cli)
for name in cli.list_commands(context):
    command = cli.get_command(context, name)
    assert status(name, "--help") == status(name, "-h") == 0, name
    assert status(name, "--no-such") == status(name, "one", "two", "three") == 2, name
    given = [each for each in command.params if isinstance(each, click.Option) and not each.is_flag]
    for option in given:
        assert status(name, option.opts[0]) == 2, (name, option.name)
        if option.type not in (click.STRING, options.FILE) and option.name not in ("class_weight", "cost"):
            assert status(name, option.opts[0], "no-such") == 2, (name, option.name)
    silent = ["-q"] if any("-q" in each.opts for each in command.params) else []
    if any(each.name == "form" for each in given):
        assert status(name, *silent, "--format", "no-such") == 2, name
    if any(each.name == "verbose" for each in command.params):
        assert status(name, "--format", "csv", "-v") == status(name, "-v", "--format", "csv") == 2, name
assert status("extract") == status("export") == status("inspect") == 2
assert status("tau-search", "--pareto", "--format", "csv") == 2
assert status("tau-search", "--method", "tau-norm", "--prior", "uniform") == 2
for option in ("--class-weight", "--cost"):
    assert status("compare", option, "numbers.txt", "--metric", "no-such") == 2
"""


def test_help_and_wrong_usage_of_every_command_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "numbers.txt").write_text("1 2 3")
    done = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "did you mean" in done.stderr.lower()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_file_s_text_says_what_its_class_does(method: type[Method]) -> None:
    assert described.read(Path(inspect.getfile(method))) == (described.of(method),)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_command_has_an_option_for_each_field(name: str) -> None:
    method, command = METHODS[name], COMMANDS[name]
    assert command.help is not None
    assert method.formula in command.help
    assert method.paper in command.help
    assert str(command.short_help) == str(sys.modules[method.__module__].__doc__).splitlines()[0]
    found, hints = {str(each.name): each for each in command.params}, get_type_hints(method)
    assert set(found) >= {field.name for field in fields(method)} | ({method.knob} - {None})
    for field in fields(method):
        option, hint = found[field.name], hints[field.name]
        if field.name in options.PRIORS:
            continue  # declared once for several commands, the default left to the method
        assert isinstance(option, click.Option)
        assert (option.help, option.default) == (field.metadata["help"], field.default)
        if get_origin(hint) is Literal:
            assert isinstance(option.type, click.Choice)
            assert tuple(option.type.choices) == get_args(hint)
        else:
            assert option.type is click.FLOAT
            assert hint in (float, float | None)


def test_the_methods_stand_in_their_order_whoever_tells_it() -> None:
    probe = "import sys; from posthoc_lt.cli.described import methods; print(*methods(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*METHODS, "False"] == [*described.methods(), "False"]


def test_figures_have_the_names_that_are_offered() -> None:
    assert tuple(FIGURES) == METRICS
    assert FIGURES["accuracy"].weigh
    assert FIGURES["worst-class"].least
    assert all(FIGURES[group].group == group for group in ("many", "medium", "few"))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_does_takes_what_can_be_typed(name: str) -> None:
    """The functions behind the declarations are called by name: a parameter more or less would be found by a user."""
    given: dict[str, Any] = {str(each.name): None for each in COMMANDS[name].params if each.expose_value}
    if name in METHODS or name == "tau-search":
        fixed = {"method", "bias", "prior", "target_prior", "zero_count"}
        own = fixed if name == "tau-search" else {field.name for field in fields(METHODS[name])} | {METHODS[name].knob}
        given = {key: None for key in given if key not in own} | {"method": None, "own": None, "knob": None}
        home, function = "fit", "run"
    else:
        home = {"dump": "import_", "rebalance": "compare", "evaluate": "compare"}.get(name, name)
        home, function = ("import_", "import_") if name == "import" else (home, name)
    inspect.signature(getattr(importlib.import_module(f"posthoc_lt.cli.{home}"), function)).bind(**given)


INHERITING = '''"""Mine: another's method with a field more."""

from dataclasses import dataclass, field

from posthoc_lt.methods.tau_norm import TauNorm

EXTRA = 2.0


@dataclass(frozen=True)
class Mine(TauNorm):
    extra: float = field(default=EXTRA, metadata={"help": "Something more."})
'''


def test_a_file_that_only_python_can_read_is_left_to_it(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "posthoc_lt", ignore=shutil.ignore_patterns("demo", "__pycache__"))
    (tmp_path / "posthoc_lt" / "methods" / "mine.py").write_text(INHERITING)
    done = subprocess.run(
        [sys.executable, "-m", "posthoc_lt", "mine", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Mine: another's method" in done.stdout
    assert "--extra FLOAT" in done.stdout
    assert "[drop|keep|scale]" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "class A(Method):\n    knob = KNOB",
        "class A(Other):\n    pass",
        "@dataclass\nclass A(Method):\n    a: Mode = field(default='x', metadata={'help': ''})",
        "@dataclass\nclass A(Method):\n    a: float = 1.0",
        "@dataclass\nclass A(Method):\n    a: float = field(default=1.0)",
        "@dataclass\nclass A(Method):\n    a: None = field(default=None, metadata={'help': ''})",
    ],
)
def test_what_is_not_spelled_out_is_not_guessed(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(described.NotPlain, match=r"a\.py"):
        described.read(tmp_path / "a.py")


def test_two_tables_in_one_csv_are_refused_before_anything_is_written(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, message = refusal_of(["rebalance", "--format", "csv", "-v", "--out", "head.safetensors"], capsys)
    assert (status, "--format json with -v" in message) == (2, True)
    assert not (there / "head.safetensors").exists()
