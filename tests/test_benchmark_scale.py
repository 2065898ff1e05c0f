"""The benchmark of scale at tiny size: its data, its memory gauge, its models, and both of its tables."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from by_path import load

from posthoc_lt import load_features


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    return load("benchmarks/scale.py")


def test_the_case_is_long_tailed_and_its_head_knows_the_means(scale: ModuleType, tmp_path: Path) -> None:
    scale.write_case(tmp_path / "case", {"train": 5000, "val": 60, "test": 90}, 16, 30)
    features = load_features(tmp_path / "case")
    assert features.train is not None
    assert features.val is not None
    assert len(features.train) == 5000
    assert features.val.counts(30).tolist() == [2] * 30
    counts = features.counts
    assert int(counts.min()) >= 2
    assert (counts.diff() <= 0).all()
    assert counts[0] > 50 * counts[-1]
    mean = features.train.x[features.train.labels == 0].double().mean(dim=0)
    assert mean.numpy() == pytest.approx(features.head.weight[0].numpy(), abs=5 / float(counts[0]) ** 0.5)


def test_the_gauge_sees_what_is_allocated_and_let_go(scale: ModuleType) -> None:
    with scale.Watch() as watch:
        held = torch.ones(1 << 26)
        torch.sum(held).item()
        scale.time.sleep(0.05)
        del held
    assert watch.highest - watch.before >= 1 << 28
    assert scale.anonymous() < watch.highest


@pytest.mark.parametrize(("what", "truth"), [("seconds", [2e-9, 3e-8, 0.0, 4e-7, 0.01]), ("bytes", [30.0, 8.0, 1e5])])
def test_the_model_recovers_what_made_the_rows(scale: ModuleType, what: str, truth: list[float]) -> None:
    sizes = [(*size, ranks) for size in scale.SIZES for ranks in (1, 2)]
    rows = []
    for samples, dimensions, classes, ranks in sizes:
        shared = np.array([samples * dimensions * classes, samples * classes, samples * dimensions]) / ranks
        own = [samples, 1.0] if what == "seconds" else [samples, classes * dimensions, 1.0]
        value = float(np.dot([*shared, *own] if what == "seconds" else own, truth))
        names = {"samples": samples, "dimensions": dimensions, "classes": classes, "ranks": ranks}
        rows.append({**names, what: value})
    found = scale.fitted(rows, what)
    assert found["residuals_percent"] == pytest.approx([0.0] * len(rows), abs=0.1)
    assert found["coefficients"] == pytest.approx(truth, rel=1e-3, abs=1e-10)


def test_memory_and_times_print_one_object(
    scale: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(arguments: str) -> dict[str, object]:
        monkeypatch.setattr("sys.argv", ["scale.py", *arguments.split(), "--dir", str(tmp_path), "--json"])
        scale.main()
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    small = "--train 600 --val 60 --test 60 --dimensions 16 --classes 20 --steps 2 --methods"
    memory = printed(f"memory {small} crt")
    assert isinstance(memory["crt"], dict)
    assert memory["crt"]["bytes"] >= memory["crt"]["bytes_before"] > 0
    times = printed("times --sizes 200,16,10")
    assert isinstance(times["rows"], list)
    assert sorted({row["ranks"] for row in times["rows"]}) == [1, 2]
    assert {row["method"] for row in times["rows"]} == set(scale.MODELLED)
    assert times["large"].keys() == scale.LARGE.keys()  # type: ignore[attr-defined]
