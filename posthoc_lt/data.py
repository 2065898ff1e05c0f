"""Images in folders: ``train/ val/ test/``, a folder a class in each."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.features import SPLITS

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")

_LAYOUT = "a folder with train/ val/ test/ (at least one), a folder a class in each, images in these"
_FEW = 512
"""Below so many images, reading them alongside would not pay."""

Item = tuple[Path, int]


@dataclass(frozen=True, eq=False)
class ImageData:
    """Where the images of every split lie.

    Args:
        root: the folder of the splits.
        classes: C names, the class folders of train (else val, else test) in sorted order.
        splits: for each split that is there, (path, class index) of every image, by class and then by path.
    """

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Item, ...]]

    def counts(self, split: str) -> Tensor:
        """Images a class in one split, (C,) int64."""
        labels = torch.tensor([label for _, label in self.splits[split]], dtype=torch.int64)
        return torch.bincount(labels, minlength=len(self.classes))

    def limited(self, limit: int | None) -> ImageData:
        """At most `limit` images a split, every class in its proportion and, where `limit` allows, present.

        Within a class they are taken at even distances, so that the choice is the same every time.

        Raises:
            PosthocError: `limit` is below 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise PosthocError(f"limit {limit}", "a whole number above 0", "drop --limit to take every image")
        return replace(self, splits={name: _thin(items, limit) for name, items in self.splits.items()})


def read_folder(root: Path | str) -> ImageData:
    """List the images under `root`; hidden files and files that are no images are passed over.

    Raises:
        PosthocError: no such folder, no split in it, a class folder without images, or a class in val or test
            that train does not have.

    >>> read_folder("nowhere")
    Traceback (most recent call last):
    posthoc_lt.errors.PosthocError: data folder nowhere, which does not exist. Wanted: ...
    """
    root = Path(root)
    if not root.is_dir():
        what = "which is no folder" if root.exists() else "which does not exist"
        raise PosthocError(f"data folder {show(root)}, {what}", _LAYOUT, "give --data with the folder of your images")
    present = [name for name in SPLITS if (root / name).is_dir()]
    if not present:
        inside = listed(sorted(path.name for path in root.iterdir())) or "nothing"
        raise PosthocError(f"data folder {show(root)}, which holds {inside}", _LAYOUT, "move the images into that form")
    classes = _folders(root / present[0])
    if not classes:
        raise PosthocError(
            f"{show(root / present[0])}, which has no class folders", _LAYOUT, "sort its images by class"
        )
    splits = {name: _read_split(root / name, classes, root / present[0]) for name in present}
    return ImageData(root, tuple(printable(name) for name in classes), splits)


def fingerprint(data: ImageData) -> str:
    """A sha256 over (split, path, size, time of change) of every image, by which a cache knows its data."""
    digest = hashlib.sha256()
    for name, items in data.splits.items():
        for path, _ in items:
            status = _status(path)
            digest.update(
                os.fsencode(f"{name}\0{path.relative_to(data.root)}\0{status.st_size}\0{status.st_mtime_ns}\n")
            )
    return digest.hexdigest()


