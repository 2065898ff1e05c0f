"""Features from other programs' files, and back: every format gives the very same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import json_of, out_of, refusal_of
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from posthoc_lt import FeatureSet, load_features
from posthoc_lt.errors import PosthocError
from posthoc_lt.files.arrays import read_arrays
from posthoc_lt.importing import dump_features, import_features

Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture
def arrays(features: FeatureSet) -> Arrays:
    """The embedded case's features, labels and head, as any program might hold them."""
    found = {"weight": features.head.weight.numpy(), "bias": features.head.bias.numpy()}
    for name, split in features.splits().items():
        found |= {f"{name}.x": split.x.float().numpy(), f"{name}.y": split.labels.numpy()}
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: Arrays) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("head.npz", weight=arrays["weight"], bias=arrays["bias"])
    return tmp_path


def tensors(found: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in found.items()}


def frame(x: NDArray[Any], y: NDArray[Any]) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])]).assign(label=y)


def write_npy(x: NDArray[Any], y: NDArray[Any]) -> str:
    np.save("x.npy", x)
    np.save("y.npy", y)
    return "x.npy,y.npy"


def write_shards(x: NDArray[Any], y: NDArray[Any]) -> str:
    save_file({"features": torch.from_numpy(x.copy())}, "a-00001-of-00002.safetensors")
    save_file({"labels": torch.from_numpy(y.copy())}, "a-00002-of-00002.safetensors")
    where = {"features": "a-00001-of-00002.safetensors", "labels": "a-00002-of-00002.safetensors"}
    Path("a.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return "a.safetensors.index.json"


def write_npz(x: NDArray[Any], y: NDArray[Any]) -> str:
    np.savez("a.npz", features=x, labels=y.astype(np.uint8))
    return "a.npz"


def write_packed_npz(x: NDArray[Any], y: NDArray[Any]) -> str:
    np.savez_compressed("b.npz", arr_0=y.astype(np.float32), arr_1=x)
    return "b.npz"


def write_pt(x: NDArray[Any], y: NDArray[Any]) -> str:
    torch.save((torch.from_numpy(x), torch.from_numpy(y)), "c.pt")
    return "c.pt"


def write_old_pt(x: NDArray[Any], y: NDArray[Any]) -> str:
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, "d.pth", _use_new_zipfile_serialization=False)
    return "d.pth"


def write_safetensors(x: NDArray[Any], y: NDArray[Any]) -> str:
    save_file(tensors({"x": x, "y": y}), "e.safetensors")
    return "e.safetensors"


def write_csv(x: NDArray[Any], y: NDArray[Any]) -> str:
    frame(x, y).to_csv("f.csv", index=False)
    return "f.csv"


def write_parquet(x: NDArray[Any], y: NDArray[Any]) -> str:
    pytest.importorskip("pyarrow")
    frame(x, y).to_parquet("g.parquet")
    return "g.parquet"


