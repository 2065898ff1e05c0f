"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import filecmp
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from posthoc_lt import ranks
from posthoc_lt.errors import PosthocError, show

_PATIENCE = 60
"""Seconds that another process may take to name its files."""


@contextmanager
def replacing(path: Path, force: bool = False, inside: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, or in a folder `inside` its folder, renamed onto it when the block ends well.

    The file appears under its final name complete and synced to disk, or not at all; its mode comes
    from the umask. A file that already holds the very same bytes is left as it is, so that a command
    typed twice succeeds twice; a different one is kept unless `force`.

    Of processes that work together all write, for a block cannot be left out, each to a path of its own; the first
    one's becomes the file, and all go on when it is there.

    Raises:
        PosthocError: the folder cannot be written to, or `path` exists with other content.
    """
    path = Path(path)
    temporary = _reserve(path, inside)
    try:
        yield temporary
        if ranks.rank() == 0:
            _publish(temporary, path, force)
    except OSError as error:
        if error.filename is not None and str(error.filename) not in (str(temporary), str(path)):
            raise
        raise unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    ranks.wait()


def require_writable(path: Path) -> None:
    """Find out before long work, not after it, that its result could not be written.

    Raises:
        PosthocError: the folder of `path` cannot be written to, `path` is a folder or no name for a file.
    """
    _reserve(Path(path)).unlink()


def _reserve(path: Path, inside: Path | None = None) -> Path:
    """A new empty file, hidden, under a name of its own, `inside` or beside `path`, where that could be a file."""
    try:
        # A part of the name is enough to know it by: a longer one may not fit where the name itself does.
        temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
        temporary = temporary if inside is None else inside / temporary.name
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        _create(temporary)
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from None
    return temporary


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _publish(temporary: Path, path: Path, force: bool) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    if _is_same(temporary, path):
        return
    try:
        if force:
            os.replace(temporary, path)
        else:
            _move_to_free(temporary, path)
    except FileExistsError:
        if _is_same(temporary, _filled(path)):  # another process has just made it
            return
        raise PosthocError(
            f"{show(path)}, which exists and holds something else",
            "a new file name, or leave to overwrite",
            "give --force to overwrite it, or --out with another name",
        ) from None
    with suppress(OSError):  # not every platform and file system can sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _filled(path: Path) -> Path:
    """The same path, once what another process has only taken the name for is there, or a second has gone by."""
    for _ in range(100):
        with suppress(OSError):
            if path.stat().st_size:
                break
        time.sleep(0.01)
    return path


def _is_same(temporary: Path, path: Path) -> bool:
    try:
        return path.is_file() and filecmp.cmp(temporary, path, shallow=False)
    except FileNotFoundError:  # another process has just removed it
        return False


def _move_to_free(temporary: Path, path: Path) -> None:
    """Name the file `path` where nothing has that name, so that two runs at once cannot overwrite each other."""
    try:
        os.link(temporary, path)  # never replaces a file
    except FileExistsError:
        raise
    except OSError:  # the file system knows no hard links: the name is taken first, then replaced
        _create(path)
        try:
            os.replace(temporary, path)
        except OSError:
            path.unlink()
            raise


@contextmanager
def in_turn(folder: Path) -> Iterator[Callable[[], None]]:
    """A call that waits until no other process names files in `folder`; from then on none does until the block ends.

    For several files that belong together: each appears whole, but of two writers at once each could name some.

    Raises:
        PosthocError: by the call, another process has been at it for a minute.
    """
    try:
        place = os.open(folder, os.O_RDONLY)
    except OSError:  # not every platform opens folders; where there is none, who writes there is told
        yield lambda: None
        return
    try:
        yield lambda: _wait(place, folder)
    finally:
        os.close(place)


def _wait(place: int, folder: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while ranks.rank() == 0 and not _lock(place):  # the first process names the files
        if time.monotonic() > end:
            raise PosthocError(
                f"{show(folder)}, which another process has locked for {_PATIENCE} seconds",
                "one at a time",
                "wait for it, or give --out with another folder",
            )
        time.sleep(0.1)


def _lock(place: int) -> bool:
    """Lock an open folder unless another process has; True too where there are no locks."""
    with suppress(ImportError):
        import fcntl  # not on every platform

        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # not every file system has locks
            return not isinstance(error, BlockingIOError)
    return True


def unwritable(path: Path, error: OSError | ValueError) -> PosthocError:
    """What to tell of a file that could not be written."""
    reason = error.strerror or show(error) if isinstance(error, OSError) else "no file can have that name"
    return PosthocError(
        f"{show(path)}, which cannot be written ({reason})",
        "a file in a folder that exists and that you may write to",
        "give --out with another place, or free some space",
    )
