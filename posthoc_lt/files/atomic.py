"""Writing a file whole or not at all."""

from __future__ import annotations

import filecmp
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posthoc_lt.errors import PosthocError, show


@contextmanager
def replacing(path: Path, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well.

    The file appears under its final name complete and synced to disk, or not at all; its mode comes
    from the umask. A file that already holds the very same bytes is left as it is, so that a command
    typed twice succeeds twice; a different one is kept unless `force`.

    Raises:
        PosthocError: the folder cannot be written to, or `path` exists with other content.
    """
    path = Path(path)
    temporary = _reserve(path)
    try:
        yield temporary
        _publish(temporary, path, force)
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (temporary, path):
            raise
        raise _unwritable(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Find out before long work, not after it, that its result could not be written.

    Raises:
        PosthocError: the folder of `path` cannot be written to.
    """
    _reserve(Path(path)).unlink()


def _reserve(path: Path) -> Path:
    """A new empty file beside `path`, hidden, under a name of its own."""
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise _unwritable(path, error) from None
    return temporary


def _publish(temporary: Path, path: Path, force: bool) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    if path.exists() and path.is_file() and filecmp.cmp(temporary, path, shallow=False):
        return
    if force:
        os.replace(temporary, path)
    else:
        try:
            # A hard link never replaces a file, so that two runs at once cannot overwrite each other.
            os.link(temporary, path)
        except FileExistsError:
            raise PosthocError(
                f"{show(path)}, which exists and holds something else",
                "a new file name, or leave to overwrite",
                "give --force to overwrite it, or --out with another name",
            ) from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unwritable(path: Path, error: OSError) -> PosthocError:
    return PosthocError(
        f"{show(path)}, which cannot be written ({error.strerror})",
        "a file in a folder that exists and that you may write to",
        "give --out with another place, or free some space",
    )
