"""Files of torch.export, and pickled modules: loaded only where the user trusts them, then as any other."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_network import Small, inputs, new_head, small, write_images

from posthoc_lt.checkpoint import Preprocessing, identify, read
from posthoc_lt.errors import PosthocError
from posthoc_lt.export import export
from posthoc_lt.extraction import extract

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.export's own

OLDER_FORM = torch.torch_version.TorchVersion(torch.__version__) < "2.8"
"""Whether this torch writes .pt2 files whose tensors lie in a pickle, which are read but not patched."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("exported") / "data")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(network: Small, path: str, batch: int | None = None, core: bool = False) -> None:
    free = None if batch else {"x": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(network, (torch.zeros(batch or 2, 1, 8, 8),), dynamic_shapes=free)
    torch.export.save(program.run_decompositions() if core else program, path, extra_files={"note.txt": "kept"})


def records(path: str) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def round_trip(images: Path, network: Small, suffix: str) -> Any:
    ckpt, out = f"model{suffix}", f"balanced{suffix}"
    features = extract(ckpt, images, allow_pickle=True)
    hidden = network.features(inputs(images))
    assert features.val is not None
    torch.testing.assert_close(features.val.x.float(), hidden, rtol=2e-3, atol=2e-3)
    assert torch.equal(features.head.weight, network.classifier.weight.flatten(1))
    head = new_head(features)
    with pytest.raises(PosthocError, match=r"--allow-pickle"):
        export(ckpt, head, out, features=features)
    exported = export(ckpt, head, out, features=features, allow_pickle=True)
    assert exported.changed == ("classifier.weight", "classifier.bias")
    return (hidden.double() @ head.weight.double().T + head.bias.double()).numpy()


@pytest.mark.skipif(OLDER_FORM, reason="torch from 2.8 on writes the form that is patched")
@pytest.mark.parametrize(
    "options", [{}, {"core": True}, {"batch": 4}, {"convolution": True}], ids=["aten", "core", "fixed batch", "conv"]
)
def test_an_exported_program_gives_the_new_head(images: Path, options: dict[str, Any]) -> None:
    network = small(convolution=options.pop("convolution", False))
    save(network, "model.pt2", **options)
    expected = round_trip(images, network, ".pt2")
    extra = {"note.txt": ""}
    program = torch.export.load("balanced.pt2", extra_files=extra).module()
    parts = torch.tensor_split(inputs(images)[:12], 3)
    found = np.concatenate([program(part).detach().numpy() for part in parts])
    np.testing.assert_allclose(found, expected[:12], rtol=1e-5, atol=1e-5)
    assert extra == {"note.txt": "kept"}
    before, after = records("model.pt2"), records("balanced.pt2")
    assert list(before) == list(after)
    assert sorted(len(before[name]) for name in before if before[name] != after[name]) == [3 * 4, 3 * 6 * 4]


@pytest.mark.skipif(not OLDER_FORM, reason="torch before 2.8 writes that form")
def test_the_older_form_is_read_and_not_written(images: Path) -> None:
    network = small()
    save(network, "model.pt2")
    features = extract("model.pt2", images, allow_pickle=True)
    assert features.val is not None
    torch.testing.assert_close(features.val.x.float(), network.features(inputs(images)), rtol=2e-3, atol=2e-3)
    with pytest.raises(PosthocError, match=r"form that is no longer written.*in torch 2\.8 or later"):
        export("model.pt2", new_head(features), "balanced.pt2", features=features, allow_pickle=True)
    assert os.listdir() == ["model.pt2"]


def test_a_fixed_size_is_the_input_size() -> None:
    save(small(), "model.pt2", batch=4)
    preprocessing = identify(read("model.pt2", allow_pickle=True)).preprocessing
    assert isinstance(preprocessing, Preprocessing)
    assert preprocessing.input_size == 8


def test_an_exported_program_runs_only_where_it_is_trusted(images: Path) -> None:
    save(small(), "plain.pt2")
    with zipfile.ZipFile("plain.pt2") as archive, zipfile.ZipFile("model.pt2", "w") as hostile:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(content)
                node = next(
                    n for n in program["graph_module"]["graph"]["nodes"] if n["target"].endswith("tanh.default")
                )
                node["target"] = "torch.os.abort"
                content = json.dumps(program).encode()
            hostile.writestr(name, content)
    with pytest.raises(PosthocError, match=r"torch.export file, which torch loads by unpickling.*--allow-pickle"):
        extract("model.pt2", images)


def test_damaged_files_are_one_clear_error(images: Path) -> None:
    save(small(), "model.pt2")
    whole = Path("model.pt2").read_bytes()
    start = whole.index(b'"graph_module"')
    for damaged in (whole[:-200], whole[:start] + b"\0" * 64 + whole[start + 64 :]):
        Path("damaged.pt2").write_bytes(damaged)
        with pytest.raises(PosthocError, match=r"damaged.pt2"):
            extract("damaged.pt2", images, allow_pickle=True)


def test_a_bias_needs_a_place(images: Path) -> None:
    save(small(bias=False), "model.pt2")
    features = extract("model.pt2", images, allow_pickle=True)
    with pytest.raises(PosthocError, match=r"a torch.export file takes.*add the head file's bias"):
        export("model.pt2", new_head(features), "b.pt2", features=features, add_bias=True, allow_pickle=True)
    assert os.listdir() == ["model.pt2"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickled_module_gives_the_new_head(images: Path, wrapped: bool) -> None:
    network = small()
    torch.save({"model": network, "epoch": 3} if wrapped else network, "model.pt")
    with pytest.raises(PosthocError, match=r"pickles Python objects \(.*Small.*--allow-pickle"):
        extract("model.pt", images)
    expected = round_trip(images, network, ".pt")
    content = torch.load("balanced.pt", weights_only=False)
    patched = content["model"] if wrapped else content
    np.testing.assert_allclose(patched(inputs(images)).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    for name, value in network.state_dict().items():
        assert name.startswith("classifier") or torch.equal(value, patched.state_dict()[name])


def test_a_pickle_whose_code_is_gone(images: Path) -> None:
    torch.save(small(), "model.pt")
    with zipfile.ZipFile("model.pt") as archive, zipfile.ZipFile("gone.pt", "w") as gone:
        for name in archive.namelist():
            gone.writestr(name, archive.read(name).replace(b"small_network", b"small_nothing"))
    with pytest.raises(PosthocError, match=r"cannot be made \(ModuleNotFoundError.*run in the folder of that code"):
        extract("gone.pt", images, allow_pickle=True)


class Options:
    """What a training script might pickle beside its weights."""


def test_weights_beside_pickled_objects(images: Path) -> None:
    torch.save({"state_dict": small().state_dict(), "options": Options()}, "model.pt")
    with pytest.raises(PosthocError, match=r"Options.*--allow-pickle"):
        read("model.pt")
    assert "classifier.weight" in read("model.pt", allow_pickle=True).state
