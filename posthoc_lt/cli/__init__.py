"""The command line: every command opens its input, calls the library function of its name, prints."""

from __future__ import annotations

import ast
import difflib
import importlib
import io
import keyword
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from posthoc_lt import __version__
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
    """Run one command and return its exit status; no traceback reaches a person."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a class name may hold what the terminal cannot
    try:
        outcome: Any = cli.main(arguments, prog_name="posthoc-lt", standalone_mode=False)
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.Abort:
        return _fail("interrupted; nothing was left half-written", 130)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PosthocError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing more to say
        return 1
    except OSError as error:
        where = "" if error.filename is None else f" {show(error.filename)}"
        return _fail(f"reading or writing{where} failed ({error.strerror}). Next: check the place and its space.", 1)
    except MemoryError:
        return _fail("out of memory. Next: give a smaller --batch-size, or a machine with more memory.", 1)
    except Exception as error:
        message = f"{type(error).__name__}: {show(error, 400)}"
        return _fail(f"an unexpected error, which is a fault of posthoc-lt ({message}). Next: report it.", 1)


def _fail(message: str, status: int) -> int:
    click.echo(f"Error: {message}", err=True)
    return status
