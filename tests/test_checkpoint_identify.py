"""Which network a checkpoint belongs to, and loading it whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from posthoc_lt.checkpoint import Checkpoint, Preprocessing, identify, load_network, read
from posthoc_lt.checkpoint.cifar_resnet import CifarResNet, Plan
from posthoc_lt.errors import PosthocError


def saved(path: Path, content: Any) -> Checkpoint:
    torch.save(content, path)
    return read(path)


def resnet(depth: int, channels: int, classes: int = 4) -> CifarResNet:
    blocks = (depth - 2) // 6
    return CifarResNet(Plan(channels, 16, (16, 32, 64), (blocks,) * 3, frozenset(), classes))


class Small(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.conv(x)).mean(dim=(2, 3)))
        return logits


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A folder to stand in, and a function that writes the user's own module there."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        name = f"own_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


@pytest.mark.parametrize(("depth", "channels"), [(20, 1), (20, 3), (32, 3), (56, 1)])
def test_the_built_in_family_needs_no_arch(tmp_path: Path, depth: int, channels: int) -> None:
    network = resnet(depth, channels)
    checkpoint = saved(tmp_path / "m.pt", {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}})
    architecture = identify(checkpoint)
    assert architecture.name == f"cifar-resnet{depth}"
    assert isinstance(architecture.preprocessing, Preprocessing)
    assert architecture.preprocessing.channels == channels
    assert identify(checkpoint, architecture.name).name == architecture.name
    loaded = load_network(checkpoint, architecture)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_preprocessing_is_the_checkpoints_own_where_it_says_so(tmp_path: Path) -> None:
    content = {"state_dict": resnet(20, 1).state_dict(), "mean": [0.2861], "std": [0.3530]}
    assert identify(saved(tmp_path / "m.pt", content)).preprocessing == Preprocessing((0.2861,), (0.3530,))


def test_half_precision_checkpoints_run_in_float32(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in resnet(20, 1).state_dict().items()}
    checkpoint = saved(tmp_path / "m.pt", state)
    loaded = load_network(checkpoint, identify(checkpoint))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.get_parameter("linear.weight"), state["linear.weight"].float())


def test_an_unknown_checkpoint_is_described(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "m.pt", Small().state_dict())
    with pytest.raises(PosthocError) as caught:
        identify(checkpoint)
    for told in ("9 tensors", "conv.weight", "head.weight (4, 8)", "timm:NAME", "torchvision:NAME", "module:factory"):
        assert told in str(caught.value)


@pytest.mark.parametrize("arch", ["resnet50", "timm:", ":build", "torchvision", "cifar-resnet56", "cifar-resnet"])
def test_an_arch_of_no_known_form_lists_the_forms(tmp_path: Path, arch: str) -> None:
    with pytest.raises(PosthocError, match=r"timm:NAME.*module:factory"):
        identify(saved(tmp_path / "m.pt", Small().state_dict()), arch)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("error", [ModuleNotFoundError, ImportError, RuntimeError])
def test_an_absent_or_unfit_library_tells_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, error: type[Exception]
) -> None:
    def fail(name: str) -> ModuleType:
        raise (
            ModuleNotFoundError(f"No module named {name!r}", name=name) if error is ModuleNotFoundError else error("x")
        )

    monkeypatch.setattr("posthoc_lt.checkpoint.zoo.importlib.import_module", fail)
    wanted = "pip install 'posthoc-lt" if error is ModuleNotFoundError else "install torch and torchvision again"
    with pytest.raises(PosthocError) as caught:
        identify(saved(tmp_path / "m.pt", Small().state_dict()), f"{library}:resnet18")
    assert wanted in str(caught.value)
    assert library in str(caught.value)


class FakeLibrary(ModuleType):
    """Stands for timm and torchvision: both build a model by name, with 1000 classes and 3 channels by default."""

    class Net(nn.Module):
        def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
            super().__init__()
            self.stem = nn.Conv2d(in_chans, 8, 3)
            self.mid = nn.Linear(8, 8)
            self.fc = nn.Linear(8, num_classes)

    def __init__(self) -> None:
        super().__init__("fake")
        self.models = self.data = self

    def create_model(self, name: str, pretrained: bool, **options: int) -> nn.Module:
        if name != "net":
            raise RuntimeError(f"Unknown model ({name})")
        return self.Net(**options)

    def get_model(self, name: str, weights: None, **options: int) -> nn.Module:
        return self.create_model(name, False, **options)

    def resolve_model_data_config(self, model: nn.Module) -> dict[str, object]:
        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        return {"input_size": (3, 32, 32), "mean": mean, "std": std, "crop_pct": 0.9, "interpolation": "bicubic"}


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    library = FakeLibrary()
    monkeypatch.setattr("posthoc_lt.checkpoint.zoo.library", lambda name: library)
    return library


@pytest.mark.parametrize(("classes", "channels"), [(7, 3), (1000, 3), (7, 1)])
def test_timm_takes_classes_channels_and_preprocessing(
    tmp_path: Path, zoo: FakeLibrary, classes: int, channels: int
) -> None:
    checkpoint = saved(tmp_path / "m.pt", zoo.Net(classes, channels).state_dict())
    architecture = identify(checkpoint, "timm:net")
    assert load_network(checkpoint, architecture).get_parameter("fc.weight").shape == (classes, 8)
    mean = (0.1, 0.2, 0.3) if channels == 3 else (0.2,)
    assert isinstance(architecture.preprocessing, Preprocessing)
    assert architecture.preprocessing.mean == pytest.approx(mean, rel=1e-15)
    assert (architecture.preprocessing.input_size, architecture.preprocessing.crop) == (32, 0.9)


def test_torchvision_takes_classes_and_imagenets_preprocessing(tmp_path: Path, zoo: FakeLibrary) -> None:
    checkpoint = saved(tmp_path / "m.pt", zoo.Net(7).state_dict())
    architecture = identify(checkpoint, "torchvision:net")
    assert load_network(checkpoint, architecture).get_parameter("fc.weight").shape == (7, 8)
    assert architecture.preprocessing == Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 0.875)


@pytest.mark.parametrize("arch", ["timm:other", "torchvision:other"])
def test_a_model_unknown_to_the_library_is_refused(tmp_path: Path, zoo: FakeLibrary, arch: str) -> None:
    with pytest.raises(PosthocError, match=r"Unknown model \(other\)"):
        identify(saved(tmp_path / "m.pt", zoo.Net(7).state_dict()), arch)


OWN = """
from torch import nn
def build(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
class Places:
    build = staticmethod(build)
number = 3
def fails(): raise KeyError("classes")
def wrong(): return "network"
"""


def test_own_code_in_the_current_folder(tmp_path: Path, code: Callable[[str], str]) -> None:
    module = code(OWN)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    checkpoint = saved(tmp_path / "m.pt", {"net": network.state_dict()})
    path = list(sys.path)
    for factory in ("build", "Places.build"):
        architecture = identify(checkpoint, f"{module}:{factory}")
        x = torch.randn(2, 1, 4, 4)
        assert torch.equal(load_network(checkpoint, architecture)(x), network.eval()(x))
        assert isinstance(architecture.preprocessing, Preprocessing)
        assert architecture.preprocessing.channels == 1
    assert sys.path == path


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("absent", "has no function absent"),
        ("number", "has no function number"),
        ("fails", "KeyError: 'classes'"),
        ("wrong", "returns str"),
    ],
)
def test_own_code_that_builds_no_network(tmp_path: Path, code: Callable[[str], str], factory: str, told: str) -> None:
    module = code(OWN)
    checkpoint = saved(tmp_path / "m.pt", Small().state_dict())
    with pytest.raises(PosthocError, match=told):
        load_network(checkpoint, identify(checkpoint, f"{module}:{factory}"))


@pytest.mark.parametrize(("text", "told"), [("import absent_one", "absent_one"), ("def f(:", "SyntaxError")])
def test_own_code_that_does_not_import(tmp_path: Path, code: Callable[[str], str], text: str, told: str) -> None:
    module = code(text)
    with pytest.raises(PosthocError, match=told):
        identify(saved(tmp_path / "m.pt", Small().state_dict()), f"{module}:build")


def test_a_mismatch_is_listed_briefly(tmp_path: Path, code: Callable[[str], str]) -> None:
    module = code("from torch import nn\ndef build(): return nn.ModuleDict({'head': nn.Linear(8, 9), 'x': nn.PReLU()})")
    checkpoint = saved(tmp_path / "m.pt", Small().state_dict())
    with pytest.raises(PosthocError) as caught:
        load_network(checkpoint, identify(checkpoint, f"{module}:build"))
    message = str(caught.value)
    assert "1 missing: x.weight" in message
    assert "7 unexpected: conv.weight, conv.bias, norm.weight and 4 more" in message
    assert "2 of another shape: head.weight (4, 8) for (9, 8), head.bias (4,) for (9,)" in message


def test_a_networks_own_part_may_bear_a_wrappers_name(tmp_path: Path, code: Callable[[str], str]) -> None:
    module = code("from torch import nn\ndef build(): return nn.ModuleDict({'model': nn.Linear(3, 2)})")
    state = {f"module.model.{k}": v for k, v in nn.Linear(3, 2).state_dict().items()}
    checkpoint = saved(tmp_path / "m.pt", state)
    assert list(checkpoint.state) == ["weight", "bias"]
    loaded = load_network(checkpoint, identify(checkpoint, f"{module}:build"))
    assert torch.equal(loaded.get_parameter("model.weight"), state["module.model.weight"])
    assert checkpoint.place("model.weight") == ("module.model.weight",)


def test_a_network_that_wants_its_names_version_is_loaded(tmp_path: Path, code: Callable[[str], str]) -> None:
    module = code("""
from torch import nn
class Versioned(nn.Linear):
    _version = 2
    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") is None: raise ValueError("version should be set")
        super()._load_from_state_dict(state, prefix, metadata, *rest)
def build(): return Versioned(3, 2)
""")
    state = nn.Linear(3, 2).state_dict()
    checkpoint = saved(tmp_path / "m.pt", dict(state))
    loaded = load_network(checkpoint, identify(checkpoint, f"{module}:build"))
    assert torch.equal(loaded.get_parameter("weight"), state["weight"])
