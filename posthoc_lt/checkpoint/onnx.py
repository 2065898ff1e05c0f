"""ONNX files: run by onnxruntime (extra ``onnx``), the head's initialisers replaced, every node as it was."""

from __future__ import annotations

import hashlib
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from posthoc_lt.checkpoint.formats import Format, Loaded, damaged
from posthoc_lt.checkpoint.program import Layer, Program, Watched, in_batches
from posthoc_lt.errors import PosthocError, listed, show

_LARGEST = 2**31 - 1
_FIELDS = (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42", b"\x72")
_DTYPES = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}


class _Affine(NamedTuple):
    """A linear node and its initialisers; whether the weight is (D, C); and the node that adds the bias, if another."""

    node: Any
    weight: Any
    bias: Any
    transposed: bool
    added: Any = None

    @property
    def x(self) -> str:
        """The tensor that it takes."""
        name: str = self.node.input[0]
        return name

    def values(self) -> dict[str, Tensor]:
        """Its weight and bias as a layer of torch has them."""
        weight = _values(self.weight)
        found = {"weight": weight.T if self.transposed else weight}
        return found if self.bias is None else {**found, "bias": _values(self.bias).flatten()}

    def put(self, kind: str, values: Tensor) -> None:
        """Replace the initialiser of its weight or bias."""
        if kind == "weight":
            _put(self.weight, values.T if self.transposed else values)
        else:
            _put(self.bias, values)

    def add_bias(self, model: Any, name: str, values: Tensor) -> None:
        """Give a node that has none a bias: its third input, or after a product of matrices a node that adds it."""
        taken = {each.name for each in model.graph.initializer} | {
            each for node in model.graph.node for each in node.output
        }
        while name in taken:
            name += "_"
        model.graph.initializer.add(name=name, dims=values.shape, data_type=self.weight.data_type)
        _put(model.graph.initializer[-1], values)
        if self.node.op_type != "MatMul":
            del self.node.input[2:]
            self.node.input.append(name)
            return
        (output,) = self.node.output
        place = next(index for index, node in enumerate(model.graph.node) if output in node.output)
        self.node.output[0] = f"{name}.before"
        added = _library("onnx.helper").make_node("Add", [f"{name}.before", name], [output])
        model.graph.node.insert(place + 1, added)

    def without_bias(self, model: Any) -> None:
        """Take the bias out of the graph again."""
        if self.bias is not None:
            model.graph.initializer.remove(self.bias)
        if self.added is not None:
            self.node.output[0] = self.added.output[0]
            model.graph.node.remove(self.added)
        del self.node.input[2:]


