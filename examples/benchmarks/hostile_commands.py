"""Commands typed at random: every command, flags that it has and has not, values that no one means."""

from __future__ import annotations

import hashlib
import io
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import click
import torch
from hostile_files import feature_set

from posthoc_lt import save_features, save_head
from posthoc_lt.cli import cli, run
from posthoc_lt.files import SavedHead

VALUES = (
    "", " ", "0", "1", "-1", "2", "1e308", "1e-320", "nan", "inf", "-inf", "9" * 400, "-" + "9" * 30, "0x10", "1,2",
    "1,", ",", "nan,inf", "20,100", "100,20", "-5,5", "many>=0.5", "few>=nan", "many>=", ">=1", "x>=1", "many>=1e999",
    "uniform", "train", "em", "counts", "model", "cpu", "cuda:99", "mps", "meta", "os:getcwd", "no_such:thing", ":",
    "../..", "/", ".", "-", "--", "~", "a\0b", "\x1b[31m", "é" * 300, "\udcff", "\u202e", "%s%n", "{0}", "$(touch x)",
    "feats.safetensors", "head.safetensors", "sets.safetensors", "model.pt", "counts.txt", "junk.bin", "folder",
    "missing.txt", "out.safetensors", "out.npz", "out.html", "out/deep.pt", "/dev/null", "/dev/full", "/proc/self/mem",
)  # fmt: skip
INPUTS = ("feats.safetensors", "head.safetensors", "model.pt", "counts.txt", "junk.bin")
_SLOW = ("demo",)


def prepare(folder: Path) -> None:
    """The files that commands find in their folder."""
    features = feature_set()
    save_features(features, folder / "feats.safetensors")
    save_head(SavedHead(features.head), folder / "head.safetensors")
    torch.save({"state_dict": {"fc.weight": features.head.weight}}, folder / "model.pt")
    (folder / "counts.txt").write_text("3, 1, 1")
    (folder / "junk.bin").write_bytes(b"\0\xff" * 99)
    (folder / "folder").mkdir()


def command(chance: random.Random) -> list[str]:
    """A command at random, more often than not with flags that it knows."""
    context = click.Context(cli)
    name = chance.choice([each for each in cli.list_commands(context) if each not in _SLOW])
    found = cli.get_command(context, name)
    assert found is not None
    words = [name] if chance.random() < 0.97 else [chance.choice(VALUES)]
    flags = [each for each in found.params if isinstance(each, click.Option)]
    for option in chance.sample(flags, min(len(flags), chance.randint(0, 4))):
        words.append(chance.choice(option.opts))
        if not option.is_flag and chance.random() < 0.97:
            words.append(_value(option, chance))
    arguments = sum(isinstance(each, click.Argument) for each in found.params)
    words += [chance.choice(VALUES) for _ in range(arguments) if chance.random() < 0.9]
    if chance.random() < 0.05:
        words.insert(chance.randrange(len(words) + 1), chance.choice((*VALUES, "--no-such-flag", "-zz", "--help")))
    return words


def _value(option: click.Option, chance: random.Random) -> str:
    if isinstance(option.type, click.Choice) and chance.random() < 0.8:
        return str(chance.choice(option.type.choices))
    return chance.choice(VALUES)


def outcome(words: list[str]) -> str:
    """What comes of a command in a folder of its own, where the shell stands."""
    before = {name: _hash(name) for name in INPUTS}
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = run(words)
        except BaseException as error:
            return f"crashed: {type(error).__name__}: {error}"
    told = err.getvalue()
    if "Traceback" in told or "fault of posthoc-lt" in told or status not in (0, 1, 2):
        return f"crashed: status {status}: {told.strip()[-300:]}"
    if status and "Error: " not in told:
        return f"crashed: status {status} without a word"
    if status == 1 and out.getvalue():
        return "crashed: status 1 after a result"
    if harmed := [name for name in INPUTS if name not in _written(words) and _hash(name) != before[name]]:
        return f"harmed an input: {harmed[0]}"
    return "refused" if status else "right"


def _written(words: list[str]) -> set[str]:
    """What a command was told to overwrite and does not read; no flag lets it overwrite what it reads."""
    if "--force" not in words:
        return set()
    named = {words[place + 1] for place, word in enumerate(words[:-1]) if word in ("-o", "--out")}
    read = {"feats.safetensors"} if words[0] not in ("extract", "import") else set()
    return {name for name in named if words.count(name) == 1} - read


def _hash(name: str) -> str:
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "gone"


@contextmanager
def standing_in(folder: Path) -> Iterator[None]:
    """The shell in a folder, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
