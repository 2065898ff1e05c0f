"""Export: the patched checkpoint computes the new head in the original code, or there is no patched checkpoint."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_path import load
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posthoc_lt.errors import PosthocError
from posthoc_lt.export import apply, export
from posthoc_lt.extraction import extract
from posthoc_lt.features import Features, FeatureSet
from posthoc_lt.head import Head


def original(channels: int = 1, bias: bool = True) -> Any:
    module = load("fashion_lt/resnet.py")
    torch.manual_seed(0)
    network = module.resnet20(num_classes=3, in_channels=channels)
    network.linear = nn.Linear(64, 3, bias=bias)
    network(torch.randn(16, channels, 8, 8))
    return network.eval()


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export") / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 5)):
        for name in ("ant", "bee", "cat"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new_head(features: FeatureSet, bias: bool = True) -> Head:
    """A head that differs everywhere and changes predictions."""
    head = features.head
    weight = head.weight.flip(0) * torch.tensor([0.5, 2.0, 1.25])[:, None]
    return Head(weight, torch.tensor([0.3, -0.2, 0.9]) if bias else torch.zeros(3), has_bias=head.has_bias)


def val_inputs(images: Path) -> Tensor:
    paths = [path for name in ("ant", "bee", "cat") for path in sorted((images / "val" / name).iterdir())]
    return torch.stack([torch.from_numpy(np.array(Image.open(p), dtype=np.float32))[None] / 255 for p in paths])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_the_original_code_predicts_as_the_head_does(place: Path, images: Path, prefix: str, form: str) -> None:
    network = original()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    if form == "torch":
        torch.save({"state_dict": state, "epoch": 3, "optimizer": {"m": torch.ones(3)}}, "model.pt")
    else:
        save_file(state, "model.pt")
    before = Path("model.pt").read_bytes()
    features = extract("model.pt", images)
    head = new_head(features)
    exported = export("model.pt", head, "balanced.pt", features=features)

    content: Any = torch.load("balanced.pt", weights_only=True) if form == "torch" else load_file("balanced.pt")
    patched = content["state_dict"] if form == "torch" else content
    assert exported.changed == (f"{prefix}linear.weight", f"{prefix}linear.bias")
    assert exported.path == Path("balanced.pt")
    assert exported.samples == 15
    assert set(patched) == set(state)
    for key, value in state.items():
        if key not in exported.changed:
            assert raw(patched[key]) == raw(value)
    if form == "torch":
        assert content["epoch"] == 3
        assert torch.equal(content["optimizer"]["m"], torch.ones(3))
    plain = original()
    plain.load_state_dict({key.removeprefix(prefix): value for key, value in patched.items()})
    val = features.val
    assert val is not None
    with torch.no_grad():
        logits = plain((val_inputs(images) - 0.5) / 0.5)
    torch.testing.assert_close(logits, head(val.x.float()), rtol=1e-2, atol=1e-2)
    assert torch.equal(logits.argmax(1), head(val.x.float()).argmax(1))
    assert not torch.equal(logits.argmax(1), features.head(val.x.float()).argmax(1))
    assert Path("model.pt").read_bytes() == before
    assert sorted(path.name for path in place.iterdir()) == ["balanced.pt", "model.pt"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_kept_and_proved(place: Path, images: Path, dtype: torch.dtype) -> None:
    torch.save(original().to(dtype).state_dict(), "model.pt")
    features = extract("model.pt", images)
    export("model.pt", new_head(features), "balanced.pt", features=features)
    patched = torch.load("balanced.pt", weights_only=True)
    assert patched["linear.weight"].dtype == dtype
    assert torch.equal(patched["linear.weight"], new_head(features).weight.to(dtype))


def test_a_head_without_bias(place: Path, images: Path) -> None:
    torch.save(original(bias=False).state_dict(), "model.pt")
    features = extract("model.pt", images)
    with pytest.raises(PosthocError, match="--add-bias"):
        export("model.pt", new_head(features), "balanced.pt", features=features)
    assert os.listdir() == ["model.pt"]
    assert export("model.pt", new_head(features, bias=False), "same.pt", features=features).changed == (
        "linear.weight",
    )
    exported = export("model.pt", new_head(features), "biased.pt", features=features, add_bias=True)
    assert exported.changed == ("linear.weight", "linear.bias")
    plain = original(bias=True)
    plain.load_state_dict(torch.load("biased.pt", weights_only=True))
    assert features.val is not None
    with torch.no_grad():
        logits = plain((val_inputs(images) - 0.5) / 0.5)
    assert torch.equal(logits.argmax(1), new_head(features)(features.val.x.float()).argmax(1))


def sharded(state: dict[str, Tensor], suffix: str) -> None:
    """Three files and their index, as Hugging Face libraries write them; the head's weight without its bias last."""
    names = sorted(state, key="linear.bias linear.weight".find)
    where = {key: f"model-{1 + 3 * at // len(names):05}-of-00003.{suffix}" for at, key in enumerate(names)}
    for name in set(where.values()):
        mine = {key: state[key] for key in names if where[key] == name}
        save_file(mine, name, {"format": "pt"}) if suffix == "safetensors" else torch.save(mine, name)
    said = {"metadata": {"total_size": sum(each.nbytes for each in state.values())}, "weight_map": where}
    Path(f"model.{suffix}.index.json").write_text(json.dumps(said))


