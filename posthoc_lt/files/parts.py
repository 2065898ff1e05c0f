"""Long work kept as it goes: parts with checksums in a folder beside the file that they are for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError, show
from posthoc_lt.files.atomic import replacing, unwritable
from posthoc_lt.files.container import Pieces, read_container, write_container

_PART = "posthoc-lt-part"
_VERSION = "1"
_LOCK = "lock"
_held = set[int]()
"""The open locks, which a forked worker process lets go of: it may outlive this one, and they with it."""
_AGAIN = "type the same command again, which makes it anew"


@dataclass(frozen=True)
class Part:
    """Some consecutive samples of a split, done.

    Args:
        path: its file.
        start, stop: the samples that it stands for.
        dtypes: of its tensors, by name.
        notes: what else was found out, as JSON allows.
    """

    path: Path
    start: int
    stop: int
    dtypes: Mapping[str, torch.dtype]
    notes: Mapping[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Memory-mapped, their checksums verified anew.

        Raises:
            PosthocError: the file has changed or is gone.
        """
        return read_container(self.path, _PART, _VERSION, _AGAIN)[0]


@dataclass(frozen=True)
class Parts:
    """The parts of one piece of work.

    Parts of other work for the same file, which differs in what decides the result, lie in folders of their own,
    so that nothing mixes and going back to it goes on.

    Args:
        folder: where they lie.
    """

    folder: Path

    def done(self, split: str) -> list[Part]:
        """The parts of a split in order, every checksum verified; what is damaged or overlaps one before it goes."""
        found: list[Part] = []
        for path in sorted(self.folder.glob(f"{split}-*.safetensors")):
            try:
                part = _read(path)
            except (PosthocError, ValueError, LookupError, TypeError, RecursionError):
                part = None
            if part is not None and part.start >= (found[-1].stop if found else 0):
                found.append(part)
            else:
                path.unlink(missing_ok=True)
        return found

    def add(self, split: str, span: range, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> Part:
        """Write a part, whole or not at all, and synced to disk.

        Raises:
            PosthocError: it cannot be written.
        """
        path = self.folder / f"{split}-{span.start:012}.safetensors"
        said = {"format": _PART, "version": _VERSION, "span": json.dumps([span.start, span.stop])}
        with replacing(path, force=True) as temporary:
            write_container(temporary, tensors, {**said, "notes": json.dumps(notes)})
        return _part(path, tensors, span, json.loads(json.dumps(notes)))

    def join(self, name: str, tensors: Mapping[str, Tensor | Pieces]) -> None:
        """Write what parts give together, for work on the whole; `joined` reads it.

        Raises:
            PosthocError: it cannot be written.
        """
        with replacing(self._whole(name), force=True) as temporary:
            write_container(temporary, tensors, {"format": _PART, "version": _VERSION})

    def joined(self, name: str) -> dict[str, Tensor]:
        """Memory-mapped, the checksums verified."""
        return read_container(self._whole(name), _PART, _VERSION, _AGAIN)[0]

    def _whole(self, name: str) -> Path:
        return self.folder / f"whole.{name}"

    def remove(self) -> None:
        """Remove all parts for this file, once it is there."""
        whole = self.folder.parent
        with suppress(OSError):
            for each in whole.iterdir():
                if each.name != _LOCK:
                    shutil.rmtree(each, ignore_errors=True)
            (whole / _LOCK).unlink()  # last: whoever makes a new one must find nothing that is still to go
            whole.rmdir()


@contextmanager
def working(path: Path, identity: Mapping[str, object]) -> Iterator[Parts]:
    """The parts of the work on `path`, which nobody else may do meanwhile but processes that work together.

    Args:
        path: the file that they are for; they lie in ``.NAME.parts`` beside it.
        identity: all that decides what the parts hold.

    Raises:
        PosthocError: the folder cannot be made, or another process is at it.
    """
    folder = _folder(path) / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    with ExitStack() as stack:
        if ranks.rank() == 0:
            stack.enter_context(_locked(folder.parent, path))
            try:
                folder.mkdir(exist_ok=True)  # only now: who had the lock before may have removed it
            except OSError as error:
                raise unwritable(folder, error) from None
            for left in folder.glob(".*.tmp"):  # by a process that was killed as it wrote
                left.unlink()
        ranks.wait()
        yield Parts(folder)


def discard(path: Path) -> None:
    """Remove what parts there still are for a file that is there, unless another process is at it."""
    if ranks.rank() == 0 and _folder(path).is_dir():
        with ranks.alone(), suppress(PosthocError), working(path, {}) as parts:
            parts.remove()


def _folder(path: Path) -> Path:
    return path.with_name(f".{path.name[:60]}.parts")  # as much of the name as fits with what is added


@contextmanager
def _locked(folder: Path, path: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    except (FileNotFoundError, FileExistsError) as error:
        if folder.is_file():  # asked once, for it comes and goes
            raise unwritable(folder, error) from None
        raise _busy(path) from None  # another process has removed it in between
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        _lock(file, path)
        _held.add(file)
        yield
    finally:
        _held.discard(file)
        os.close(file)


def _let_go() -> None:
    for file in _held:
        os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _lock(file: int, path: Path) -> None:
    with suppress(ImportError):
        import fcntl  # not on every platform

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(path) from None
        except OSError:
            return  # not every file system has locks
        if not os.fstat(file).st_nlink:  # who had it has removed it: the next one makes, and has, another
            raise _busy(path)


def _busy(path: Path) -> PosthocError:
    return PosthocError(
        f"{show(path)}, which another process is making",
        "one at a time",
        "wait for it, or give --out with another name",
    )


def _read(path: Path) -> Part:
    tensors, said = read_container(path, _PART, _VERSION, _AGAIN)
    start, stop = json.loads(said["span"])
    return _part(path, tensors, range(start, stop), json.loads(said["notes"]))


def _part(path: Path, tensors: Mapping[str, Tensor], span: range, notes: Mapping[str, Any]) -> Part:
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    return Part(path, span.start, span.stop, dtypes, notes)
