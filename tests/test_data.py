"""Image folders, reading in batches, and parts of data: what is found, and what is refused."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from posthoc_lt.data import Data, DataSpec, Samples, fingerprint, held_out, limited, open_data
from posthoc_lt.data.images import ImageFiles
from posthoc_lt.errors import PosthocError


def prepare(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("L")))[None].float()


def paint(path: Path, value: int = 7, size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def items(samples: Samples) -> list[tuple[Any, int | None]]:
    return [samples[index] for index in range(len(samples))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for label, name in enumerate(("ant", "bee")):
            for index in range(count + label):
                paint(tmp_path / split / name / f"{index}.png", 10 * label + index)
    return tmp_path


def test_lists_classes_and_images_in_order(root: Path) -> None:
    data = open_data(root)
    assert data.classes == ("ant", "bee")
    assert list(data.splits) == ["train", "val", "test"]
    assert [(p.relative_to(root).as_posix(), y) for p, y in items(data.splits["val"])] == [
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
    data = open_data(tmp_path)
    assert data.classes == ("a",)
    assert len(data.splits["train"]) == 10
    assert data.reader("train", prepare).stack(range(10))[0].shape == (10, 1, 3, 4)


def test_classes_sort_as_text(tmp_path: Path) -> None:
    for name in ("10", "9", "B", "a", "é"):
        paint(tmp_path / "test" / name / "0.png")
    assert open_data(tmp_path).classes == ("10", "9", "B", "a", "é")


def test_a_class_may_lack_outside_train(root: Path) -> None:
    for path in (root / "val" / "bee").iterdir():
        path.unlink()
    (root / "val" / "bee").rmdir()
    assert {label for _, label in items(open_data(root).splits["val"])} == {0}


def remove_all(root: Path) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def test_each_wrong_folder_is_one_clear_error(root: Path) -> None:
    def refuse(told: str, place: Path = root) -> None:
        with pytest.raises(PosthocError, match=told) as caught:
            open_data(place)
        assert "\n" not in str(caught.value)

    refuse("does not exist", root / "nowhere")
    refuse("is no folder", root / "val" / "ant" / "0.png")
    refuse("which holds ant, bee", root / "train")
    (root / "train" / "empty\x1b[31m").mkdir()
    refuse(r"class folder .*empty\\x1b\[31m without images")
    (root / "train" / "empty\x1b[31m").rmdir()
    paint(root / "test" / "cat" / "0.png")
    refuse("test with class cat, which is none of ant, bee")
    remove_all(root / "test")
    refuse("test, which has no class folders and no images")
    (root / "test").rmdir()
    (root / "validation").mkdir()
    assert list(open_data(root).splits) == ["train", "val"]
    (root / "val").rename(root / "dev")
    refuse("dev and validation both mean val")
    remove_all(root)
    refuse("which holds nothing")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_folder_of_bare_images_is_unlabelled(root: Path, split: str) -> None:
    remove_all(root / split)
    for index in range(3):
        paint(root / split / f"{index}.png", index)
    (root / split / "notes.txt").write_text("no image")
    data = open_data(root)
    assert data.splits[split].labels is None
    ((x, y),) = data.reader(split, prepare).batches(5)
    assert y is None
    assert x[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.classes == ("ant", "bee")


@pytest.mark.parametrize("order", [("bee", "ant"), ("zebra", "bee", "ant", "yak")])
def test_class_names_in_a_file_say_the_order(root: Path, tmp_path: Path, order: tuple[str, ...]) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(order) + "\n")
    data = open_data(DataSpec(str(root), classes=str(names)))
    assert data.classes == order
    for path, label in items(data.splits["train"]):
        assert order[label or 0] == path.parent.name
    names.write_text("bee\n")
    with pytest.raises(PosthocError, match="class ant, which is none of bee"):
        open_data(DataSpec(str(root), classes=str(names)))
    names.write_text("bee\nant\nbee\n")
    with pytest.raises(PosthocError, match="has bee twice"):
        open_data(DataSpec(str(root), classes=str(names)))


def flat(counts: dict[int, int]) -> Data:
    labels = torch.tensor([label for label in sorted(counts) for _ in range(counts[label])])
    names = [str(index) for index in range(len(labels))]
    return Data("", {"train": ImageFiles(Path(), names, labels)}, tuple(map(str, range(10))))


def places(data: Data, split: str) -> list[int]:
    return [int(str(path)) for path, _ in items(data.splits[split])]


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 60), min_size=1), st.integers(1, 200))
def test_limits_keep_proportions_and_classes(counts: dict[int, int], limit: int) -> None:
    data, total = flat(counts), sum(counts.values())
    chosen = places(limited(data, limit), "train")
    kept = Counter(label for _, label in items(limited(data, limit).splits["train"]))
    assert len(set(chosen)) == len(chosen) == min(limit, total)
    assert chosen == sorted(chosen) == places(limited(data, limit), "train")
    if limit >= len(counts):
        assert kept.keys() == counts.keys()
    for label, count in counts.items():
        assert abs(kept[label] - count * min(limit, total) / total) < 1 + len(counts)


def test_limits_spread_over_a_class_or_over_unlabelled_samples() -> None:
    assert places(limited(flat({0: 100}), 4), "train") == [0, 25, 50, 75]
    bare = Data("", {"val": ImageFiles(Path(), [str(i) for i in range(100)], None)})
    assert places(limited(bare, 4), "val") == [0, 25, 50, 75]


def test_no_limit_changes_nothing_and_zero_is_refused(root: Path) -> None:
    data = open_data(root)
    assert limited(data, None) is data
    with pytest.raises(PosthocError, match="limit 0"):
        limited(data, 0)


@given(
    st.dictionaries(st.integers(0, 9), st.integers(1, 60), min_size=1).filter(lambda c: max(c.values()) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_a_holdout_parts_every_class_but_those_of_one(counts: dict[int, int], share: float, seed: int) -> None:
    data = flat(counts)
    parted = held_out(data, share, seed)
    train, val = places(parted, "train"), places(parted, "val")
    assert sorted(train + val) == list(range(sum(counts.values())))
    assert val == places(held_out(data, share, seed), "val")
    kept = Counter(label for _, label in items(parted.splits["val"]))
    for label, count in counts.items():
        assert kept[label] == (0 if count == 1 else min(max(round(share * count), 1), count - 1))


def test_another_seed_holds_out_others_and_a_holdout_needs_a_free_val(root: Path) -> None:
    data = flat({0: 50, 1: 50})
    assert places(held_out(data, 0.2, 0), "val") != places(held_out(data, 0.2, 1), "val")
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(PosthocError, match="give --holdout"):
            held_out(data, share)
    with pytest.raises(PosthocError, match="with val samples of its own"):
        open_data(DataSpec(str(root), holdout=0.1))
    with pytest.raises(PosthocError, match="one sample each"):
        held_out(flat({0: 1, 3: 1}), 0.5)


def test_the_fingerprint_knows_what_changed(root: Path) -> None:
    first = fingerprint(open_data(root))
    assert fingerprint(open_data(root)) == first
    image = root / "val" / "ant" / "0.png"
    os.utime(image, ns=(1, 1))
    touched = fingerprint(open_data(root))
    image.write_bytes(image.read_bytes() + b" ")
    os.utime(image, ns=(1, 1))
    longer = fingerprint(open_data(root))
    image.rename(image.with_name("9.png"))
    renamed = fingerprint(open_data(root))
    turned = fingerprint(open_data(DataSpec(str(root), exif=True)))
    assert len({first, touched, longer, renamed, turned, fingerprint(limited(open_data(root), 2))}) == 6


@pytest.mark.parametrize("workers", [0, 1, 3, None])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batches_are_every_image_once_in_order(root: Path, workers: int | None, size: int) -> None:
    batches = list(open_data(root).reader("train", prepare).batches(size, workers))
    assert [len(x) for x, _ in batches[:-1]] == [min(size, 7)] * (len(batches) - 1)
    assert torch.cat([x for x, _ in batches])[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 13]
    assert torch.cat([y for _, y in batches if y is not None]).tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(("size", "workers"), [(0, 0), (4, -1)])
def test_batch_options_that_make_no_sense(root: Path, size: int, workers: int) -> None:
    split = open_data(root).reader("train", prepare)
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
        list(open_data(root).reader("train", prepare).batches(2, workers))
    reader = open_data(root).reader("train", prepare, skip=True)
    batches = list(reader.batches(2, workers))
    assert torch.cat([x for x, _ in batches])[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 13]
    assert torch.cat([y for _, y in batches if y is not None]).tolist() == [0, 0, 0, 1, 1, 1]
    assert list(reader.skipped) == [5]
    assert reader.stack([4, 5])[0].shape[0] == 1
    with pytest.raises(PosthocError, match=r"2\.png, which cannot be read"):
        reader.stack([5])


def test_a_dangling_link_has_no_fingerprint(root: Path) -> None:
    (root / "train" / "bee" / "z.png").symlink_to("nowhere.png")
    with pytest.raises(PosthocError, match=r"z\.png"):
        fingerprint(open_data(root))
    assert len(fingerprint(open_data(root), missing=True)) == 64


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pixels", [15, 5], ids=["Pillow warns", "Pillow refuses"])
def test_a_decompression_bomb_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, workers: int, pixels: int
) -> None:
    paint(root / "train" / "ant" / "9.png", size=(5, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    with pytest.raises(PosthocError, match=r"\.png.*pixels"):
        list(open_data(root).reader("train", prepare).batches(2, workers))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_an_error_where_warnings_are_not(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PosthocError, match=r"\.png.*pixels"):
        open_data(root).reader("train", prepare).stack([0])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_different_sizes_ask_for_an_input_size(root: Path, workers: int) -> None:
    paint(root / "train" / "ant" / "1.png", size=(9, 8))
    with pytest.raises(PosthocError, match=r"4x3 and 9x8 pixels: .*0\.png and .*1\.png.*--input-size"):
        list(open_data(root).reader("train", prepare).batches(7, workers))


def test_names_that_are_no_text_are_readable(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    paint(tmp_path / "train" / name / "0.png")
    data = open_data(tmp_path)
    assert data.classes == ("caf\N{REPLACEMENT CHARACTER}",)
    assert len(fingerprint(data)) == 64
    assert data.reader("train", prepare).stack([0])[1] == torch.tensor([0])
