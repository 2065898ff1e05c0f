"""Decoding one image, whatever state its file is in; and images that are files of their own."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from posthoc_lt.data.samples import label_at

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")


class UnreadableImageError(Exception):
    """An image that cannot be decoded whole; its text says why."""


def open_image(source: Path | bytes, exif: bool = False) -> tuple[Image.Image, bool]:
    """The first frame, fully decoded, and whether there are more.

    Args:
        source: a file, or an encoded image.
        exif: turn it as its EXIF orientation says. torchvision's and timm's data sets do not, so a network
            trained with them has seen turned photographs as they are stored.

    Raises:
        UnreadableImageError: no image, cut short, or larger than Pillow's bound on decompression bombs.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            _refuse_bomb(image)
            # A photograph with a preview beside it (MPO) is not an animation.
            more = image.format != "MPO" and bool(getattr(image, "is_animated", False))
            image.load()
            return (ImageOps.exif_transpose(image) if exif else image), more
    except Exception as error:  # on a corrupt file Pillow's decoders raise nearly anything
        why = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UnreadableImageError(why) from None


def _refuse_bomb(image: Image.Image) -> None:
    # Where warnings are not errors, Pillow only warns of the first kind.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {limit}")


class ImageFiles:
    """Images that are files.

    Args:
        root: the folder that their names start from; moving it changes no stamp.
        names: N paths, relative to `root` or absolute; text, since a million of them are held.
        labels: (N,) int64, or None.
    """

    def __init__(self, root: Path, names: Sequence[str], labels: Tensor | None) -> None:
        self.root = root
        self.names = names
        self.labels = labels
        self.own_code = False

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Path, int | None]:
        return self.root / self.names[index], label_at(self.labels, index)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.root / self.names[index])

    def stamp(self, index: int) -> str:
        """Its path below the root, size and time of change."""
        status = os.stat(os.path.join(self.root, self.names[index]))
        return f"{self.names[index]}\0{status.st_size}\0{status.st_mtime_ns}"
