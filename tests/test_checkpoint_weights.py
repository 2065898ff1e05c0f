"""Files with several state dicts: which is read, which is said to be there, and where a new head goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posthoc_lt.checkpoint import changes, fold, read, require_suffix, write
from posthoc_lt.errors import PosthocError
from posthoc_lt.head import Head

State = dict[str, Tensor]


def body(value: float = 1.0) -> State:
    return {"conv.weight": torch.full((2, 1, 3, 3), value), "bn.weight": torch.full((2,), value)}


def classifier(value: float = 1.0) -> State:
    return {"fc.weight": torch.full((3, 2), value), "fc.bias": torch.full((3,), value)}


def whole(value: float = 1.0) -> State:
    return {**body(value), **classifier(value)}


def wrapped(state: State, prefix: str = "module.") -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


NEW = Head(torch.arange(6.0).view(3, 2), torch.tensor([1.0, 2.0, 3.0]))

RAW_AND_AVERAGE: dict[str, tuple[Callable[[State, State], Any], str, str]] = {
    "timm": (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "state_dict_ema", "state_dict"),
    "DeiT": (lambda raw, ema: {"model": raw, "model_ema": ema}, "model_ema", "model"),
    "torchvision": (
        lambda raw, ema: {"model": raw, "model_ema": {"n_averaged": torch.tensor(3), **wrapped(ema)}},
        "model_ema",
        "model",
    ),
    "Lightning": (
        lambda raw, ema: {"state_dict": {**wrapped(raw, "model."), **wrapped(ema, "model_ema.")}},
        "state_dict/model_ema",
        "state_dict/model",
    ),
}


@pytest.mark.parametrize("case", RAW_AND_AVERAGE)
def test_the_average_is_taken_and_said_and_the_choice_can_be_made(tmp_path: Path, case: str) -> None:
    make, averaged, raw = RAW_AND_AVERAGE[case]
    path = tmp_path / "m.pt"
    torch.save(make(whole(1.0), whole(2.0)), path)
    for weights, key, other, value in ((None, averaged, raw, 2.0), (raw, raw, averaged, 1.0)):
        checkpoint = read(path, weights)
        assert (checkpoint.weights.key, checkpoint.others) == (key, (other,))
        assert list(checkpoint.state) == list(whole())
        assert float(checkpoint.state["fc.bias"][0]) == value
        assert key in checkpoint.note
        assert f"--weights takes {other}" in checkpoint.note
    with pytest.raises(PosthocError, match=f"--weights else.*{raw}"):
        read(path, "else")


@pytest.mark.parametrize("case", RAW_AND_AVERAGE)
@pytest.mark.parametrize("which", [1, 2])
def test_a_head_goes_into_the_chosen_set_alone(tmp_path: Path, case: str, which: int) -> None:
    make, *keys = RAW_AND_AVERAGE[case]
    torch.save(make(whole(1.0), whole(2.0)), tmp_path / "m.pt")
    checkpoint = read(tmp_path / "m.pt", keys[which - 1])
    write(checkpoint, fold(checkpoint, "fc", NEW), tmp_path / "out.pt")
    names = changes(checkpoint, read(tmp_path / "out.pt", keys[which - 1]))
    assert len(names) == 2
    again = read(tmp_path / "out.pt", keys[which - 1])
    assert torch.equal(again.state["fc.weight"], NEW.weight)
    assert torch.equal(again.state["fc.bias"], NEW.bias)
    assert torch.equal(read(tmp_path / "out.pt", keys[2 - which]).state["fc.weight"], torch.full((3, 2), float(which)))


def test_an_average_of_something_else_is_no_stand_in(tmp_path: Path) -> None:
    torch.save({"model": whole(), "ema": {"loss": torch.ones(1)}}, tmp_path / "m.pt")
    checkpoint = read(tmp_path / "m.pt")
    assert (checkpoint.weights.key, checkpoint.others) == ("model", ("ema",))


SPLIT: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
    "classifier-balancing": (
        lambda: {
            "epoch": 90,
            "state_dict_best": {"feat_model": wrapped(body()), "classifier": wrapped(classifier())},
            "centroids": None,
        },
        ("state_dict_best", "classifier", "module.fc.weight"),
        "fc",
    ),
    "MiSLAS": (
        lambda: {"state_dict_model": body(), "state_dict_classifier": classifier(), "best_acc1": 1.0},
        ("state_dict_classifier", "fc.weight"),
        "fc",
    ),
    "bare": (
        lambda: {"backbone": body(), "head": {"weight": torch.ones(3, 2), "bias": torch.ones(3)}},
        ("head", "weight"),
        "head",
    ),
}


@pytest.mark.parametrize("case", SPLIT)
def test_a_network_in_parts_is_one_and_stays_in_parts(tmp_path: Path, case: str) -> None:
    make, place, name = SPLIT[case]
    torch.save(make(), tmp_path / "m.pt")
    checkpoint = read(tmp_path / "m.pt")
    assert set(checkpoint.state) == {*body(), f"{name}.weight", f"{name}.bias"}
    assert checkpoint.place(f"{name}.weight") == place
    write(checkpoint, fold(checkpoint, name, NEW), tmp_path / "out.pt")
    again = read(tmp_path / "out.pt")
    expected = {"/".join(place), "/".join(place).removesuffix("weight") + "bias"}
    assert set(changes(checkpoint, again)) == expected
    assert torch.equal(again.state[f"{name}.weight"], NEW.weight)
    assert torch.equal(again.state[f"{name}.bias"], NEW.bias)


def test_what_a_training_loop_keeps_among_the_weights_is_set_aside(tmp_path: Path) -> None:
    state = {**wrapped(whole(), "model."), "criterion.weight": torch.ones(3), "val_acc.total": torch.ones(1)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2"}, tmp_path / "m.ckpt")
    checkpoint = read(tmp_path / "m.ckpt")
    assert list(checkpoint.state) == list(whole())
    assert checkpoint.weights.beside == ("criterion.weight", "val_acc.total")
    assert checkpoint.weights.stripped == ("model.",)


def test_a_part_compiled_on_its_own_has_its_plain_name(tmp_path: Path) -> None:
    torch.save({"body._orig_mod.conv.weight": torch.ones(1), "fc.weight": torch.ones(3, 2)}, tmp_path / "m.pt")
    checkpoint = read(tmp_path / "m.pt")
    assert list(checkpoint.state) == ["body.conv.weight", "fc.weight"]
    assert checkpoint.place("body.conv.weight") == ("body._orig_mod.conv.weight",)


@pytest.fixture(params=["safetensors", "bin"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of two shards, as Hugging Face libraries write it."""
    suffix: str = request.param
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    shards = {f"{stem}-00001-of-00002.{suffix}": body(), f"{stem}-00002-of-00002.{suffix}": classifier()}
    for name, state in shards.items():
        if suffix == "bin":
            torch.save(state, tmp_path / name)
        else:
            save_file(state, tmp_path / name)
    where = {name: shard for shard, state in shards.items() for name in state}
    path = tmp_path / f"{stem}.{suffix}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return path


