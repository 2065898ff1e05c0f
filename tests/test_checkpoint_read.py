"""Reading checkpoints: every ordinary form, every wrong file, and no code run."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from posthoc_lt.checkpoint import read
from posthoc_lt.errors import PosthocError


class Bomb:
    """What a hostile pickle holds: loading it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.target), "w")


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"conv.weight": torch.randn(2, 1, 3, 3, generator=generator), "fc.weight": torch.randn(3, 2)}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights().items()}


@pytest.mark.parametrize(
    ("wrap", "route"),
    [
        (lambda s: s, ()),
        (lambda s: {"state_dict": s, "epoch": 3}, ("state_dict",)),
        (lambda s: {"epoch": 3, "model": s, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}, ("model",)),
        (lambda s: {"model_state_dict": s}, ("model_state_dict",)),
        (lambda s: {"net": s, "acc": torch.tensor(0.5)}, ("net",)),
        (lambda s: {"model": {"state_dict": s}}, ("model", "state_dict")),
        (lambda s: {"state_dict": s, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1)}, ("state_dict",)),
    ],
)
def test_finds_the_state_dict(tmp_path: Path, wrap: Callable[[Any], Any], route: tuple[str, ...]) -> None:
    path = tmp_path / "model.pt"
    state = weights()
    torch.save(wrap(state), path)
    checkpoint = read(path)
    assert checkpoint.weights.key == "/".join(route)
    assert not checkpoint.others
    assert list(checkpoint.state) == list(state)
    assert all(torch.equal(checkpoint.state[key], state[key]) for key in state)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.format == "torch"


def test_reads_the_old_file_form_of_torch(tmp_path: Path) -> None:
    torch.save({"state_dict": weights()}, tmp_path / "m", _use_new_zipfile_serialization=False)
    assert list(read(tmp_path / "m").state) == list(weights())


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_numpy_1_and_2_are_read_by_either(tmp_path: Path, module: str) -> None:
    saved = {"state_dict": weights(), "best": np.float64(0.5)}
    torch.save(saved, tmp_path / "m", _use_new_zipfile_serialization=False)
    here = np.float64(0).__reduce__()[0].__module__
    before = (tmp_path / "m").read_bytes()
    assert f"c{here}\n".encode() in before
    (tmp_path / "m").write_bytes(before.replace(f"c{here}\n".encode(), f"c{module}\n".encode()))
    assert read(tmp_path / "m").metadata["best"] == 0.5


def test_reads_safetensors_whatever_the_suffix(tmp_path: Path) -> None:
    state = weights()
    save_file(state, tmp_path / "model.pt", metadata={"format": "pt", "mean": "[0.5]"})
    checkpoint = read(tmp_path / "model.pt")
    assert checkpoint.format == "safetensors"
    assert checkpoint.metadata == {"format": "pt", "mean": "[0.5]"}
    assert all(torch.equal(checkpoint.state[key], state[key]) for key in state)


def test_metadata_is_what_lies_beside_the_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), "epoch": 7}, tmp_path / "m.pt")
    assert read(tmp_path / "m.pt").metadata == {"epoch": 7}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
def test_wrappers_prefixes_are_stripped_and_recoverable(tmp_path: Path, prefix: str) -> None:
    torch.save(prefixed(prefix), tmp_path / "m.pt")
    checkpoint = read(tmp_path / "m.pt")
    assert list(checkpoint.state) == ["conv.weight", "fc.weight"]
    assert "".join(checkpoint.weights.stripped) == prefix
    assert checkpoint.place("fc.weight") == (prefix + "fc.weight",)
    assert checkpoint.place(prefix + "fc.weight") == (prefix + "fc.weight",)
    assert [p for p, _ in checkpoint.spellings()][-1] == prefix


def test_a_prefix_that_not_all_keys_carry_stays(tmp_path: Path) -> None:
    torch.save({"module.fc.weight": torch.ones(2, 2), "scale": torch.ones(1)}, tmp_path / "m.pt")
    assert list(read(tmp_path / "m.pt").state) == ["module.fc.weight", "scale"]


def test_a_key_that_is_not_there_is_refused(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "m.pt")
    with pytest.raises(PosthocError, match=r"no tensor 'head\.weight'.*fc\.weight"):
        read(tmp_path / "m.pt").place("head.weight")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_is_refused_by_name(tmp_path: Path, legacy: bool) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(PosthocError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        read(tmp_path / "m.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle2", "pickle4"])
def test_no_code_in_a_checkpoint_runs(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "pwned", tmp_path / "m.pt"
    content = {"state_dict": weights(), "extra": Bomb(target)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps({"extra": Bomb(target)}, protocol=int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(PosthocError, match=r"io\.open|which is no checkpoint"):
        read(path)
    assert not target.exists()


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def make_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            archive.writestr(name, "")


def cut(save: Callable[[Path], object], part: float) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * part)])

    return make


def save_zip(path: Path) -> None:
    torch.save(weights(), path)


def save_legacy(path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=False)


def save_safetensors(path: Path) -> None:
    save_file(weights(), path)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("epoch,loss\n1,2.3\n" * 9), "no checkpoint"),
    "one byte": (lambda path: path.write_bytes(b"\x80"), "cut short or damaged|no checkpoint"),
    "zip": (make_zip, "a zip archive that torch.save did not write"),
    "torchscript": (make_torchscript, "begins as TorchScript but is cut short or damaged"),
    "half a torch file": (cut(save_zip, 0.5), "cut short or damaged"),
    "torch file less its end": (cut(save_zip, 0.999), "cut short or damaged"),
    "half an old torch file": (cut(save_legacy, 0.5), "cut short or damaged"),
    "half a safetensors": (cut(save_safetensors, 0.5), "cut short or damaged"),
    "safetensors less its end": (cut(save_safetensors, 0.99), "cut short or damaged"),
    "a number": (lambda path: torch.save(3, path), "no state dict, only one int"),
    "a tensor": (lambda path: torch.save(torch.ones(3), path), "no state dict, only one Tensor"),
    "no tensors": (lambda path: torch.save({"epoch": 3, "model": {}}, path), "no state dict but epoch, model"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": [1.0]}, protocol=4)), "no checkpoint"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_file_is_one_clear_error(tmp_path: Path, case: str) -> None:
    make, told = WRONG[case]
    path = tmp_path / "model.pt"
    make(path)
    with pytest.raises(PosthocError, match=told) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert "Next: " in str(caught.value)


def test_the_file_is_not_modified(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(weights(), path)
    before = path.read_bytes()
    read(path)
    assert path.read_bytes() == before
