"""What a feature file says of itself comes from who made the file: it is checked before use, and runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import pytest
import torch
from small_network import small, write_images

from posthoc_lt import own_code
from posthoc_lt.cli import run
from posthoc_lt.errors import PosthocError
from posthoc_lt.export import export
from posthoc_lt.extraction import extract
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import SavedHead, save_features, save_head
from posthoc_lt.pipeline import rebalance

ODD = ("", "{", "[1]", "7", "null", "\x1b[31m", '{"val": 3}', '{"val": {"x": ["a", "b"]}}', "9" * 5000, "[" * 100_000)
KEYS = ("data", "data_options", "limit", "precision", "several_frames", "skipped", "transform", "views", "weights")

FACTORY = """
from pathlib import Path
Path("ran").touch()
import sys
sys.path.insert(0, {tests!r})
from small_network import small
def build():
    return small()
def splits(split):
    if split == "test":
        return None
    import torch
    made = torch.randn(15, 1, 8, 8, generator=torch.Generator().manual_seed(len(split)))
    return [(x, y % 3) for y, x in enumerate(made)]
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("provenance") / "data")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    tests = str(Path(__file__).parent)
    (tmp_path / "provenance_code.py").write_text(FACTORY.format(tests=tests))
    path = list(sys.path)
    torch.save(small().state_dict(), "model.pt")
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("provenance_code", None)


@pytest.fixture
def own(place: Path, images: Path) -> FeatureSet:
    """Features by the user's own network, whose code has not run in this process since."""
    features = extract("model.pt", images, arch="provenance_code:build", device="cpu")
    forget()
    return features


def forget() -> None:
    """As in a process of its own."""
    sys.modules.pop("provenance_code")
    own_code._named.clear()
    Path("ran").unlink()


def test_code_that_features_name_runs_only_where_you_name_it(own: FeatureSet) -> None:
    with pytest.raises(PosthocError, match=r"name code to run.*add --arch provenance_code:build"):
        export("model.pt", own.head, "out.pt", features=own)
    assert not Path("ran").exists()
    assert not Path("out.pt").exists()
    export("model.pt", own.head, "out.pt", features=own, arch="provenance_code:build")
    assert Path("ran").exists()


def test_what_was_named_in_this_process_need_not_be_named_again(place: Path) -> None:
    features = extract("model.pt", "provenance_code:splits", arch="provenance_code:build", device="cpu")
    export("model.pt", features.head, "out.pt", features=features)


def test_data_that_features_name_are_no_code(place: Path) -> None:
    features = extract("model.pt", "provenance_code:splits", arch="provenance_code:build", device="cpu")
    forget()
    arch = "provenance_code:build"
    with pytest.raises(PosthocError, match=r"name code to run.*add --data provenance_code:splits"):
        export("model.pt", features.head, "out.pt", features=features, arch=arch)
    assert not Path("out.pt").exists()
    export("model.pt", features.head, "out.pt", features=features, arch=arch, data="provenance_code:splits")


def test_the_command_and_the_result_take_it(own: FeatureSet) -> None:
    save_features(own, Path("feats.safetensors"))
    save_head(SavedHead(own.head), Path("head.safetensors"))
    words = ["export", "--ckpt", "model.pt", "--out", "out.pt"]
    assert run(words) == 1
    assert not Path("ran").exists()
    assert run([*words, "--arch", "provenance_code:build"]) == 0
    forget()
    result = rebalance(own, methods="logit-adjust", device="cpu")
    result.export("model.pt", "again.pt", arch="provenance_code:build")


@pytest.mark.parametrize("key", KEYS)
def test_odd_provenance_is_told_or_does_not_matter(
    own: FeatureSet, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_head(SavedHead(own.head), Path("head.safetensors"))
    network = ["--ckpt", "model.pt", "--arch", "provenance_code:build"]
    for odd in ODD:
        features = copy(own)
        object.__setattr__(features, "provenance", {**own.provenance, key: odd})  # unchecked, as in a file
        save_features(features, Path("odd.safetensors"), force=True)
        for words in (
            ["export", *network, "--features", "odd.safetensors", "--force"],
            ["extract", *network, "--out", "odd.safetensors", "--data", own.provenance["data"]],
            ["compare", "--features", "odd.safetensors", "--methods", "logit-adjust"],
            ["inspect", "odd.safetensors"],
        ):
            status = run(words)
            told = capsys.readouterr().err
            assert status in (0, 1), (words, odd, told)
            assert "fault of posthoc-lt" not in told, (words, odd, told)
            assert "\x1b" not in told
