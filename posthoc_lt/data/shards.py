"""Tar shards in the form of WebDataset: ``key.jpg`` beside ``key.cls``."""

from __future__ import annotations

import glob
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from torch import Tensor

from posthoc_lt.data.images import EXTENSIONS
from posthoc_lt.data.samples import Found, label_at, split_within
from posthoc_lt.data.unpacked import Unpacked
from posthoc_lt.errors import PosthocError, listed, show

_LAYOUT = "a tar (perhaps .tar.gz) that holds, for every sample, key.jpg (or .png …) and key.cls with its class"


class Member(NamedTuple):
    """An image within a shard: which shard, its name, and its bytes' place."""

    shard: int
    name: str
    offset: int
    size: int


class TarImages:
    """Images within tar files, read where they lie.

    Args:
        shards: the tar files.
        members: N images.
        labels: (N,) int64, or None.
        places: where each shard lies uncompressed.
        unpacked: holds those places that are temporary.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        members: Sequence[Member],
        labels: Tensor | None,
        places: Sequence[Path],
        unpacked: Unpacked,
    ) -> None:
        self.shards = shards
        self.places = places
        self.unpacked = unpacked
        self.members = members
        self.labels = labels
        self.own_code = False

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> tuple[bytes, int | None]:
        member = self.members[index]
        with self.places[member.shard].open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size), label_at(self.labels, index)

    def name(self, index: int) -> str:
        """The shard and the member."""
        member = self.members[index]
        return f"{self.shards[member.shard]}:{member.name}"

    def stamp(self, index: int) -> str:
        """The shard's name, size and time of change, and the member."""
        member = self.members[index]
        status = self.shards[member.shard].stat()
        return f"{self.shards[member.shard].name}\0{status.st_size}\0{status.st_mtime_ns}\0{member.name}"


def read_shards(shards: Sequence[Path]) -> Found:
    """The images of one split's shards, listed from the tars' headers alone; compressed ones are unpacked first.

    Raises:
        PosthocError: a shard cannot be read or is cut short, or only some images have a label.
    """
    members: list[Member] = []
    written: list[str] = []
    places, unpacked = [], Unpacked()
    for number, path in enumerate(shards):
        place, inside = _shard(number, path, unpacked)
        places.append(place)
        members += [member for member, _ in inside]
        written += [label for _, label in inside if label is not None]
    if not members or len(written) not in (0, len(members)):
        what = f"with {len(members)} images and {len(written)} labels"
        raise PosthocError(f"shards {listed(shards, 2)} {what}", _LAYOUT, "write them again")
    return Found(lambda labels: TarImages(shards, members, labels, places, unpacked), written or None)


def find_shards(pattern: str) -> list[Path]:
    """The files that a pattern names, sorted: ``{a,b}`` and ``{000..012}`` expand, ``*`` and ``?`` match.

    Raises:
        PosthocError: a part of the pattern names no file.
    """
    found: set[Path] = set()
    for part in expand(pattern):
        paths = [Path(path) for path in glob.glob(part)]
        if not paths:
            raise PosthocError(
                f"shards {show(part)}, which do not exist",
                "tar or Parquet files",
                "correct the pattern, and quote it so that the shell leaves it alone: --data 'shards/train-*.tar'",
            )
        found |= set(paths)
    return sorted(found)


def by_split(shards: Sequence[Path]) -> dict[str, list[Path]]:
    """Shards by the split that their names, or else their folders', mean.

    Raises:
        PosthocError: a name means no split, or several.
    """
    found: dict[str, list[Path]] = {}
    for path in shards:
        split = split_within(path.stem) or split_within(path.absolute().parent.name)
        if split is None:
            raise PosthocError(
                f"shard {show(path)}, whose name tells no split",
                "names with train, val or test in them, such as train-000.tar",
                "give the shards of each split by --train, --val and --test",
            )
        found.setdefault(split, []).append(path)
    return found


def expand(pattern: str) -> list[str]:
    """A pattern's braces written out.

    >>> expand("{train,val}-{08..10}.tar")[2:4]
    ['train-10.tar', 'val-08.tar']
    """
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    start, end = pattern[: braces.start()], pattern[braces.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if span is None:
        parts = braces[1].split(",")
    else:
        parts = [str(number).zfill(len(span[1])) for number in range(int(span[1]), int(span[2]) + 1)]
    return [start + part + rest for part in parts for rest in expand(end)]


def _shard(number: int, path: Path, unpacked: Unpacked) -> tuple[Path, list[tuple[Member, str | None]]]:
    """Where a shard lies uncompressed, and its images with their labels."""
    try:
        place = unpacked.place(number, path)
        return place, list(_members(number, place))
    except (OSError, EOFError, tarfile.TarError, ValueError, zlib.error) as error:
        raise PosthocError(
            f"shard {show(path)}, which cannot be read ({show(error)})", _LAYOUT, "write or fetch it again"
        ) from None


def _members(number: int, path: Path) -> Iterator[tuple[Member, str | None]]:
    size = path.stat().st_size
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        key, image, label = "", None, None
        for info in tar:
            if not info.isreg() or info.sparse is not None:
                continue
            if info.offset_data + info.size > size:
                raise tarfile.ReadError(f"cut short within {info.name}")
            name = PurePosixPath(info.name)
            stem, _, extension = name.name.partition(".")
            if str(name.with_name(stem or "_")) != key:
                if image is not None:
                    yield image, label
                key, image, label = str(name.with_name(stem or "_")), None, None
            if ("." + extension.lower()).endswith(EXTENSIONS):
                if image is not None:
                    raise tarfile.ReadError(f"two images of one key, {image.name} and {info.name}")
                image = Member(number, info.name, info.offset_data, info.size)
            elif extension.lower() == "cls":
                file.seek(info.offset_data)
                label = sys.intern(file.read(min(info.size, 1 << 10)).decode().strip())
        if image is not None:
            yield image, label
