"""Extraction to a file: what an interruption costs, and that nothing else of it can be seen."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from by_path import EXAMPLES
from torch import Tensor, nn

from posthoc_lt import PosthocError, load_features, save_features
from posthoc_lt.ahead import ahead
from posthoc_lt.checkpoint import OutOfMemoryError, capture
from posthoc_lt.extraction import Source, extract_source, extract_to, open_source, passes
from posthoc_lt.extraction.loop import Forward
from posthoc_lt.files import working

BATCH = 16
SIZES = {"train": 60, "val": 40, "test": 20}


class Watched:
    """Decoded images in memory: some cannot be read, at one comes an interruption, and each reading is noted."""

    own_code = False

    def __init__(self, x: Tensor, labels: Tensor, broken: range = range(0), interrupt: int | None = None) -> None:
        self.x, self.labels, self.broken, self.interrupt = x, labels, broken, interrupt
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.interrupt:
            raise KeyboardInterrupt
        self.seen.append(index)
        if index in self.broken:
            raise ValueError("torn")
        return self.x[index], int(self.labels[index])

    def name(self, index: int) -> str:
        return f"image {index}"

    stamp = name


@pytest.fixture(scope="module")
def images(case: Path) -> tuple[Source, dict[str, tuple[Tensor, Tensor]]]:
    """The embedded case, and some of its images, decoded."""
    source = open_source(case / "model.pt", case / "data")
    pixels = {}
    for name, size in SIZES.items():
        x, y = source.split(name).stack(range(0, size * 3, 3))
        assert y is not None
        pixels[name] = x, y
    return source, pixels


Make = Callable[..., Source]


@pytest.fixture
def make(images: tuple[Source, dict[str, tuple[Tensor, Tensor]]], monkeypatch: pytest.MonkeyPatch) -> Make:
    """A source of those images, with an interruption at image `at` of a split, and a part a batch."""
    monkeypatch.setattr(passes, "PART_SECONDS", 0.0)
    source, pixels = images

    def made(split: str = "", at: int | None = None, broken: range = range(0)) -> Source:
        splits = {name: Watched(*pair, broken if name == "train" else range(0)) for name, pair in pixels.items()}
        if split:
            splits[split].interrupt = at
        return replace(source, data=replace(source.data, splits=splits), skip=bool(broken))

    return made


def write(path: Path, source: Source, **options: object) -> list[str]:
    """Extract to `path`, in small batches on the CPU; what was noted."""
    noted: list[str] = []
    given = {"device": "cpu", "batch_size": BATCH, **options}
    extract_to(path, source, note=noted.append, **given)  # type: ignore[arg-type]
    return noted


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("scale", "kind"), [(1.0, torch.float16), (1e9, torch.float32)])
def test_the_file_is_that_of_features_in_memory(make: Make, tmp_path: Path, scale: float, kind: torch.dtype) -> None:
    """Also where one image of one batch decides that all features are kept in float32."""

    def scaled() -> Source:
        source = make()
        val = source.data.splits["val"]
        assert isinstance(val, Watched)
        val.x = val.x.clone()
        val.x[30] *= scale
        return source

    assert write(tmp_path / "streamed", scaled()) == []
    save_features(extract_source(scaled(), device="cpu", batch_size=BATCH), tmp_path / "memory")
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "memory").read_bytes()
    assert {split.x.dtype for split in load_features(tmp_path / "streamed").splits().values()} == {kind}
    assert names(tmp_path) == ["memory", "streamed"]


def test_a_head_that_is_fitted_reads_what_was_written(make: Make, tmp_path: Path) -> None:
    """For a network without a head; here any one's output is taken for features."""

    def headless() -> Source:
        source = make()
        train = source.data.splits["train"]
        assert isinstance(train, Watched)
        train.labels = torch.arange(60) % 10
        return replace(source, l2=0.01)

    write(tmp_path / "streamed", headless())
    memory = extract_source(headless(), device="cpu", batch_size=BATCH)
    save_features(memory, tmp_path / "memory")
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "memory").read_bytes()
    assert (memory.head.dimensions, bool(memory.head.weight.any())) == (10, True)
    assert names(tmp_path) == ["memory", "streamed"]


def test_features_that_are_no_numbers_are_told_and_not_written(make: Make, tmp_path: Path) -> None:
    source = make()
    train = source.data.splits["train"]
    assert isinstance(train, Watched)
    train.x = train.x.clone()
    train.x[[20, 50]] = float("nan")
    for _ in range(2):
        with pytest.raises(PosthocError, match="in 2 of 60 train rows"):
            write(tmp_path / "out", source)
    assert names(tmp_path) == [".out.parts"]


