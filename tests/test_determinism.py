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

import posthoc_lt.features
import posthoc_lt.solver.blocks
from posthoc_lt import Features, FeatureSet, Head, fit, save_features
from posthoc_lt.cli import run
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
import sys
from posthoc_lt.cli import run
for command in (
    "extract --ckpt model.pt --limit 30 -j " + sys.argv[1],
    "tau-norm --tau 1 --out head.safetensors",
    "export --ckpt model.pt --out balanced.pt",
):
    assert run(command.split()) == 0, command
"""
    made = []
    for count in ("1", "4"):
        folder = tmp_path / count
        folder.mkdir()
        (folder / "model.pt").symlink_to(case / "model.pt")
        (folder / "data").symlink_to(case / "data")
        said = {**os.environ, "OMP_NUM_THREADS": count, "PYTHONHASHSEED": count, "MPLBACKEND": "Agg"}
        done = subprocess.run([sys.executable, "-c", code, count], cwd=folder, env=said, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append({name: digest for name, digest in hashes(folder).items() if name != "model.pt"})
    assert made[0].keys() == {"feats.safetensors", "head.safetensors", "balanced.pt"}
    assert made[0] == made[1]


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
