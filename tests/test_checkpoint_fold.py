"""Folding a head in: that head, and not one other byte."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posthoc_lt.checkpoint import Checkpoint, changes, fold, read, write
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
    assert len(before) == len(after)


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


@pytest.mark.parametrize("kind", ["weight", "dtype", "shape", "lost", "added", "scalar", "zero sign"])
def test_every_kind_of_change_is_seen(kind: str) -> None:
    def content() -> dict[str, Any]:
        state = {"a": torch.zeros(2, 3), "b": torch.tensor([float("nan")]), "c": torch.tensor(1)}
        return {"state_dict": state, "epoch": 3, "loss": float("nan"), "list": [torch.ones(1), "x"]}

    changed = content()
    state = changed["state_dict"]
    if kind == "weight":
        state["a"][1, 2] = 1e-30
    elif kind == "dtype":
        state["a"] = state["a"].double()
    elif kind == "shape":
        state["a"] = state["a"].T
    elif kind == "zero sign":
        state["a"][0, 0] = -0.0
    elif kind == "lost":
        del state["c"]
    elif kind == "added":
        changed["list"] = [torch.ones(1), "x", 3]
    else:
        changed["epoch"] = 4
    where = {"lost": "state_dict/c", "added": "list/2", "scalar": "epoch"}.get(kind, "state_dict/a")

    def wrapped(value: object) -> Checkpoint:
        return Checkpoint(Path("m"), "", "torch", value, WeightSet("state_dict", {}), (), {}, {})

    assert changes(wrapped(content()), wrapped(content())) == ()
    assert changes(wrapped(content()), wrapped(changed)) == (where,)
