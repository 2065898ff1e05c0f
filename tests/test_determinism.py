"""The same inputs give the same bytes: run after run, on 1, 2 or 4 threads, whatever the size of a chunk.

Every file that is written is equal byte for byte, and so is every decision: knobs, predictions, and all figures that
count predictions. Figures that are sums of logarithms (nll, ece) are of logits in float32, which a matrix product adds
up in another order on more threads: they agree to 1e-6, relative, with what one thread gives. Heads that are fitted
step by step in float32, which happens from 2^28 multiplications a pass on, agree to the relative gradient that such
fits stop at, 1e-3.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_network import new_head, small, write_images

import posthoc_lt.features
import posthoc_lt.solver.blocks
from posthoc_lt import METHODS, Features, FeatureSet, Head, fit, save_features, save_head
from posthoc_lt.cli import run
from posthoc_lt.export import export
from posthoc_lt.extraction import extract
from posthoc_lt.files import SavedHead
from posthoc_lt.methods.crt import CRT
from posthoc_lt.methods.lws import LWS
from posthoc_lt.methods.method import Method
from posthoc_lt.solver.logistic import LARGE_TOLERANCE

ON_FEATURES = (
    "rebalance --methods logit-adjust --methods tau-norm --methods ncm --out head.safetensors",
    "crt --l2 0.1 --out crt.safetensors",
    "lws --l2 0.1 --out lws.safetensors",
    "logit-adjust --select metric --out metric.safetensors",
    "calibrate --head head.safetensors --out prob.safetensors",
    "conformal --head head.safetensors --out sets.safetensors",
)
COUNTED = (
    "accuracy",
    "balanced_accuracy",
    "many",
    "medium",
    "few",
    "macro_f1",
    "worst_class",
    "tau",
    "value",
    "plateau",
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features so wide that more threads add up a product in another order."""
    rng, counts = np.random.default_rng(0), np.array([120, 60, 30, 16, 9, 5])
    means = 0.12 * rng.normal(size=(len(counts), 600))

    def split(counts: Any) -> Features:
        y = np.repeat(np.arange(len(means)), counts)
        return Features(torch.tensor(means[y] + rng.normal(size=(len(y), 600))).half(), torch.tensor(y))

    head = Head(torch.tensor(means).float(), torch.tensor(np.log(counts / counts.sum())).float())
    path = tmp_path_factory.mktemp("wide") / "feats.safetensors"
    save_features(FeatureSet(head, split(counts), split([12] * 6), split([20] * 6)), path)
    return path


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def work(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run every command; the hashes of the files it left, and what it printed."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "feats.safetensors").symlink_to(source)
    printed = {}
    for command in ON_FEATURES:
        capsys.readouterr()
        assert run([*command.split(), "--format", "json"]) == 0, capsys.readouterr().err
        printed[command] = json.loads(capsys.readouterr().out)
    return hashes(folder), printed


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def require_close(one: Any, other: Any, key: str = "") -> None:
    """Texts and counts equal; sums of logarithms within the bound."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"certificate"}:  # how far below its tolerance a fit came is noise
            require_close(one[name], other[name], name)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            require_close(left, right, key)
    elif isinstance(one, float) and key not in COUNTED:
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9), key
    else:
        assert one == other, key


def test_files_and_decisions_on_any_number_of_threads_and_any_chunk(
    wide: Path, tmp_path: Path, threads: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {}
    for name, count, chunk in (
        ("one", 1, 1 << 22),
        ("two", 2, 1 << 22),
        ("four", 4, 1 << 22),
        ("small chunks", 1, 20_000),
    ):
        threads(count)
        monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", chunk)
        made[name] = work(wide, tmp_path / name, monkeypatch, capsys)
    files, printed = made.pop("one")
    for name, (others, told) in made.items():
        assert others == files, name
        require_close(told, printed)


def test_the_report_on_any_number_of_threads(
    wide: Path, tmp_path: Path, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    for count in (1, 4):
        (tmp_path / str(count)).mkdir()
        monkeypatch.chdir(tmp_path / str(count))  # the page names the command, and so the file, that made it
        threads(count)
        assert run(["report", "--features", str(wide), "--methods", "logit-adjust", "--out", "report.html"]) == 0
        pages.append(Path("report.html").read_bytes())
    assert pages[0] == pages[1]


def test_the_order_of_a_sum_does_change_its_last_bits() -> None:
    """Why the test above means something, and why figures of logits have a bound and not equal bytes."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(240, 600, generator=generator), torch.randn(6, 600, generator=generator)
    exact = x.double() @ w.double().T
    assert not torch.equal((x @ w.T).double(), exact)
    parts = (x[:, :300] @ w[:, :300].T + x[:, 300:] @ w[:, 300:].T).double()
    assert not torch.equal((x @ w.T).double(), parts)


def test_extraction_and_what_follows_in_processes_of_their_own(case: Path, tmp_path: Path) -> None:
    """As a user runs it: OMP_NUM_THREADS, decoding threads, and Python's hash seed all differ."""
    code = """
import contextlib, sys
from posthoc_lt.cli import run
for command in (
    "extract --ckpt model.pt --limit 30 -j " + sys.argv[1],
    "tau-norm --tau 1 --out head.safetensors",
    "export --ckpt model.pt --out balanced.pt",
    "dump --out feats.npz",
    "import --train feats.npz --val feats.npz --test feats.npz --head feats.npz --out again.safetensors",
):
    assert run(command.split()) == 0, command
with open("printed.json", "w") as file, contextlib.redirect_stdout(file):
    assert run("logit-adjust -v --format json".split()) == 0
"""
    made, printed = [], []
    for count in ("1", "2", "4"):
        folder = tmp_path / count
        folder.mkdir()
        (folder / "model.pt").symlink_to(case / "model.pt")
        (folder / "data").symlink_to(case / "data")
        said = {**os.environ, "OMP_NUM_THREADS": count, "PYTHONHASHSEED": count, "MPLBACKEND": "Agg"}
        done = subprocess.run([sys.executable, "-c", code, count], cwd=folder, env=said, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append((folder / "printed.json").read_text())
        made.append(
            {name: digest for name, digest in hashes(folder).items() if name not in ("model.pt", "printed.json")}
        )
    assert made[0].keys() == {"feats.safetensors", "head.safetensors", "balanced.pt", "feats.npz", "again.safetensors"}
    assert made[0] == made[1] == made[2]
    for other in printed[1:]:
        require_close(json.loads(other), json.loads(printed[0]))
        assert json.loads(other, object_pairs_hook=_names) == json.loads(printed[0], object_pairs_hook=_names)


def _names(pairs: list[tuple[str, Any]]) -> list[Any]:
    """The keys of a JSON object in their order, and those within."""
    return [(key, value if isinstance(value, list) else None) for key, value in pairs]


def test_what_is_printed_is_the_same_again(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one number of threads to the last digit, in every form."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "feats.safetensors").symlink_to(wide)
    for form in ("table", "json", "csv", "md"):
        texts = []
        for _ in range(2):
            assert run(["compare", "--methods", "lda", "--methods", "scale", "--format", form]) == 0
            texts.append(capsys.readouterr().out)
        assert texts[0] == texts[1]
        assert len(texts[0]) > 200


OTHERS = [METHODS[name]() for name in ("lda", "offsets", "ridge", "scale", "tau-norm-adjust")]
OTHERS += [METHODS["affine"](l2=0.1)]  # type: ignore[call-arg]
"""Those that the commands above do not fit."""


def test_no_method_is_forgotten() -> None:
    tried = {word for command in ON_FEATURES for word in command.split()} | {method.name for method in OTHERS}
    assert set(METHODS) - tried == {"baseline", "blend", "refit"}  # the last two are solved for as crt is


@pytest.mark.parametrize("method", OTHERS, ids=lambda method: str(method.name))
def test_every_other_method_on_any_number_of_threads_and_any_chunk(
    wide: Path, tmp_path: Path, threads: Any, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    made = []
    for count, chunk in ((1, 1 << 22), (2, 20_000), (4, 1 << 22)):
        threads(count)
        monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", chunk)
        fitted = fit(method, str(wide))
        save_head(SavedHead(fitted.head, {name: repr(knob) for name, knob in fitted.knobs.items()}), tmp_path / "head")
        made.append((tmp_path / "head").read_bytes())
        (tmp_path / "head").unlink()
    assert made[0] == made[1] == made[2]


def write_checkpoint(name: str) -> None:
    """The small network in one of the forms that are exported to."""
    network = small()
    if name == "model.pt":
        torch.save({"state_dict": network.state_dict()}, name)
    elif name == "model.safetensors":
        save_file(network.state_dict(), name)
    elif name == "whole.pt":
        torch.save(network, name)
    elif name == "script.pt":
        script: Any = torch.jit.script(network)
        torch.jit.save(script, name)
    elif name == "model.pt2":
        free = {"x": {0: torch.export.Dim.DYNAMIC}}
        torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=free), name)
    else:
        load_onnx_writer()(network, name)


def load_onnx_writer() -> Any:
    import test_checkpoint_onnx

    return test_checkpoint_onnx.save


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, of TorchScript
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "whole.pt", "script.pt", "model.pt2", "model.onnx"])
def test_every_export_is_the_same_bytes(
    tmp_path: Path, threads: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    images = write_images(tmp_path / "data")
    write_checkpoint(name)
    arch = "small_network:small" if name in ("model.pt", "model.safetensors") else None
    made = []
    for count in (1, 2, 4):
        threads(count)
        features = extract(name, images, arch=arch, allow_pickle=True)
        export(name, new_head(features), f"{count}{Path(name).suffix}", features=features, allow_pickle=True)
        made.append(Path(f"{count}{Path(name).suffix}").read_bytes())
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("method", [CRT(l2=0.1), LWS(l2=0.1)])
def test_fits_in_float32_agree_to_their_bound(
    wide: Path, threads: Any, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    monkeypatch.setattr(posthoc_lt.solver.blocks, "LARGE", 1)
    made = []
    for count, chunk in ((1, 1 << 22), (4, 1 << 22), (1, 20_000)):
        threads(count)
        monkeypatch.setattr(posthoc_lt.features, "CHUNK_ELEMENTS", chunk)
        made.append(fit(method, str(wide)))
    for other in made[1:]:
        difference = (other.head.weight - made[0].head.weight).norm() / made[0].head.weight.norm()
        assert float(difference) < LARGE_TOLERANCE
        assert other.test is not None
        assert made[0].test is not None
        assert torch.equal(other.test.predicted, made[0].test.predicted)
