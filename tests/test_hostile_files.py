"""Damaged files, at small size what examples/benchmarks/hostile.py does at any."""

from __future__ import annotations

import json
import struct
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from posthoc_lt import Features, FeatureSet, Head, PosthocError, load_features, save_features
from posthoc_lt.checkpoint import identify, load_network, read

KINDS = (
    "feature file",
    "feature shards",
    "head file",
    "thresholds",
    "torch.save",
    "torch.save before 1.6",
    "safetensors",
    "safetensors shards",
    "TorchScript",
    "torch.export",
    "ONNX",
    "trusted pickle",
    "trusted, before 1.6",
)


def test_every_kind_is_tried(hostile: ModuleType) -> None:
    assert tuple(hostile.KINDS) == KINDS


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_refused_or_harmless(hostile: ModuleType, tmp_path: Path, name: str) -> None:
    tried = list(hostile.corrupted(name, tmp_path, flips=48))
    assert len(tried) > 80
    assert [each for each in tried if each[1].partition(":")[0] not in ("right", "refused", "unseen")] == []
    assert sum(found == "refused" for _, found in tried) > len(tried) / 4
    if name in KINDS[:4]:
        assert not any(found == "unseen" for _, found in tried)


def small() -> FeatureSet:
    head = Head(torch.eye(2), torch.zeros(2))
    return FeatureSet(head, val=Features(torch.eye(2), torch.tensor([0, 1])), provenance={"arch": "own"})


def rewritten(path: Path, change: Any) -> None:
    """A file of ours whose header someone edits."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["head.weight"].update(dtype="I32"),  # whose bytes would read as other numbers
        lambda header: header["head.weight"].update(shape=[1, 4]),
        lambda header: header["__metadata__"].update(has_bias="false"),
        lambda header: header["__metadata__"].update(arch="another"),
        lambda header: header["__metadata__"].pop("arch"),
        lambda header: header["__metadata__"].update(more="words"),
    ],
)
def test_a_header_that_was_edited_is_refused(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "feats.safetensors"
    save_features(small(), path)
    rewritten(path, change)
    with pytest.raises(PosthocError, match="description of itself has changed"):
        load_features(path)


def test_files_without_a_checksum_of_their_description_load(tmp_path: Path) -> None:
    """Those of schema 1 that were written before it was thought of."""

    def older(header: dict[str, Any]) -> None:
        sums = json.loads(header["__metadata__"]["checksums"])
        del sums["__metadata__"]
        header["__metadata__"]["checksums"] = json.dumps(sums)

    path = tmp_path / "feats.safetensors"
    save_features(small(), path)
    rewritten(path, older)
    assert torch.equal(load_features(path).head.weight, torch.eye(2))


# Files that hold their own network


def test_a_changed_tensor_in_a_trusted_pickle_is_found(hostile: ModuleType, tmp_path: Path) -> None:
    """Trust in who made a file is none in every byte of it."""
    path = hostile.KINDS["trusted pickle"].make(tmp_path)
    weight = read(path, allow_pickle=True).state["fc.weight"]
    data = bytearray(path.read_bytes())
    data[data.find(weight.numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(PosthocError, match="damaged"):
        read(path, allow_pickle=True)


def test_a_trusted_network_that_lacks_a_part_is_refused(hostile: ModuleType, tmp_path: Path) -> None:
    network = sys.modules["hostile_files"].Network()
    del network.fc._forward_hooks
    torch.save(network, tmp_path / "model.pt")
    with pytest.raises(PosthocError, match=r"whose objects cannot be made .*_forward_hooks"):
        read(tmp_path / "model.pt", allow_pickle=True)


def test_an_onnx_graph_whose_parts_do_not_fit_is_refused(hostile: ModuleType, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make = sys.modules["hostile_files"].as_onnx

    def changed(change: Any) -> Path:
        make(sys.modules["hostile_files"].Network(), tmp_path / "model.onnx")
        model = onnx.load(tmp_path / "model.onnx")
        change(model.graph)
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model.onnx"

    for change in (
        lambda graph: graph.initializer[0].dims.append(3),
        lambda graph: graph.initializer[2].ClearField("raw_data"),
        lambda graph: setattr(graph.initializer[1], "data_type", 99),
    ):
        with pytest.raises(PosthocError, match="begins as ONNX but is cut short or damaged"):
            read(changed(change))
    path = changed(lambda graph: graph.ClearField("output"))
    with pytest.raises(PosthocError, match="begins as ONNX but is cut short or damaged"):
        load_network(read(path), identify(read(path)))


def test_nothing_but_the_error_is_said_of_a_damaged_program(
    hostile: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Torch logs tracebacks, and onnxruntime prints on standard output, where JSON may be going."""
    path = hostile.KINDS["torch.export"].make(tmp_path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "new.pt2", "w") as new:
        for info in old.infolist():
            name = info.filename if not info.filename.endswith("serialization_id") else f"../{info.filename}"
            new.writestr(name, old.read(info))
    capfd.readouterr()
    with pytest.raises(PosthocError):
        read(tmp_path / "new.pt2", allow_pickle=True)
    onnx = pytest.importorskip("onnx")
    sys.modules["hostile_files"].as_onnx(sys.modules["hostile_files"].Network(), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.node[1].op_type = "NoSuch"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(PosthocError, match="onnxruntime does not take"):
        load_network(read(tmp_path / "model.onnx"), identify(read(tmp_path / "model.onnx")))
    assert capfd.readouterr() == ("", "")


# Archives of torch, whose own reader looks at no checksum


def state() -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.arange(6.0).reshape(3, 2), "fc.bias": torch.ones(3)}


def test_a_changed_tensor_in_a_torch_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(), path)
    data = bytearray(path.read_bytes())
    place = data.find(state()["fc.weight"].numpy().tobytes())
    data[place + 5] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["fc.weight"], state()["fc.weight"])  # unseen by torch
    with pytest.raises(PosthocError, match="damaged"):
        read(path)


def test_a_torch_file_packed_anew_with_compression_is_refused(tmp_path: Path) -> None:
    """Mapped into memory as it lies, it would give the compressed bytes for weights."""
    torch.save(state(), tmp_path / "model.pt")
    with (
        zipfile.ZipFile(tmp_path / "model.pt") as old,
        zipfile.ZipFile(tmp_path / "new.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(PosthocError, match="compresses model/data/0"):
        read(tmp_path / "new.pt")


def test_a_torch_file_written_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(), tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read(tmp_path / "model.pt").state["fc.weight"], state()["fc.weight"])


def test_whole_numbers_are_no_weights(case: Path, tmp_path: Path) -> None:
    """One changed letter makes float32 int32 in a safetensors header, and nothing in such a file tells."""
    found = read(case / "model.pt")
    name = next(each for each in found.state if each.endswith("linear.weight"))
    torch.save({**found.state, name: found.state[name].view(torch.int32)}, tmp_path / "model.pt")
    changed = read(tmp_path / "model.pt")
    with pytest.raises(PosthocError, match=r"1 that hold no real numbers: linear\.weight torch\.int32"):
        load_network(changed, identify(changed))
