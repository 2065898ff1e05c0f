"""Extraction: the cached features are what the network's head reads, and every wrong input is told."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_path import load
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from posthoc_lt import progress as bars
from posthoc_lt.errors import PosthocError
from posthoc_lt.extraction import extract, extract_loaders, is_current, open_source, spread
from posthoc_lt.extraction.loop import Forward, collect
from posthoc_lt.features import FeatureSet
from posthoc_lt.files import load_features, save_features

CLASSES = ("ant", "bee", "cat")


def original(classes: int = 3, channels: int = 1) -> Any:
    """The example's own model code, which knows nothing of the toolkit, with weights that all matter."""
    module = load("fashion_lt/resnet.py")
    torch.manual_seed(0)
    network = module.resnet20(num_classes=classes, in_channels=channels)
    network.train()
    network(torch.randn(16, channels, 8, 8))
    return network.eval()


def paint(root: Path, mode: str = "L", size: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(count + label):
                shape = (size, size) if mode == "L" else (size, size, 3)
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def pixels(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """The images and labels of a split, read without the toolkit, in 0…1."""
    x, y = [], []
    for label, name in enumerate(CLASSES):
        for path in sorted((root / split / name).iterdir()):
            image = np.array(Image.open(path), dtype=np.float32) / 255
            x.append(torch.from_numpy(image.reshape(8, 8, -1)).permute(2, 0, 1))
            y.append(label)
    return torch.stack(x), torch.tensor(y)


def body(network: Any, x: Tensor) -> Tensor:
    out = F.relu(network.bn1(network.conv1(x)))
    out = network.layer3(network.layer2(network.layer1(out)))
    pooled: Tensor = out.mean(dim=(2, 3))
    return pooled.detach()


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "data")
    network = original()
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, "model.pt")
    return network


def test_features_are_what_the_head_reads(case: Any) -> None:
    features = extract("model.pt")
    for name, split in features.splits().items():
        x, y = pixels(Path("data"), name)
        expected = body(case, (x - 0.5) / 0.5)
        assert split.x.dtype == torch.float16
        torch.testing.assert_close(split.x.float(), expected, rtol=2**-10, atol=1e-5)
        assert torch.equal(split.labels, y)
    assert list(features.splits()) == ["train", "val", "test"]
    assert features.classes == CLASSES
    assert torch.equal(features.head.weight, case.linear.weight)
    assert torch.equal(features.head.bias, case.linear.bias)
    assert features.head.has_bias
    assert features.counts.tolist() == [4, 5, 6]


def test_provenance_says_where_it_comes_from(case: Any) -> None:
    provenance = extract("model.pt", limit=6).provenance
    transform = json.loads(provenance["transform"])
    assert (transform["mean"], transform["std"], transform["input_size"]) == ([0.5], [0.5], None)
    assert provenance["checkpoint"] == "model.pt"
    assert provenance["data"] == "data"
    assert provenance["head_name"] == "linear"
    assert provenance["arch"] == "cifar-resnet20"
    assert provenance["precision"] == "float32"
    assert provenance["limit"] == "6"
    assert len(provenance["checkpoint_sha256"]) == len(provenance["data_fingerprint"]) == 64
    assert all(isinstance(value, str) for value in provenance.values())


def test_colour_networks_read_colour_images(tmp_path: Path) -> None:
    paint(tmp_path / "data", "RGB")
    network = original(channels=3)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])
    features = extract(tmp_path / "model.pt", tmp_path / "data")
    x, _ = pixels(tmp_path / "data", "val")
    assert features.val is not None
    expected = body(network, (x - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(features.val.x.float(), expected, rtol=2**-10, atol=1e-5)


def test_options_override_the_preprocessing(case: Any) -> None:
    val = extract("model.pt", mean=[0.1], std=[0.7]).val
    assert val is not None
    x, _ = pixels(Path("data"), "val")
    torch.testing.assert_close(val.x.float(), body(case, (x - 0.1) / 0.7), rtol=2**-10, atol=1e-5)
    sized = extract("model.pt", input_size=16)
    assert json.loads(sized.provenance["transform"])["input_size"] == 16


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 2), (100, None)])
def test_batches_and_workers_change_nothing(case: Any, batch_size: int, workers: int | None) -> None:
    one, other = extract("model.pt"), extract("model.pt", batch_size=batch_size, workers=workers)
    for name, split in one.splits().items():
        torch.testing.assert_close(other.splits()[name].x, split.x, rtol=2**-10, atol=1e-5)
        assert torch.equal(other.splits()[name].labels, split.labels)
    assert one.provenance == other.provenance


