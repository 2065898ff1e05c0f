"""Folding a head in: that head, and not one other byte."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posthoc_lt.checkpoint import Checkpoint, changes, fold, read, stored_head, write
from posthoc_lt.checkpoint.weights import WeightSet
from posthoc_lt.errors import PosthocError
from posthoc_lt.head import Head


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(body=nn.Linear(4, 6), norm=nn.BatchNorm1d(6), head=nn.Linear(6, 3, bias=bias)))


def new_head(bias: bool = True) -> Head:
    weight = torch.arange(18.0).view(3, 6) / 7
    return Head(weight, torch.tensor([0.5, -1.0, 2.0]) if bias else torch.zeros(3), has_bias=bias)


def saved(path: Path, content: Any) -> Checkpoint:
    torch.save(content, path)
    return read(path)


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def test_only_the_head_is_new_and_all_else_is_the_same_object(tmp_path: Path) -> None:
    extra = {"optimizer": {"state": {0: torch.ones(3)}}, "epoch": 3, "lr": [0.1, float("nan")]}
    checkpoint = saved(tmp_path / "m.pt", {"state_dict": network().state_dict(), **extra})
    before: Any = checkpoint.content
    kept = copy.deepcopy(before["state_dict"])
    after: Any = fold(checkpoint, "head", new_head())
    assert after is not before
    assert torch.equal(after["state_dict"]["head.weight"], new_head().weight)
    assert torch.equal(after["state_dict"]["head.bias"], new_head().bias)
    for key in before:
        if key != "state_dict":
            assert after[key] is before[key]
    for key in before["state_dict"]:
        if not key.startswith("head."):
            assert after["state_dict"][key] is before["state_dict"][key]
    assert list(after["state_dict"]) == list(before["state_dict"])
    assert after["state_dict"]._metadata == before["state_dict"]._metadata
    assert all(torch.equal(before["state_dict"][key], kept[key]) for key in kept)


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("nest", [None, "state_dict"])
def test_prefixed_keys_round_trip(tmp_path: Path, prefix: str, nest: str | None) -> None:
    state = OrderedDict((prefix + key, value) for key, value in network().state_dict().items())
    checkpoint = saved(tmp_path / "m.pt", state if nest is None else {nest: state})
    write(checkpoint, fold(checkpoint, "head", new_head()), tmp_path / "out.pt")
    plain = torch.load(tmp_path / "out.pt", weights_only=True)
    plain = plain if nest is None else plain[nest]
    assert list(plain) == list(state)
    for key in state:
        expected = {f"{prefix}head.weight": new_head().weight, f"{prefix}head.bias": new_head().bias}.get(
            key, state[key]
        )
        assert raw(plain[key]) == raw(expected)
    where = f"{nest}/" if nest else ""
    names = {f"{where}{prefix}head.weight", f"{where}{prefix}head.bias"}
    assert set(changes(checkpoint, read(tmp_path / "out.pt"))) == names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_old_dtype_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = saved(tmp_path / "m.pt", network().to(dtype).state_dict())
    after: Any = fold(checkpoint, "head", new_head())
    assert after["head.weight"].dtype == dtype
    assert torch.equal(after["head.weight"], new_head().weight.to(dtype))


def test_parameters_stay_parameters(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "m.pt", dict(network().named_parameters()))
    after: Any = fold(checkpoint, "head", new_head())
    assert isinstance(after["head.weight"], nn.Parameter)
    assert isinstance(after["head.bias"], nn.Parameter)


def test_values_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "m.pt", network().half().state_dict())
    huge = Head(torch.full((3, 6), 1e6), torch.zeros(3))
    with pytest.raises(PosthocError, match=r"1e\+06 for head\.weight, stored as torch\.float16"):
        fold(checkpoint, "head", huge)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "m.pt", network().state_dict())
    with pytest.raises(PosthocError, match=r"\(4, 6\) for head\.weight of shape \(3, 6\)"):
        fold(checkpoint, "head", Head(torch.ones(4, 6), torch.ones(4)))


def test_a_bias_without_a_place_names_the_choices(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "m.pt", network(bias=False).state_dict())
    with pytest.raises(PosthocError) as caught:
        fold(checkpoint, "head", new_head())
    for told in ("layer head", "tau-norm", "--add-bias", "head.bias", "bias=True"):
        assert told in str(caught.value)


def test_a_zero_bias_needs_no_place(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "m.pt", network(bias=False).state_dict())
    after: Any = fold(checkpoint, "head", new_head(bias=False))
    assert list(after) == list(checkpoint.state)
    assert torch.equal(after["head.weight"], new_head().weight)


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_a_bias_can_be_added(tmp_path: Path, form: str) -> None:
    state = {f"module.{key}": value for key, value in network(bias=False).half().state_dict().items()}
    path, out = tmp_path / "m", tmp_path / "out"
    if form == "torch":
        torch.save(state, path)
    else:
        save_file(state, path)
    checkpoint = read(path)
    write(checkpoint, fold(checkpoint, "head", new_head(), add_bias=True), out)
    plain = torch.load(out, weights_only=True) if form == "torch" else load_file(out)
    assert torch.equal(plain["module.head.bias"], new_head().bias.half())
    assert set(plain) == {*state, "module.head.bias"}
    assert set(changes(checkpoint, read(out))) == {"module.head.weight", "module.head.bias"}


def test_safetensors_keep_order_metadata_and_every_other_byte(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.int32)
    others = {f"x.{kind}": torch.arange(6).to(kind) for kind in kinds}
    others |= {"flag": torch.tensor([True, False]), "scalar": torch.tensor(3), "none": torch.empty(0, 4)}
    state = network().state_dict()
    tensors: dict[str, Tensor] = {**others, "head.weight": state["head.weight"], "head.bias": state["head.bias"]}
    metadata = {key: str(i) for i, key in enumerate(["format", "zeta", "alpha", "émile"])}
    save_file(tensors, tmp_path / "m.safetensors", metadata=metadata)
    checkpoint = read(tmp_path / "m.safetensors")
    write(checkpoint, fold(checkpoint, "head", new_head()), tmp_path / "out")
    plain = load_file(tmp_path / "out")
    assert plain.keys() == tensors.keys()
    for key in others:
        assert plain[key].dtype == tensors[key].dtype
        assert plain[key].shape == tensors[key].shape
        assert raw(plain[key]) == raw(tensors[key])
    assert torch.equal(plain["head.weight"], new_head().weight)
    assert torch.equal(plain["head.bias"], new_head().bias)
    assert read(tmp_path / "out").metadata == metadata
    before, after = ((tmp_path / name).read_bytes() for name in ("m.safetensors", "out"))
    length = 8 + int.from_bytes(before[:8], "little")
    header = json.loads(before[8:length])
    spans = [header[f"head.{part}"]["data_offsets"] for part in ("weight", "bias")]
    new = {length + at for start, stop in spans for at in range(start, stop)}
    assert {at for at, (old, now) in enumerate(zip(before, after, strict=True)) if old != now} <= new


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_equal_input_gives_equal_bytes(tmp_path: Path, form: str) -> None:
    path = tmp_path / "m"
    if form == "torch":
        torch.save({"state_dict": network().state_dict()}, path)
    else:
        save_file(network().state_dict(), path, metadata={key: key for key in "abcdefgh"})
    for name in ("one", "other_name"):
        checkpoint = read(path)
        write(checkpoint, fold(checkpoint, "head", new_head()), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other_name").read_bytes()


def test_the_original_file_is_not_touched(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "m.pt", network().state_dict())
    before = (tmp_path / "m.pt").read_bytes()
    write(checkpoint, fold(checkpoint, "head", new_head()), tmp_path / "out.pt")
    assert (tmp_path / "m.pt").read_bytes() == before


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "weight": ("state_dict/a", lambda c: c["state_dict"]["a"][1].fill_(1e-30)),
    "dtype": ("state_dict/a", lambda c: c["state_dict"].update(a=torch.zeros(2, 3).double())),
    "shape": ("state_dict/a", lambda c: c["state_dict"].update(a=torch.zeros(3, 2))),
    "zero sign": ("state_dict/a", lambda c: c["state_dict"]["a"].neg_()),
    "lost": ("state_dict/c", lambda c: c["state_dict"].pop("c")),
    "added": ("list/2", lambda c: c["list"].append(3)),
    "scalar": ("epoch", lambda c: c.update(epoch=4)),
    "type": ("epoch", lambda c: c.update(epoch=3.0)),
    "no longer NaN": ("loss", lambda c: c.update(loss=0.5)),
    "no longer nested": ("state_dict", lambda c: c.update(state_dict=torch.ones(1))),
    "nested otherwise": ("list", lambda c: c.update(list={0: torch.ones(1), 1: "x"})),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_kind_of_change_is_seen(kind: str) -> None:
    def content() -> dict[str, Any]:
        state = {"a": torch.zeros(2, 3), "b": torch.tensor([float("nan")]), "c": torch.tensor(1)}
        return {"state_dict": state, "epoch": 3, "loss": float("nan"), "list": [torch.ones(1), "x"]}

    where, change = CHANGES[kind]
    changed = content()
    change(changed)

    def wrapped(value: object) -> Checkpoint:
        return Checkpoint(Path("m"), "", "torch", value, WeightSet("state_dict", {}), (), {}, {})

    assert changes(wrapped(content()), wrapped(content())) == ()
    assert changes(wrapped(content()), wrapped(changed)) == (where,)


def with_its_network(form: str, path: Path) -> Checkpoint:
    """The network, whose head has no bias, in a file that says how to compute it."""
    net = network(bias=False).eval()
    if form == "torchscript":
        jit: Any = torch.jit  # untyped in torch
        jit.save(jit.trace(net, torch.zeros(2, 4)), path)
        return read(path)
    onnx = pytest.importorskip("onnx")
    x, y = (onnx.helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 6), ("y", 3)))
    node = onnx.helper.make_node("Gemm", ["x", "head.weight"], ["y"], transB=1)
    weight = onnx.numpy_helper.from_array(net.state_dict()["head.weight"].numpy(), "head.weight")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "head", [x], [y], [weight])), path)
    return read(path)


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("form", "told"), [("torchscript", "takes no tensor more"), ("onnx", "give --add-bias, which")]
)
def test_a_network_in_the_file_decides_whether_it_takes_a_bias(tmp_path: Path, form: str, told: str) -> None:
    checkpoint = with_its_network(form, tmp_path / "m")

    def changed(**options: Any) -> set[str]:
        return set(changes(checkpoint, replace(checkpoint, content=fold(checkpoint, "head", **options))))

    assert changed(head=new_head(bias=False)) == {"parameters/head.weight"}
    with pytest.raises(PosthocError, match=told):
        changed(head=new_head())
    if form == "onnx":
        assert changed(head=new_head(), add_bias=True) == {"parameters/head.weight", "parameters/head.bias"}
    else:
        with pytest.raises(PosthocError, match=told):
            changed(head=new_head(), add_bias=True)


@pytest.mark.parametrize("columns", [False, True])
def test_a_cosine_layer_holds_the_directions_as_its_dtype_rounds_them(tmp_path: Path, columns: bool) -> None:
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    new = Head.without_bias(5 * rows / rows.norm(dim=1, keepdim=True))
    checkpoint = saved(
        tmp_path / "m.pt", {"head.weight": torch.ones(6, 3).half() if columns else torch.ones(3, 6).half()}
    )
    name = "cosine-columns:head" if columns else "cosine:head"
    after: Any = fold(checkpoint, name, new)
    held = new.weight.half()
    assert torch.equal(after["head.weight"], held.T if columns else held)
    stored = stored_head(checkpoint, name, new)
    directions = held.float() / held.float().norm(dim=1, keepdim=True)
    torch.testing.assert_close(stored.weight, 5 * directions, rtol=1e-6, atol=0)
    assert not stored.has_bias
