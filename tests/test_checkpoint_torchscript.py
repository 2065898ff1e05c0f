"""TorchScript files: extracted, patched in place and run by TorchScript; code that touches files never runs."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_network import Small, inputs, new_head, round_trip, small, write_images
from torch import Tensor, nn

from posthoc_lt.checkpoint import read
from posthoc_lt.errors import PosthocError
from posthoc_lt.export import export
from posthoc_lt.extraction import extract

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("torchscript") / "data")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(network: nn.Module, path: str, traced: bool = False) -> None:
    jit: Any = torch.jit  # untyped in torch
    script = jit.trace(network, torch.randn(2, 1, 8, 8)) if traced else jit.script(network)
    jit.save(script, path, _extra_files={"labels.txt": "ant,bee,cat"})


def load(path: str) -> Any:
    jit: Any = torch.jit
    return jit.load(path)


def records(path: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("convolution", [False, True])
def test_torchscript_gives_the_new_head(images: Path, traced: bool, convolution: bool) -> None:
    network = small(convolution=convolution)
    save(network, "model.pt", traced)
    exported, expected = round_trip("model.pt", "balanced.pt", images, network)
    assert exported.changed == ("classifier.weight", "classifier.bias")
    script = load("balanced.pt")
    np.testing.assert_allclose(script(inputs(images)).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    before, after = records("model.pt"), records("balanced.pt")
    different = [name for name in before if before[name] != after[name]]
    assert list(before) == list(after)
    assert b"ant,bee,cat" in after.values()
    assert sorted(len(before[name]) for name in different) == [3 * 4, 3 * 6 * 4]
    assert Path("balanced.pt").stat().st_size == Path("model.pt").stat().st_size


def test_half_precision_and_double(images: Path) -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small().double()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.double()).float()  # type: ignore[no-any-return]

    save(Cast(), "model.pt")
    features = extract("model.pt", images)
    assert features.provenance["head_name"] == "inner.classifier"
    export("model.pt", new_head(features), "balanced.pt", features=features)
    patched = load("balanced.pt").state_dict()["inner.classifier.weight"]
    assert patched.dtype == torch.float64
    assert torch.equal(patched, new_head(features).weight.double())


def test_a_bias_needs_a_place(images: Path) -> None:
    save(small(bias=False), "model.pt")
    features = extract("model.pt", images)
    for add_bias in (False, True):
        with pytest.raises(
            PosthocError, match=r"code in a torchscript file takes.*add the head file's bias to the logits"
        ):
            export("model.pt", new_head(features), "balanced.pt", features=features, add_bias=add_bias)
    assert os.listdir() == ["model.pt"]
    exported = export("model.pt", new_head(features, bias=False), "balanced.pt", features=features)
    assert exported.changed == ("classifier.weight",)


class Softmax(Small):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.classifier(x.flatten(1)[:, :6]), 1)


def test_what_cannot_be_used_says_so(images: Path) -> None:
    save(Softmax().eval(), "softmax.pt")
    with pytest.raises(PosthocError, match=r"no layer gives by an affine map.*without softmax"):
        extract("softmax.pt", images)
    torch.jit.save(torch.jit.freeze(torch.jit.script(small())), "frozen.pt")
    with pytest.raises(PosthocError, match=r"constants of its code.*before torch.jit.freeze"):
        extract("frozen.pt", images)
    save(small(), "model.pt")
    with pytest.raises(PosthocError, match=r"holds its own network.*leave --arch out"):
        extract("model.pt", images, arch="cifar-resnet20")
    with pytest.raises(PosthocError, match=r"torchscript, as what is written will be"):
        export("model.pt", new_head(found := extract("model.pt", images)), "b.safetensors", features=found)


class Saves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "stolen.bin")
        return x


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file("model.pt", True, 4)


@pytest.mark.parametrize("module", [Saves, Maps])
def test_code_that_touches_files_is_refused(module: type[nn.Module]) -> None:
    torch.jit.save(torch.jit.script(module()), "model.pt")
    with pytest.raises(PosthocError, match=r"code names (save|from_file), which may touch files"):
        read("model.pt")
    assert os.listdir() == ["model.pt"]


@pytest.mark.parametrize(
    "code",
    [
        'torch . save(x, "stolen.bin")',
        'x.save("stolen.bin")',
        'torch.\\\nsave(x, "stolen.bin")',
        'torch.mul(x, "# ") if False else torch.save(x, "stolen.bin")',
        "ops.anylib.run(x)",
        "(ops . debugprims).load_tensor(x)",
        "o = ops\n    o.anylib.run(x)",
        "t = __torch__\n    t.torch.classes.aoti.Runner(x)",
        "__torch__.torch . classes.aoti.Runner(x)",
        'print("\\x1b[31m")',
    ],
)
def test_disguised_code_is_refused_before_it_is_compiled(code: str) -> None:
    plain = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), plain)
    changed = 0
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile("model.pt", "w") as disguised:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".py") and b"    _0 =" in content:  # its name depends on what was compiled before
                content, changed = content.replace(b"    _0 =", f"    {code}\n    _0 =".encode(), 1), changed + 1
            disguised.writestr(name, content)
    assert changed == 1
    with pytest.raises(PosthocError, match=r"whose code names") as caught:
        read("model.pt")
    assert "\x1b" not in str(caught.value)


def test_damaged_files_are_one_clear_error(images: Path) -> None:
    save(small(), "model.pt")
    whole = Path("model.pt").read_bytes()
    start = whole.index(b"data.pkl") + 60
    for damaged in (whole[:-200], whole[:start] + b"\0" * 64 + whole[start + 64 :]):
        Path("damaged.pt").write_bytes(damaged)
        with pytest.raises(PosthocError, match=r"damaged.pt"):
            extract("damaged.pt", images)