FORMATS: list[Callable[[NDArray[Any], NDArray[Any]], str]] = [
    write_npy, write_npz, write_packed_npz, write_pt, write_old_pt, write_safetensors, write_shards, write_csv,
    write_parquet,
]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_features(write: Any, folder: Path, arrays: Arrays) -> None:
    x, y = arrays["test.x"], arrays["test.y"]
    found = import_features(test=write(x, y), head="head.npz")
    assert found.test is not None
    assert np.array_equal(found.test.x.numpy(), x)
    assert np.array_equal(found.test.labels.numpy(), y)
    assert np.array_equal(found.head.weight.numpy(), arrays["weight"])
    assert np.array_equal(found.head.bias.numpy(), arrays["bias"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_widths_are_kept_but_float64_becomes_float32(dtype: torch.dtype, folder: Path, arrays: Arrays) -> None:
    x = torch.from_numpy(arrays["val.x"].astype(np.float64) * (1 + 1e-12)).to(dtype)
    torch.save({"x": x}, "x.pt")
    val = import_features(val="x.pt", head="head.npz").val
    assert val is not None
    assert val.x.dtype == (torch.float32 if dtype == torch.float64 else dtype)
    assert torch.equal(val.x, x.to(val.x.dtype))


@pytest.mark.parametrize("order", ["C", "F"])
def test_float64_becomes_float32_whatever_its_order_and_length(order: Any, folder: Path) -> None:
    x = np.random.default_rng(0).normal(size=(70_000, 64))  # more than one block
    np.save("x.npy", np.asarray(x, order=order))
    assert np.load("x.npy", mmap_mode="r").flags.f_contiguous == (order == "F")
    val = import_features(val="x.npy", head="head.npz").val
    assert val is not None
    assert torch.equal(val.x, torch.from_numpy(x.astype(np.float32)))


def test_large_arrays_stay_on_disk(folder: Path) -> None:
    """Changing the file's bytes changes the features: nothing was copied."""
    x = np.ones((90_000, 64), dtype=np.float32)
    np.save("x.npy", x)
    np.savez("x.npz", x=x)
    for name in ("x.npy", "x.npz"):
        (array,) = read_arrays(name).values()
        assert array.shape == x.shape
        with open(name, "r+b") as file:
            content = file.read()
            place = content.index(x[0].tobytes())
            file.seek(place)
            file.write(np.float32(7).tobytes())
        assert float(array[0, 0]) == 7.0


def test_dump_and_import_are_inverse(case: Path, folder: Path, features: FeatureSet, capsys: Any) -> None:
    out_of(f"dump --features {case / 'feats.safetensors'} --out f.npz", capsys)
    with np.load("f.npz", allow_pickle=False) as plain:
        assert set(plain) == {
            *(f"{split}.{kind}" for split in ("train", "val", "test") for kind in ("features", "labels")),
            "head.weight",
            "head.bias",
            "classes",
        }
        for name, split in features.splits().items():
            assert np.array_equal(plain[f"{name}.features"], split.x.numpy())
            assert np.array_equal(plain[f"{name}.labels"], split.labels.numpy())
        assert plain["classes"].tolist() == list(features.classes)
    made = json_of("import --train f.npz --val f.npz --test f.npz --head f.npz", capsys)
    again = load_features(Path("feats.safetensors"))
    for name, split in features.splits().items():
        assert torch.equal(again.splits()[name].x, split.x)
        assert torch.equal(again.splits()[name].labels, split.labels)
    assert torch.equal(again.head.weight, features.head.weight)
    assert again.classes == features.classes
    test = features.test
    assert test is not None
    right = (test.x.float() @ features.head.weight.T + features.head.bias).argmax(1) == test.labels
    assert made["splits"][2]["accuracy"] == pytest.approx(float(right.float().mean()), abs=2e-3)
    first = Path("f.npz").read_bytes()
    dump_features(again, Path("f.npz"))
    assert Path("f.npz").read_bytes() == first
    assert "logit-adjust" in out_of("compare --methods logit-adjust", capsys)


def test_bfloat16_is_dumped_as_float32(folder: Path, features: FeatureSet) -> None:
    assert features.val is not None
    torch.save({"x": features.val.x.bfloat16()}, "x.pt")
    dump_features(import_features(val="x.pt", head="head.npz"), Path("out.npz"))
    with np.load("out.npz") as plain:
        assert np.array_equal(plain["val.features"], features.val.x.bfloat16().float().numpy())
        assert "val.labels" not in plain


def test_a_head_may_lie_in_a_checkpoint_or_lack_its_bias(folder: Path, arrays: Arrays) -> None:
    np.save("x.npy", arrays["val.x"])
    found = tensors(arrays)
    state = {"conv.weight": torch.zeros(4, 3, 3, 3), "fc.weight": found["weight"], "fc.bias": found["bias"]}
    torch.save({"state_dict": {**state, "bn.weight": torch.ones(10)}}, "model.pt")
    np.save("w.npy", arrays["weight"])
    np.save("b.npy", arrays["bias"])
    for head, has_bias in (("model.pt", True), ("w.npy,b.npy", True), ("w.npy", False)):
        used = import_features(val="x.npy", head=head).head
        assert np.array_equal(used.weight.numpy(), arrays["weight"])
        assert used.has_bias == has_bias
        assert np.array_equal(used.bias.numpy(), arrays["bias"] * has_bias)


def test_a_fitted_head_is_scikit_learns(folder: Path, arrays: Arrays, capsys: Any) -> None:
    """l2 is in units of the mean feature variance and of the mean loss; scikit-learn's C of the sum."""
    x, y = arrays["train.x"].astype(np.float64), arrays["train.y"]
    np.savez("train.npz", x=x, y=y)
    out_of("import --train train.npz --fit-head --l2 0.1", capsys)
    found = load_features(Path("feats.safetensors"))
    penalty = 0.1 * x.var(axis=0).mean()
    sklearn = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=5000).fit(x, y)
    expected = x @ sklearn.coef_.T + sklearn.intercept_
    logits = x @ found.head.weight.double().numpy().T + found.head.bias.double().numpy()
    np.testing.assert_allclose(
        logits - logits.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=2e-3
    )
    assert "l2 = 0.1" in found.provenance["fitted_head"]


def test_counts_and_names_stand_in_for_train(folder: Path, arrays: Arrays, capsys: Any) -> None:
    np.savez("val.npz", x=arrays["val.x"], y=arrays["val.y"])
    Path("counts.txt").write_text("500 299 179 107 64 38 23 13 8 5")
    Path("names.txt").write_text("\n".join("abcdefghij"))
    out_of("import --val val.npz --head head.npz --counts counts.txt --classes names.txt", capsys)
    found = load_features(Path("feats.safetensors"))
    assert found.counts.tolist() == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert found.classes == tuple("abcdefghij")


class Code:
    """Pickled, it would run on loading."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_wrong_files_are_each_one_clear_error(folder: Path, arrays: Arrays, capsys: Any) -> None:
    x, y = arrays["val.x"], arrays["val.y"]
    bad = x.copy()
    bad[[3, 7], 5] = np.nan
    np.savez("nan.npz", x=bad, y=y)
    np.savez("two.npz", a=x, b=x)
    np.savez("short.npz", x=x, y=y[1:])
    np.savez("text.npz", x=x, y=np.array([f"c{label}" for label in y]))
    np.savez("half.npz", x=x, y=y + 0.5)
    np.savez("below.npz", x=x, y=y - 1)
    np.savez("above.npz", x=x, y=y + 1)
    np.savez("ints.npz", x=x.astype(np.int32))
    np.savez("good.npz", x=x, y=y)
    np.save("objects.npy", np.array([Code()], dtype=object), allow_pickle=True)
    torch.save({"x": Code()}, "code.pt")
    np.savez("code.npz", x=np.array([Code()], dtype=object), allow_pickle=True)
    Path("cut.npz").write_bytes(Path("good.npz").read_bytes()[:3000])
    Path("a.mat").write_bytes(b"")
    for what, told in (
        ("nan.npz", "NaN or infinite features in 2 of .* rows .row 3, 7,"),
        ("two.npz", r"with a \(.*\), b"),
        ("short.npz", "labels of shape"),
        ("text.npz", "real numbers"),
        ("half.npz", "whole numbers"),
        ("below.npz", "class index >= 0"),
        ("above.npz", "label 10 for a head of 10 classes"),
        ("ints.npz", "int32"),
        ("objects.npy", "cannot be read"),
        ("code.pt", "cannot be read"),
        ("code.npz", "cannot be read"),
        ("cut.npz", "cannot be read"),
        ("gone.npz", "does not exist"),
        ("a.mat", "npz"),
    ):
        with pytest.raises(PosthocError, match=told):
            import_features(val=what, head="head.npz")
    assert not Path("ran").exists()
    for command, told in (
        ("import --head head.npz", "no features"),
        ("import --val good.npz", "features without a head"),
        ("import --val good.npz --head head.npz --fit-head", "not both"),
        ("import --val good.npz --fit-head", "no labelled train features"),
        ("import --train good.npz --fit-head --l2 0", "l2 = 0"),
        ("import --val good.npz --head two.npz", r"one weight"),
        ("import --val good.npz --head head.npz --out good.npz", "an input of this command"),
        ("dump --features good.npz", "good.npz"),
        ("dump --features feats.safetensors --out f.csv", ".npz"),
    ):
        status, message = refusal_of(command.split(), capsys)
        assert status == 1
        assert told in message
    assert not Path("feats.safetensors").exists()
