from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from posthoc_lt import Features, FeatureSet, Head, PosthocError, load_features, load_head, save_features, save_head
from posthoc_lt.files import FEATURES, HEAD, SavedHead, container_kind, replacing, require_writable
from posthoc_lt.files.container import write_container

HEAD3 = Head(torch.eye(3), torch.zeros(3))


def feature_set(dtype: torch.dtype = torch.float16, has_bias: bool = True) -> FeatureSet:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator)

    def split(labels: list[int] | None, rows: int) -> Features:
        x = torch.randn(rows, 4, generator=generator).to(dtype)
        return Features(x, None if labels is None else torch.tensor(labels))

    return FeatureSet(
        Head(weight, torch.ones(3)) if has_bias else Head.without_bias(weight),
        train=split([0, 0, 1, 2], 4),
        val=split([0, 1, 2], 3),
        test=split(None, 2),
        classes=("kéks", "<b>", "a\x1b[31m"),
        provenance={"arch": "cifar_resnet20", "checkpoint_sha256": "00" * 32},
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_features_come_back_as_they_went(tmp_path: Path, dtype: torch.dtype, has_bias: bool) -> None:
    path, made = tmp_path / "feats.safetensors", feature_set(dtype, has_bias)
    save_features(made, path)
    back = load_features(path)
    assert torch.equal(back.head.weight, made.head.weight)
    assert torch.equal(back.head.bias, made.head.bias)
    assert back.head.has_bias == has_bias
    for name, split in made.splits().items():
        assert torch.equal(back.splits()[name].x, split.x)
        assert back.splits()[name].x.dtype == dtype
    assert back.train is not None
    assert back.train.labels.tolist() == [0, 0, 1, 2]
    assert back.test is not None
    assert back.test.y is None
    assert back.classes == made.classes
    assert dict(back.provenance) == dict(made.provenance)


def test_the_file_is_schema_1_as_another_reader_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "feats.safetensors"
    save_features(feature_set(), path)
    names = {
        "train.features",
        "train.labels",
        "val.features",
        "val.labels",
        "test.features",
        "head.weight",
        "head.bias",
    }
    assert set(load_file(path)) == names
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["version"]) == ("posthoc-lt", "1")
    assert json.loads(metadata["classes"]) == ["kéks", "<b>", "a\x1b[31m"]
    assert set(json.loads(metadata["checksums"])) == names | {"__metadata__"}


