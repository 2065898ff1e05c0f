"""Corrupted files, hostile ones, commands typed at random or killed at a write: how many were tried, what came of each.

python examples/benchmarks/hostile.py [--flips 400] [--commands 300] [--seed 0] [--only NAME] [--json]

- right: what was read equals what was written; a command did what it was told.
- refused: one clear error, and of a command status 1 or 2. A command that was killed, or whose disk was full, left
  nothing but what was there before, and the same command then finished.
- unseen: a changed byte in a file of another program that has no checksum for it (safetensors, torch's form before 1.6,
  an archive packed anew): it reads as a checkpoint of other weights.
- wrong, crashed, ran code, harmed an input: what must never be. The status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hostile_checkpoints import bombs, running
from hostile_commands import command, prepare, standing_in
from hostile_commands import outcome as outcome_of_command
from hostile_faults import FAULTS, faults
from hostile_files import KINDS, corruptions, digest, headers, outcome, records

GOOD = ("right", "refused", "unseen")
WORDS = (*GOOD, "wrong", "crashed", "ran code", "harmed an input")
MEMORY = 1 << 29
"""How much more than it holds already the process may take to read a bomb."""

Tried = Iterator[tuple[str, str]]
"""What was tried, and what came of it."""


def corrupted(name: str, folder: Path, flips: int, seed: int = 0) -> Tried:
    """One kind of file, damaged in every way in turn; of several files one at a time."""
    kind = KINDS[name]
    opened = kind.make(folder)
    truth = digest(kind.read(opened))
    chance = random.Random(seed)
    files = sorted(folder.iterdir())
    for path in files:
        data = path.read_bytes()
        for what, changed in corruptions(data, chance, flips // len(files)):
            path.write_bytes(changed)
            found = outcome(kind, opened, truth)
            yield f"{path.name}: {what}", found if path.read_bytes() == changed else "harmed an input"
        if data[8:9] == b"{":
            for what, changed in headers(data):
                path.write_bytes(changed)
                yield f"{path.name}: {what}", outcome(kind, opened, truth)
        if data.startswith(b"PK"):
            for what, changed in records(data):
                path.write_bytes(changed)
                known = kind._replace(sealed=what.startswith("compressed"))  # packed anew, with checksums that fit
                yield f"{path.name}: {what}", outcome(known, opened, truth)
        path.write_bytes(data)
    assert outcome(kind, opened, truth) == "right"


def code(folder: Path) -> Tried:
    """Checkpoints that would run code; none of them may so much as be read."""
    path, canary = folder / "model.pt", folder / "canary"
    for what, make in running(canary).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(path, canary)
        yield what, outcome(KINDS["torch.save"], path, None, canary)
        path.unlink()


def exploding(folder: Path) -> Tried:
    """Bombs, under a limit of memory."""
    for number, (what, make) in enumerate(bombs().items()):
        path = folder / f"{number}.pt"
        make(path, folder / "canary")
        with limited_memory():
            found = outcome(KINDS["safetensors"], path, None)
        yield what, "right" if found == "unseen" else found  # odd, but it holds what was put into it


def commands(folder: Path, count: int, seed: int = 0) -> Tried:
    """Commands at random, each on the files as they were."""
    chance = random.Random(seed)
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        prepare(place)
        words = command(chance)
        with standing_in(place), limited_memory():
            found = outcome_of_command(words)
        yield " ".join(words), found


@contextmanager
def limited_memory() -> Iterator[None]:
    """No more address space than what is taken and `MEMORY`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def all_of(only: str | None, flips: int, count: int, seed: int) -> Iterator[tuple[str, Tried]]:
    """What is tried, by name."""
    with tempfile.TemporaryDirectory() as root:

        def made(name: str) -> Path:
            place = Path(root, name)
            place.mkdir()
            return place

        for name in KINDS:
            yield name, corrupted(name, made(name), flips, seed) if only in (None, name) else iter(())
        yield "code", code(made("code")) if only in (None, "code") else iter(())
        yield "bombs", exploding(made("bombs")) if only in (None, "bombs") else iter(())
        yield "commands", commands(made("commands"), count, seed) if only in (None, "commands") else iter(())
        for name in FAULTS:
            yield name, faults(made(name), name) if only in (None, name) else iter(())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--flips", type=int, default=400, help="random flips for a kind of file, and cuts in proportion"
    )
    parser.add_argument("--commands", type=int, default=300, help="random commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*KINDS, "code", "bombs", "commands", *FAULTS])
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    bad: list[str] = []
    if not options.json:
        print(_line("", "tried", WORDS))
    for name, tried in all_of(options.only, options.flips, options.commands, options.seed):
        counts[name] = Counter()
        for what, found in tried:
            word = found.partition(":")[0]
            counts[name][word] += 1
            if word not in GOOD:
                bad.append(f"{name}: {what}: {found}")
        if counts[name] and not options.json:
            _print(name, counts[name])
    total = sum(counts.values(), Counter[str]())
    if options.json:
        print(json.dumps({"counts": counts, "total": total, "bad": bad}))
    else:
        _print("all", total)
        for line in bad:
            print(ascii(line), file=sys.stderr)
    return 1 if bad else 0


def _print(name: str, found: Counter[str]) -> None:
    print(_line(name, found.total(), [found[word] for word in WORDS]), flush=True)


def _line(name: str, tried: object, cells: Iterable[object]) -> str:
    shown = (f"{cell:>{max(8, len(word))}}" for cell, word in zip(cells, WORDS, strict=True))
    return f"{name:22} {tried:>6} " + " ".join(shown)


if __name__ == "__main__":
    sys.exit(main())
