"""Several at once, on the same file, folder or shards: one of them is there whole, and the others are told."""

from __future__ import annotations

import filecmp
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from posthoc_lt import (
    Features,
    FeatureSet,
    Head,
    PosthocError,
    load_features,
    load_head,
    save_features,
    save_head,
)
from posthoc_lt.cli.demo import unpack
from posthoc_lt.export import _replacing
from posthoc_lt.files import SavedHead, working
from posthoc_lt.files.folder import replacing_folder


def at_once(works: Sequence[Callable[[], object]]) -> list[BaseException | None]:
    """Start together; how each ended."""
    begin, ends = threading.Barrier(len(works)), list[BaseException | None]([None] * len(works))

    def work(index: int) -> None:
        begin.wait()
        try:
            works[index]()
        except BaseException as error:
            ends[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns hundreds of times as often, so that they come between each other's steps."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def head(seed: int) -> SavedHead:
    return SavedHead(Head(torch.full((3, 2), float(seed)), torch.zeros(3)))


def test_the_same_file_at_once_succeeds_for_all(tmp_path: Path, often: None) -> None:
    for number in range(30):
        path = tmp_path / f"{number}.safetensors"
        assert at_once([lambda path=path: save_head(head(1), path)] * 4) == [None] * 4  # type: ignore[misc]
    assert len(os.listdir(tmp_path)) == 30


@pytest.mark.parametrize("force", [False, True])
def test_of_different_files_at_once_one_is_there_whole(tmp_path: Path, force: bool, often: None) -> None:
    for number in range(30):
        path = tmp_path / f"{number}.safetensors"
        works = [lambda seed=seed, path=path: save_head(head(seed), path, force) for seed in range(4)]
        ends = at_once(works)
        won = int(load_head(path).head.weight[0, 0])
        assert ends[won] is None
        assert sum(end is None for end in ends) == (4 if force else 1)
        assert all("--force" in str(end) for end in ends if end is not None)
    assert len(os.listdir(tmp_path)) == 30


def write_folder(path: Path, text: str, force: bool) -> None:
    with replacing_folder(path, force) as temporary:
        (temporary / "config.json").write_text(text)
        (temporary / "weights").write_text(text)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("alike", [False, True])
def test_folders_at_once(tmp_path: Path, alike: bool, force: bool, often: None) -> None:
    for number in range(100):
        path = tmp_path / str(number)
        ends = at_once([lambda s=s, p=path: write_folder(p, "a" if alike else s, force) for s in "abcdef"])  # type: ignore[misc]
        texts = {each.read_text() for each in path.iterdir()}
        assert len(texts) == 1
        assert len(list(path.iterdir())) == 2
        assert any(end is None for end in ends)
        assert all(isinstance(end, PosthocError | None) for end in ends), ends
        if alike or force:
            assert ends == [None] * 6
        else:
            assert sum(end is None for end in ends) == 1
    assert not list(tmp_path.glob(".*"))


def test_a_folder_another_process_moves_away_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    write_folder(model, "old", False)
    scandir = os.scandir

    def moved_away(path: Path | str) -> Iterator[os.DirEntry[str]]:
        if str(path) == str(model):
            model.rename(tmp_path / "elsewhere")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", moved_away)
    write_folder(model, "new", True)
    assert (model / "weights").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "model"]


def test_a_link_to_a_folder_is_replaced_and_the_folder_stays(tmp_path: Path) -> None:
    write_folder(tmp_path / "kept", "old", False)
    (tmp_path / "model").symlink_to(tmp_path / "kept")
    write_folder(tmp_path / "model", "new", True)
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert (tmp_path / "kept" / "weights").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["kept", "model"]


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("late", [False, True])
def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, late: bool
) -> None:
    """Or is there itself, where the interruption came right after."""
    write_folder(tmp_path / "model", "old", False)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target.name == "model" and self.suffix == ".tmp":
            if late:
                rename(self, target)
            raise fault
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises((PosthocError, KeyboardInterrupt)):
        write_folder(tmp_path / "model", "new", True)
    assert (tmp_path / "model" / "weights").read_text() == ("new" if late else "old")
    assert os.listdir(tmp_path) == ["model"]