def test_equal_content_gives_equal_bytes_and_is_no_conflict(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_features(feature_set(), one)
    save_features(feature_set(), two)
    assert one.read_bytes() == two.read_bytes()
    save_features(feature_set(), one)  # the same again: nothing to do


def test_another_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    path.write_text("mine")
    saved = SavedHead(Head(torch.eye(2), torch.zeros(2)))
    with pytest.raises(PosthocError, match="--force"):
        save_head(saved, path)
    assert path.read_text() == "mine"
    save_head(saved, path, force=True)
    assert torch.equal(load_head(path).head.weight, torch.eye(2))
    assert os.listdir(tmp_path) == ["head.safetensors"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail_midway() -> None:
        with replacing(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_midway()
    assert os.listdir(tmp_path) == []


def test_the_mode_comes_from_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "out") as temporary:
            temporary.write_text("text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize("place", ["no-such-folder/out.safetensors", "a-file/out.safetensors"])
def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(PosthocError, match="cannot be written"):
        save_features(feature_set(), tmp_path / place)


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for force in (False, True):
        with pytest.raises(PosthocError, match="out"):
            save_features(feature_set(), tmp_path / "out", force)
    assert os.listdir(tmp_path) == ["out"]


def test_a_head_comes_back_with_its_words(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_head(SavedHead(Head.without_bias(torch.eye(2)), {"method": "tau-norm", "tau": "0.7"}), path)
    back = load_head(path)
    assert not back.head.has_bias
    assert dict(back.provenance) == {"method": "tau-norm", "tau": "0.7"}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_always_found(tmp_path: Path, data: st.DataObject) -> None:
    """Anywhere but in a metadata string the file is refused; there the tensors still come back exact."""
    path, made = tmp_path / "feats.safetensors", feature_set()
    save_features(made, path, force=True)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        back = load_features(path)
    except PosthocError:
        return
    for name, split in made.splits().items():
        assert torch.equal(back.splits()[name].x, split.x)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "feats.safetensors"
    save_features(feature_set(), path)
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(PosthocError, match="extract --ckpt"):
            load_features(path)


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    made, path = feature_set(), tmp_path / "feats.safetensors"
    assert made.val is not None
    made.val.x[1, 2] = float("nan")
    save_features(made, path)
    with pytest.raises(PosthocError, match="val features hold NaN or infinity in 1 of 3 rows"):
        load_features(path)


def test_other_files_are_told_as_what_they_are(tmp_path: Path) -> None:
    foreign, head, features = (tmp_path / f"{name}.safetensors" for name in ("model", "head", "feats"))
    save_file({"w": torch.zeros(1)}, foreign)
    save_head(SavedHead(Head(torch.eye(2), torch.zeros(2))), head)
    save_features(feature_set(), features)
    assert [container_kind(path) for path in (foreign, head, features)] == [None, HEAD, FEATURES]
    with pytest.raises(PosthocError, match=r"not ours\. Wanted: a feature file\. .*extract --ckpt"):
        load_features(foreign)
    with pytest.raises(PosthocError, match=r"not ours\. Wanted: a head file\. .*rebalance --out"):
        load_head(foreign)
    with pytest.raises(PosthocError, match=r"which is a head file\. Wanted: a feature file\."):
        load_features(head)
    with pytest.raises(PosthocError, match=r"which is a feature file\. Wanted: a head file\."):
        load_head(features)
    with pytest.raises(PosthocError, match="which is no file"):
        load_features(tmp_path / "missing.safetensors")


def test_a_kind_of_ours_that_has_no_words_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write_container(path, {"a": torch.zeros(1)}, {"format": "posthoc-lt-x\x1b[31m", "version": "1"})
    with pytest.raises(PosthocError, match=r"which is a posthoc-lt-x\\x1b\[31m file\."):
        load_features(path)


def test_a_bias_of_a_layer_that_has_none_is_kept(tmp_path: Path) -> None:
    """Methods give a bias to heads whose layer has none; it is part of the head all the same."""
    path = tmp_path / "feats.safetensors"
    save_features(FeatureSet(Head(torch.eye(3), torch.tensor([1.0, -2.0, 0.5]), has_bias=False)), path)
    head = load_features(path).head
    assert head.bias.tolist() == [1.0, -2.0, 0.5]
    assert not head.has_bias
    save_features(FeatureSet(Head.without_bias(torch.eye(3))), path, force=True)
    assert "head.bias" not in load_file(path)
    assert "has_bias" not in load_features(path).provenance


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_file_that_does_not_say_has_a_bias_if_it_holds_one(tmp_path: Path, has_bias: bool) -> None:
    path = tmp_path / "feats.safetensors"
    tensors = {"head.weight": torch.eye(2), "head.bias": torch.zeros(2)}
    if not has_bias:
        del tensors["head.bias"]
    write_container(path, tensors, {"format": "posthoc-lt", "version": "1", "classes": '["a", "b"]'})
    assert load_features(path).head.has_bias == has_bias


def test_train_counts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "feats.safetensors"
    save_features(FeatureSet(HEAD3, train_counts=torch.tensor([5.0, 2.0, 1.0])), path)
    assert load_file(path)["train.counts"].dtype == torch.int64
    assert load_features(path).counts.tolist() == [5, 2, 1]


def without_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(code, os.strerror(code), str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV])
def test_a_place_without_hard_links_works_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    without_links(monkeypatch, code)
    path = tmp_path / "head.safetensors"
    saved = SavedHead(Head(torch.eye(2), torch.zeros(2)))
    save_head(saved, path)
    assert torch.equal(load_head(path).head.weight, torch.eye(2))
    save_head(saved, path)
    before = path.read_bytes()
    with pytest.raises(PosthocError, match="--force"):
        save_head(SavedHead(Head(2 * torch.eye(2), torch.zeros(2))), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["head.safetensors"]


def test_a_rename_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    without_links(monkeypatch, errno.EPERM)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PosthocError, match="No space left"):
        save_features(feature_set(), tmp_path / "feats.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_synced_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open, real_sync = os.open, os.fsync

    def open_no_folder(path: str, flags: int, mode: int = 0o777) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_open(path, flags, mode)

    def sync_no_folder(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real_sync(file)

    monkeypatch.setattr(os, "fsync", sync_no_folder)
    save_features(feature_set(), tmp_path / "one.safetensors")
    monkeypatch.setattr(os, "open", open_no_folder)
    save_features(feature_set(), tmp_path / "two.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["one.safetensors", "two.safetensors"]


IMPOSSIBLE = ["", ".", "..", "/", "x" * 300, "a\0b", "\ud800"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_name_that_no_file_can_have_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for force in (False, True):
        with pytest.raises(PosthocError, match="cannot be written"), replacing(Path(name), force):
            pytest.fail("the block ran")
    with pytest.raises(PosthocError, match="cannot be written"):
        require_writable(Path(name))
    for load in (load_features, load_head):
        with pytest.raises(PosthocError, match="which is no file"):
            load(Path(name))
    assert container_kind(Path(name)) is None
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(PosthocError, match="directory"):
        require_writable(tmp_path)


def test_the_longest_name_that_a_file_can_have_works(tmp_path: Path) -> None:
    path = tmp_path / ("名" * 85)  # 255 bytes
    save_features(feature_set(), path)
    assert load_features(path).classes == feature_set().classes


@pytest.mark.parametrize("key", ["classes", "checksums"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5_000, "null", "[[]]", ""])
def test_hostile_metadata_is_refused(tmp_path: Path, key: str, text: str) -> None:
    path = tmp_path / "feats.safetensors"
    metadata = {"format": "posthoc-lt", "version": "1", "classes": '["0", "1", "2"]'}
    if key == "classes":
        write_container(path, {"head.weight": torch.eye(3)}, {**metadata, "classes": text})
    else:
        save_file({"head.weight": torch.eye(3)}, path, {**metadata, "checksums": text})
    with pytest.raises(PosthocError, match=f"class names|{key}"):
        load_features(path)


@pytest.mark.parametrize(("dtype", "size"), [("F4", 6), ("C64", 96)])
def test_types_that_torch_cannot_compute_with_are_refused(tmp_path: Path, dtype: str, size: int) -> None:
    path, data = tmp_path / "feats.safetensors", bytes(size)
    sums = json.dumps({"head.weight": "sha256:" + hashlib.sha256(data).hexdigest()})
    header = {
        "__metadata__": {"format": "posthoc-lt", "version": "1", "checksums": sums},
        "head.weight": {"dtype": dtype, "shape": [3, 4], "data_offsets": [0, size]},
    }
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    with pytest.raises(PosthocError, match=r"real numbers|cannot be read"):
        load_features(path)
