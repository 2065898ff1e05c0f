"""What the network runs in: lower precision within its rounding, and torch.compile where there is a compiler."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_network import inputs, small, write_images
from torch._inductor import config

from posthoc_lt.errors import PosthocError
from posthoc_lt.extraction import extract, extract_to, is_current, open_source

ARCH = "small_network:small"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "data")
    torch.save(small().state_dict(), tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("precision", "error"), [("auto", 1e-3), ("f16", 4e-3), ("bf16", 3e-2)])
def test_features_differ_by_no_more_than_rounding(there: Path, precision: str, error: float) -> None:
    found = extract("model.pt", arch=ARCH, device="cpu", precision=precision)
    expected = small().features(inputs(there / "data"))
    assert found.val is not None
    worst = float((found.val.x.float() - expected).abs().max() / expected.abs().max())
    assert (error / 100 if precision != "auto" else 0) < worst < error
    assert found.provenance["precision"] == {"auto": "float32"}.get(precision, precision)


def test_a_precision_that_is_asked_for_is_part_of_what_a_cache_is(there: Path) -> None:
    source = open_source("model.pt", arch=ARCH)
    found = extract_to("out", source, device="cpu", precision="bf16")
    assert is_current(found, source)
    assert is_current(found, source, "bf16")
    assert not is_current(found, source, "f16")
    with pytest.raises(PosthocError, match=r"precision 'f8'.*bf16"):
        extract("model.pt", arch=ARCH, device="cpu", precision="f8")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, as it compiles
def test_a_compiled_network_gives_the_same_features(there: Path) -> None:
    found = extract("model.pt", arch=ARCH, device="cpu", compiled=True)
    assert found.val is not None
    torch.testing.assert_close(found.val.x.float(), small().features(inputs(there / "data")), rtol=2e-3, atol=2e-3)
    assert found.provenance["compiled"] == "yes"


@pytest.mark.filterwarnings("ignore")
def test_without_a_compiler_it_is_told_which(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(config.cpp, "cxx", (None, str(there / "no-compiler")))
    monkeypatch.setattr(config, "force_disable_caches", True)
    with pytest.raises(PosthocError, match=r"--compile, which fails \(.*Wanted: a C\+\+ compiler such as g\+\+"):
        extract("model.pt", arch=ARCH, device="cpu", compiled=True)
