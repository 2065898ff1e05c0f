"""Files of torch.export (``.pt2``): run by torch, patched in place.

torch's own loader for them unpickles, evaluates expressions, and calls whatever function of torch a graph names: a
file is opened only where the user says that it is to be trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from posthoc_lt.checkpoint.archive import Place, patch_tensors
from posthoc_lt.checkpoint.formats import Format, Loaded, damaged
from posthoc_lt.checkpoint.program import Layer, Program, Watched, in_batches
from posthoc_lt.checkpoint.whole import record_names, require_whole
from posthoc_lt.errors import PosthocError, show

_WEIGHTS = "data/weights/"
_CONFIG = f"{_WEIGHTS}model_weights_config.json"
_ATEN = torch.ops.aten
_TURNED = (_ATEN.t.default, _ATEN.permute.default, _ATEN.transpose.int, _ATEN.numpy_T.default)


class _Linear(NamedTuple):
    """A node that gives x W + b, and which of its arguments is x."""

    node: fx.Node
    x: int


class Exported(Program):
    """An exported program. What a layer takes is caught while its graph is run node by node."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        program = _program(path)
        shape = _input_shape(program)
        self.size = shape[0] if shape else None
        self.module = program.module()
        self.requires_grad_(False)
        self.linear = _linear_nodes(self.module)

    def forward(self, batch: Tensor) -> Tensor:
        """What the file gives."""
        return in_batches(lambda part: [_one(self.module(part))], self.size, batch)[0]

    def layers(self) -> Mapping[str, nn.Module]:
        """The linear layers and 1×1 convolutions whose weight is a parameter."""
        state = self.module.state_dict()
        return {name: Layer(state[f"{name}.weight"], state.get(f"{name}.bias")) for name in self.linear}

    @contextmanager
    def watched(self, name: str) -> Iterator[Watched]:
        """Within the block the graph is interpreted, and one node's input kept."""
        watching = _Watching(self.module, self.linear[name])

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            x, logits = in_batches(watching.both, self.size, batch)
            return x, logits

        yield run


class _Watching(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, linear: _Linear) -> None:
        super().__init__(module)
        self.linear = linear
        self.x: Any = None

    def run_node(self, n: fx.Node) -> Any:
        if n is self.linear.node:
            self.x = self.fetch_args_kwargs_from_env(n)[0][self.linear.x]
        return super().run_node(n)

    def both(self, batch: Tensor) -> list[Tensor]:
        """What the node takes, and what the graph gives."""
        output = _one(self.run(batch))
        return [self.x, output]


def _one(output: Any) -> Tensor:
    """The logits, alone or under their name."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"a program that gives {type(output).__name__} in place of logits")
    return logits


def _linear_nodes(module: fx.GraphModule) -> dict[str, _Linear]:
    """The linear nodes by the names of their layers, in the order in which they run."""
    found = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in (_ATEN.linear.default, _ATEN.conv2d.default, _ATEN.convolution.default):
            x, weight, bias = 0, node.args[1], node.args[2] if len(node.args) > 2 else None
        elif node.target is _ATEN.addmm.default:
            x, weight, bias = 1, _untransposed(node.args[2]), node.args[0]
        elif node.target is _ATEN.mm.default:
            x, weight, bias = 0, _untransposed(node.args[1]), None
        else:
            continue
        name = _parameter(weight, ".weight")
        if name and (bias is None or _parameter(bias, ".bias") == name) and _is_linear(module, f"{name}.weight"):
            found[name] = _Linear(node, x)
    return found


def _untransposed(node: Any) -> Any:
    return node.args[0] if isinstance(node, fx.Node) and node.target in _TURNED else None


def _parameter(node: Any, suffix: str) -> str | None:
    """The layer that a parameter is of, where its name ends so."""
    named = isinstance(node, fx.Node) and node.op == "get_attr" and str(node.target).endswith(suffix)
    return str(node.target).removesuffix(suffix) if named else None


def _is_linear(module: fx.GraphModule, name: str) -> bool:
    shape = tuple(module.state_dict()[name].shape)
    return len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))


def _input_shape(program: Any) -> list[int | None]:
    """What the one input takes: its dimensions, None where any size will do."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    shapes = [node.meta["val"].shape for node in nodes if isinstance(node.meta.get("val"), Tensor)]
    return [size if type(size) is int else None for size in shapes[0]] if len(shapes) == 1 else []


def _fits(start: bytes, path: Path) -> bool:
    if not start.startswith(b"PK\x03\x04"):
        return False
    return any(
        name.endswith("/models/model.json") or name == "serialized_exported_program.json" for name in record_names(path)
    )


def _load(path: Path) -> Loaded:
    program = _program(path)
    with zipfile.ZipFile(path) as archive:
        rest = sorted((each.filename, each.CRC) for each in archive.infolist() if f"/{_WEIGHTS}" not in each.filename)
    graph = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
    state = {name: tensor.detach() for name, tensor in program.state_dict.items()}
    return Loaded({"parameters": state, "graph": graph, "input_shape": _input_shape(program)}, {}, (path,))


def _program(path: Path) -> Any:
    try:
        require_whole(path)
        with _quiet(), path.open("rb") as file:
            return torch.export.load(file)
    except PosthocError:
        raise
    except Exception as error:  # anything may be wrong within
        raise damaged(path, "a file of torch.export", error) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings of its own loader, and the tracebacks that this logs of a file that it refuses."""
    log = logging.getLogger("torch.export")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _write(original: Path, content: object, path: Path) -> None:
    """The original file, byte for byte, but for the tensors whose values differ."""
    assert isinstance(content, Mapping)
    with zipfile.ZipFile(original) as archive:
        config = next((name for name in archive.namelist() if name.endswith(f"/{_CONFIG}")), None)
        if config is None:
            raise PosthocError(
                f"{show(original)}, written by an older torch in a form that is no longer written",
                "the present form",
                "load it with torch.export.load and write it with torch.export.save, in torch 2.8 or later",
            )
        entries = json.loads(archive.read(config))["config"]
    folder = config.removesuffix("model_weights_config.json")
    places = {name: _place(folder, entry) for name, entry in entries.items() if not entry["use_pickle"]}
    patch_tensors(original, content["parameters"], places, path)


def _place(folder: str, entry: Mapping[str, Any]) -> Place:
    meta = entry["tensor_meta"]
    size, stride = (tuple(each["as_int"] for each in meta[key]) for key in ("sizes", "strides"))
    return Place(folder + entry["path_name"], meta["storage_offset"]["as_int"], size, stride)


EXPORTED = Format("torch.export", _fits, _load, _write, (".pt2",), Exported, pickles=True, grows=False)
"""What torch.export.save writes."""