def unsharded(index: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    said = json.loads(Path(index).read_text())
    for name in set(said["weight_map"].values()):
        file = load_file(name) if name.endswith("safetensors") else torch.load(name, weights_only=True)
        assert set(file) == {key for key, shard in said["weight_map"].items() if shard == name}
        found |= file
    assert said["metadata"]["total_size"] == sum(each.nbytes for each in found.values())
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_become_shards(place: Path, images: Path, suffix: str, bias: bool) -> None:
    state = original(bias=bias).state_dict()
    sharded(state, suffix)
    before = set(os.listdir())
    features = extract(f"model.{suffix}.index.json", images)
    head, out = new_head(features), f"balanced.{suffix}.index.json"
    made = export(f"model.{suffix}.index.json", head, out, features=features, add_bias=not bias)
    assert made.changed == ("linear.weight", "linear.bias")
    assert set(os.listdir()) - before == {name.replace("model", "balanced") for name in before}
    patched = unsharded(out)
    assert torch.equal(patched["linear.weight"], head.weight)
    assert torch.equal(patched["linear.bias"], head.bias)
    assert set(patched) == {*state, "linear.bias"}
    assert all(raw(patched[key]) == raw(state[key]) for key in set(state) - {"linear.weight", "linear.bias"})
    for shard in (1, 2):
        name = f"-0000{shard}-of-00003.{suffix}"
        assert Path(f"balanced{name}").read_bytes() == Path(f"model{name}").read_bytes()
    export(f"model.{suffix}.index.json", head, out, features=features, add_bias=not bias)  # the same again is no error
    with pytest.raises(PosthocError, match="exists and holds something else"):
        export(f"model.{suffix}.index.json", features.head, out, features=features)
    assert torch.equal(unsharded(out)["linear.weight"], head.weight)
    one = export(f"model.{suffix}.index.json", head, f"one.{suffix}", features=features, add_bias=not bias)
    assert one.path.is_file()
    with pytest.raises(PosthocError, match=rf"give --out one\.{suffix}|a name that says so"):
        export(one.path, head, "b.safetensors.index.json", features=extract(one.path, images))


def test_own_code_with_a_wrappers_name_inside(place: Path, images: Path) -> None:
    code = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Linear(4, 3))
    def forward(self, x):
        return self.model(x)
