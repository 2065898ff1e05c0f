"""Images in every state: what is decoded, and what is refused, held to Pillow's plain reading."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from posthoc_lt.checkpoint import Preprocessing
from posthoc_lt.data import Reader
from posthoc_lt.data.images import ImageFiles, UnreadableImageError, open_image

RGB = Preprocessing((0.0,) * 3, (1.0,) * 3)
GREY = Preprocessing((0.0,), (1.0,))


@pytest.fixture
def photograph(case: Path) -> Image.Image:
    """A real image, made colour."""
    path = next((case / "data" / "test").glob("*/*.png"))
    grey = np.array(Image.open(path).convert("L"))
    return Image.fromarray(np.stack([grey, np.roll(grey, 5, 0), 255 - grey], axis=2))


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def array(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "CMYK", "1"])
def test_every_mode_is_read_as_colour(photograph: Image.Image, mode: str) -> None:
    converted = photograph.convert(mode)
    raw = encoded(converted, "TIFF" if mode == "CMYK" else "PNG")
    x = RGB(open_image(raw)[0])
    expected = converted.convert("L").convert("RGB") if mode == "LA" else converted.convert("RGB")
    torch.testing.assert_close(x, array(expected))


def test_sixteen_bits_keep_their_upper_eight(photograph: Image.Image) -> None:
    grey = np.array(photograph.convert("L"), dtype=np.uint16)
    x = GREY(open_image(encoded(Image.fromarray(grey * 256 + 200), "PNG"))[0])
    torch.testing.assert_close(x, torch.from_numpy(grey.astype(np.float32))[None] / 255)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_and_told(photograph: Image.Image, form: str, tmp_path: Path) -> None:
    other = Image.new("RGB", photograph.size, (9, 99, 199))
    options = {"lossless": True} if form == "WEBP" else {}
    several = encoded(photograph, form, save_all=True, append_images=[other], **options)
    single = encoded(photograph, form, **options)
    (tmp_path / "several").write_bytes(several)
    (tmp_path / "single").write_bytes(single)
    reader = Reader(ImageFiles(tmp_path, ["single", "several"], None), RGB)
    ((x, y),) = reader.batches(2)
    assert y is None
    assert (x[0] - x[1]).abs().max() < 0.02
    assert reader.framed == {1}


def test_exif_turns_an_image_only_when_asked(photograph: Image.Image) -> None:
    """Orientation 6: the camera was turned, so that the stored image needs a quarter turn clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    tall = photograph.crop((0, 0, 20, 28))
    raw = encoded(tall, "PNG", exif=exif)
    torch.testing.assert_close(RGB(open_image(raw)[0]), array(tall))
    turned = torch.from_numpy(np.rot90(np.array(tall), -1).copy()).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(RGB(open_image(raw, exif=True)[0]), turned)


def test_whatever_bytes_come_only_one_error_leaves(photograph: Image.Image) -> None:
    """Every prefix and many corruptions of real files: read, or refused; never anything else."""
    rng, refused = np.random.default_rng(0), 0
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"):
        whole = np.frombuffer(encoded(photograph, form), dtype=np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
            try:
                open_image(broken[: rng.integers(1, len(whole) + 1)].tobytes(), exif=True)
            except UnreadableImageError:
                refused += 1
    assert refused > 300


def test_floating_point_pixels_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "depth.tiff")
    samples = ImageFiles(tmp_path, ["depth.tiff"], None)
    with pytest.raises(Exception, match=r"depth\.tiff, which cannot be read \(floating-point pixels"):
        next(Reader(samples, RGB).batches(1))
    assert list(Reader(samples, RGB, skip=True).batches(1)) == []
