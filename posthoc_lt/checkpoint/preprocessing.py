"""What is done to an image before the network sees it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from posthoc_lt.errors import PosthocError, show

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's channels."""

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""Mean and standard deviation of CIFAR's channels, as most training scripts have them."""

GREY = ((0.5,), (0.5,))
"""The usual mean and standard deviation for one channel."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop, scale to 0…1, subtract `mean`, divide by `std`, as torchvision's and timm's evaluation do.

    Args:
        mean, std: one number a channel; one channel reads images as grey, three as RGB.
        input_size: the side of the square that the network takes; None leaves images at their own size.
        crop: the shorter side becomes ⌊input_size / crop⌋ before the middle is cut out; 1 cuts the least.
        squash: resize straight to the square instead, whatever the proportions.
        interpolation: nearest, bilinear, bicubic or lanczos.

    Raises:
        PosthocError: numbers that do not fit together.

    >>> Preprocessing((0.5,), (0.5,))(Image.new("L", (2, 1), 255))
    tensor([[[1., 1.]]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int | None = None
    crop: float = 1.0
    squash: bool = False
    interpolation: str = "bilinear"

    kind: ClassVar[Literal["images"]] = "images"
    collate: ClassVar[None] = None

    def __post_init__(self) -> None:
        numbers = all(math.isfinite(value) for value in (*self.mean, *self.std))
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean) or not numbers or min(self.std) <= 0:
            raise PosthocError(
                f"mean {show(self.mean)} and std {show(self.std)}",
                "one or three finite numbers each, every std above 0",
                "give, for example, --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
            )
        if self.input_size is not None and self.input_size < 1:
            raise PosthocError(f"input size {self.input_size}", "a whole number above 0", "give --input-size 224")
        if not 0 < self.crop <= 1 or self.interpolation not in _FILTERS:
            raise PosthocError(
                f"crop {self.crop} with {show(self.interpolation)} interpolation",
                "a crop in (0, 1] and one of " + ", ".join(_FILTERS),
                "correct the checkpoint's own preprocessing entries",
            )

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mean)

    def __call__(self, image: Image.Image) -> Tensor:
        """The image as the network takes it, (channels, height, width), float32."""
        return self._scaled(self._fit(self._convert(image)))

    def part(self, image: Image.Image, box: tuple[float, float, float, float], *, mirrored: bool = False) -> Tensor:
        """As much of the image as lies in a box (left, upper, right, lower), in place of the whole."""
        image = self._convert(image)
        size = image.size if self.input_size is None else (self.input_size, self.input_size)
        image = image.resize(size, _FILTERS[self.interpolation], box)
        return self._scaled(ImageOps.mirror(image) if mirrored else image)

    def _convert(self, image: Image.Image) -> Image.Image:
        return _convert(image, "L" if self.channels == 1 else "RGB")

    def _scaled(self, image: Image.Image) -> Tensor:
        pixels = np.array(image)
        x = torch.from_numpy(pixels).view(*pixels.shape[:2], self.channels).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((x - mean[:, None, None]) / std[:, None, None]).contiguous()

    def _fit(self, image: Image.Image) -> Image.Image:
        size = self.input_size
        if size is None:
            return image
        if self.squash:
            return image.resize((size, size), _FILTERS[self.interpolation])
        shorter, edge = min(image.size), math.floor(size / self.crop)
        width, height = (max(edge, int(edge * side / shorter)) for side in image.size)
        image = image.resize((width, height), _FILTERS[self.interpolation])
        left, top = round((width - size) / 2), round((height - size) / 2)
        return image.crop((left, top, left + size, top + size))

    def changed(
        self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, input_size: int | None = None
    ) -> Preprocessing:
        """The same with what is given in place; a single number stands for every channel."""

        def widen(given: Sequence[float] | None, own: tuple[float, ...]) -> tuple[float, ...]:
            if given is None:
                return own
            return tuple(given) * (len(own) if len(given) == 1 else 1)

        size = self.input_size if input_size is None else input_size
        new = replace(self, mean=widen(mean, self.mean), std=widen(std, self.std), input_size=size)
        if new.channels != self.channels:
            raise PosthocError(
                f"{new.channels} numbers of mean and std for a network of {self.channels} input channels",
                "one number, or one a channel",
                "give --mean and --std with as many numbers as channels",
            )
        return new

    def to_json(self) -> str:
        """One line of JSON, equal for equal values."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """What `to_json` wrote.

        Raises:
            PosthocError: the text is something else.
        """
        try:
            fields = json.loads(text)
            return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            raise PosthocError(
                f"preprocessing {show(text)!r}", "the JSON that extract wrote", "extract the features again"
            ) from None


def default_preprocessing(channels: int, colour: tuple[tuple[float, ...], tuple[float, ...]] = CIFAR) -> Preprocessing:
    """The preprocessing of a network of which nothing else is known: native size, and `colour` for three channels.

    Raises:
        PosthocError: images have one channel or three, and the network takes neither.
    """
    if channels not in (1, 3):
        raise PosthocError(
            f"a network with {channels} input channels",
            "one that takes grey (1) or RGB (3) images",
            "hand the model and your own loaders to posthoc_lt.rebalance((model, train_loader, val_loader))",
        )
    return Preprocessing(*(GREY if channels == 1 else colour))


def stored_preprocessing(metadata: Mapping[str, object], channels: int) -> Preprocessing | None:
    """What a checkpoint says of its own preprocessing, as timm writes it, or None where it says nothing that fits.

    Args:
        metadata: the checkpoint's; either `mean` and `std` lie there, or under `pretrained_cfg`, as values or JSON.
        channels: what the network takes.
    """
    for source in (_unfold(metadata.get("pretrained_cfg")), metadata):
        if isinstance(source, Mapping):
            found = configured(source, channels)
            if found is not None:
                return found
    return None


def configured(config: Mapping[str, object], channels: int) -> Preprocessing | None:
    """The preprocessing of a timm data configuration, or None where it does not fit.

    >>> configured({"mean": [0.5], "std": [0.5], "input_size": [1, 28, 28]}, channels=1).input_size
    28
    """
    values = {key: _unfold(config.get(key)) for key in ("mean", "std", "input_size", "crop_pct")}
    mean, std = _numbers(values["mean"], channels), _numbers(values["std"], channels)
    if mean is None or std is None:
        return None
    size, crop = values["input_size"], values["crop_pct"]
    side = size[-1] if isinstance(size, Sequence) and size else size
    try:
        return Preprocessing(
            mean,
            std,
            input_size=side if isinstance(side, int) else None,
            crop=float(crop) if isinstance(crop, int | float) else 1.0,
            squash=config.get("crop_mode") == "squash",
            interpolation=str(config.get("interpolation") or "bilinear"),
        )
    except PosthocError:
        return None


def _unfold(value: object) -> object:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value.tolist() if isinstance(value, Tensor) else value


def _numbers(value: object, channels: int) -> tuple[float, ...] | None:
    if not isinstance(value, Sequence) or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in value):
        return None
    if len(value) == 3 and channels == 1:  # as timm does when it turns RGB weights into grey ones
        return (math.fsum(value) / 3,)  # sum rounds otherwise from Python 3.12 on
    return tuple(float(v) for v in value) if len(value) == channels else None


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion would clip at 255
        image = Image.fromarray((np.array(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)