def test_inputs_are_not_modified(case: Any) -> None:
    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    before = everything()
    extract("model.pt")
    assert everything() == before


def test_a_cache_knows_whether_it_is_current(case: Any, tmp_path: Path) -> None:
    save_features(extract("model.pt"), Path("feats.safetensors"))
    features = load_features(Path("feats.safetensors"))
    assert is_current(features, open_source("model.pt"))
    assert is_current(features, open_source(tmp_path / "model.pt", tmp_path / "data"))
    assert not is_current(features, open_source("model.pt", limit=5))
    assert not is_current(features, open_source("model.pt", mean=[0.4]))
    torch.save(original().half().state_dict(), "other.pt")
    assert not is_current(features, open_source("other.pt"))
    next(Path("data/val/ant").iterdir()).unlink()
    assert not is_current(features, open_source("model.pt"))
    assert not is_current(FeatureSet(features.head), open_source("model.pt"))


def test_data_without_train_or_with_test_alone(case: Any) -> None:
    for split in ("train", "val"):
        Path("data", split).rename(f"{split}_elsewhere")
    with pytest.raises(PosthocError, match="--counts"):
        extract("model.pt")
    found = extract("model.pt", counts=[9, 5, 1])
    assert list(found.splits()) == ["test"]
    assert found.counts.tolist() == [9, 5, 1]


