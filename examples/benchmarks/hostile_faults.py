"""Commands that write: killed before any of their writes, or on a disk that fills up at any of them."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from hostile_commands import standing_in
from hostile_files import Network, as_exported, as_onnx, as_script
from PIL import Image
from safetensors.torch import save_file

from posthoc_lt.checkpoint import INDEX
from posthoc_lt.cli import run

CLASSES, SIDE = ("a", "b", "c"), 4
CODE = """
from hostile_files import Network

def build():
    return Network()
"""
CHECKPOINTS = (
    "model.pt",
    "model.safetensors",
    "model.safetensors.index.json",
    "script.pt",
    "whole.pt",
    "model.pt2",
    "model.onnx",
)
TRUSTED = ("whole.pt", "model.pt2")
FAULTS = ("killed", "full disk", "large file")
LIMITS = (0, 1, 8, 64, 500, 1000, 2000, 4000, 8000, 16_000)
"""Bytes after which no file can grow."""

State = Mapping[str, bytes]
"""What lies in a folder, by name."""


def commands() -> dict[str, str]:
    """Every command that writes a file, and every form of checkpoint that is written; what each writes is ``new*``."""
    exports = {
        f"export to {Path(name).name}": f"export --ckpt {name} --features {name}.feats --head {name}.head "
        f"--out new{''.join(Path(name).suffixes)}" + (" --allow-pickle" if name in TRUSTED else "")
        for name in CHECKPOINTS
    }
    with_features = "--features model.pt.feats"
    return {
        "extract": "extract --ckpt model.pt --arch own:build --out new.safetensors",
        "extract in shards": "extract --ckpt model.pt --arch own:build --out new.safetensors --shard-size 200",
        "import": "import --train x.npz --val x.npz --head h.npz --out new.safetensors",
        "dump": f"dump {with_features} --out new.npz",
        "logit-adjust": f"logit-adjust {with_features} --tau 1 --out new.safetensors",
        "rebalance": f"rebalance {with_features} --methods logit-adjust --out new.safetensors",
        "calibrate": f"calibrate {with_features} --out new.safetensors",
        "conformal": f"conformal {with_features} --out new.safetensors",
        "report": f"report {with_features} --methods logit-adjust --out new.html",
        **exports,
        "another head": f"logit-adjust {with_features} --tau 1 --out old.safetensors --force",
        "another set": "extract --ckpt model.pt --arch own:build --out old.feats --shard-size 200 --force",
        "another checkpoint": f"{exports['export to model.safetensors.index.json']} --force".replace("new", "old"),
    }


def prepare(folder: Path) -> None:
    """What commands read, images and a network in every form with features and a head; and what ``old*`` replaces."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (6, 3, 2)), ("val", (2, 2, 2)), ("test", (2, 2, 2))):
        for name, count in zip(CLASSES, counts, strict=True):
            (folder / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "data" / split / name / f"{index}.png")
    (folder / "own.py").write_text(CODE)
    np.savez(folder / "x.npz", x=rng.normal(size=(6, 4)).astype("f4"), y=np.array([0, 1, 2, 0, 1, 2]))
    np.savez(folder / "h.npz", w=rng.normal(size=(3, 4)).astype("f4"), b=np.zeros(3, "f4"))
    _checkpoints(folder)
    with standing_in(folder):
        lines = []
        for name in CHECKPOINTS:
            arch = "" if name in (*TRUSTED, "script.pt", "model.onnx") else " --arch own:build"
            trust = " --allow-pickle" if name in TRUSTED else ""
            lines.append(f"extract --ckpt {name} --out {name}.feats{arch}{trust}")
            lines.append(f"logit-adjust --tau 1 --features {name}.feats --out {name}.head")
        lines.append("tau-norm --tau 1 --features model.pt.feats --out old.safetensors")
        lines.append("extract --ckpt model.pt --arch own:build --out old.feats --shard-size 200 --limit 6")
        sharded = CHECKPOINTS[2]
        lines.append(f"tau-norm --tau 1 --features {sharded}.feats --out other.head")
        lines.append(commands()["another checkpoint"].replace(f"{sharded}.head", "other.head"))
        for words in lines:
            status, told = silently(words)
            if status:
                raise RuntimeError(f"{words}: {told}")


def _checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    network = Network().eval()
    state = network.state_dict()
    torch.save(state, folder / "model.pt")
    save_file(state, folder / "model.safetensors")
    places = {name: f"model-0000{i}-of-00004.safetensors" for i, name in enumerate(state, 1)}
    for name, place in places.items():
        save_file({name: state[name]}, folder / place)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index)
    torch.save(network, folder / "whole.pt")
    as_onnx(network, folder / "model.onnx")
    as_script(network, folder / "script.pt")
    as_exported(network, folder / "model.pt2")


