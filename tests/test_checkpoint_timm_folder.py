"""Folders that timm writes for the Hugging Face hub: extracted, folded, and loaded again by timm itself."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_network import new_head, write_images

from posthoc_lt.checkpoint import Preprocessing, identify, read
from posthoc_lt.checkpoint.zoo import importable, library
from posthoc_lt.errors import PosthocError
from posthoc_lt.export import export
from posthoc_lt.extraction import extract

pytestmark = pytest.mark.skipif(not importable("timm:"), reason="timm is not installed")
CONFIG: dict[str, Any] = {
    "input_size": [3, 160, 160],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.5, 0.25, 0.2],
    "crop_pct": 1.0,
    "interpolation": "bicubic",
}


def written(name: str) -> Any:
    """A network of timm at random weights, written to the folder ``model``."""
    torch.manual_seed(0)
    network = library("timm").create_model(name, num_classes=3).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    said = {"num_classes": 3, "pretrained_cfg": {**CONFIG, "num_classes": 3}}
    importlib.import_module("timm.models").save_for_hf(network, "model", model_config=said, safe_serialization=True)
    return network


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_timm_gives_the_new_head(tmp_path: Path) -> None:
    model = written("test_vit")
    images = write_images(tmp_path / "data")
    architecture = identify(read("model"))
    assert architecture.name == "timm:test_vit"
    assert architecture.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.5, 0.25, 0.2), 160, interpolation="bicubic")
    features = extract("model", images)
    head = new_head(features)
    exported = export("model", head, "balanced", features=features)
    assert exported.changed == ("head.weight", "head.bias")
    patched = library("timm").create_model("local-dir:balanced", pretrained=True).eval()
    x = torch.randn(4, 3, 160, 160)
    with torch.no_grad():
        hidden = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(patched(x), head(hidden), rtol=1e-4, atol=1e-5)
    before, after = load_file("model/model.safetensors"), load_file("balanced/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in set(before) - set(exported.changed))
    assert {path.name for path in Path("model").iterdir()} == {path.name for path in Path("balanced").iterdir()}
    assert Path("balanced/config.json").read_bytes() == Path("model/config.json").read_bytes()


@pytest.mark.parametrize("name", ["test_efficientnet_gn", "test_efficientnet_ln"])
def test_the_folder_tells_twins_apart(name: str) -> None:
    written(name)
    architecture = identify(read("model"))
    assert architecture.name == f"timm:{name}"
    assert "as architecture of the file says" in architecture.note


def test_a_name_that_tells_nothing_and_no_weights() -> None:
    written("test_vit")
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**config, "architecture": "nothing_of_timm"}))
    assert identify(read("model")).name == "timm:test_vit"  # by its tensors
    Path("model/model.safetensors").unlink()
    with pytest.raises(PosthocError, match=r"which has a config\.json and no weights"):
        read("model")
