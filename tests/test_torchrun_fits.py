"""Fits, searches and figures by several processes: those of one, to the last bit wherever nothing is iterated.

Chunks and blocks are made small, so that there are some to share out, and columns lie in files. Heads that are solved
for, and sums of whole features, are added up in another order by several processes, and their figures agree to 1e-5;
every count, tau and prediction is equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import Done, accelerate, side_by_side, torchrun

from posthoc_lt import Features, FeatureSet, Head, load_head, save_features
from posthoc_lt.cli import run

EXACT = (
    "tau-search --pareto",
    "tau-search --method tau-norm --metric macro-f1 --subject-to many>=0.2",
    "tau-search --select cross-fit --features unlabelled-val.safetensors",
    "tau-norm --bias keep --out keep.safetensors",
    "scale --select metric --metric worst-class",
    "offsets --out offsets.safetensors",
    "rebalance --methods logit-adjust --methods tau-norm --methods tau-norm-adjust --out head.safetensors",
    "calibrate --head head.safetensors --out prob.safetensors",
    "conformal --head prob.safetensors --kind interpolated --out sets.safetensors",
)
"""Whose whole output is the same."""
CLOSE = ("compare", "blend --other ncm --out blend.safetensors", "ncm --transform cl2n --distance cosine")
"""Whose fits add up train features."""
ROUNDED = ("nll", "ece", "objective")
"""What may then differ in its last digits."""
WEIGHED = (
    "tau-search --select metric --prior model",
    "tau-search --target-prior em --deploy-features unlabelled.safetensors",
)
"""Whose class frequencies are estimated by adding up matrices of classes by classes."""
PROCESSES = 3

SCRIPT = """
import contextlib, io, json, shlex, sys
import posthoc_lt.columns, posthoc_lt.features
from posthoc_lt import ranks
from posthoc_lt.cli import run

posthoc_lt.features.CHUNK_ELEMENTS = 2000
posthoc_lt.columns.BLOCK = posthoc_lt.columns.IN_MEMORY = 150
with ranks.joined():
    told = {}
    for command in sys.argv[1:]:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert run([*shlex.split(command), "--format", "json", "--device", "cpu"]) == 0, command
        told[command] = said.getvalue()
    if ranks.rank() == 0:
        print(json.dumps({"world": ranks.world(), "told": told}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, dict[str, Any]]]:
    """By one process and by several, the folder in which they worked and what each command printed."""
    rng, counts = np.random.default_rng(0), np.array([300, 160, 90, 50, 28, 15, 9, 6])
    means = rng.normal(size=(len(counts), 12)) * 0.9

    def split(counts: Any) -> Features:
        y = rng.permutation(np.repeat(np.arange(len(means)), counts))
        return Features(torch.tensor(means[y] + rng.normal(size=(len(y), 12))).half(), torch.tensor(y))

    head = Head(torch.tensor(means), torch.tensor(np.log(counts / counts.sum()) - (means**2).sum(axis=1) / 2))
    train, val, test = split(counts), split([25] * 8), split([40] * 8)
    sets = {
        "feats": FeatureSet(head, train, val, test),
        "unlabelled": FeatureSet(head, test=Features(split(counts).x), train_counts=torch.tensor(counts)),
        "unlabelled-val": FeatureSet(head, train, Features(val.x), test),
    }
    found = []
    for processes in (1, PROCESSES):
        folder = tmp_path_factory.mktemp(f"by-{processes}")
        for name, features in sets.items():
            save_features(features, folder / f"{name}.safetensors")
        done = side_by_side(["-c", SCRIPT, *EXACT, *CLOSE, *WEIGHED], folder, processes)
        assert [each.status for each in done] == [0] * processes, [each.err for each in done]
        said = json.loads(done[0].out)
        assert said["world"] == processes
        found.append((folder, {command: json.loads(text) for command, text in said["told"].items()}))
    return found


def differences(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every place where two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for name in one:
            yield from differences(one[name], other[name], f"{place}/{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{place}/{index}")
    elif one != other:
        yield place, one, other


@pytest.mark.parametrize("command", EXACT)
def test_several_say_what_one_says(made: Any, command: str) -> None:
    (_, alone), (_, together) = made
    assert not list(differences(alone[command], together[command]))


@pytest.mark.parametrize("command", CLOSE)
def test_sums_over_train_features_agree(made: Any, command: str) -> None:
    """All counts, shares of samples, knobs and decisions are equal; what is left are likelihoods and certificates."""
    (_, alone), (_, together) = made
    for place, one, other in differences(alone[command], together[command]):
        if "certificate" not in place:
            assert set(ROUNDED) & set(place.split("/")), place
            assert one == pytest.approx(other, rel=1e-5), place


@pytest.mark.parametrize("command", WEIGHED)
def test_estimated_frequencies_agree(made: Any, command: str) -> None:
    """And tau, to its last bit, as all texts and counts; what is weighed by the frequencies is equal to 1e-9."""
    (_, alone), (_, together) = made
    for place, one, other in differences(alone[command], together[command]):
        assert isinstance(one, float), place
        assert not place.endswith("/tau"), place
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12), place


def test_heads_are_the_same(made: Any) -> None:
    for name in ("head", "offsets", "keep", "prob", "blend"):
        one, other = (load_head(folder / f"{name}.safetensors").head for folder, _ in made)
        pairs = ((one.weight, other.weight), (one.bias, other.bias))
        if name == "blend":
            assert all(float((a - b).norm() / a.norm()) < 1e-6 for a, b in pairs)
        else:
            assert all(torch.equal(a, b) for a, b in pairs), name


@pytest.mark.parametrize(
    "launch",
    [torchrun, pytest.param(accelerate, marks=pytest.mark.skipif(not find_spec("accelerate"), reason="no accelerate"))],
)
def test_the_embedded_case(
    launch: Callable[[list[str], Path], Done], there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "rebalance --methods logit-adjust --methods tau-norm --out head.safetensors --format json --device cpu"
    done = launch(command.replace("head.", "together.").split(), there)
    assert done.status == 0, done.err
    assert run(command.split()) == 0
    found = list(differences(json.loads(done.out), json.loads(capsys.readouterr().out)))
    assert all("together.safetensors" in str(one) for _, one, _ in found), found
    assert (there / "together.safetensors").read_bytes() == (there / "head.safetensors").read_bytes()