def silently(words: str) -> tuple[int, str]:
    """The status of a command, and all that it said."""
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        return run(words.split()), told.getvalue()


def state_of(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden, but for the images, which no command is given to write to."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return {path.name: path.read_bytes() for path in files}


# Faults


class Count:
    """A profiler that counts what a command does to the disk, and acts before the call of a number."""

    def __init__(self, number: int = -1, act: Callable[[], None] = lambda: None) -> None:
        self.number, self.act, self.seen = number, act, 0

    def __call__(self, _: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and _writes(function):
            self.seen += 1
            if self.seen - 1 == self.number:
                self.act()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, and in all threads that begin in it."""
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]  # as its documentation has it


_CALLS = {"open", "fsync", "link", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "sendfile"}


def _writes(function: Any) -> bool:
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, io.BufferedWriter | io.BufferedRandom | io.TextIOWrapper | io.FileIO):
        return name in ("write", "writelines", "truncate", "flush") and owner.name not in ("<stdout>", "<stderr>")
    return getattr(function, "__module__", "") == "posix" and name in _CALLS


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed(words: str, number: int) -> int:
    """Run a command in a process of its own that is killed before its write of a number; the status, -9 if it was."""
    child = os.fork()
    if not child:
        status = 70
        try:
            with Count(number, _kill).watching():
                status, _ = silently(words)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def outcome(words: str, told: tuple[int, str] | None, before: State, reference: State) -> str:
    """What a fault left in the current folder, and whether the same command then finishes.

    Args:
        words: the command.
        told: its status and what it said; None where it was killed.
        before: what lay there.
        reference: what lies there when nothing goes wrong.
    """
    if told is not None:
        status, text = told
        if "Traceback" in text or "fault of posthoc-lt" in text or status not in (0, 1):
            return f"crashed: status {status}: {text.strip()[-300:]}"
        if status and "Error: " not in text:
            return f"crashed: status {status} without a word"
    if damage := _damage(state_of(Path()), before, reference):
        return damage
    again, text = silently(words)
    if again or state_of(Path()) != reference:
        return f"wrong: not finished by the same command again: {text.strip()[-300:]}"
    return "right" if told is not None and told[0] == 0 else "refused"


def _damage(left: State, before: State, reference: State) -> str:
    """What must never be: an input changed, a part of a file under its name, an index with shards of two sets."""
    replaced = {name for name, data in before.items() if reference.get(name) != data}
    for name, data in before.items():
        # The index of a set that is replaced goes before the new shards come.
        gone = name not in left and name.endswith(INDEX) and replaced
        if not gone and left.get(name) not in (data, reference.get(name)):
            return f"harmed an input: {name}"
    if partial := [name for name, data in left.items() if name not in before and data != reference.get(name)]:
        return f"wrong: a part of {partial[0]}"
    if mixed := [name for name in left if name.endswith(INDEX) and _is_mixed(name, left, before, reference)]:
        return f"wrong: {mixed[0]} names shards of two sets"
    return ""


def _is_mixed(index: str, left: State, before: State, reference: State) -> bool:
    """Whether an index names shards that are neither all of the set that was there nor all of the one that shall be.

    One that names a shard which is not there is refused by whoever reads it.
    """
    shards = set(json.loads(left[index])["weight_map"].values())
    if not shards <= left.keys():
        return False
    of = [all(left.get(name) == state.get(name) for name in (index, *shards)) for state in (before, reference)]
    return not any(of)


def faults(folder: Path, kind: str, only: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Every command (or those named) under every fault of a kind, each in a folder of its own: what came of it.

    Args:
        folder: empty.
        kind: ``killed``, before a write of some number; ``full disk``, at that write; ``large file``, past some size.
        only: names of commands.
    """
    origin = folder / "origin"
    origin.mkdir()
    prepare(origin)
    for name, words in commands().items():
        if only and name not in only:
            continue
        place = folder / "place"
        shutil.copytree(origin, place)
        count = Count()
        with standing_in(place):
            before = state_of(Path())
            with count.watching():
                status, text = silently(words)
            reference = state_of(Path())
        shutil.rmtree(place)
        if status or reference == before:
            yield name, f"crashed: status {status}: {text}"
            continue
        tried = LIMITS if kind == "large file" else range(count.seen)
        for number in tried:
            shutil.copytree(origin, place)
            with standing_in(place):
                yield f"{name}, {kind} {number}", outcome(words, _faulty(kind, words, number), before, reference)
            shutil.rmtree(place)
    shutil.rmtree(origin)


def _faulty(kind: str, words: str, number: int) -> tuple[int, str] | None:
    """Run a command with a fault; its status and what it said, None where it was killed."""
    if kind == "killed":
        status = _killed(words, number)
        return None if status == -signal.SIGKILL else (status, "Error: ")
    if kind == "large file":
        with largest_file(number):
            return silently(words)
    with Count(number, _full).watching():
        return silently(words)