def test_shards_are_read_together_and_written_as_one_file(index: Path) -> None:
    checkpoint = read(index)
    assert set(checkpoint.state) == set(whole())
    out = index.parent / "out"
    write(checkpoint, fold(checkpoint, "fc", NEW), out)
    plain = load_file(out) if ".safetensors" in index.name else torch.load(out, weights_only=True)
    assert torch.equal(plain["fc.weight"], NEW.weight)
    assert torch.equal(plain["conv.weight"], body()["conv.weight"])
    assert set(changes(checkpoint, read(out))) == {"fc.weight", "fc.bias"}
    shard = sorted(index.parent.glob("*-00002-of-*"))[0]
    with pytest.raises(PosthocError, match=r"one shard of several.*index\.json"):
        read(shard)
    before = checkpoint.sha256
    shard.write_bytes(sorted(index.parent.glob("*-00001-of-*"))[0].read_bytes())
    with pytest.raises(PosthocError, match=r"lacks fc\.weight, fc\.bias"):
        read(index)
    shard.unlink()
    with pytest.raises(PosthocError, match="not beside it"):
        read(index)
    assert before != read(out).sha256


@pytest.mark.parametrize("text", ['{"a": 1}', '{"weight_map": {}}', '{"weight_map": {"w": "../x"}}', '{"weight_map'])
def test_a_json_that_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(PosthocError, match="no index of shards"):
        read(tmp_path / "m.json")


def test_a_name_that_promises_another_format_is_refused(tmp_path: Path) -> None:
    save_file(whole(), tmp_path / "m.safetensors")
    save_file(whole(), tmp_path / "m.pt")
    torch.save(whole(), tmp_path / "m.pth")
    with pytest.raises(PosthocError, match=r"out\.pt, and a checkpoint that is safetensors.*out\.safetensors"):
        require_suffix(read(tmp_path / "m.safetensors"), Path("out.pt"))
    with pytest.raises(PosthocError, match=r"out\.safetensors, and a checkpoint that is torch.*out\.pt"):
        require_suffix(read(tmp_path / "m.pth"), Path("out.safetensors"))
    for name, out in (("m.safetensors", "out.safetensors"), ("m.pt", "out.pt"), ("m.pth", "out.tar"), ("m.pth", "out")):
        require_suffix(read(tmp_path / name), Path(out))