@pytest.mark.parametrize(
    ("split", "at", "done"), [("train", 5, 0), ("train", 59, 48), ("val", 20, 76), ("test", 19, 116)]
)
def test_an_interrupted_run_goes_on(make: Make, tmp_path: Path, split: str, at: int, done: int) -> None:
    write(tmp_path / "whole", make())
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(out, make(split, at))
    assert names(tmp_path) == [".out.parts", "whole"]
    again = make()
    noted = write(out, again)
    assert noted == ([f"Going on from an interrupted run: {done} of 120 images were done."] if done else [])
    seen = [len(set(samples.seen)) for samples in again.data.splits.values()]  # type: ignore[attr-defined]
    # The head is proved on 8 images of train, whatever is done: those of the 8 that are done are read once more.
    assert sum(seen[1:]) == min(60, 120 - done)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert names(tmp_path) == ["out", "whole"]


@pytest.mark.parametrize("broken", [range(3, 5), range(16, 32), range(32, 60)])
def test_what_was_skipped_before_is_remembered(make: Make, tmp_path: Path, broken: range) -> None:
    """Also where a whole batch is skipped, or all batches to the end."""
    write(tmp_path / "whole", make(broken=broken))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", make("val", 39, broken=broken))
    write(tmp_path / "out", make(broken=broken))
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    found = load_features(tmp_path / "out")
    assert found.train is not None
    assert len(found.train) == 60 - len(broken)
    assert [int(index) for index in json.loads(found.provenance["skipped"])["train"]] == list(broken)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_part_that_is_damaged_is_made_anew(make: Make, tmp_path: Path, damage: str) -> None:
    write(tmp_path / "whole", make())
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", make("val", 39))
    (part,) = tmp_path.glob(".out.parts/*/train-*16.safetensors")
    content = bytearray(part.read_bytes())
    content[-500] ^= 4
    if damage == "remove":
        part.unlink()
    else:
        part.write_bytes(content if damage == "flip" else content[:-1])
    assert write(tmp_path / "out", make()) == ["Going on from an interrupted run: 76 of 120 images were done."]
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_parts_of_other_work_are_neither_used_nor_lost(make: Make, tmp_path: Path) -> None:
    write(tmp_path / "whole", make(), batch_size=20)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", make("val", 39))
    other = replace(make("test", 0), provenance={**make().provenance, "checkpoint_sha256": "00" * 32})
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", other)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", make("test", 0), batch_size=20)
    assert write(tmp_path / "out", make(), batch_size=20)[0].endswith("100 of 120 images were done.")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_two_at_once_do_not_mix(make: Make, tmp_path: Path) -> None:
    with working(tmp_path / "out", {}), pytest.raises(PosthocError, match="another process is making"):
        write(tmp_path / "out", make())
    write(tmp_path / "out", make())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As a full disk, files can hold no more than `size` bytes meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "done"), [(1_000, 0), (8_000, 120)])
def test_a_full_disk_costs_what_does_not_fit(make: Make, tmp_path: Path, size: int, done: int) -> None:
    """The first part or the whole file: whichever it is, the rest is kept and the same again completes it."""
    write(tmp_path / "whole", make())
    with largest_file(size), pytest.raises(PosthocError, match="File too large"):
        write(tmp_path / "out", make())
    assert names(tmp_path) == [".out.parts", "whole"]
    assert write(tmp_path / "out", make()) == (
        [f"Going on from an interrupted run: {done} of 120 images were done."] if done else []
    )
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_killed_at_any_moment_it_goes_on_to_the_same_file() -> None:
    script = [sys.executable, str(EXAMPLES / "benchmarks" / "extract.py"), "--kills", "3", "--limit", "90", "--json"]
    found = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert found["killed"] == found["identical"] == 3


class Small(nn.Module):
    """A device with memory for `most` rows."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.sizes = most, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return x.sin()


def test_a_batch_too_large_for_the_device_is_halved(caplog: pytest.LogCaptureFixture) -> None:
    small = Small(3)
    x = torch.randn(10, 4)
    with capture(nn.Sequential(small, nn.Linear(4, 2)), "1") as run:
        forward = Forward(run, torch.device("cpu"))
        assert torch.equal(forward(x), x.sin())
        assert torch.equal(forward(x[:5]), x[:5].sin())
    assert small.sizes == [10, 5, 2, 2, 2, 2, 2, 2, 2, 1]
    assert [record.args for record in caplog.records] == [(10, 5), (5, 2)]


def test_a_device_without_memory_for_one_is_told() -> None:
    with capture(nn.Sequential(Small(0), nn.Linear(4, 2)), "1") as run, pytest.raises(OutOfMemoryError, match="of 1,"):
        Forward(run, torch.device("cpu"))(torch.randn(6, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_batches_copied_ahead_are_the_same() -> None:
    batches = [(torch.randn(64, 3, 32, 32), torch.arange(64)) for _ in range(7)]
    found = [(x.cpu(), y) for x, y in ahead(batches, torch.device("cuda"))]
    assert all(
        torch.equal(x, a) and torch.equal(y, b) for (x, y), (a, b) in zip(found, batches, strict=True) if y is not None
    )
