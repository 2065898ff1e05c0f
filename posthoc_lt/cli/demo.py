"""What ``demo`` does: the whole job on an embedded real case, each command shown before it runs."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import click

from posthoc_lt import cli
from posthoc_lt.cli import terminal
from posthoc_lt.errors import PosthocError, show

STEPS = (
    "posthoc-lt extract --ckpt model.pt",
    "posthoc-lt tau-search --features feats.safetensors",
    "posthoc-lt logit-adjust --tau 1.0",
    "posthoc-lt rebalance --out head.safetensors",
    "posthoc-lt export --ckpt model.pt --head head.safetensors --out balanced.pt",
    "posthoc-lt report",
)

_WRITING = ("--out", " extract", " report")

_STORY = """\
A ResNet-20 was trained on long-tailed Fashion-MNIST: 500 images of the most frequent class,
5 of the rarest. Its checkpoint and images are unpacked in {folder}.
Every command below can be typed there."""


def demo(into: Path, force: bool) -> None:
    """Unpack the case and run each step in its folder."""
    unpack(into, force)
    click.echo(_STORY.format(folder=show(into)))
    with _working_in(into):
        for step in _possible():
            line = step + (" --force" if force and any(word in step for word in _WRITING) else "")
            click.echo("\n" + click.style(f"$ {line}", bold=terminal.colourful(sys.stdout) or None))
            cli.cli.main(shlex.split(line)[1:], prog_name="posthoc-lt", standalone_mode=False)
    click.echo(f"\nThe patched checkpoint is {show(into / 'balanced.pt')}: load it where you loaded model.pt.")
    if (into / "report.html").exists():
        click.echo(f"The report is {show(into / 'report.html')}: open it in a browser.")


def _possible() -> list[str]:
    """The steps that this installation can take: the report's libraries are an extra."""
    missing = any(find_spec(name) is None for name in ("jinja2", "matplotlib"))
    if missing:
        click.echo("Left out the report, which needs: pip install 'posthoc-lt[report]'", err=True)
    return [step for step in STEPS if not (missing and step == "posthoc-lt report")]


def unpack(folder: Path, force: bool = False) -> None:
    """Write ``model.pt`` and ``data/`` into a folder; files that are already there as they should be stay.

    Raises:
        PosthocError: the folder cannot be written to, or holds other files of these names.
    """
    case = files("posthoc_lt") / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PosthocError(
            f"{show(folder)}, which cannot be made a folder ({error.strerror})",
            "a place that you may write to",
            "give --into with another place",
        ) from None
    _write(folder / "model.pt", (case / "model.pt").read_bytes(), force)
    with as_file(case / "fashion_lt.zip") as path, zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                _write(folder / member.filename, archive.read(member), force)


def _write(path: Path, content: bytes, force: bool) -> None:
    """Write one file unless it is there already, whole or not at all; thousands of small files need no sync each."""
    there = path.exists()  # asked first, for another demo may be making it
    if path.is_file() and path.read_bytes() == content:
        return
    if there and not force:
        raise PosthocError(
            f"{show(path)}, which exists and is not the demo's",
            "a folder of the demo's own",
            "give --into with another folder, or --force to overwrite it",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
