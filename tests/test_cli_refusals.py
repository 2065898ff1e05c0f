"""The command line given bad input: one clear paragraph, and nothing lost."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import json_of, out_of, refusal_of
from PIL import Image
from torch import nn

from posthoc_lt import Features, FeatureSet, Head, load_features, load_head, save_features, save_head
from posthoc_lt.files import SavedHead


def test_demo_does_not_overwrite_what_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.pt").write_text("precious")
    status, message = refusal_of(["demo", "--into", "mine"], capsys)
    assert status == 1
    assert "model.pt" in message
    assert (tmp_path / "mine" / "model.pt").read_text() == "precious"


class Foreign(nn.Module):
    """A module of the user's own: pickled whole, it names a class that may not be loaded."""


def _write_bad_inputs(folder: Path, good: FeatureSet) -> None:
    (folder / "text.pt").write_text("not a checkpoint")
    torch.save(Foreign(), folder / "module.pt")
    shutil.copytree(folder / "data", folder / "nine", symlinks=False)
    for split in ("train", "val", "test"):
        shutil.rmtree(folder / "nine" / split / "9-ankle-boot")
    small = folder / "hollow" / "train"
    for name in ("a", "b"):
        (small / name).mkdir(parents=True)
    Image.new("L", (28, 28)).save(small / "a" / "1.png")
    (folder / "cut.safetensors").write_bytes((folder / "feats.safetensors").read_bytes()[:5000])
    assert good.val is not None
    broken = good.val.x.clone()
    broken[3, 4] = float("nan")
    save_features(FeatureSet(good.head, good.train, Features(broken, good.val.y)), folder / "nan.safetensors")
    (folder / "a-file").write_text("")
    (folder / "two").write_text("1, 2")


