"""Feature sets in several files with an index."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import json_of, out_of, refusal_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from posthoc_lt import Features, FeatureSet, Head, PosthocError, load_features, save_features
from posthoc_lt.cli import run
from posthoc_lt.files import FEATURES, Pieces, container_kind
from posthoc_lt.files.container import SHARD, write_container
from posthoc_lt.files.shards import _grouped

LIMIT = 1000


def made(seed: int = 0) -> FeatureSet:
    generator = torch.Generator().manual_seed(seed)

    def split(rows: int) -> Features:
        return Features(torch.randn(rows, 8, generator=generator).half(), torch.arange(rows) % 3)

    head = Head(torch.randn(3, 8, generator=generator), torch.ones(3))
    return FeatureSet(head, split(60), split(20), split(10), ("a", "b", "kéks"), {"arch": "none", "seed": str(seed)})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def alike(one: FeatureSet, other: FeatureSet) -> None:
    for name, split in one.splits().items():
        assert torch.equal(other.splits()[name].x, split.x)
        assert torch.equal(other.splits()[name].labels, split.labels)
    assert torch.equal(one.head.weight, other.head.weight)
    assert (one.classes, dict(one.provenance)) == (other.classes, dict(other.provenance))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a set of shards lies."""
    save_features(made(), tmp_path / "feats.safetensors", shard_bytes=LIMIT)
    return tmp_path / "feats.safetensors"


def test_shards_come_back_under_the_name_of_the_set_or_of_its_index(path: Path) -> None:
    index = path.with_name("feats.safetensors.index.json")
    shards = [f"feats-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(path.parent) == [*shards, index.name]
    for place in (path, index):
        alike(made(), load_features(place))
        assert container_kind(place) == FEATURES
    assert container_kind(path.with_name(shards[0])) == SHARD
    with pytest.raises(PosthocError, match=r"a shard of a feature file, which its \.index\.json opens"):
        load_features(path.with_name(shards[0]))


def test_the_index_is_that_of_hugging_face(path: Path) -> None:
    """Its two keys, whole tensors, and sizes as the convention counts them, seen by another reader."""
    content = json.loads(path.with_name("feats.safetensors.index.json").read_text(encoding="utf-8"))
    tensors: dict[str, torch.Tensor] = {}
    for shard in set(content["weight_map"].values()):
        held = load_file(path.with_name(shard))
        assert {name for name, place in content["weight_map"].items() if place == shard} == set(held)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= LIMIT
        tensors |= held
    assert content["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    train = made().train
    assert train is not None
    assert torch.equal(tensors["train.features"], train.x)


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50), min_size=1), st.integers(1, 60))
def test_groups_are_full_and_hold_every_name_once(sizes: dict[str, int], limit: int) -> None:
    groups = _grouped(sizes, limit)
    assert [name for group in groups for name in group] == sorted(sizes)
    total = [sum(sizes[name] for name in group) for group in groups]
    assert all(size <= limit or len(group) == 1 for size, group in zip(total, groups, strict=True))
    assert all(size + sizes[after[0]] > limit for size, after in zip(total, groups[1:], strict=False))


def test_another_set_is_kept_unless_forced_in_either_form(path: Path) -> None:
    before = {name: (path.parent / name).read_bytes() for name in names(path.parent)}
    save_features(made(), path, shard_bytes=LIMIT)  # the same again: nothing to do
    for limit in (LIMIT, 10**9):
        with pytest.raises(PosthocError, match="--force"):
            save_features(made(1), path, shard_bytes=limit)
    assert {name: (path.parent / name).read_bytes() for name in names(path.parent)} == before
    save_features(made(1), path, force=True, shard_bytes=1400)  # fewer shards
    alike(made(1), load_features(path))
    assert len(names(path.parent)) == 3
    save_features(made(2), path, force=True)
    assert names(path.parent) == [path.name]
    with pytest.raises(PosthocError, match="--force"):
        save_features(made(1), path, shard_bytes=LIMIT)
    save_features(made(1), path, force=True, shard_bytes=LIMIT)
    alike(made(1), load_features(path))
    assert path.name not in names(path.parent)


