"""A small network for the tests of every file format, its images, and what it computes, said independently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from posthoc_lt.export import Exported, export
from posthoc_lt.extraction import extract
from posthoc_lt.features import FeatureSet
from posthoc_lt.head import Head

CLASSES = ("ant", "bee", "cat")


class Small(nn.Module):
    """The head is neither the last one registered nor the only layer of three outputs."""

    def __init__(self, bias: bool = True, convolution: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = convolution
        self.stem = nn.Conv2d(1, 4, 3)
        self.classifier = nn.Conv2d(6, 3, 1, bias=bias) if convolution else nn.Linear(6, 3, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        self.wide = nn.Linear(4, 6)
        self.gate = nn.Linear(6, 3)
        self.back = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.wide(torch.relu(self.norm(self.stem(x))).mean((2, 3))))
        h = h + torch.tanh(self.back(self.gate(h)))
        y: Tensor = self.classifier(h[:, :, None, None]).flatten(1) if self.convolution else self.classifier(h)
        return y

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        h = torch.relu(self.wide(torch.relu(self.norm(self.stem(x))).mean((2, 3))))
        return h + torch.tanh(self.back(self.gate(h)))


def small(**options: bool) -> Small:
    """The network as after training, its normalisation with statistics of its own."""
    network = Small(**options)
    network.train()
    network.stem(torch.randn(16, 1, 8, 8))
    network(torch.randn(16, 1, 8, 8))
    return network.eval()


def write_images(root: Path) -> Path:
    """Grey images of 8×8 pixels: four a class to train on, five to validate."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 5)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / split / name / f"{index}.png")
    return root


def inputs(root: Path) -> Tensor:
    """The validation images as grey networks usually take them, −1 to 1."""
    paths = [path for name in CLASSES for path in sorted((root / "val" / name).iterdir())]
    pixels = np.stack([np.array(Image.open(path), dtype=np.float32) for path in paths])
    return torch.from_numpy(pixels)[:, None] / 255 * 2 - 1


def new_head(features: FeatureSet, bias: bool = True) -> Head:
    """A head that differs everywhere and changes predictions."""
    head = features.head
    weight = head.weight.flip(0) * torch.tensor([0.5, 2.0, 1.25])[:, None]
    return Head(weight, torch.tensor([0.3, -0.2, 0.9]) if bias else torch.zeros(3), has_bias=head.has_bias)


def round_trip(
    ckpt: str, out: str, images: Path, network: Small, **options: Any
) -> tuple[Exported, NDArray[np.float64]]:
    """Extract, check the features and the head, export another head; and what the new file must give on val."""
    features = extract(ckpt, images, device="cpu", **options)
    hidden = network.features(inputs(images))
    assert features.val is not None
    torch.testing.assert_close(features.val.x.float(), hidden, rtol=2e-3, atol=2e-3)  # kept in float16
    assert torch.equal(features.head.weight, network.classifier.weight.flatten(1))
    head = new_head(features)
    exported = export(ckpt, head, out, features=features)
    expected = hidden.double() @ head.weight.double().T + head.bias.double()
    assert not torch.equal(expected.argmax(1), features.head(hidden).argmax(1))
    return exported, expected.numpy()
