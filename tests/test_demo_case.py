"""The embedded real case is what it says: the archive's images, and a checkpoint of the plain original model."""

import hashlib
import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_path import load
from PIL import Image

Images = dict[tuple[str, str, str], np.ndarray]

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / "posthoc_lt" / "demo" / "fashion_lt.zip"
CHECKPOINT = ROOT / "posthoc_lt" / "demo" / "model.pt"
CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
NAMES = [f"{label}-{name}" for label, name in enumerate(CLASSES)]
SIZES = {
    "train": [500, 299, 179, 107, 64, 38, 23, 13, 8, 5],
    "val": [20] * 10,
    "test": [100] * 10,
}


@pytest.fixture(scope="module")
def images() -> Images:
    """Every image of the archive, by split, class and file name."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        decoded = {}
        for path in archive.namelist():
            root, split, name, file = path.split("/")
            assert root == "data"
            with Image.open(io.BytesIO(archive.read(path))) as picture:
                assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (28, 28))
                decoded[split, name, file] = np.asarray(picture)
        return decoded


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    return loaded


def test_archive_counts(images: Images) -> None:
    assert sorted(NAMES) == NAMES  # folder order is label order
    expected = {(split, name): size for split, sizes in SIZES.items() for name, size in zip(NAMES, sizes, strict=True)}
    assert Counter((split, name) for split, name, _ in images) == expected


def test_no_image_is_shared(images: Images) -> None:
    digests = [hashlib.sha256(image.tobytes()).digest() for image in images.values()]
    assert len(set(digests)) == len(digests) == 2436


def test_archive_is_reproducible_in_form() -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        infos = archive.infolist()
        assert b"Zalando SE" in archive.comment
        assert b"MIT License" in archive.comment
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}


def test_make_data_draws_no_image_twice(tmp_path: Path) -> None:
    make_data = load("fashion_lt/make_data.py")
    pixels = np.arange(4, dtype=np.uint8).repeat(2)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    labels = np.array([0, 1] * 4, np.uint8)  # each picture once under either label
    seen = {pixels[0].tobytes()}
    drawn = make_data.draw(pixels, labels, 1, seen, np.random.default_rng(0), 3)
    assert sorted(drawn[:, 0, 0].tolist()) == [1, 2, 3]
    with pytest.raises(SystemExit, match="only 0 distinct"):
        make_data.draw(pixels, labels, 0, seen, np.random.default_rng(0), 1)

    members = [make_data.Member("train/a/00001.png", make_data.encode_png(pixels[1]))]
    for name in ("one.zip", "two.zip"):
        make_data.write_archive(tmp_path / name, members)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_checkpoint_is_the_plain_model(checkpoint: dict[str, Any]) -> None:
    assert set(checkpoint) == {"state_dict", "epoch"}
    assert checkpoint["epoch"] == 200
    state = checkpoint["state_dict"]
    parts = {".".join(key.split(".")[:2]) if key.startswith("layer") else key.split(".")[0] for key in state}
    stages = {f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)}
    assert parts == {"conv1", "bn1", "linear"} | stages
    assert state["conv1.weight"].shape == (16, 1, 3, 3)
    assert state["linear.weight"].shape == (10, 64)
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}
    load("fashion_lt/resnet.py").resnet20().load_state_dict(state, strict=True)


def test_checkpoint_knows_train_and_fails_the_tail(images: Images, checkpoint: dict[str, Any]) -> None:
    model = load("fashion_lt/resnet.py").resnet20()
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()
    right: dict[tuple[str, int], float] = {}
    for split in ("train", "test"):
        for label, name in enumerate(NAMES):
            stack = np.stack([image for key, image in images.items() if key[:2] == (split, name)])
            x = (torch.from_numpy(stack).unsqueeze(1).float() / 255 - 0.5) / 0.5
            with torch.no_grad():
                right[split, label] = float((model(x).argmax(1) == label).float().mean())
    # The case is only worth its place if it is long-tailed in effect: trained out, yet losing its rare classes.
    assert min(right["train", label] for label in range(10)) > 0.9
    many = np.mean([right["test", label] for label in range(4)])
    few = np.mean([right["test", label] for label in range(7, 10)])
    assert few < many - 0.1