def test_shards_of_two_sets_do_not_mix(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    save_features(replace(made(1), head=made().head), other, shard_bytes=LIMIT)
    shutil.copy(other.with_name("feats-00003-of-00003.safetensors"), path.parent)
    with pytest.raises(PosthocError, match="not those it was written with"):
        load_features(path)
    path.with_name("feats-00003-of-00003.safetensors").unlink()
    with pytest.raises(PosthocError, match="is no file"):
        load_features(path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        "[]",
        {"weight_map": {}},
        {"metadata": {}, "weight_map": {"head.weight": 3}},
        {"metadata": [], "weight_map": {}},
        {"metadata": {}, "weight_map": {"head.weight": "../feats-00001-of-00003.safetensors"}},
        {"metadata": {}, "weight_map": {"head.weight": "/etc/passwd"}},
    ],
)
def test_a_hostile_index_is_refused(path: Path, content: Any) -> None:
    index = path.with_name("feats.safetensors.index.json")
    index.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PosthocError, match="no index of shards"):
        load_features(path)
    assert container_kind(path) is None
    elsewhere = path.parent / "kept"
    elsewhere.write_text("mine")
    save_features(made(1), path, force=True)
    assert elsewhere.exists()


@pytest.mark.parametrize("metadata", [{}, {"format": "posthoc-lt-head"}, {"format": FEATURES, "version": "2"}])
def test_an_index_of_another_kind_or_version_is_told(path: Path, metadata: dict[str, str]) -> None:
    index = path.with_name("feats.safetensors.index.json")
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "metadata": metadata}))
    with pytest.raises(PosthocError, match=r"feature file|version"):
        load_features(path)


def test_pieces_make_the_file_that_the_whole_makes(tmp_path: Path) -> None:
    x = torch.randn(7, 3)
    pieces = Pieces((7, 3), torch.float32, lambda: iter([x[:2], x[2:2], x[2:].double()]))
    write_container(tmp_path / "whole", {"x": x, "a": torch.arange(3)}, {"format": "f"})
    write_container(tmp_path / "pieces", {"x": pieces, "a": torch.arange(3)}, {"format": "f"})
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()
    with pytest.raises(ValueError, match="bytes of x"):
        write_container(tmp_path / "short", {"x": replace(pieces, shape=(8, 3))}, {})


def test_every_command_reads_what_extract_wrote_in_shards(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_features(there / "feats.safetensors")
    whole_tau = json_of("tau-search", capsys)["tau"]
    command, out = "extract --ckpt model.pt --shard-size 100KB", Path("feats.safetensors")
    assert "up to date" in noted(command, capsys)
    (there / "feats.safetensors").unlink()
    (there / ".feats.safetensors.parts" / "stale").mkdir(parents=True)
    assert "Wrote" in noted(command, capsys)
    alike(replace(whole, provenance={**whole.provenance, "checkpoint": "model.pt", "data": "data"}), load_features(out))
    (there / ".feats.safetensors.parts" / "stale").mkdir(parents=True)
    assert "up to date" in noted(command, capsys)
    assert not (there / ".feats.safetensors.parts").exists()
    found = json_of("tau-search", capsys)
    assert found["tau"] == whole_tau
    assert found["inputs"]["features"]["path"] == "feats.safetensors.index.json"
    assert json_of("inspect feats.safetensors", capsys)["format"] == "feature file"
    out_of("logit-adjust --tau 1 --out head.safetensors", capsys)
    assert json_of("export --ckpt model.pt --out balanced.pt", capsys)["verified_on"] > 0
    status, message = refusal_of([*command.split(), "--limit", "5"], capsys)
    assert (status, "--force" in message) == (1, True)
    assert refusal_of(["extract", "--ckpt", "model.pt", "--shard-size", "5XB"], capsys)[0] == 2


def noted(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that succeeds says beside its result."""
    capsys.readouterr()
    assert run(command.split()) == 0
    return capsys.readouterr().err