"""
    Path("own_wrapped.py").write_text(code)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten(), nn.Linear(4, 3))
    torch.save({"model": {f"model.{key}": value for key, value in layers.state_dict().items()}}, "model.pt")
    features = extract("model.pt", images, arch="own_wrapped:Net")
    assert features.provenance["head_name"] == "model.2"
    exported = export("model.pt", new_head(features), "balanced.pt", features=features)
    assert exported.changed == ("model.2.weight", "model.2.bias")


@pytest.fixture
def case(place: Path, images: Path) -> FeatureSet:
    torch.save({"state_dict": original().state_dict()}, "model.pt")
    return extract("model.pt", images)


def refuse(told: str, features: FeatureSet, head: Head | None = None, **options: Any) -> None:
    before = {path: path.read_bytes() for path in Path().iterdir()}
    out = options.pop("out", "balanced.pt")
    with pytest.raises(PosthocError, match=told) as caught:
        export("model.pt", head or new_head(features), out, features=features, **options)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_typed_twice_succeeds_twice_and_force_replaces(case: FeatureSet) -> None:
    export("model.pt", new_head(case), "balanced.pt", features=case)
    first = Path("balanced.pt").read_bytes()
    export("model.pt", new_head(case), "balanced.pt", features=case)
    assert Path("balanced.pt").read_bytes() == first
    refuse("--force", case, case.head)
    export("model.pt", case.head, "balanced.pt", features=case, force=True)
    assert Path("balanced.pt").read_bytes() != first


def test_the_checkpoint_itself_is_never_overwritten(case: FeatureSet) -> None:
    refuse("which is the checkpoint itself", case, out="model.pt", force=True)
    Path("link.pt").hardlink_to("model.pt")
    refuse("which is the checkpoint itself", case, out="link.pt", force=True)


def test_another_checkpoint_is_refused(case: FeatureSet) -> None:
    torch.save(original().state_dict(), "model.pt")
    refuse("features of another checkpoint", case)


def test_features_of_no_file_are_refused(case: FeatureSet) -> None:
    refuse("not extracted from a checkpoint file", replace(case, provenance={"source": "memory", "head_name": "fc"}))


def test_a_head_of_another_shape_is_refused(case: FeatureSet) -> None:
    refuse(r"head of shape \(4, 64\)", case, Head(torch.ones(4, 64), torch.ones(4)))


def test_images_that_are_gone_or_others(case: FeatureSet, images: Path, tmp_path: Path) -> None:
    moved = {**case.provenance, "data": "gone"}
    refuse("data folder gone.*--data", replace(case, provenance=moved))
    assert export("model.pt", new_head(case), "ok.pt", features=replace(case, provenance=moved), data=images).samples
    refuse("6 images where 15 were extracted", replace(case, provenance={**case.provenance, "limit": "6"}))
    assert case.val is not None
    others = Features(case.val.x.flip(0), case.val.y)
    refuse("features that are not the cached ones", replace(case, val=others))


def test_one_wrong_feature_is_noticed(case: FeatureSet) -> None:
    assert case.val is not None
    x = case.val.x.clone()
    x[7, 3] += x[7].abs().max() / 100
    refuse("features that are not the cached ones", replace(case, val=Features(x, case.val.y)))


def test_the_proof_falls_back_on_other_splits(case: FeatureSet) -> None:
    assert export("model.pt", new_head(case), "balanced.pt", features=replace(case, val=None)).samples == 12


def test_a_network_that_does_not_compute_the_head_is_refused(case: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding into the wrong file content must not pass: here the fold is sabotaged in three ways."""
    from posthoc_lt.checkpoint import fold

    def sabotage(change: Any) -> None:
        def broken(*args: Any) -> object:
            content: Any = fold(*args)
            state = dict(content["state_dict"])
            change(state)
            return {**content, "state_dict": state}

        monkeypatch.setattr("posthoc_lt.export.fold", broken)

    sabotage(lambda state: state.update({"linear.weight": case.head.weight}))
    refuse("whose logits would differ from the head's", case)
    sabotage(lambda state: state.update({"linear.bias": state["linear.bias"] + 0.01}))
    refuse("whose logits would differ from the head's", case)
    sabotage(lambda state: state.update({"bn1.bias": state["bn1.bias"] + 1e-6}))
    refuse("whose state_dict/bn1.bias would not be the original's", case)
    sabotage(lambda state: state.pop("layer1.0.bn1.num_batches_tracked"))
    refuse("whose state_dict/layer1.0.bn1.num_batches_tracked would not", case)


def test_places_that_cannot_be_written(case: FeatureSet) -> None:
    refuse("cannot be written", case, out="absent/balanced.pt")
    refuse("cannot be written", case, out="model.pt/balanced.pt")


def test_a_read_only_folder(case: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path, *_: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", closed)  # as root, who may write anywhere, no folder is read-only
    refuse(r"cannot be written \(Permission denied\)", case)


# In memory


def test_apply_returns_a_copy_with_the_head() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    head = Head(torch.randn(3, 6), torch.randn(3))
    patched = apply(model, "2", head)
    x = torch.randn(5, 4)
    hidden = x @ model.get_parameter("0.weight").T + model.get_parameter("0.bias")
    expected = torch.relu(hidden) @ head.weight.T + head.bias
    torch.testing.assert_close(patched(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert patched.training
    assert all(parameter.requires_grad for parameter in patched.parameters())


def test_apply_keeps_the_dtype() -> None:
    patched = apply(nn.Sequential(nn.Linear(4, 3)).double(), "0", Head(torch.ones(3, 4), torch.ones(3)))
    assert {p.dtype for p in patched.parameters()} == {torch.float64}


def test_apply_without_a_bias() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    head = Head(torch.ones(3, 4), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(PosthocError, match="which has none to put it in"):
        apply(model, "0", head)
    biased = apply(model, "0", head, add_bias=True)
    assert biased(torch.zeros(1, 4)).tolist() == [[1, 2, 3]]
    assert apply(model, "0", Head.without_bias(head.weight))(torch.ones(1, 4)).tolist() == [[4, 4, 4]]


@pytest.mark.parametrize(("name", "shape"), [("1", (3, 4)), ("absent", (3, 4)), ("0", (5, 4))])
def test_apply_refuses_a_layer_that_does_not_take_the_head(name: str, shape: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with pytest.raises(PosthocError, match=r"to take a head|a head of shape"):
        apply(model, name, Head(torch.ones(shape), torch.ones(shape[0])))
