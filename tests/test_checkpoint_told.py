"""Networks of equal tensors, told apart by what their file says of itself."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posthoc_lt.checkpoint import TwinsError, candidates, identify, read
from posthoc_lt.checkpoint.told import told
from posthoc_lt.checkpoint.zoo import importable

GROUPS = [["torchvision:resnet18", "timm:resnet18"], ["timm:resnetblur18"]]
BLUR, PLAIN = 1, 0


def resnet18() -> dict[str, Tensor]:
    """Its names and shapes, from 1512.03385's table; every tensor one number, so that the file is small."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (5, 512), "fc.bias": (5,)}
    norms, before = {"bn1": 64}, 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, before, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
            norms |= {f"{name}.bn1": width, f"{name}.bn2": width}
            if before != width:
                shapes[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
                norms[f"{name}.downsample.1"] = width
            before = width
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{name}.{part}": (width,) for name, width in norms.items() for part in parts}
    return {name: torch.ones(()).expand(shape) for name, shape in shapes.items()}


def saved(path: Path, **beside: Any) -> Path:
    torch.save({"state_dict": resnet18(), **beside}, path)
    return path


def published(folder: Path, name: str) -> Path:
    """Named as timm and torchvision name what they publish, which the bytes of a file have no part in."""
    path = saved(folder / "m.pth")
    return path.rename(folder / name.format(hashlib.sha256(path.read_bytes()).hexdigest()[:8]))


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"arch": "resnetblur18"}, (BLUR, "arch")),  # timm's train.py
        ({"arch": "resnet18"}, (PLAIN, "arch")),  # and PyTorch's example for ImageNet
        ({"args": argparse.Namespace(model="resnet18", lr=0.1)}, (PLAIN, "args.model")),  # torchvision's references
        ({"hyper_parameters": {"backbone": "timm:resnetblur18"}}, (BLUR, "hyper_parameters.backbone")),  # Lightning
        ({"architecture": "timm/resnetblur18.a1_in1k"}, (BLUR, "architecture")),  # as Hugging Face calls it
        ({"arch": "resnet18", "args": {"model": "resnet18"}}, (PLAIN, "arch")),
        ({"arch": "resnet18", "args": {"model": "resnetblur18"}}, None),  # it contradicts itself
        ({"arch": "resnet34"}, None),
        ({"arch": 18, "args": [1]}, None),
        ({}, None),
    ],
)
def test_what_training_code_writes_beside_the_weights_decides(
    tmp_path: Path, beside: dict[str, Any], expected: tuple[int, str] | None
) -> None:
    assert told(read(saved(tmp_path / "m.pt", **beside)), GROUPS) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnetblur18-{}.pth", BLUR), ("resnet18_a1_0-{}.pth", PLAIN), ("resnet18-5c106cde.pth", None)],
)
def test_a_published_name_decides_where_it_bears_the_files_own_checksum(
    tmp_path: Path, name: str, expected: int | None
) -> None:
    found = told(read(published(tmp_path, name)), GROUPS)
    assert found == expected if expected is None else found is not None and found[0] == expected


def test_any_other_name_is_a_hint_alone(tmp_path: Path) -> None:
    for name, hinted in (("resnetblur18_best.pt", "timm:resnetblur18"), ("resnet18.pt", "torchvision:resnet18")):
        with pytest.raises(TwinsError, match=f"perhaps, from the name of the file, --arch {hinted}"):
            identify(read(saved(tmp_path / name)))
    with pytest.raises(TwinsError, match="such as --arch torchvision:resnet18"):
        identify(read(saved(tmp_path / "resnet180.pt")))


@pytest.mark.skipif(not importable("timm:"), reason="no timm")
def test_the_architecture_is_the_one_that_the_file_names(tmp_path: Path) -> None:
    checkpoint = read(saved(tmp_path / "m.pt", arch="resnetblur18"))
    assert {each.name for each in candidates(checkpoint)} == {name for names in GROUPS for name in names}
    architecture = identify(checkpoint)
    assert architecture.name == "timm:resnetblur18"
    assert "as arch of the file says" in architecture.note
    assert "timm:resnet18" in architecture.note