class ImageSplit(Dataset[tuple[Tensor, int]]):
    """The images of one split, decoded and prepared one by one.

    Args:
        items: (path, class index) of every image.
        prepare: from a decoded image to the tensor that the network takes.

    Indexing raises a PosthocError that names the file where an image is broken or too large to be honest.
    """

    def __init__(self, items: Sequence[Item], prepare: Callable[[Image.Image], Tensor]) -> None:
        self.items = items
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.items[index]
        try:
            with Image.open(path) as image:
                _refuse_bomb(image)
                return self.prepare(image), label
        except (OSError, ValueError, SyntaxError, EOFError, *_BOMBS) as error:
            raise PosthocError(
                f"image {show(path)}, which cannot be read ({show(error)})",
                "a whole image of 8 or 16 bits a channel",
                "replace or remove that file",
            ) from None

    def stack(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images (n, channels, height, width) and labels (n,) of some indices, as one batch."""
        return self._stacked(indices, [self[index] for index in indices])

    def batches(self, size: int, workers: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in order, `size` at a time; read ahead by `workers` threads.

        Threads suffice, since decoding lets go of Python's lock. None takes one a core, or none for few images.
        """
        if size < 1 or (workers is not None and workers < 0):
            raise PosthocError(
                f"batch size {size} with {workers} workers",
                "a batch size above 0 and workers of 0 or more",
                "give, for example, --batch-size 256 --workers 4",
            )
        if workers is None:
            workers = 0 if len(self) < _FEW else (os.cpu_count() or 1)
        starts = range(0, len(self), size)
        groups = [range(start, min(start + size, len(self))) for start in starts]
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if workers == 0:
                yield from map(self.stack, groups)
            else:
                yield from self._read_ahead(groups, workers)

    def _read_ahead(self, groups: Sequence[Sequence[int]], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        waiting: deque[tuple[Sequence[int], list[Future[tuple[Tensor, int]]]]] = deque()
        try:
            for group in groups:
                waiting.append((group, [pool.submit(self.__getitem__, index) for index in group]))
                if len(waiting) > 2:
                    yield self._finished(*waiting.popleft())
            while waiting:
                yield self._finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _finished(self, group: Sequence[int], futures: list[Future[tuple[Tensor, int]]]) -> tuple[Tensor, Tensor]:
        return self._stacked(group, [future.result() for future in futures])

    def _stacked(self, indices: Sequence[int], samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        first = samples[0][0]
        for index, (x, _) in zip(indices, samples, strict=True):
            if x.shape != first.shape:
                sizes = " and ".join("x".join(map(str, reversed(shape[1:]))) for shape in (first.shape, x.shape))
                raise PosthocError(
                    f"images of different sizes ({sizes} pixels: {show(self.items[indices[0]][0])} and "
                    f"{show(self.items[index][0])}) for a network of no fixed input size",
                    "one size for every image",
                    "give --input-size 224, or the size that the network was trained on",
                )
        return torch.stack([x for x, _ in samples]), torch.tensor([label for _, label in samples])


def printable(text: str | Path) -> str:
    """A path or file name as text that any file can hold: bytes that are no UTF-8 become replacement marks."""
    return os.fsencode(text).decode("utf-8", "replace")


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise PosthocError(
            f"image {show(path)}, which cannot be read ({error.strerror})", "a readable file", "replace or remove it"
        ) from None


_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def _refuse_bomb(image: Image.Image) -> None:
    # Where warnings are not errors, Pillow only warns of the first kind.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {limit}")


def _folders(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _read_split(place: Path, classes: Sequence[str], first: Path) -> tuple[Item, ...]:
    found = _folders(place)
    if unknown := sorted(set(found) - set(classes)):
        raise PosthocError(
            f"{show(place)} with class {listed(unknown)}, which {show(first)} does not have",
            "the same class folders in every split",
            "rename or remove it",
        )
    if not found:
        raise PosthocError(f"{show(place)}, which has no class folders", _LAYOUT, "fill it, or remove it")
    images = {name: _images(place / name) for name in found}
    if empty := [place / name for name, paths in images.items() if not paths]:
        raise PosthocError(
            f"class folder {listed(empty)} without images",
            "at least one image (" + " ".join(extension[1:] for extension in EXTENSIONS) + ") in every class folder",
            "fill or remove it",
        )
    return tuple((path, label) for label, name in enumerate(classes) for path in images.get(name, ()))


def _images(place: Path) -> list[Path]:
    found = []
    for folder, inner, names in os.walk(place):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [
            Path(folder, name) for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(found)


def _thin(items: Sequence[Item], limit: int) -> tuple[Item, ...]:
    if limit >= len(items):
        return tuple(items)
    quota = _quota(Counter(label for _, label in items), limit)
    chosen: list[Item] = []
    for label in sorted(quota):
        own = [item for item in items if item[1] == label]
        chosen += [own[i * len(own) // quota[label]] for i in range(quota[label])]
    return tuple(chosen)


def _quota(counts: Mapping[int, int], limit: int) -> dict[int, int]:
    """Proportional shares by largest remainder, one at least for as many classes as `limit` allows."""
    order = sorted(counts, key=lambda label: (-counts[label], label))
    shares = {label: min(1, counts[label]) for label in order[:limit]}
    left, total = limit - len(shares), sum(counts.values()) - len(shares)
    exact = {label: left * (counts[label] - 1) / max(total, 1) for label in shares}
    for label in shares:
        shares[label] += int(exact[label])
    rest = sorted(shares, key=lambda label: (int(exact[label]) - exact[label], -counts[label], label))
    for label in rest[: limit - sum(shares.values())]:
        shares[label] += 1
    return shares