def test_the_same_file_at_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, often: None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    for number in range(60):
        path = tmp_path / f"{number}.safetensors"
        assert at_once([lambda path=path: save_head(head(1), path)] * 4) == [None] * 4  # type: ignore[misc]


def test_a_file_removed_while_it_is_compared_is_not_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, compare = tmp_path / "head.safetensors", filecmp.cmp
    save_head(head(1), path)

    def removed(one: Path, other: Path, shallow: bool = True) -> bool:
        path.unlink()
        return compare(one, other, shallow)

    monkeypatch.setattr(filecmp, "cmp", removed)
    save_head(head(2), path)
    monkeypatch.undo()
    assert float(load_head(path).head.weight[0, 0]) == 2


def test_shards_at_once_are_those_of_one(tmp_path: Path) -> None:
    """Also of one writer whose features fit into a single file."""
    path = tmp_path / "feats.safetensors"

    def write(seed: int) -> None:
        x, y = torch.full((90, 40), float(seed)), torch.arange(90) % 3
        features = FeatureSet(Head(torch.ones(3, 40), torch.zeros(3)), Features(x, y), Features(x + 10, y))
        save_features(features, path, force=True, shard_bytes=10**9 if seed == 3 else 1000)

    for _ in range(6):
        assert at_once([lambda seed=seed: write(seed) for seed in range(4)]) == [None] * 4  # type: ignore[misc]
        found = load_features(path)
        assert found.train is not None
        assert found.val is not None
        assert torch.equal(found.train.x + 10, found.val.x)


class Busy(Exception):
    """Another one is at it."""


@contextmanager
def told() -> Iterator[None]:
    try:
        yield
    except PosthocError as error:
        if "another process is making" in str(error):
            raise Busy from None
        raise


def test_a_lock_lets_in_one_at_a_time(tmp_path: Path, often: None) -> None:
    inside, most = [], [0]

    def work() -> None:
        for _ in range(60):
            with suppress(Busy), told(), working(tmp_path / "out", {}) as parts:
                inside.append(1)
                most[0] = max(most[0], len(inside))
                (parts.folder / "part").write_text("x")
                inside.pop()
                parts.remove()  # with which the next one may come

    assert at_once([work] * 4) == [None] * 4
    assert most == [1]
    assert os.listdir(tmp_path) == []


def test_a_place_that_vanishes_as_it_is_made_is_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, is_dir = tmp_path / ".out.parts", Path.is_dir
    place.mkdir()

    def vanished(self: Path) -> bool:
        if self == place and os.path.lexists(place):
            place.rmdir()
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", vanished)  # which mkdir asks where it finds something
    with pytest.raises(PosthocError, match="another process is making"), working(tmp_path / "out", {}):
        pass
    monkeypatch.undo()
    place.write_text("a file")
    with pytest.raises(PosthocError, match="which cannot be written"), working(tmp_path / "out", {}):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_lock_does_not_outlive_a_killed_process_in_its_workers(tmp_path: Path) -> None:
    code = """
import os, pathlib, signal, sys, time
from posthoc_lt.files import working
with working(pathlib.Path(sys.argv[1]), {}):
    worker = os.fork()
    if not worker:
        os.close(1)
        time.sleep(600)
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=False, stdout=subprocess.PIPE, text=True, check=False)
    try:
        assert done.returncode == -signal.SIGKILL
        with working(tmp_path / "out", {}):
            pass
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


def test_a_demo_unpacked_twice_at_once(tmp_path: Path) -> None:
    assert at_once([lambda: unpack(tmp_path / "demo")] * 3) == [None] * 3
    assert not list((tmp_path / "demo").rglob(".*"))


def test_an_index_and_its_shards_at_once_are_those_of_one(tmp_path: Path) -> None:
    """Of a checkpoint, in which no checksum would tell."""

    def write(seed: int) -> None:
        with _replacing(tmp_path / "m.safetensors.index.json", True, folder=False) as index:
            for name in (index.name, "m-1.safetensors", "m-2.safetensors"):
                index.with_name(name).write_text(str(seed))

    for _ in range(8):
        assert at_once([lambda seed=seed: write(seed) for seed in range(4)]) == [None] * 4  # type: ignore[misc]
        assert len({path.read_text() for path in tmp_path.iterdir()}) == 1
        assert len(os.listdir(tmp_path)) == 3
