"""One set of real images in every form that data comes in: each gives the same pixels and labels."""

from __future__ import annotations

import gc
import gzip
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_forms import FORMS, SPLITS, Row, lists, one_table, parquet_shards, shards, table
from PIL import Image
from torch import Tensor

from posthoc_lt.data import Data, DataSpec, Reader, Samples, fingerprint, held_out, limited, open_data
from posthoc_lt.data.labels import read_names
from posthoc_lt.data.shards import TarImages
from posthoc_lt.errors import PosthocError


def prepare(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("L")))[None].float()


@pytest.fixture(scope="module")
def images(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few Fashion images of every class, as class folders."""
    root = tmp_path_factory.mktemp("images")
    for split, count in SPLITS.items():
        for folder in sorted((case / "data" / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                shutil.copy(path, root / split / folder.name)
    return root


@pytest.fixture(scope="module")
def rows(images: Path) -> list[Row]:
    """(split, class name, class index, path) of every image."""
    names = sorted(path.name for path in (images / "train").iterdir())
    return [
        (split, name, label, path)
        for split in SPLITS
        for label, name in enumerate(names)
        for path in sorted((images / split / name).iterdir())
    ]


def pixels(samples: Any) -> list[tuple[int, bytes]]:
    """(label, pixels) of every sample, sorted, since a form may keep another order."""
    return sorted((label, np.asarray(image, dtype=np.uint8).tobytes()) for label, image in samples)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_form_gives_the_same_images_and_labels(
    form: Any, workers: int, rows: list[Row], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = form(rows, images, tmp_path)
    data = open_data(spec)
    assert list(data.splits) == list(SPLITS)
    for split in SPLITS:
        batches = list(data.reader(split, prepare).batches(7, workers))
        got = [(int(y), x) for xs, ys in batches if ys is not None for x, y in zip(xs[:, 0], ys, strict=True)]
        assert pixels(got) == pixels((label, Image.open(path)) for name, _, label, path in rows if name == split)
        counts = data.counts(split, 10)
        assert counts is not None
        assert counts.tolist() == [SPLITS[split]] * 10
    assert fingerprint(data) == fingerprint(open_data(spec))
    part = limited(held_out(Data(data.place, {"train": data.splits["train"]}, data.classes), 0.34), 15)
    assert [len(part.splits[split]) for split in ("train", "val")] == [15, 10]
    part.require_classes(10)


@pytest.mark.parametrize("form", [lists, one_table, shards])
def test_the_order_of_forms_that_have_one_is_kept(form: Any, rows: list[Row], images: Path, tmp_path: Path) -> None:
    samples = open_data(form(rows, images, tmp_path)).splits["train"]
    labels = [label for split, _, label, _ in rows if split == "train"]
    expected = labels if form is not shards else labels[::2] + labels[1::2]
    assert samples.labels is not None
    assert samples.labels.tolist() == expected


def test_class_names_come_from_the_form_or_a_file(rows: list[Row], images: Path, tmp_path: Path) -> None:
    names = tuple(sorted({name for _, name, _, _ in rows}))
    assert open_data(one_table(rows, images, tmp_path)).classes == names
    spec = lists(rows, images, tmp_path)
    assert open_data(spec).classes == ()
    (tmp_path / "names.txt").write_text("\n".join(names))
    named = open_data(DataSpec(spec.data, spec.train, spec.val, classes=str(tmp_path / "names.txt")))
    assert named.classes == names
    with pytest.raises(PosthocError, match="network of 9 classes and 10 classes"):
        named.require_classes(9)
    with pytest.raises(PosthocError, match=r"label 9 of .*png in train, for a network of 9 classes"):
        open_data(spec).require_classes(9)


def test_a_provenance_gives_the_same_data_again(rows: list[Row], images: Path, tmp_path: Path) -> None:
    for spec in (lists(rows, images, tmp_path), DataSpec(str(images)), DataSpec("x", holdout=0.1, seed=3, exif=True)):
        assert DataSpec.from_provenance(spec.provenance()) == spec
    assert DataSpec.from_provenance({}) is None
    with pytest.raises(PosthocError, match="those of extract"):
        DataSpec.from_provenance({"data_options": '{"elsewhere": 1}'})


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def labels_of(samples: Samples) -> list[int] | None:
    return None if samples.labels is None else samples.labels.tolist()


def test_what_a_line_of_a_list_may_be(tmp_path: Path) -> None:
    train = write(tmp_path / "a.txt", "\ufeffa b.jpg 3\r\n\n /abs/c.jpg\t10 \n")
    val = write(tmp_path / "b.txt", "photo 1.jpg\nother.jpg\n")
    data = open_data(DataSpec(train=train, val=val))
    assert [path for path, _ in (data.splits["train"][0], data.splits["train"][1])] == [
        tmp_path / "a b.jpg",
        Path("/abs/c.jpg"),
    ]
    assert labels_of(data.splits["train"]) == [3, 10]
    assert labels_of(data.splits["val"]) is None
    assert data.splits["val"].name(0) == str(tmp_path / "photo 1.jpg")
    with pytest.raises(PosthocError, match=r"a b\.jpg, which cannot be read .*--on-error skip"):
        fingerprint(data)


def test_texts_in_a_table_are_samples_too(tmp_path: Path) -> None:
    lines: list[list[object]] = [["good", "pos", "train"], ["bad\nvery", "neg", "train"], ["fine, so", "pos", "dev"]]
    data = open_data(DataSpec(table(tmp_path / "t.csv", ["text", "label", "split"], lines)))
    assert (data.kind, data.classes) == ("texts", ("neg", "pos"))
    ((batch, y),) = Reader(data.splits["train"], str.upper, collate=list).batches(5)
    assert batch == ["GOOD", "BAD\nVERY"]
    assert y is not None
    assert y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "which is empty"),
        ("a.jpg 0\nb.jpg\n", r"line 2 has no label: b\.jpg"),
        ("a.jpg 0\nb\x1b[31m.jpg\n", r"b\\x1b\[31m"),
        ("a\0.jpg 0\n", "which is no text"),
        ("a" * 9000 + " 0\n", "line 1 is longer than 8192 characters"),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(PosthocError, match=told):
        open_data(DataSpec(train=write(tmp_path / "list.txt", content)))


def test_a_list_with_names_for_labels(tmp_path: Path) -> None:
    for name in ("a.jpg", "c d.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "names.txt").write_text("a.jpg shirt\n")
    with pytest.raises(PosthocError, match="line 1 has a label that is no class index: shirt"):
        open_data(DataSpec(train=str(tmp_path / "names.txt")))
    (tmp_path / "bare.txt").write_text("c d.jpg\n")
    assert len(open_data(DataSpec(val=str(tmp_path / "bare.txt"))).splits["val"]) == 1


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_without_an_end_is_no_list() -> None:
    with pytest.raises(PosthocError, match="/dev/zero, whose line 1 is longer"):
        open_data(DataSpec(train="/dev/zero"))


def test_a_stream_without_an_end_is_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posthoc_lt.data.path_list._MOST_LINES", 3)
    assert len(open_data(DataSpec(train=write(tmp_path / "list.txt", "a.jpg 0\n" * 3))).splits["train"]) == 3
    with pytest.raises(PosthocError, match="line 4 is not its last"):
        open_data(DataSpec(train=write(tmp_path / "list.txt", "a.jpg 0\n" * 4)))


def test_names_of_many_classes(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(100_000)]  # each compared with each would take minutes
    assert read_names(write(tmp_path / "names.txt", "\n".join(names))) == tuple(names)
    with pytest.raises(PosthocError, match="has class 7 twice"):
        read_names(write(tmp_path / "names.txt", "\n".join([*names, "class 7"])))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "cannot be read"),
        ("path,label,split\n", "without rows"),
        ("file,label\na.png,1\n", "with columns file, label"),
        ("path,text,split\na.png,b,train\n", "with columns path, text"),
        ("path,label,split\na.png,1,train\nb.png,,train\n", "row 2 without a label"),
        ("path,label,split\na.png,1,holiday\n", "split 'holiday'"),
        ("path,label\na.png,1\n", "--train"),
        ("path,label,split\na.png,cat,train\na.png,dog,val\n", "val with class dog, which is none of cat"),
        ("path,label,split\na.png,cat,train\na.png,-1,val\n", "class -1, which is none of cat"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(PosthocError, match=told):
        open_data(write(tmp_path / "t.csv", content))


def test_tars_that_are_none(tmp_path: Path, rows: list[Row], images: Path) -> None:
    def refuse(told: str, spec: DataSpec | str) -> None:
        with pytest.raises(PosthocError, match=told):
            open_data(spec)

    refuse("which do not exist", str(tmp_path / "{train,val}-*.tar"))
    shards(rows, images, tmp_path)
    whole = (tmp_path / "fashion-train-000.tar").read_bytes()
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "000.tar").write_bytes(whole)
    refuse("whose name tells no split", str(odd))
    assert len(open_data(DataSpec(train=str(odd))).splits["train"]) == 15
    bomb = gzip.compress(bytes((1 << 26) + (1 << 21)), 9)
    for content, told in (
        (b"hello" * 300, "invalid header"),
        (whole[:2000], "cut short|unexpected end"),
        (b"\x1f\x8b" + whole, "compression method"),
        (gzip.compress(whole)[:-20], "end-of-stream"),
        (b"\x28\xb5\x2f\xfd" + whole, "zstd|frame"),
        (bomb, "unpacks to many times its size"),
    ):
        (odd / "000.tar").write_bytes(content)
        with pytest.raises(PosthocError, match=rf"000\.tar, which cannot be read .*({told})"):
            open_data(DataSpec(train=str(odd)))


def test_what_is_unpacked_goes_with_the_data(tmp_path: Path, rows: list[Row], images: Path) -> None:
    shards(rows, images, tmp_path)
    path = tmp_path / "fashion-train-000.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    samples = open_data(DataSpec(train=str(path))).splits["train"]
    assert isinstance(samples, TarImages)
    (place,) = samples.places
    assert place.is_file()
    stamp = samples.stamp(0)
    del samples
    gc.collect()
    assert not place.parent.exists()
    assert open_data(DataSpec(train=str(path))).splits["train"].stamp(0) == stamp


def test_class_names_and_order_come_from_parquet(tmp_path: Path, rows: list[Row], images: Path) -> None:
    data = open_data(parquet_shards(rows, images, tmp_path))
    assert data.classes == tuple(sorted({name for _, name, _, _ in rows}))
    mine = [label for split, _, label, _ in rows if split == "train"]
    assert labels_of(data.splits["train"]) == mine[::2] + mine[1::2]
    assert data.splits["train"].name(20) == f"{tmp_path}/hub/data/train-00001-of-00002.parquet row 6"


def test_parquet_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, write_table = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet").write_table

    def opened(**columns: Any) -> Any:
        write_table(arrow.table(columns), tmp_path / "t.parquet")
        return open_data(DataSpec(train=str(tmp_path / "t.parquet"))).splits["train"]

    for columns in ({"image": [b"x"], "text": ["a"]}, {"image": [b"x"], "mask": [b"x"]}, {"label": [1]}):
        with pytest.raises(PosthocError, match="with columns"):
            opened(**columns)
    hub = opened(image=[b"x", None, b""], label=[-1, -1, -1])
    assert hub.labels is None
    assert hub[0] == (b"x", None)
    for index in (1, 2):
        with pytest.raises(ValueError, match="an empty cell"):
            hub[index]
    monkeypatch.setattr("posthoc_lt.data.parquet._LARGEST_GROUP", 1)
    with pytest.raises(PosthocError, match="row_group_size=100"):
        opened(image=[b"x"])
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + bytes(64) + b"PAR1")
    with pytest.raises(PosthocError, match="which cannot be read"):
        open_data(DataSpec(train=str(tmp_path / "t.parquet")))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def make(split): return None", "which has no split"),
        ("def make(split): return iter([])", "returns list_iterator for train"),
        (
            "from torch.utils.data import IterableDataset\nclass make(IterableDataset):\n"
            "    def __init__(self, split): pass\n    def __len__(self): return 3\n    def __iter__(self): pass",
            "returns an IterableDataset for train.*by number.*return list.dataset.",
        ),
        ("def make(split): raise KeyError(split)", "fails for train .KeyError: 'train'"),
        ("other = 1", "has no function make"),
        ("raise RuntimeError('no')", "does not import"),
    ],
)
def test_own_code_that_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    module = f"own_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code)
    with pytest.raises(PosthocError, match=told):
        open_data(f"{module}:make")


@pytest.mark.parametrize("workers", [0, 1])
def test_own_data_sets_of_tensors_may_hide_labels_and_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    code = """
import torch
class Rows:
    def __init__(self, split):
        self.classes = ["a", "b", "c"]
    def __len__(self):
        return 5
    def __getitem__(self, index):
        if index == 3:
            raise KeyError("gone")
        return torch.full((2,), float(index)), torch.tensor(index % 3), "more"
"""
    (tmp_path / f"own_rows{workers}.py").write_text(code)
    data = open_data(f"own_rows{workers}:Rows")
    assert data.classes == ("a", "b", "c")
    assert data.counts("train") is None
    with pytest.raises(PosthocError, match=r"own_rows.:Rows\('train'\)\[3\], which cannot be read .KeyError: 'gone'"):
        list(data.reader("train", prepare).batches(2, workers))
    reader = data.reader("train", prepare, skip=True)
    batches = list(reader.batches(2, workers))
    assert torch.cat([x for x, _ in batches])[:, 0].tolist() == [0, 1, 2, 4]
    assert torch.cat([y for _, y in batches if y is not None]).tolist() == [0, 1, 2, 1]
    assert list(reader.skipped) == [3]


def test_own_data_sets_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "def make(split): return [('good', 1), ('bad', 0), (3, 1)] if split == 'train' else None"
    (tmp_path / "own_texts.py").write_text(code)
    data = open_data("own_texts:make")
    assert data.kind == "texts"
    reader = data.reader("train", str.upper, list, skip=True)
    ((batch, y),) = reader.batches(5)
    assert batch == ["GOOD", "BAD"]
    assert y is not None
    assert y.tolist() == [1, 0]
    assert reader.skipped == {2: "TypeError: an input of type int, and not a text"}


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)  # as Python marks a module that is not to be had
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    for place in ("saved", "t.parquet"):
        with pytest.raises(PosthocError, match=r"pip install 'posthoc-lt\[data\]'"):
            open_data(str(tmp_path / place))
