"""ONNX files: extracted and run by onnxruntime, patched so that nothing but the head's tensors differs."""

from __future__ import annotations

import builtins
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_network import Small, inputs, new_head, round_trip, small, write_images

from posthoc_lt.checkpoint import Preprocessing, identify, read
from posthoc_lt.errors import PosthocError
from posthoc_lt.export import export
from posthoc_lt.extraction import extract

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("onnx") / "data")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAT: Any = ("Flatten", ["Conv"], {})
HEADS: dict[str, Sequence[Any]] = {
    "gemm": [("Gemm", ["h", "classifier.weight", "classifier.bias"], {"transB": 1})],
    "gemm-columns": [("Gemm", ["h", "columns", "classifier.bias"], {})],
    "matmul": [("MatMul", ["h", "columns"], {}), ("Add", ["classifier.bias", "MatMul"], {})],
    "conv": [
        ("Unsqueeze", ["h", "axes"], {}),
        ("Conv", ["Unsqueeze", "classifier.weight", "classifier.bias"], {}),
        FLAT,
    ],
    "softmax": [("Gemm", ["h", "classifier.weight", "classifier.bias"], {"transB": 1}), ("Softmax", ["Gemm"], {})],
    "scaled": [("Gemm", ["h", "classifier.weight", "classifier.bias"], {"transB": 1, "alpha": 2.0})],
    "no-bias": [("MatMul", ["h", "columns"], {})],
    "gemm-no-bias": [("Gemm", ["h", "classifier.weight"], {"transB": 1})],
    "gemm-empty-bias": [("Gemm", ["h", "classifier.weight", ""], {"transB": 1})],
    "conv-no-bias": [("Unsqueeze", ["h", "axes"], {}), ("Conv", ["Unsqueeze", "classifier.weight"], {}), FLAT],
    "matmul-flat": [
        ("Unsqueeze", ["h", "one"], {}),
        ("MatMul", ["Unsqueeze", "columns"], {}),
        ("Flatten", ["MatMul"], {}),
    ],
}


NORM = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]


def save(network: Small, path: str, head: str = "gemm", batch: int | str = "n", opset: int = 18) -> None:
    """The network as a graph, node by node; the head in any of the ways in which exporters write it."""
    nodes, made = [], onnx.helper.make_node
    for op, taken, output, options in (
        ("Conv", ["x", "stem.weight", "stem.bias"], "a", {}),
        ("BatchNormalization", ["a", *NORM], "b", {}),
        ("Relu", ["b"], "c", {}),
        ("ReduceMean", ["c", "spatial"], "d", {"keepdims": 0}),
        ("Gemm", ["d", "wide.weight", "wide.bias"], "e", {"transB": 1}),
        ("Relu", ["e"], "f", {}),
        ("Gemm", ["f", "gate.weight", "gate.bias"], "g", {"transB": 1}),
        ("Gemm", ["g", "back.weight", "back.bias"], "i", {"transB": 1}),
        ("Tanh", ["i"], "j", {}),
        ("Add", ["f", "j"], "h", {}),
    ):
        nodes.append(made(op, taken, [output], **options))
    for op, taken, options in HEADS[head]:
        nodes.append(made(op, taken, ["logits" if op == HEADS[head][-1][0] else op], **options))
    state = {name: value.numpy() for name, value in network.state_dict().items() if not name.endswith("tracked")}
    state |= {
        "spatial": np.array([2, 3]),
        "axes": np.array([2, 3]),
        "one": np.array([1]),
        "columns": state["classifier.weight"].T,
    }
    used = {name for node in nodes for name in node.input}
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in state.items() if k in used]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 1, 8, 8])
    y = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [batch, 3])
    graph = onnx.helper.make_graph(nodes, "small", [x], [y], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def logits(path: str, x: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"x": x.numpy()})[0]


