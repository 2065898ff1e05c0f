"""Writes commands.md, every command's help on one page: ``python examples/commands.py``."""

from pathlib import Path
from typing import Any

import click

from posthoc_lt.cli import cli

PAGE = Path(__file__).with_suffix(".md")
WIDTH = 100


def page() -> str:
    """The help of the command line and of each command, as printed."""
    names: dict[str, Any] = {"terminal_width": WIDTH, "help_option_names": ["-h", "--help"]}
    with click.Context(cli, info_name="posthoc-lt", **names) as context:
        texts = {"posthoc-lt": cli.get_help(context)}
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            with click.Context(command, context, name, **names) as own:
                texts[f"posthoc-lt {name}"] = command.get_help(own)
    parts = [f"## {name}\n\n```text\n{text.rstrip()}\n```\n" for name, text in texts.items()]
    return "# Every command\n\nWritten by `python examples/commands.py`.\n\n" + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
