"""Preprocessing against the arithmetic written out in NumPy, and what checkpoints say of it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from posthoc_lt.checkpoint.preprocessing import (
    CIFAR,
    GREY,
    Preprocessing,
    default_preprocessing,
    stored_preprocessing,
)
from posthoc_lt.errors import PosthocError

RNG = np.random.default_rng(0)


def test_colour_pixels_are_scaled_and_normalised() -> None:
    pixels = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    got = Preprocessing(*CIFAR)(Image.fromarray(pixels))
    expected = (pixels.astype(np.float64) / 255 - np.array(CIFAR[0])) / np.array(CIFAR[1])
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-5)


def test_grey_images_serve_colour_networks_and_the_reverse() -> None:
    pixels = RNG.integers(0, 256, (3, 4), dtype=np.uint8)
    three = Preprocessing((0.0,) * 3, (1.0,) * 3)(Image.fromarray(pixels))
    np.testing.assert_allclose(three.numpy(), np.stack([pixels / 255.0] * 3), atol=1e-6)
    colour = np.full((2, 2, 3), (10, 200, 30), dtype=np.uint8)
    one = Preprocessing(*GREY)(Image.fromarray(colour))
    luma = 0.299 * 10 + 0.587 * 200 + 0.114 * 30  # ITU-R 601-2
    assert one.shape == (1, 2, 2)
    assert abs(float(one[0, 0, 0]) - (luma / 255 - 0.5) / 0.5) < 2 / 255


def test_sixteen_bit_pixels_keep_their_range() -> None:
    pixels = np.array([[0, 65535], [32768, 256]], dtype=np.uint16)
    got = Preprocessing((0.0,), (1.0,))(Image.fromarray(pixels))
    np.testing.assert_allclose(got[0].numpy(), pixels / 65535.0, atol=1 / 255)


def test_transparent_palettes_need_no_warning() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.info["transparency"] = b"\x00\x80"
    got = Preprocessing((0.0,) * 3, (1.0,) * 3)(image)
    assert got[:, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (64, 64), (10, 200), (7, 5)])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_crop_is_the_middle_of_the_resized_image(width: int, height: int, crop: float) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))
    got = Preprocessing((0.0,) * 3, (1.0,) * 3, input_size=16, crop=crop)(image)
    edge = math.floor(16 / crop)
    size = (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR)) / 255.0
    top, left = round((size[1] - 16) / 2), round((size[0] - 16) / 2)
    expected = resized[top : top + 16, left : left + 16].transpose(2, 0, 1)
    assert got.shape == (3, 16, 16)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def test_squash_ignores_proportions() -> None:
    image = Image.fromarray(RNG.integers(0, 256, (20, 50), dtype=np.uint8))
    got = Preprocessing((0.0,), (1.0,), input_size=8, squash=True)(image)
    np.testing.assert_allclose(got[0].numpy(), np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)) / 255)


@given(
    st.sampled_from([1, 3]),
    st.floats(0, 1),
    st.floats(0.01, 1),
    st.none() | st.integers(1, 512),
    st.floats(0.1, 1),
    st.booleans(),
)
def test_json_round_trip(channels: int, mean: float, std: float, size: int | None, crop: float, squash: bool) -> None:
    value = Preprocessing((mean,) * channels, (std,) * channels, size, crop, squash, "bicubic")
    assert Preprocessing.from_json(value.to_json()) == value
    assert json.loads(value.to_json())["input_size"] == size


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mean": 3, "std": [1]}', '{"mean": [0], "std": [1], "new": 1}'])
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(PosthocError, match="preprocessing"):
        Preprocessing.from_json(text)


def test_options_change_what_they_name_and_nothing_else() -> None:
    own = Preprocessing(*CIFAR)
    assert own.changed() == own
    assert own.changed(mean=[0.5]).mean == (0.5, 0.5, 0.5)
    assert own.changed(std=[0.1, 0.2, 0.3]).std == (0.1, 0.2, 0.3)
    assert own.changed(input_size=28) == Preprocessing(*CIFAR, input_size=28)


@pytest.mark.parametrize(
    "options", [{"mean": [0.1, 0.2]}, {"std": [0.0]}, {"mean": [float("nan")]}, {"input_size": 0}, {"input_size": -3}]
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(PosthocError):
        Preprocessing(*CIFAR).changed(**options)  # type: ignore[arg-type]


def test_a_grey_network_takes_one_number() -> None:
    with pytest.raises(PosthocError, match="1 input channels"):
        Preprocessing(*GREY).changed(mean=[0.1, 0.2, 0.3], std=[1, 1, 1])


def test_defaults_and_their_limit() -> None:
    assert default_preprocessing(1) == Preprocessing((0.5,), (0.5,))
    assert default_preprocessing(3) == Preprocessing((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    with pytest.raises(PosthocError, match="4 input channels"):
        default_preprocessing(4)


@pytest.mark.parametrize(
    "metadata",
    [
        {"mean": [0.1, 0.2, 0.3], "std": (0.4, 0.5, 0.6)},
        {"mean": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), "std": "[0.4, 0.5, 0.6]"},
        {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}},
        {"pretrained_cfg": '{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}', "mean": "nonsense"},
    ],
)
def test_what_a_checkpoint_says_of_itself(metadata: dict[str, object]) -> None:
    assert stored_preprocessing(metadata, 3) == Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_whole_timm_configuration() -> None:
    config = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 224], "crop_pct": 0.9}
    found = stored_preprocessing({"pretrained_cfg": {**config, "interpolation": "bicubic", "crop_mode": "squash"}}, 3)
    assert found == Preprocessing((0.5,) * 3, (0.5,) * 3, 224, 0.9, True, "bicubic")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"mean": [0.5]},
        {"mean": "x", "std": "y"},
        {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]},
        {"mean": [0.5, 0.5], "std": [0.5, 0.5]},
        {"pretrained_cfg": 3},
        {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "random"},
    ],
)
def test_what_does_not_fit_says_nothing(metadata: dict[str, object]) -> None:
    assert stored_preprocessing(metadata, 3) is None
