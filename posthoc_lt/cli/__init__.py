"""The command line: every command opens its input, calls the library function of its name, prints."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import io
import keyword
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from posthoc_lt import __version__
from posthoc_lt.cli import terminal
from posthoc_lt.errors import PosthocError, show

_METHODS = Path(__file__).parent.parent / "methods"


@dataclass(frozen=True)
class Entry:
    """Where a command lives and what it does, known without importing it."""

    module: str
    summary: str


COMMANDS: Mapping[str, Entry] = {
    "extract": Entry("extract", "Run a checkpoint's network once and cache its features."),
    "import": Entry("import_", "Make a feature file of features that already exist."),
    "dump": Entry("import_", "Write a feature file's arrays as .npz."),
    "inspect": Entry("inspect", "Show what a checkpoint, a feature file or a head file holds."),
    "tau-search": Entry("fit", "Choose tau on validation data, exactly."),
    "rebalance": Entry("compare", "Fit every method and take the one that validation supports."),
    "compare": Entry("compare", "Fit every method and set them side by side."),
    "report": Entry("report", "Fit every method and tell the result as one HTML page."),
    "evaluate": Entry("compare", "Judge a saved head, or the untouched one."),
    "calibrate": Entry("calibrate", "Make a head whose softmax gives probabilities."),
    "conformal": Entry("conformal", "Fit prediction sets that cover the rare classes too."),
    "export": Entry("export", "Fold a head into a checkpoint of the same kind, verified."),
    "demo": Entry("demo", "Run the whole job on an embedded real case."),
}


class Commands(click.Group):
    """A group whose commands are imported when they are used, so that help costs no torch."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of a run, which remembers what was typed."""
        return super().make_context(info_name, args, parent, obj=[info_name, *args], **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of a job, the methods among them."""
        names = list(COMMANDS)
        after = names.index("tau-search") + 1
        return [*names[:after], *method_summaries(), *names[after:]]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name in COMMANDS:
            module = importlib.import_module(f"posthoc_lt.cli.{COMMANDS[cmd_name].module}")
            name = cmd_name.replace("-", "_")
            command: click.Command = getattr(module, f"{name}_" if keyword.iskeyword(name) else name)
            return command
        if cmd_name in method_summaries():
            fit = importlib.import_module("posthoc_lt.cli.fit")
            made: click.Command = fit.method_command(cmd_name)
            return made
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or an error that names those like it."""
        names = self.list_commands(ctx)
        if args[0] not in names and (near := difflib.get_close_matches(args[0], names)):
            ctx.fail(f"No such command {show(args[0])!r}. Did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their summaries, importing none of them."""
        summaries = {**{name: entry.summary for name, entry in COMMANDS.items()}, **method_summaries()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, summaries[name]) for name in self.list_commands(ctx)])


def method_summaries() -> dict[str, str]:
    """Each method's command, which is its file's name, and the file's first line, read without importing it."""
    paths = (path for path in sorted(_METHODS.glob("*.py")) if path.stem not in ("__init__", "method"))
    return {path.stem.replace("_", "-"): _first_line(path) for path in paths}


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: posthoc-lt demo",
)
@click.version_option(__version__, prog_name="posthoc-lt")
def cli() -> None:
    """Rebalance a trained long-tailed classifier without retraining it."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit 0 for success, 1 with one clear paragraph, 2 for wrong usage."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; no traceback reaches a person.

    Started by torchrun or accelerate launch, the command runs in all processes and the first one speaks; an error is
    told by the first that meets it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=terminal.SPELLED)  # a class name may hold what the terminal cannot
    command = partial(cli.main, arguments, prog_name="posthoc-lt", standalone_mode=False)
    return _status(partial(_together, command) if "WORLD_SIZE" in os.environ else command, lambda: True)


def _together(command: Callable[[], Any]) -> int:
    """Run a command in every one of the processes that were started together."""
    from posthoc_lt import ranks  # here, so that help costs no torch

    with ranks.joined():
        return _status(command if ranks.rank() == 0 else partial(_in_silence, command), partial(ranks.first, "error"))


def _in_silence(command: Callable[[], Any]) -> Any:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        return command()


def _status(command: Callable[[], Any], may_tell: Callable[[], bool]) -> int:
    """The exit status of a command; its error is told where it may be."""

    def fail(message: str, status: int) -> int:
        if may_tell():
            click.echo(f"Error: {message}", err=True)
        return status

    try:
        outcome = command()
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.Abort:
        return fail("interrupted; nothing was left half-written", 130)
    except click.ClickException as error:
        if may_tell():
            error.show()
        return error.exit_code
    except PosthocError as error:
        return fail(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing more to say
        return 1
    except OSError as error:
        where = "" if error.filename is None else f" {show(error.filename)}"
        return fail(f"reading or writing{where} failed ({error.strerror}). Next: check the place and its space.", 1)
    except MemoryError:
        return fail("out of memory. Next: give a smaller --batch-size, or a machine with more memory.", 1)
    except Exception as error:
        message = f"{type(error).__name__}: {show(error, 400)}"
        return fail(f"an unexpected error, which is a fault of posthoc-lt ({message}). Next: report it.", 1)