def without(path: str, names: set[str]) -> bytes:
    model = onnx.load(path)
    kept = [each for each in model.graph.initializer if each.name not in names]
    assert len(kept) + len(names) == len(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@pytest.mark.parametrize("head", ["gemm", "gemm-columns", "matmul", "conv"])
def test_onnx_gives_the_new_head(images: Path, head: str) -> None:
    network = small(convolution=head == "conv")
    save(network, "model.onnx", head)
    exported, expected = round_trip("model.onnx", "balanced.onnx", images, network)
    np.testing.assert_allclose(logits("balanced.onnx", inputs(images)), expected, rtol=1e-5, atol=1e-5)
    stored = {"columns" if head in ("matmul", "gemm-columns") else "classifier.weight", "classifier.bias"}
    assert without("balanced.onnx", stored) == without("model.onnx", stored)
    assert exported.samples == 15


def test_a_fixed_batch_and_size(images: Path) -> None:
    network = small()
    save(network, "model.onnx", batch=4)
    preprocessing = identify(read("model.onnx")).preprocessing
    assert isinstance(preprocessing, Preprocessing)
    assert preprocessing.input_size == 8
    _, expected = round_trip("model.onnx", "balanced.onnx", images, network)
    found = [logits("balanced.onnx", part) for part in torch.tensor_split(inputs(images)[:12], 3)]
    np.testing.assert_allclose(np.concatenate(found), expected[:12], rtol=1e-5, atol=1e-5)


def test_tensors_in_other_files_become_one_file(images: Path) -> None:
    network = small()
    save(network, "plain.onnx")
    model = onnx.load("plain.onnx")
    onnx.save(model, "model.onnx", save_as_external_data=True, location="model.data", size_threshold=64)
    _, expected = round_trip("model.onnx", "balanced.onnx", images, network)
    Path("model.data").unlink()
    np.testing.assert_allclose(logits("balanced.onnx", inputs(images)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(PosthocError, match=r"model.onnx"):
        read("model.onnx")


def test_tensors_outside_the_folder_are_not_read() -> None:
    save(small(), "plain.onnx")
    Path("inner").mkdir()
    model = onnx.load("plain.onnx")
    onnx.save(model, "inner/model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    model = onnx.load("inner/model.onnx", load_external_data=False)
    for each in model.graph.initializer:
        each.external_data[0].value = "../plain.onnx"
    onnx.save(model, "inner/model.onnx")
    with pytest.raises(PosthocError, match=r"damaged"):
        read("inner/model.onnx")


@pytest.mark.parametrize("name", ["network", "network.pt", "network.onnx"])
def test_told_by_content(name: str) -> None:
    save(small(), name)
    assert read(name).format == "onnx"


@pytest.mark.parametrize("head", ["softmax", "scaled"])
def test_no_affine_head(images: Path, head: str) -> None:
    save(small(), "model.onnx", head)
    with pytest.raises(PosthocError, match=r"no layer gives by an affine map"):
        extract("model.onnx", images)


@pytest.mark.parametrize("head", ["no-bias", "gemm-no-bias", "gemm-empty-bias", "conv-no-bias", "matmul-flat"])
def test_a_bias_is_added_where_it_is_asked_for(images: Path, head: str) -> None:
    network = small(bias=False, convolution=head.startswith("conv"))
    save(network, "model.onnx", head)
    features = extract("model.onnx", images)
    with pytest.raises(PosthocError, match=r"--add-bias, which adds it to the graph"):
        export("model.onnx", new_head(features), "balanced.onnx", features=features)
    assert os.listdir() == ["model.onnx"]
    made = export("model.onnx", new_head(features), "balanced.onnx", features=features, add_bias=True)
    assert [name.rpartition(".")[2] for name in made.changed] == ["weight", "bias"]
    new = new_head(features)
    expected = network.features(inputs(images)).double() @ new.weight.double().T + new.bias.double()
    np.testing.assert_allclose(logits("balanced.onnx", inputs(images)), expected, rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(onnx.load("balanced.onnx"), full_check=True)
    old, after = ({each.name: each for each in onnx.load(path).graph.initializer} for path in ("model.onnx", made.path))
    kept = set(old) - {"columns", "classifier.weight"}
    assert all(old[name] == after[name] for name in kept)
    assert len(after) == len(old) + 1
    again = extract("balanced.onnx", images)
    np.testing.assert_allclose(again.head.bias, new.bias)
    export("model.onnx", new_head(features, bias=False), "plain.onnx", features=features)


def test_damaged_files_are_one_clear_error(images: Path) -> None:
    save(small(), "model.onnx")
    whole = Path("model.onnx").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:2], b"\x08\x08\x12" + os.urandom(64)):
        Path("damaged.onnx").write_bytes(damaged)
        with pytest.raises(PosthocError, match=r"damaged.onnx|inputs none"):
            extract("damaged.onnx", images)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    save(small(), "model.onnx")
    real = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name: real("absent_" + name))
    with pytest.raises(PosthocError, match=r"pip install 'posthoc-lt\[onnx\]'"):
        read("model.onnx")


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_as_torch_exports_it(images: Path) -> None:
    pytest.importorskip("onnxscript")
    network = small()
    batch = {"x": {0: torch.export.Dim.DYNAMIC}}
    torch.onnx.export(network, (torch.zeros(2, 1, 8, 8),), "model.onnx", dynamic_shapes=batch, verbose=False)
    _, expected = round_trip("model.onnx", "balanced.onnx", images, network)
    session = onnxruntime.InferenceSession("balanced.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: inputs(images).numpy()})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
