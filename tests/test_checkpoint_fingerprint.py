"""Networks known from the names and shapes of their tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint import Preprocessing, candidates, fold, identify, load_network, read
from posthoc_lt.checkpoint import fingerprint as module
from posthoc_lt.checkpoint.build_fingerprints import CLASSES, Operations, entry
from posthoc_lt.checkpoint.fingerprint import INDEX, Known, fingerprint, matches
from posthoc_lt.checkpoint.zoo import library
from posthoc_lt.errors import PosthocError
from posthoc_lt.head import Head


def resnet18(classes: int = 5, channels: int = 3) -> dict[str, Tensor]:
    """Names and shapes written down from 1512.03385's table, in torchvision's spelling."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, channels, 7, 7)}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    before = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, before, 3, 3)
            norm(f"{name}.bn1", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norm(f"{name}.bn2", width)
            if before != width:
                shapes[f"{name}.downsample.0.weight"] = (width, before, 1, 1)
                norm(f"{name}.downsample.1", width)
            before = width
    shapes |= {"fc.weight": (classes, 512), "fc.bias": (classes,)}
    with torch.device("meta"):
        return {name: torch.empty(shape) for name, shape in shapes.items()}


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}


VARIANTS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "5 classes": resnet18,
    "64 classes, as many as channels": lambda: resnet18(64),
    "512 classes, as many as features": lambda: resnet18(512),
    "grey": lambda: resnet18(channels=1),
    "another head's name": lambda: renamed(resnet18(), "fc.", "classifier.1."),
    "a prefix for the body": lambda: renamed(
        {f"encoder.{key}": value for key, value in resnet18().items()}, "encoder.fc.", "fc."
    ),
    "a prefix for all": lambda: {f"net.{key}": value for key, value in resnet18().items()},
    "without counters": lambda: {key: value for key, value in resnet18().items() if "num_batches" not in key},
    "in order of names": lambda: dict(sorted(resnet18(channels=1).items())),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_a_resnet18_is_known_by_the_index(case: str) -> None:
    state = VARIANTS[case]()
    found = matches(state)
    functions = {match.known.name: match.known.function for match in found}
    assert set(functions) == {"timm:resnet18", "torchvision:resnet18", "timm:resnetblur18"}
    assert functions["timm:resnet18"] == functions["torchvision:resnet18"] != functions["timm:resnetblur18"]
    for match in found:
        spelled = {match.renames.get(name, name) for name in resnet18()}
        assert set(state) <= spelled


@pytest.mark.parametrize("change", ["shape", "missing", "added", "no head"])
def test_what_differs_in_the_body_is_not_taken_for_it(change: str) -> None:
    state = resnet18()
    with torch.device("meta"):
        if change == "shape":
            state["layer3.1.conv2.weight"] = torch.empty(256, 256, 5, 5)
        elif change == "added":
            state["layer3.1.se.weight"] = torch.empty(256, 256)
    if change == "missing":
        del state["layer3.1.bn2.bias"]
    elif change == "no head":
        state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    assert matches(state) == []


def test_the_index_is_small_and_says_what_it_was_built_from() -> None:
    file = files("posthoc_lt.checkpoint").joinpath(INDEX)
    assert len(file.read_bytes()) < 300_000
    assert set(module.index_versions()) == {"timm", "torchvision"}
    names = [known.name for group in module._index()[1].values() for known in group]
    assert len(names) == len(set(names)) > 1400


class Net(nn.Module):
    def __init__(self, classes: int, stride: int = 1) -> None:
        super().__init__()
        parts = OrderedDict(stem=nn.Conv2d(3, 6, 3, stride, bias=False), norm=nn.BatchNorm2d(6))
        self.body = nn.Sequential(parts)
        self.mix = nn.Linear(6, 6)
        self.top = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.top(self.mix(self.body(x).mean(dim=(2, 3))))
        return logits


