"""Augmented views of train images, for fits that want more of each than the one the network sees in evaluation."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from PIL import Image
from torch import Tensor

from posthoc_lt.checkpoint import Preprocessing, Transform
from posthoc_lt.data import Data, Reader, Samples
from posthoc_lt.errors import PosthocError, show

AREA = (0.35, 1.0)
"""How much of an image a view shows: milder than the usual 0.08, from which a backbone learns but a head unlearns."""

ASPECT = (3 / 4, 4 / 3)
"""Width by height of what it shows, in the proportions of the image."""


class View(Reader):
    """One view of every image: a part of it, drawn at random and resized to the whole, mirrored half of the time.

    What is drawn depends on the seed, the view and the image's index alone, so that order, workers and processes
    change nothing.

    Args:
        samples: the images.
        transform: how the network takes them.
        exif, skip: as a `Reader`'s.
        seed: of all views.
        view: which of them, from 1.
    """

    def __init__(self, samples: Samples, transform: Transform, exif: bool, skip: bool, seed: int, view: int) -> None:
        super().__init__(samples, transform, transform.collate, exif=exif, skip=skip)
        self.transform = transform
        self.seed = seed
        self.view = view

    def prepared(self, raw: Any, index: int) -> Tensor:
        """The view of one image."""
        rng = Random(f"{self.seed}/{self.view}/{index}")
        if not isinstance(raw, Image.Image) or not isinstance(self.transform, Preprocessing):
            raise not_images(f"{show(self.samples.name(index))}, which is no image")
        return self.transform.part(raw, _box(rng, *raw.size), mirrored=rng.random() < 0.5)


def _box(rng: Random, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of a part of random area, aspect and place."""
    area, aspect = rng.uniform(*AREA), math.exp(rng.uniform(*map(math.log, ASPECT)))
    across, down = (min(1.0, math.sqrt(area * each)) for each in (aspect, 1 / aspect))
    left, upper = rng.uniform(0, 1 - across) * width, rng.uniform(0, 1 - down) * height
    return left, upper, left + across * width, upper + down * height


def require_views(views: int, data: Data) -> None:
    """Refuse views of what cannot be augmented here.

    Raises:
        PosthocError: below 1, or of texts, or there is no train split.
    """
    if views < 1:
        raise PosthocError(f"{views} views", "1 or more, the first without augmentation", "give --views 4")
    if views > 1 and data.kind != "images":
        raise not_images(f"{show(data.place)}, which holds {data.kind}")
    if views > 1 and "train" not in data.splits:
        raise PosthocError(f"{views} views of train, and no train split", "one", "add it, or leave --views out")


def not_images(given: str) -> PosthocError:
    """What to tell where there is nothing to augment."""
    return PosthocError(f"--views for {given}", "images", "leave --views out, or augment in the data set's own code")
