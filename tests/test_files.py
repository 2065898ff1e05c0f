from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from posthoc_lt import Features, FeatureSet, Head, PosthocError, load_features, load_head, save_features, save_head
from posthoc_lt.files import SavedHead, replacing


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
    assert set(json.loads(metadata["checksums"])) == names


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    foreign, head = tmp_path / "model.safetensors", tmp_path / "head.safetensors"
    save_file({"w": torch.zeros(1)}, foreign)
    save_head(SavedHead(Head(torch.eye(2), torch.zeros(2))), head)
    for path in (foreign, head):
        with pytest.raises(PosthocError, match="not ours"):
            load_features(path)
    with pytest.raises(PosthocError, match="which is no file"):
        load_features(tmp_path / "missing.safetensors")