@pytest.fixture
def own_zoo(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An index of `Net` alone, under several names, and a library that builds it."""

    class Library:
        def create_model(self, name: str, pretrained: bool, num_classes: int = 1000, in_chans: int = 3) -> nn.Module:
            return Net(num_classes, stride=2 if "strided" in name else 1)

        @property
        def data(self) -> Library:
            return self

        def resolve_model_data_config(self, network: nn.Module) -> dict[str, object]:
            return {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 8, 8)}

    def index(**functions: int) -> None:
        key, heads = entry(Net(CLASSES))
        known = tuple(Known(f"timm:{name}", tuple(heads), number) for name, number in functions.items())
        monkeypatch.setattr(module, "_index", lambda: ({"timm": "0"}, {key: known}))

    monkeypatch.setattr("posthoc_lt.checkpoint.zoo.library", lambda name: Library())
    return index


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_a_known_network_needs_no_arch_and_takes_a_head_under_another_name(
    tmp_path: Path, own_zoo: Callable[..., None]
) -> None:
    own_zoo(net=0)
    network = Net(4).eval()
    x = torch.randn(2, 3, 8, 8)
    for old, new in (("top.", "top."), ("top.", "classifier.")):
        state = renamed(network.state_dict(), old, new)
        checkpoint = read(saved(tmp_path / "m.pt", {"state_dict": {f"module.{k}": v for k, v in state.items()}}))
        architecture = identify(checkpoint)
        assert (architecture.name, architecture.note) == ("timm:net", "")
        assert isinstance(architecture.preprocessing, Preprocessing)
        assert architecture.preprocessing.input_size == 8
        for same in (architecture, identify(checkpoint, "timm:net")):
            assert torch.equal(load_network(checkpoint, same)(x), network(x))
        assert candidates(checkpoint)[0].heads == (new.removesuffix("."),)
        head = Head(torch.ones(4, 6), torch.ones(4))
        content: Any = fold(checkpoint.renamed(architecture.renames), "top", head)
        assert torch.equal(content["state_dict"][f"module.{new}weight"], head.weight)
        assert list(content["state_dict"]) == [f"module.{key}" for key in state]


def test_of_names_that_compute_the_same_the_plainest_is_taken_and_said(
    tmp_path: Path, own_zoo: Callable[..., None]
) -> None:
    own_zoo(net_384=0, net=0)
    architecture = identify(read(saved(tmp_path / "m.pt", Net(4).state_dict())))
    assert architecture.name == "timm:net"
    assert "timm:net_384" in architecture.note


def test_of_networks_that_compute_differently_none_is_taken(tmp_path: Path, own_zoo: Callable[..., None]) -> None:
    own_zoo(net=0, strided=1, net_b=0)
    checkpoint = read(saved(tmp_path / "m.pt", Net(4).state_dict()))
    with pytest.raises(PosthocError, match=r"timm:net = timm:net_b; timm:strided.*--arch timm:net"):
        identify(checkpoint)
    assert [each.function for each in candidates(checkpoint)] == [0, 0, 1]
    assert identify(checkpoint, "timm:strided").name == "timm:strided"


def test_a_fingerprint_is_a_sum_over_tensors_in_any_order() -> None:
    shapes = {"a.weight": (2, 3), "b.weight": (3,), "n.num_batches_tracked": ()}
    parts = sum(fingerprint({name: shape}) for name, shape in shapes.items()) % 2**64
    assert fingerprint(shapes) == parts == fingerprint(dict(reversed(shapes.items())))
    assert fingerprint({"n.num_batches_tracked": ()}) == 0
    assert len({fingerprint({name: shape}) for name in "ab" for shape in ((2, 3), (3, 2), (6,))}) == 6


@pytest.mark.parametrize(("other", "same"), [(Net(3), True), (Net(3, stride=2), False)])
def test_operations_tell_what_a_network_computes(other: nn.Module, same: bool) -> None:
    def run(network: nn.Module) -> list[str]:
        with torch.no_grad(), Operations(network.eval()) as seen:
            network(torch.zeros(1, 3, 8, 8))
        steps: list[str] = seen.seen
        return steps

    assert (run(Net(3)) == run(other)) is same
    assert any("body.stem.weight" in step for step in run(other))


def test_real_networks_are_known_without_arch(tmp_path: Path) -> None:
    try:
        timm = library("timm")
    except PosthocError:
        pytest.skip("timm is not installed")
    for name in ("vit_tiny_patch16_224", "mobilenetv2_100", "deit_tiny_distilled_patch16_224"):
        network = timm.create_model(name, num_classes=6)
        checkpoint = read(saved(tmp_path / "m.pt", network.state_dict()))
        loaded = load_network(checkpoint, identify(checkpoint))
        assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