class Graph(Program):
    """An ONNX model. A layer is watched by naming the tensor that it takes among the model's outputs."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.model = _model(path)
        self.path = path
        with _whole(path):
            self.affine = _affine(self.model)
            self.size = _input_shape(self.model)[0]
            self.output = self.model.graph.output[0].name
        self.session = _session(path, str(path))

    def forward(self, batch: Tensor) -> Tensor:
        """What the file gives."""
        return in_batches(lambda part: self._run(self.session, [self.output], part), self.size, batch)[0]

    def layers(self) -> Mapping[str, nn.Module]:
        """The Gemm, MatMul and 1×1 Conv nodes whose weights are initialisers."""
        values = {name: affine.values() for name, affine in self.affine.items()}
        return {name: Layer(found["weight"], found.get("bias")) for name, found in values.items()}

    @contextmanager
    def watched(self, name: str) -> Iterator[Watched]:
        """Within the block what the layer takes is one more output."""
        model, x = type(self.model)(), self.affine[name].x
        model.CopyFrom(self.model)
        model.graph.output.add().name = x
        session = _session(self.path, _bytes(self.path, model))

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            taken, logits = in_batches(lambda part: self._run(session, [x, self.output], part), self.size, batch)
            return taken, logits

        yield run

    def _run(self, session: Any, names: Sequence[str], batch: Tensor) -> list[Tensor]:
        (taken,) = session.get_inputs()
        dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(taken.type, np.float32)
        try:
            outputs = session.run(list(names), {taken.name: batch.detach().cpu().numpy().astype(dtype)})
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise RuntimeError(str(error).strip().split("\n")[0]) from None
        return [torch.from_numpy(np.array(output)) for output in outputs]


def _affine(model: Any) -> dict[str, _Affine]:
    """The linear nodes by name, which is that of the weight where it is called a layer's weight."""
    held = {initialiser.name: initialiser for initialiser in model.graph.initializer}
    used = Counter(name for node in model.graph.node for name in node.input)
    after = {node.input[0]: node for node in model.graph.node if node.op_type == "Add" and used[node.input[0]] == 1}
    after |= {node.input[1]: node for node in model.graph.node if node.op_type == "Add" and used[node.input[1]] == 1}
    found = {}
    for node in model.graph.node:
        weight = held.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or weight.data_type not in _DTYPES or used[weight.name] > 1:
            continue
        bias, transposed, added = held.get(node.input[2]) if len(node.input) > 2 else None, False, None
        options = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Gemm" and _is_plain(options):
            transposed = "transB" not in options or options["transB"].i == 0
        elif node.op_type == "MatMul" and len(weight.dims) == 2:
            transposed, added = True, after.get(node.output[0])
            names = [] if added is None else [name for name in added.input if name != node.output[0]]
            bias = next((held[name] for name in names if name in held and used[name] == 1), None)
            added = None if bias is None else added
        elif node.op_type != "Conv" or not _is_pointwise(weight, options):
            continue
        if bias is None or np.prod(bias.dims) == weight.dims[1 if transposed else 0]:
            named = weight.name.endswith(".weight")
            name = weight.name.removesuffix(".weight") if named else weight.name
            found[name] = _Affine(node, weight, bias, transposed, added)
    return found


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Whether a Gemm node is x W + b, with no factors and x not transposed."""
    factors = (options[name].f for name in ("alpha", "beta") if name in options)
    return all(factor == 1 for factor in factors) and ("transA" not in options or options["transA"].i == 0)


def _is_pointwise(weight: Any, options: Mapping[str, Any]) -> bool:
    """Whether a convolution takes every position by itself, all channels together."""
    return list(weight.dims[2:]) == [1, 1] and ("group" not in options or options["group"].i == 1)


def _values(initialiser: Any) -> Tensor:
    array = _library("onnx.numpy_helper").to_array(initialiser)
    if initialiser.data_type == 16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _put(initialiser: Any, values: Tensor) -> None:
    data = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    for field in ("float_data", "int32_data", "double_data", "external_data", "data_location"):
        initialiser.ClearField(field)
    initialiser.raw_data = data


def _input_shape(model: Any) -> list[int | None]:
    """What the one input takes: its dimensions, None where any size will do.

    Raises:
        PosthocError: there are several inputs, or none.
    """
    held = {initialiser.name for initialiser in model.graph.initializer}
    inputs = [each for each in model.graph.input if each.name not in held]
    if len(inputs) != 1 or not inputs[0].type.tensor_type.shape.dim:
        names = listed(each.name for each in inputs) or "none"
        raise PosthocError(f"an ONNX model with inputs {names}", "one input, the images", "export it so")
    return [dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim]


def _fits(start: bytes, path: Path) -> bool:
    """A model begins with its version and the next field of the message; else its name must tell."""
    version, field = start[1:2], start[2:3]
    return (start[:1] == b"\x08" and version < b"\x80" and field in _FIELDS) or path.suffix == ".onnx"


def _load(path: Path) -> Loaded:
    model = _model(path)
    parameters: dict[str, Tensor] = {}
    with _whole(path):
        for name, affine in (found := _affine(model)).items():
            parameters |= {f"{name}.{kind}": values for kind, values in affine.values().items()}
        linear = {each.name for affine in found.values() for each in (affine.weight, affine.bias) if each is not None}
        parameters |= {each.name: _values(each) for each in model.graph.initializer if each.name not in linear}
        files = tuple(dict.fromkeys(path.parent / name for name in _external(path)))
        shape, graph = _input_shape(model), _digest(model)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Loaded({"parameters": parameters, "graph": graph, "input_shape": shape}, metadata, (path, *files))


def _digest(model: Any) -> str:
    """Of all that is neither a value nor a linear layer's bias, which may be added."""
    rest = type(model)()
    rest.CopyFrom(model)
    for affine in _affine(rest).values():
        affine.without_bias(rest)
    for each in rest.graph.initializer:
        each.CopyFrom(type(each)(name=each.name, dims=each.dims, data_type=each.data_type))
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()


def _model(path: Path) -> Any:
    """The model with the tensors that it keeps in other files, all in memory."""
    onnx = _library("onnx")
    with _whole(path):
        return onnx.load(str(path))


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Within the block a file is read whose parts may not fit together."""
    try:
        yield
    except PosthocError:
        raise
    except Exception as error:  # protobuf, numpy and the file system fail in many ways
        raise damaged(path, "ONNX", error) from None


def _external(path: Path) -> list[str]:
    """The other files that hold tensors of a model."""
    model = _library("onnx").load(str(path), load_external_data=False)
    entries = (entry for each in model.graph.initializer for entry in each.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})


def _session(path: Path, model: str | bytes) -> Any:
    runtime = _library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        # Its fallback is to try the same again, and to print that on standard output.
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's errors share no class of their own
        raise PosthocError(
            f"{show(path)}, which onnxruntime does not take ({show(str(error).strip(), 200)})",
            "a model that this onnxruntime runs",
            "export it again for its version, or upgrade with: pip install -U onnxruntime",
        ) from None


def _write(original: Path, content: object, path: Path) -> None:
    """The original model with the layers' initialisers replaced whose values differ, or added, in one file."""
    assert isinstance(content, Mapping)
    model = _model(original)
    for name, layer in _affine(model).items():
        for kind, old in layer.values().items():
            new = content["parameters"][f"{name}.{kind}"]
            if not torch.equal(new, old):
                layer.put(kind, new)
        if layer.bias is None and (bias := content["parameters"].get(f"{name}.bias")) is not None:
            layer.add_bias(model, f"{name}.bias", bias)
    path.write_bytes(_bytes(original, model))


def _bytes(path: Path, model: Any) -> bytes:
    if model.ByteSize() > _LARGEST:
        raise PosthocError(
            f"{show(path)} with more than 2 GB of tensors", "a model that fits one ONNX file", "export it in float16"
        )
    data: bytes = model.SerializeToString()
    return data


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise PosthocError(
            f"an ONNX file, and {name.partition('.')[0]}, which reads it, is not installed",
            "the extra for ONNX",
            "install it with: pip install 'posthoc-lt[onnx]'",
        ) from None


ONNX = Format("onnx", _fits, _load, _write, (".onnx",), Graph, grows=True)
"""A model of the Open Neural Network Exchange."""