@pytest.mark.parametrize(
    ("command", "status", "named"),
    [
        ("extract --ckpt nowhere.pt", 1, "nowhere.pt"),
        ("extract --ckpt text.pt --out new", 1, "text.pt"),
        ("extract --ckpt module.pt --out new", 1, "Foreign"),
        ("extract --ckpt model.pt --data nowhere --out new", 1, "nowhere"),
        ("extract --ckpt model.pt --data hollow --out new", 1, "b"),
        ("extract --ckpt model.pt --data nine --out new", 1, "10 classes and 9"),
        ("extract --ckpt model.pt --out a-file/new", 1, "cannot be written"),
        ("extract --ckpt model.pt --out /proc/new", 1, "cannot be written"),
        ("extract --ckpt model.pt --arch nothing", 1, "nothing"),
        ("extract", 2, "--ckpt"),
        ("tau-search --features nan.safetensors", 1, "NaN"),
        ("tau-search --features cut.safetensors", 1, "cut.safetensors"),
        ("tau-search --features nowhere", 1, "extract --ckpt"),
        ("tau-search --features model.pt", 1, "model.pt"),
        ("tau-search --method crt", 2, "crt"),
        ("logit-adjust --tau abc", 2, "abc"),
        ("logit-adjust --tau nan", 1, "tau = nan"),
        ("logit-adjust --tau 1 --out a-file/head", 1, "cannot be written"),
        ("crt --l2 -1", 1, "l2 = -1"),
        ("ncm --transform l2n", 1, "cosine"),
        ("rebalance --groups 100,20", 1, "edges"),
        ("rebalance --groups 20", 2, "20,100"),
        ("rebalance --metric weighted-accuracy", 1, "without class weights"),
        ("tau-search --metric weighted-accuracy --class-weight nowhere", 1, "nowhere"),
        ("tau-search --class-weight two", 1, "which takes none"),
        ("tau-search --metric weighted-accuracy --class-weight two", 1, "2 class weights for 10 classes"),
        ("rebalance --device abacus", 1, "abacus"),
        ("evaluate --head feats.safetensors", 1, "which is a feature file"),
        ("export --ckpt model.pt --head nowhere", 1, "nowhere"),
        ("export --ckpt model.pt --head feats.safetensors", 1, "which is a feature file"),
        ("inspect a-file", 1, "a-file"),
        ("baulk", 2, "baulk"),
        ("rebalanse", 2, "Did you mean rebalance"),
    ],
)
def test_bad_input_gets_one_clear_paragraph_and_leaves_nothing(
    command: str, status: int, named: str, there: Path, features: FeatureSet, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_bad_inputs(there, features)
    before = sorted(os.listdir(there))
    found, message = refusal_of(command.split(), capsys)
    assert found == status
    assert named in message
    if status == 1:
        assert message.startswith("Error: ")
        assert message.count("\n") == 1, "one paragraph"
        assert "Wanted: " in message
        assert "Next: " in message
    assert sorted(os.listdir(there)) == before


def test_an_interrupt_is_not_a_traceback(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("posthoc_lt.cli.fit.fit", interrupted)
    status, message = refusal_of(["tau-search"], capsys)
    assert (status, "interrupted" in message) == (130, True)


@pytest.mark.parametrize(
    ("command", "target"),
    [
        ("extract --ckpt model.pt -o model.pt --force", "model.pt"),
        ("rebalance -o model.pt --force", "model.pt"),
        ("rebalance -o feats.safetensors --force", "feats.safetensors"),
        ("logit-adjust --tau 1 -o feats.safetensors --force", "feats.safetensors"),
        ("export --ckpt model.pt -o feats.safetensors --force", "feats.safetensors"),
        ("export --ckpt model.pt -o head.safetensors --force", "head.safetensors"),
        ("export --ckpt model.pt -o model.pt --force", "model.pt"),
    ],
)
def test_no_command_writes_over_an_input_or_another_kind_of_file(
    command: str, target: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_of("ncm --out head.safetensors", capsys)
    before = (there / target).read_bytes()
    status, message = refusal_of(command.split(), capsys)
    assert (status, "give another --out" in message) == (1, True)
    assert (there / target).read_bytes() == before


def test_force_replaces_a_spoilt_file_of_its_own_kind(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "head.safetensors").write_text("cut short")
    assert refusal_of(["ncm", "--out", "head.safetensors"], capsys)[0] == 1
    out_of("ncm --out head.safetensors --force", capsys)
    assert load_head(there / "head.safetensors").provenance["method"] == "ncm"


def test_a_head_of_another_checkpoint_is_refused(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_of("ncm --out head.safetensors", capsys)
    saved = load_head(there / "head.safetensors")
    other = {**saved.provenance, "checkpoint_sha256": "0" * 64, "method": "baseline"}
    save_head(SavedHead(saved.head, other), there / "foreign.safetensors")
    small = Head(saved.head.weight[:7], saved.head.bias[:7])
    save_head(SavedHead(small, {}), there / "seven.safetensors")
    for name in ("foreign", "seven"):
        for command in (f"evaluate --head {name}.safetensors", f"export --ckpt model.pt --head {name}.safetensors"):
            status, message = refusal_of(command.split(), capsys)
            assert (status, f"{name}.safetensors" in message) == (1, True)
    nameless = SavedHead(saved.head, {"method": "baseline"})
    save_head(nameless, there / "nameless.safetensors")
    judged = json_of("evaluate --head nameless.safetensors", capsys)["heads"]
    assert set(judged) == {"baseline", "saved: baseline"}
    assert judged["baseline"]["test"] == json_of("baseline", capsys)["test"]


def test_evaluate_needs_something_to_judge_on(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_features(there / "feats.safetensors")
    save_features(FeatureSet(whole.head, whole.train), there / "t.safetensors")
    status, message = refusal_of(["evaluate", "--features", "t.safetensors"], capsys)
    assert (status, "val or test" in message) == (1, True)


def test_inspect_cannot_be_forged_by_a_file(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_features(there / "feats.safetensors")
    forged = {"head": "FORGED", "train": "FORGED", "format": "FORGED", "\x1b[31mEVIL": "\x1b[2J"}
    save_features(replace(whole, provenance=forged), there / "evil.safetensors")
    text = out_of("inspect evil.safetensors", capsys)
    assert "FORGED" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "command",
    [
        ["rebalance", "--out", ""],
        ["rebalance", "--out", "."],
        ["rebalance", "--features", "x" * 300],
        ["extract", "--ckpt", "x" * 300],
        ["extract", "--ckpt", "model.pt", "--data", "x" * 300, "--out", "new"],
        ["inspect", "x" * 300],
        ["rebalance", "--seed", "9" * 30],
        ["tau-search", "--bias", "scale"],
        ["compare", "--format", "csv", "-v"],
    ],
)
def test_odd_arguments_are_no_fault_of_ours(
    command: list[str], there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal_of(command, capsys)[0] in (1, 2)


def test_demo_recovers_its_folder_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out_of("demo", capsys)
    (tmp_path / "posthoc-lt-demo" / "feats.safetensors").write_text("junk")
    (tmp_path / "posthoc-lt-demo" / "data" / "train" / "0-t-shirt" / "00001.png").write_bytes(b"cut")
    status, message = refusal_of(["demo"], capsys)
    assert (status, "--into" in message) == (1, True)
    out_of("demo --force", capsys)
