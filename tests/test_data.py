"""Image folders: what is found in them, and what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from posthoc_lt.data import ImageData, ImageSplit, fingerprint, read_folder
from posthoc_lt.errors import PosthocError


def prepare(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("L")))[None].float()


def paint(path: Path, value: int = 7, size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count + label):
                paint(tmp_path / split / name / f"{index}.png", 10 * label + index)
    return tmp_path


def test_lists_classes_and_images_in_order(root: Path) -> None:
    data = read_folder(root)
    assert data.classes == ("ant", "bee")
    assert list(data.splits) == ["train", "val", "test"]
    assert [(p.relative_to(root).as_posix(), y) for p, y in data.splits["val"]] == [
        ("val/ant/0.png", 0),
        ("val/ant/1.png", 0),
        ("val/bee/0.png", 1),
        ("val/bee/1.png", 1),
        ("val/bee/2.png", 1),
    ]


def test_every_extension_counts_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    for suffix in ("png", "jpg", "JPEG", "bmp", "webp", "ppm", "tif", "tiff", "gif"):
        paint(folder / f"image.{suffix}")
    paint(folder / "deeper" / "more.png")
    paint(folder / ".hidden.png")
    paint(folder / ".cache" / "hidden.png")
    (folder / "readme.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "labels.csv").write_text("")
    data = read_folder(tmp_path)
    assert data.classes == ("a",)
    assert len(data.splits["train"]) == 10
    split = ImageSplit(data.splits["train"], prepare)
    for index in range(10):
        assert split[index][0].shape == (1, 3, 4)


def test_classes_sort_as_text(tmp_path: Path) -> None:
    for name in ("10", "9", "B", "a", "é"):
        paint(tmp_path / "test" / name / "0.png")
    assert read_folder(tmp_path).classes == ("10", "9", "B", "a", "é")


def test_a_class_may_lack_outside_train(root: Path) -> None:
    for path in (root / "val" / "bee").iterdir():
        path.unlink()
    (root / "val" / "bee").rmdir()
    assert {label for _, label in read_folder(root).splits["val"]} == {0}


def remove_all(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def test_each_wrong_folder_is_one_clear_error(root: Path) -> None:
    def refuse(told: str, place: Path = root) -> None:
        with pytest.raises(PosthocError, match=told) as caught:
            read_folder(place)
        assert "\n" not in str(caught.value)

    refuse("does not exist", root / "nowhere")
    refuse("is no folder", root / "val" / "ant" / "0.png")
    refuse("which holds ant, bee", root / "train")
    (root / "train" / "empty\x1b[31m").mkdir()
    refuse(r"class folder .*empty\\x1b\[31m without images")
    (root / "train" / "empty\x1b[31m").rmdir()
    paint(root / "test" / "cat" / "0.png")
    refuse("test with class cat, which .*train does not have")
    remove_all(root / "test")
    refuse("test, which has no class folders")
    remove_all(root / "train")
    refuse("train, which has no class folders")
    remove_all(root)
    refuse("which holds nothing")


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 60), min_size=1),
    st.integers(1, 200),
)
def test_limits_keep_proportions_and_classes(counts: dict[int, int], limit: int) -> None:
    items = tuple((Path(f"{label}/{i:03}"), label) for label in sorted(counts) for i in range(counts[label]))
    data = ImageData(Path(), tuple(map(str, range(10))), {"train": items, "val": items[:1]})
    chosen = data.limited(limit).splits["train"]
    kept, total = Counter(label for _, label in chosen), len(items)
    assert len(chosen) == len(set(chosen)) == min(limit, total)
    assert list(chosen) == [item for item in items if item in set(chosen)]
    assert chosen == data.limited(limit).splits["train"]
    if limit >= len(counts):
        assert kept.keys() == counts.keys()
    for label, count in counts.items():
        assert abs(kept[label] - count * min(limit, total) / total) < 1 + len(counts)
    assert data.limited(limit).splits["val"] == items[:1]


def test_limits_spread_over_a_class() -> None:
    items = tuple((Path(str(i)), 0) for i in range(100))
    chosen = ImageData(Path(), ("a",), {"train": items}).limited(4).splits["train"]
    assert [path.name for path, _ in chosen] == ["0", "25", "50", "75"]


def test_no_limit_changes_nothing_and_zero_is_refused(root: Path) -> None:
    data = read_folder(root)
    assert data.limited(None) is data
    with pytest.raises(PosthocError, match="limit 0"):
        data.limited(0)


def test_the_fingerprint_knows_what_changed(root: Path) -> None:
    first = fingerprint(read_folder(root))
    assert fingerprint(read_folder(root)) == first
    image = root / "val" / "ant" / "0.png"
    os.utime(image, ns=(1, 1))
    touched = fingerprint(read_folder(root))
    image.write_bytes(image.read_bytes() + b" ")
    os.utime(image, ns=(1, 1))
    longer = fingerprint(read_folder(root))
    image.rename(image.with_name("9.png"))
    renamed = fingerprint(read_folder(root))
    assert len({first, touched, longer, renamed, fingerprint(read_folder(root).limited(2))}) == 5


@pytest.mark.parametrize("workers", [0, 1, 3, None])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batches_are_every_image_once_in_order(root: Path, workers: int | None, size: int) -> None:
    split = ImageSplit(read_folder(root).splits["train"], prepare)
    batches = list(split.batches(size, workers))
    assert [len(x) for x, _ in batches[:-1]] == [min(size, 7)] * (len(batches) - 1)
    assert torch.cat([x for x, _ in batches])[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 13]
    assert torch.cat([y for _, y in batches]).tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(("size", "workers"), [(0, 0), (4, -1)])
def test_batch_options_that_make_no_sense(root: Path, size: int, workers: int) -> None:
    split = ImageSplit(read_folder(root).splits["train"], prepare)
    with pytest.raises(PosthocError, match="--batch-size"):
        next(split.batches(size, workers))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", ["text", "truncated", "empty", "link"])
def test_a_broken_image_is_named(root: Path, workers: int, broken: str) -> None:
    path = root / "train" / "bee" / "2.png"
    whole = path.read_bytes()
    path.unlink()
    if broken == "link":
        path.symlink_to("nowhere.png")
    else:
        path.write_bytes({"text": b"hello", "truncated": whole[: len(whole) // 2], "empty": b""}[broken])
    with pytest.raises(PosthocError, match=r"train/bee/2\.png.*replace or remove"):
        list(ImageSplit(read_folder(root).splits["train"], prepare).batches(2, workers))


def test_a_dangling_link_has_no_fingerprint(root: Path) -> None:
    (root / "train" / "bee" / "z.png").symlink_to("nowhere.png")
    with pytest.raises(PosthocError, match=r"z\.png"):
        fingerprint(read_folder(root))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pixels", [15, 5], ids=["Pillow warns", "Pillow refuses"])
def test_a_decompression_bomb_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, workers: int, pixels: int
) -> None:
    paint(root / "train" / "ant" / "9.png", size=(5, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    with pytest.raises(PosthocError, match=r"\.png.*pixels"):
        list(ImageSplit(read_folder(root).splits["train"], prepare).batches(2, workers))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_an_error_where_warnings_are_not(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PosthocError, match=r"\.png.*pixels"):
        ImageSplit(read_folder(root).splits["train"], prepare)[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_different_sizes_ask_for_an_input_size(root: Path, workers: int) -> None:
    paint(root / "train" / "ant" / "1.png", size=(9, 8))
    with pytest.raises(PosthocError, match=r"4x3 and 9x8 pixels: .*0\.png and .*1\.png.*--input-size"):
        list(ImageSplit(read_folder(root).splits["train"], prepare).batches(7, workers))


def test_names_that_are_no_text_are_readable(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    paint(tmp_path / "train" / name / "0.png")
    data = read_folder(tmp_path)
    assert data.classes == ("caf\N{REPLACEMENT CHARACTER}",)
    assert len(fingerprint(data)) == 64
    assert ImageSplit(data.splits["train"], prepare)[0][1] == 0