def test_class_counts_that_differ_name_both(case: Any) -> None:
    extra = Path("data/train/dog")
    extra.mkdir()
    Image.new("L", (8, 8)).save(extra / "0.png")
    with pytest.raises(PosthocError, match=r"network of 3 classes and 4 classes in data \(ant, bee, cat and 1 m"):
        extract("model.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_name_the_split_and_the_rows(case: Any, value: float) -> None:
    with torch.no_grad():
        case.bn1.bias[0] = value
    torch.save(case.state_dict(), "model.pt")
    with pytest.raises(PosthocError, match="in 15 of 15 train rows"):
        extract("model.pt")


def test_rows_that_are_no_numbers_are_counted() -> None:
    x = torch.ones(7, 3)
    x[2, 1], x[5, 0] = float("nan"), float("-inf")
    with pytest.raises(PosthocError, match="in 2 of 7 val rows"):
        collect("val", [(x[:3], torch.zeros(3)), (x[3:], torch.zeros(4))], Forward(lambda x: (x, x), CPU))


CPU = torch.device("cpu")


def test_a_wrong_folder_or_file_is_told_before_anything_runs(case: Any) -> None:
    with pytest.raises(PosthocError, match="checkpoint absent"):
        extract("absent.pt")
    with pytest.raises(PosthocError, match="data folder absent"):
        extract("model.pt", "absent")
    with pytest.raises(PosthocError, match="device"):
        extract("model.pt", device="abacus")
    with pytest.raises(PosthocError, match="batch size 0"):
        extract("model.pt", batch_size=0)


def test_inputs_too_small_for_the_network_ask_for_a_size(case: Any, tmp_path: Path, monkeypatch: Any) -> None:
    code = "from torch import nn\ndef build(): return nn.Sequential(nn.Conv2d(1, 2, 9), nn.Flatten(), nn.Linear(2, 3))"
    (tmp_path / "own_small.py").write_text(code)
    torch.save(nn.Sequential(nn.Conv2d(1, 2, 9), nn.Flatten(), nn.Linear(2, 3)).state_dict(), "own.pt")
    with pytest.raises(PosthocError, match=r"inputs of shape .*--input-size"):
        extract("own.pt", arch="own_small:build")
    assert extract("own.pt", arch="own_small:build", input_size=9).provenance["head_name"] == "2"


def test_progress_shows_on_a_terminal_alone(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(bars, "PATIENCE", 0.0)
    for stream, progress, shown in ((Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        extract("model.pt", limit=3, progress=progress)
        assert ("train" in stream.getvalue()) == shown


# In memory


class Scaled(nn.Module):
    """A network whose features are its inputs, `scale` times."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.drop(self.norm(x)) * self.scale)
        return logits


def loader(count: int, seed: int = 0) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(count) % 3), batch_size=4)


def everything(loader: DataLoader[Any]) -> Tensor:
    return torch.cat([x for x, _ in loader])


def test_loaders_give_the_features_and_leave_the_model_as_it_was() -> None:
    model = Scaled()
    model.norm.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    features = extract_loaders(model, loader(10), loader(5), device="cpu")
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert list(features.splits()) == ["train", "val"]
    assert features.train is not None
    expected = everything(loader(10)) / (1 + 1e-5) ** 0.5  # batch norm at its start
    torch.testing.assert_close(features.train.x.float(), expected, rtol=1e-3, atol=1e-3)
    assert features.train.labels.tolist() == [i % 3 for i in range(10)]
    assert features.provenance["source"] == "memory"
    assert features.provenance["head_name"] == "fc"


def test_the_model_is_restored_after_an_error() -> None:
    model = Scaled(float("nan"))
    with pytest.raises(PosthocError):
        extract_loaders(model, loader(10), device="cpu")
    assert all(module.training for module in model.modules())


def test_a_model_can_be_trained_afterwards() -> None:
    model = Scaled()
    extract_loaders(model, loader(8), device="cpu")
    model(torch.randn(4, 4)).sum().backward()
    assert model.fc.weight.grad is not None


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float16), (1e6, torch.float32), (1e-7, torch.float32)])
def test_what_float16_cannot_hold_stays_float32(scale: float, dtype: torch.dtype, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        features = extract_loaders(Scaled(scale), loader(10), loader(5), device="cpu")
    assert features.train is not None
    assert features.train.x.dtype == dtype
    expected = everything(loader(10)) * scale
    torch.testing.assert_close(features.train.x.float(), expected, rtol=1e-3, atol=1e-3 * scale)
    assert ("kept in float32" in caplog.text) == (dtype == torch.float32)


def test_one_overflowing_split_makes_all_float32() -> None:
    wide = DataLoader(TensorDataset(torch.full((2, 4), 1e6), torch.tensor([0, 1])), batch_size=1)
    features = extract_loaders(Scaled(), loader(10), wide, device="cpu")
    assert {split.x.dtype for split in features.splits().values()} == {torch.float32}


def test_class_names_come_from_the_data_set() -> None:
    class Named(Dataset[tuple[Tensor, int]]):
        classes = ("x", "y", "z")

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.randn(4), index

    assert extract_loaders(Scaled(), DataLoader(Named()), device="cpu").classes == ("x", "y", "z")
    assert extract_loaders(Scaled(), loader(4), device="cpu").classes == ("0", "1", "2")


def test_extra_parts_of_a_batch_and_lists_of_labels_are_fine() -> None:
    batches = [(torch.randn(2, 4), [0, 1], "extra"), (torch.randn(1, 4), [2], "extra")]
    train = extract_loaders(Scaled(), batches, device="cpu").train
    assert train is not None
    assert train.labels.tolist() == [0, 1, 2]


def test_a_loader_that_can_be_read_only_once_loses_nothing() -> None:
    train = extract_loaders(Scaled(), iter(loader(10)), device="cpu").train
    assert train is not None
    assert len(train) == 10


@pytest.mark.parametrize("batches", [[{"x": 1}], [torch.randn(2, 4)], [(torch.randn(2, 4),)], [("a", "b")]])
def test_batches_of_another_form_are_refused(batches: list[Any]) -> None:
    with pytest.raises(PosthocError, match=r"pairs \(inputs, labels\)"):
        extract_loaders(Scaled(), batches, device="cpu")


def test_no_loader_or_no_sample() -> None:
    with pytest.raises(PosthocError, match="no loader"):
        extract_loaders(Scaled(), None)
    with pytest.raises(PosthocError, match="no samples in train"):
        extract_loaders(Scaled(), [])
    with pytest.raises(PosthocError, match="no samples in val"):
        extract_loaders(Scaled(), loader(4), [])


def test_a_network_that_ends_otherwise_is_told() -> None:
    with pytest.raises(PosthocError, match="no layer gives"):
        extract_loaders(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), loader(4))


def test_mixed_precision_overflow_is_computed_again() -> None:
    calls: list[bool] = []

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        mixed = torch.is_autocast_enabled("cpu")
        calls.append(mixed)
        out = x * (float("inf") if mixed and x.max() > 1 else 1.0)
        return out, out

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.full((2, 3), 0.5), torch.tensor([0, 1])
        yield torch.full((1, 3), 2.0), torch.tensor([2])

    got = collect("train", batches(), Forward(run, CPU, precision="f16"))
    assert calls == [True, True, False]
    assert got.x.tolist() == [[0.5] * 3, [0.5] * 3, [2.0] * 3]


def test_spread_covers_the_range() -> None:
    assert spread(3, 8) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]
