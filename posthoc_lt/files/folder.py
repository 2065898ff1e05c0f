"""Writing a folder whole or not at all."""

from __future__ import annotations

import errno
import filecmp
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError, show

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


@contextmanager
def replacing_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed onto it when the block ends well.

    The folder appears under its final name complete, or not at all. One that already holds the very same files is
    left as it is; another one is kept unless `force`, which puts the new one in its place.

    Raises:
        PosthocError: the place cannot be written to, `path` is a file, or exists with other content.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        if ranks.rank() == 0:  # as with `replacing`
            _publish(temporary, path, force)
    except OSError as error:
        raise PosthocError(
            f"{show(path)}, which cannot be written ({error.strerror})",
            "a folder in a place that exists and that you may write to",
            "give --out with another place, or free some space",
        ) from None
    finally:
        if os.path.lexists(path):  # else the old one is all there is
            _remove(_old(temporary))  # still there where that was interrupted
        shutil.rmtree(temporary, ignore_errors=True)
    ranks.wait()


def _publish(temporary: Path, path: Path, force: bool) -> None:
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
    if _is_same(temporary, path):
        return
    try:
        if force and _may_go(path):
            _replace(temporary, path)
        elif os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        else:
            temporary.rename(path)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        if not _is_same(temporary, path):  # else another process has just made it
            raise PosthocError(
                f"{show(path)}, which exists and holds something else",
                "a new name, or leave to overwrite a folder",
                "give --force to overwrite it, or --out with another name",
            ) from None


def _may_go(path: Path) -> bool:
    """Whether a folder, or nothing, is there: asked once, for another process may be moving one away and back."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return True


def _replace(temporary: Path, path: Path) -> None:
    """Put a folder in the place of another, which is back there if that fails or is interrupted."""
    old = _old(temporary)
    try:
        while True:
            with suppress(FileNotFoundError):  # another process has just moved it away
                path.rename(old)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                _remove(old)  # another process has put its own there, which goes in turn
            else:
                break
    except BaseException:
        with suppress(OSError):  # unless the new one is there
            old.rename(path)
        raise
    _remove(old)


def _old(temporary: Path) -> Path:
    return temporary.with_suffix(".old")


def _remove(old: Path) -> None:
    if old.is_symlink():  # to the folder, which stays
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def _is_same(temporary: Path, path: Path) -> bool:
    names = _files(temporary)
    try:
        alike = path.is_dir() and _files(path) == names
    except FileNotFoundError:  # another process moves it away at this moment
        return False
    return alike and filecmp.cmpfiles(path, temporary, names, shallow=False)[0] == names


def _files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
