"""Files against a model of what must be in them, whatever was done to them in whatever order."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from posthoc_lt import Features, FeatureSet, Head, PosthocError, load_features, load_head, save_features, save_head
from posthoc_lt.files import SavedHead

NAMES = st.sampled_from(["one.safetensors", "two.safetensors"])
SEEDS = st.integers(0, 3)


def head(seed: int) -> Head:
    return Head(
        torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)), torch.zeros(3), has_bias=seed % 2 == 0
    )


def features(seed: int) -> FeatureSet:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)).half()
    return FeatureSet(head(seed), val=Features(x, torch.tensor([0, 1, 2, 0])), provenance={"seed": str(seed)})


class Files(RuleBasedStateMachine):
    """The model: what was last written under each name, as (kind, seed), or None where it was damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = tempfile.TemporaryDirectory()
        self.folder = Path(self.kept.name)
        self.model: dict[str, tuple[str, int] | None] = {}

    def teardown(self) -> None:
        self.kept.cleanup()

    @rule(name=NAMES, kind=st.sampled_from(["features", "head"]), seed=SEEDS, force=st.booleans())
    def save(self, name: str, kind: str, seed: int, force: bool) -> None:
        path, before = self.folder / name, self.there(name)

        def write() -> None:
            if kind == "features":
                save_features(features(seed), path, force)
            else:
                save_head(SavedHead(head(seed), {"seed": str(seed)}), path, force)

        if name in self.model and self.model[name] != (kind, seed) and not force:
            with pytest.raises(PosthocError, match="--force"):
                write()
            assert self.there(name) == before
            return
        write()
        if self.model.get(name) == (kind, seed):
            assert self.there(name) == before  # the very same again
        self.model[name] = (kind, seed)

    @rule(name=NAMES, place=st.floats(0, 0.999), bit=st.integers(0, 7))
    def flip(self, name: str, place: float, bit: int) -> None:
        if self.model.get(name) is not None:
            data = bytearray(self.there(name) or b"")
            data[int(place * len(data))] ^= 1 << bit
            (self.folder / name).write_bytes(data)
            self.model[name] = None

    @rule(name=NAMES, part=st.floats(0, 0.999))
    def cut(self, name: str, part: float) -> None:
        if self.model.get(name) is not None:
            data = self.there(name) or b""
            (self.folder / name).write_bytes(data[: int(part * len(data))])
            self.model[name] = None

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        self.model.pop(name, None)

    @rule(source=NAMES, place=NAMES)
    def copy(self, source: str, place: str) -> None:
        if source in self.model:
            (self.folder / place).write_bytes(self.there(source) or b"")
            self.model[place] = self.model[source]

    def there(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    @invariant()
    def what_is_read_is_what_was_written(self) -> None:
        for name in ("one.safetensors", "two.safetensors"):
            path, expected = self.folder / name, self.model.get(name)
            for kind, load in (("features", load_features), ("head", load_head)):
                if expected is None or expected[0] != kind:
                    self.refused(load, path, name in self.model and expected is None)
                    continue
                found = load(path)
                assert torch.equal(found.head.weight, head(expected[1]).weight)
                assert found.head.has_bias == head(expected[1]).has_bias
                assert found.provenance["seed"] == str(expected[1])
                if isinstance(found, FeatureSet):
                    assert found.val is not None
                    assert torch.equal(found.val.x, features(expected[1]).splits()["val"].x)

    @staticmethod
    def refused(load: object, path: Path, damaged: bool) -> None:
        """A damaged file may, by a flip in the header's spaces, still be exactly what was written."""
        assert callable(load)
        try:
            found = load(path)
        except PosthocError:
            return
        assert damaged
        seed = int(found.provenance["seed"])
        assert torch.equal(found.head.weight, head(seed).weight)
        assert found.head.has_bias == head(seed).has_bias

    @invariant()
    def nothing_else_lies_there(self) -> None:
        assert {path.name for path in self.folder.iterdir()} == set(self.model)


Files.TestCase.settings = settings(max_examples=30, stateful_step_count=20)
TestFiles = Files.TestCase


def test_one_seed_differs_from_another() -> None:
    """Else the machine could not tell one file from another."""
    assert len({head(seed).weight.numpy().tobytes() for seed in range(4)}) == 4
