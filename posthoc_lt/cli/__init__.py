"""The command line: every command opens its input, calls the library function of its name, prints.

`commands` and `method_commands` say what can be typed; the other modules, what comes of it, import torch.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click

from posthoc_lt import __version__
from posthoc_lt.cli import terminal
from posthoc_lt.errors import PosthocError, show


class Commands(click.Group):
    """The commands: declared without what they do, so that neither help nor a wrong word costs torch."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of a run, which remembers what was typed."""
        return super().make_context(info_name, args, parent, obj=[info_name, *args], **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of a job."""
        return list(_commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        return _commands().get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or an error that names those like it."""
        names = self.list_commands(ctx)
        if args[0] not in names and (near := difflib.get_close_matches(args[0], names)):
            ctx.fail(f"No such command {show(args[0])!r}. Did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)


def _commands() -> Mapping[str, click.Command]:
    from posthoc_lt.cli.commands import COMMANDS  # here, so that a method's file that is no Python is told as an error

    return COMMANDS


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
