"""One split in a folder: a folder a class, or images without labels directly in it."""

from __future__ import annotations

import os
from pathlib import Path

from posthoc_lt.data.images import EXTENSIONS, ImageFiles
from posthoc_lt.data.samples import Found
from posthoc_lt.errors import PosthocError, listed, show


def read_folder(place: Path) -> Found:
    """List the images of one split; hidden files and files that are no images are passed over.

    Class folders may hold folders of their own. Images beside class folders are passed over, as torchvision's
    ImageFolder does; where there is no class folder they are an unlabelled split.

    Raises:
        PosthocError: neither class folders nor images, or a class folder without images.
    """
    classes = _folders(place)
    if not classes:
        loose = [os.path.join(place.name, name) for name in sorted(os.listdir(place)) if _is_image(name)]
        if not loose:
            raise PosthocError(
                f"{show(place)}, which has no class folders and no images",
                "a folder a class, images in these; or images alone, where there are no labels",
                "fill it, or remove it",
            )
        return Found(lambda labels: ImageFiles(place.parent, loose, labels))
    found = {name: _images(place.parent, os.path.join(place.name, name)) for name in classes}
    if empty := [place / name for name, inside in found.items() if not inside]:
        raise PosthocError(
            f"class folder {listed(empty)} without images",
            "at least one image (" + " ".join(extension[1:] for extension in EXTENSIONS) + ") in every class folder",
            "fill or remove it",
        )
    paths = [path for inside in found.values() for path in inside]
    written = [name for name, inside in found.items() for _ in inside]
    return Found(lambda labels: ImageFiles(place.parent, paths, labels), written, named=True)


def _folders(place: Path) -> list[str]:
    with os.scandir(place) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, inside: str) -> list[str]:
    """The images below a folder of `root`, each class's in the order of their path's parts."""
    found = []
    for folder, inner, names in os.walk(root / inside):
        inner[:] = [name for name in inner if not name.startswith(".")]
        below = os.path.relpath(folder, root)
        found += [os.path.join(below, name) for name in names if _is_image(name)]
    return sorted(found, key=lambda path: path.split(os.sep))


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")
