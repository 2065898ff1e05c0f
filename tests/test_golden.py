"""Files written once, when a schema was new, which must load forever."""

from __future__ import annotations

from pathlib import Path

import golden_case
import pytest
import torch
from golden_case import GOLDEN

from posthoc_lt import load_features
from posthoc_lt.files import load_head


@pytest.mark.parametrize("name", ["features-1.safetensors", "shards-1.safetensors", "shards-1.safetensors.index.json"])
def test_feature_files_of_schema_1_load(name: str) -> None:
    found, made = load_features(GOLDEN / name), golden_case.feature_set()
    assert found.splits().keys() == made.splits().keys() == {"train", "val", "test"}
    for split, features in made.splits().items():
        there = found.splits()[split]
        assert there.x.dtype == features.x.dtype
        assert torch.equal(there.x, features.x)
        assert (there.y is None) == (features.y is None)
        assert features.y is None or torch.equal(there.labels, features.labels)
    assert torch.equal(found.head.weight, made.head.weight)
    assert not found.head.has_bias
    assert torch.equal(found.counts, torch.tensor([40, 30, 20, 10]))
    assert found.classes == golden_case.NAMES
    assert found.provenance == golden_case.FOUND


def test_head_files_of_schema_1_load() -> None:
    found, made = load_head(GOLDEN / "head-1.safetensors"), golden_case.saved_head()
    assert torch.equal(found.head.weight, made.head.weight)
    assert torch.equal(found.head.bias, made.head.bias)
    assert found.head.has_bias
    assert found.provenance == made.provenance


def test_what_is_written_today_is_schema_1(tmp_path: Path) -> None:
    """Bytes that differ are another format, which wants a version of its own and golden files beside these."""
    golden_case.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in GOLDEN.iterdir()
    }
