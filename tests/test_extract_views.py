"""Augmented views of train: what a view shows, that nothing but its seed decides it, and who takes notice of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_network import inputs, small, write_images

import posthoc_lt
from posthoc_lt.checkpoint import Preprocessing
from posthoc_lt.cli import run
from posthoc_lt.data import DataSpec
from posthoc_lt.errors import PosthocError
from posthoc_lt.extraction import extract, extract_to, is_current, open_source
from posthoc_lt.extraction.views import AREA, View
from posthoc_lt.features import Features, FeatureSet

ARCH = "small_network:small"


class Pictures:
    """Two hundred images whose red tells the column and whose green the row of each pixel."""

    own_code = False
    labels = None

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[Image.Image, None]:
        down, across = np.mgrid[0:100, 0:200]
        return Image.fromarray(np.stack([across, down, down], axis=2).astype(np.uint8)), None

    def name(self, index: int) -> str:
        return f"picture {index}"

    stamp = name


def view(seed: int = 0, number: int = 1) -> View:
    return View(Pictures(), Preprocessing((0.0,) * 3, (1 / 255,) * 3, input_size=64), False, False, seed, number)


def test_a_view_is_a_part_of_the_image_mirrored_half_of_the_time() -> None:
    areas, mirrored = [], 0
    for index in range(200):
        across, down, _ = view()[index].x
        assert torch.equal(across[0], across[-1])
        assert torch.equal(down[:, 0], down[:, -1])
        steps = across[0].diff()
        assert bool((steps >= 0).all()) or bool((steps <= 0).all())
        mirrored += int(steps.sum() < 0)
        assert bool((down[:, 0].diff() >= 0).all())
        scale = 64 / 63  # between the middles of the outermost pixels lies all but one of their widths
        areas.append(float(steps.sum().abs() / 200 * (down[-1, 0] - down[0, 0]) / 100) * scale**2)
    assert AREA[0] - 0.02 < min(areas) < AREA[0] + 0.1
    assert max(areas) <= AREA[1] + 0.02
    assert 70 <= mirrored <= 130


def test_a_view_is_decided_by_seed_number_and_index_alone() -> None:
    first = view()
    backwards = {index: first[index].x for index in reversed(range(20))}
    assert all(torch.equal(view()[index].x, backwards[index]) for index in range(20))
    others = [view(seed=1)[3].x, view(number=2)[3].x, view()[4].x]
    assert not any(torch.equal(each, backwards[3]) for each in others)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "data")
    torch.save(small().state_dict(), tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def extracted(out: str, views: int, seed: int = 0, **options: Any) -> FeatureSet:
    source = open_source("model.pt", DataSpec("data", seed=seed), arch=ARCH, views=views)
    return extract_to(out, source, device="cpu", **options)


def test_views_are_rows_after_the_plain_ones_and_no_images(there: Path) -> None:
    plain, found = extracted("plain", 1), extracted("views", 3)
    again = extracted("again", 3, workers=2)
    assert Path("views").read_bytes() == Path("again").read_bytes()
    assert plain.train is not None
    assert found.train is not None
    assert (len(plain.train), len(found.train), found.views) == (12, 36, 3)
    assert torch.equal(found.train.x[:12], plain.train.x)
    assert torch.equal(found.train.labels, plain.train.labels.repeat(3))
    assert not torch.equal(found.train.x[12:24], found.train.x[24:])
    assert found.val is not None
    torch.testing.assert_close(found.val.x.float(), small().features(inputs(there / "data")), rtol=2e-3, atol=2e-3)
    memory = extract("model.pt", "data", arch=ARCH, views=3, device="cpu")
    assert memory.train is not None
    assert torch.equal(memory.train.x, found.train.x)
    assert not is_current(found, open_source("model.pt", "data", arch=ARCH))
    assert not is_current(found, open_source("model.pt", DataSpec("data", seed=1), arch=ARCH, views=3))
    assert is_current(again, open_source("model.pt", "data", arch=ARCH, views=3))


def test_fits_read_all_views_and_counts_are_those_of_the_images(there: Path) -> None:
    plain, found = extracted("plain", 1), extracted("views", 3)
    assert found.counts.tolist() == plain.counts.tolist() == [4, 4, 4]
    adjusted = [posthoc_lt.fit("logit-adjust", each, knob=1.0).head for each in (plain, found)]
    assert torch.equal(adjusted[0].bias, adjusted[1].bias)
    assert found.train is not None
    means = torch.stack([found.train.x[found.train.labels == c].double().mean(0) for c in range(3)])
    torch.testing.assert_close(posthoc_lt.fit("ncm", found).head.weight.double(), 2 * means, rtol=1e-5, atol=1e-6)
    shown = found.plain_train
    assert shown is not None
    assert torch.equal(shown.x, found.train.x[:12])


def test_what_cannot_be_augmented_is_told(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for views, data, message in ((0, "data", "0 views"), (2, "tensors:splits", "which is no image")):
        Path("tensors.py").write_text(
            "import torch\nfrom torch.utils.data import TensorDataset\n"
            "def splits(split): return TensorDataset(torch.ones(9, 1, 8, 8), torch.arange(9) % 3)\n"
        )
        with pytest.raises(PosthocError, match=message):
            extract("model.pt", data, arch=ARCH, views=views, device="cpu")
    for name in ("train", "val"):
        Path("data", name).rename(Path("data", "test") if name == "val" else "elsewhere")
    with pytest.raises(PosthocError, match="no train split"):
        extract("model.pt", arch=ARCH, views=2, counts=[1, 1, 1])
    assert run(["extract", "--ckpt", "model.pt", "--views", "0"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize("views", ["0", "5", "x", "-1"])
def test_a_file_that_tells_another_number_of_views_is_refused(there: Path, views: str) -> None:
    found = extracted("plain", 1)
    with pytest.raises(PosthocError, match="views of 12 train rows"):
        replace(found, provenance={**found.provenance, "views": views})
    bare = FeatureSet(found.head, Features(torch.ones(6, 6), torch.arange(6) % 3), provenance={"views": "2"})
    assert bare.counts.tolist() == [1, 1, 1]
