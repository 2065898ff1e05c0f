"""The benchmarks of choosing and of intervals, at tiny size: their JSON, and single cells recomputed by hand."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from by_path import load
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from posthoc_lt import METHODS, FeatureSet, Head
from posthoc_lt.features import Training
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.metrics import Tally
from posthoc_lt.search import Goal, choose
from posthoc_lt.stats import balanced_interval

FOLDER = Path(__file__).parent.parent / "examples" / "benchmarks"

Floats = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(scope="module")
def selection() -> ModuleType:
    """Imported as when it runs, with its folder on the path, but only for that moment: it holds a `coverage`."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("selection")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def sets(selection: ModuleType) -> ModuleType:
    return importlib.import_module("feature_sets")


@pytest.fixture(scope="module")
def coverage(selection: ModuleType) -> ModuleType:
    """Loaded under a name of its own: `coverage` is a package that measures tests."""
    return load("benchmarks/coverage.py")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feature_sets")


@pytest.fixture(scope="module")
def digits(sets: ModuleType, cache: Path) -> FeatureSet:
    """scikit-learn's digits under the small network that the script trains."""
    loaded = sets.load_sets(["digits-mlp"], cache)["digits-mlp"]
    assert isinstance(loaded, FeatureSet)
    return loaded


def printed(module: ModuleType, cache: Path, capsys: pytest.CaptureFixture[str], draws: int) -> dict[str, Any]:
    module.main(["--sets", "digits-mlp", "--cache", str(cache), "--draws", str(draws), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def balanced(head: Head, features: FeatureSet, split: str) -> float:
    """Balanced accuracy by numpy and scikit-learn."""
    part = features.splits()[split]
    logits = part.x.double().numpy() @ head.weight.double().numpy().T + head.bias.double().numpy()
    return float(balanced_accuracy_score(part.labels.numpy(), logits.argmax(1)))


def at_tau(features: FeatureSet, split: str, tau: float, rows: Any = slice(None)) -> Floats:
    """Which of the rows z − τ log π gets right."""
    part = features.splits()[split]
    logits = part.x.double().numpy() @ features.head.weight.double().numpy().T + features.head.bias.double().numpy()
    prior = features.counts.double().numpy()
    right: Floats = ((logits - tau * np.log(prior / prior.sum())).argmax(1) == part.labels.numpy())[rows].astype(float)
    return right


def crossings(features: FeatureSet) -> Floats:
    """A point between any two neighbouring values of τ at which some test sample's own class meets another."""
    assert features.test is not None
    x, y = features.test.x.double().numpy(), features.test.labels.numpy()
    logits = x @ features.head.weight.double().numpy().T + features.head.bias.double().numpy()
    shift = -np.log(features.counts.double().numpy())
    rise, gap = shift[y][:, None] - shift, logits - logits[np.arange(len(y)), y][:, None]
    times = gap[rise != 0] / rise[rise != 0]
    times = np.unique(np.concatenate([[0.0, 4.0], times[(times > 0) & (times < 4)]]))
    middles: Floats = (times[:-1] + times[1:]) / 2
    return middles


# feature sets


def test_dealt_rows_are_disjoint_and_of_the_sizes_asked(sets: ModuleType) -> None:
    labels = np.repeat(np.arange(3), [10, 8, 6])
    parts = sets.deal(labels, [5, 3, 1], [2, 2, 2], [3, 3, 3])
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[5, 3, 1], [2, 2, 2], [3, 3, 3]]
    assert len(set(np.concatenate(parts).tolist())) == sum(len(part) for part in parts)


def test_dealing_more_than_there_is_is_refused(sets: ModuleType) -> None:
    with pytest.raises(ValueError, match="4 samples of class 1 asked of 3"):
        sets.deal(np.array([0, 0, 0, 0, 1, 1, 1]), [2, 2], [2, 2])


def test_images_seen_in_train_are_left_out_by_their_pixels(sets: ModuleType) -> None:
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    kept, labels = sets.unseen(images, np.array([0, 1, 2]), images[[1]].copy())
    assert labels.tolist() == [0, 2]
    assert (kept == images[[0, 2]]).all()


def test_linear_heads_are_where_scikit_learn_ends(sets: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=generator) + torch.eye(3, 4)[y]
    head = sets.fit_linear(x, y, 3)
    scale = float(x.double().square().mean().rsqrt())
    peer = LogisticRegression(C=1 / (sets.WEIGHT_DECAY * len(x)), tol=1e-10, max_iter=10_000)
    peer.fit(scale * x.double().numpy(), y.numpy())
    ours = head(x.double()).double().softmax(1).numpy()
    np.testing.assert_allclose(ours, peer.predict_proba(scale * x.double().numpy()), atol=1e-4)


def test_digits_are_long_tailed_and_memorised(digits: FeatureSet) -> None:
    assert digits.counts.max() == 60
    assert digits.counts.min() == 2
    assert balanced(digits.head, digits, "train") == 1.0
    assert 0.5 < balanced(digits.head, digits, "test") < 0.95


def test_a_set_without_its_source_is_left_out_with_a_note(
    sets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> FeatureSet:
        raise sets.UnavailableError("apt install something")

    monkeypatch.setitem(sets.BUILDERS, "sections-words", missing)
    with pytest.raises(SystemExit, match="no feature set"):
        sets.load_sets(["sections-words"], tmp_path)
    assert "apt install something" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# selection


def test_selection_prints_one_object_with_every_cell(
    selection: ModuleType, digits: FeatureSet, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(selection, cache, capsys, draws=2)
    assert found["benchmark"] == "selection"
    assert found["draws"] == 2
    cells = {(cell["method"], cell["validation"]): cell for cell in found["cells"]}
    wanted = {(m, size) for m in ("logit-adjust", "tau-norm") for size in (1, 3, 5, 20, "long-tailed")}
    assert cells.keys() == wanted
    for cell in cells.values():
        assert cell["regret"].keys() == {"guarded", "nll", "metric", "cross-fit", "grid", "tau=1"}
        assert all(-1e-9 <= r["mean"] < 1 and r["se"] >= 0 for r in cell["regret"].values())
        excess = cell["regret"]["guarded"]["mean"] - cell["regret"]["grid"]["mean"]
        assert cell["excess"]["mean"] == pytest.approx(excess, abs=1e-12)
    small = [cell["regret"]["guarded"]["mean"] for cell in cells.values() if cell["validation"] in (1, 3, 5)]
    assert found["summary"]["mean_regret"]["guarded"] == pytest.approx(np.mean(small))
    assert cells["tau-norm", "long-tailed"]["samples"] == sum(-(-int(n) // 5) for n in digits.counts)


def test_one_cell_of_selection_by_hand(selection: ModuleType, digits: FeatureSet) -> None:
    cells = selection.measure("digits-mlp", digits, draws=3, seed=5)
    cell = next(cell for cell in cells if (cell.method, cell.validation) == ("logit-adjust", 3))
    assert digits.val is not None
    oracle = max(at_tau(digits, "test", tau).mean() for tau in crossings(digits))  # 60 test samples in every class
    assert cell.oracle == pytest.approx(oracle, abs=1e-12)

    family = LogitAdjust().fit(digits.head, Training(digits.counts))
    rng, labels = torch.Generator().manual_seed(5), digits.val.labels
    regrets: dict[str, list[float]] = {"grid": [], "guarded": [], "tau=1": []}
    for _ in range(3):
        rows = selection.draw(labels, [3] * 10, rng)
        assert torch.bincount(labels[rows]).tolist() == [3] * 10
        values = [at_tau(digits, "val", step / 10, rows.numpy()).sum() for step in range(21)]
        regrets["grid"].append(oracle - at_tau(digits, "test", int(np.argmax(values)) / 10).mean())
        chosen = choose(family, digits.val.subset(rows), Goal(rule="guarded")).head
        regrets["guarded"].append(oracle - balanced(chosen, digits, "test"))
        regrets["tau=1"].append(oracle - at_tau(digits, "test", 1.0).mean())
    for rule, values in regrets.items():
        assert cell.regret[rule].mean == pytest.approx(np.mean(values), abs=1e-9)
        assert cell.regret[rule].se == pytest.approx(np.std(values, ddof=1) / 3**0.5, abs=1e-9)


def test_error_of_the_test_set_is_that_of_stratified_means(selection: ModuleType, digits: FeatureSet) -> None:
    assert digits.test is not None
    truth = selection.Truth(LogitAdjust().fit(digits.head, Training(digits.counts)), digits.test)
    gain = at_tau(digits, "test", 1.5) - at_tau(digits, "test", 0.5)
    y = digits.test.labels.numpy()
    variance = sum(gain[y == c].var(ddof=1) / (y == c).sum() for c in range(10)) / 100
    assert truth.error([1.5], [0.5]) == pytest.approx(variance**0.5)


# coverage


def test_coverage_prints_one_object_with_every_cell(
    coverage: ModuleType, digits: FeatureSet, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(coverage, cache, capsys, draws=4)
    assert found["benchmark"] == "coverage"
    sizes = {1, 2, 3, 5, 20, "long-tailed"}
    populations = {*coverage.SIMULATED, "digits-mlp"}
    balanced_cells = [cell for cell in found["coverage"] if cell["figure"] == "balanced accuracy"]
    assert {(c["population"], c["test"]) for c in balanced_cells} == {(p, s) for p in populations for s in sizes}
    assert {(c["figure"], c["test"]) for c in found["size"]} == {(n, s) for n in ("exchanged", "equal") for s in sizes}
    assert all(cell["share"] * 4 in range(5) for cell in found["coverage"] + found["size"])
    assert found["summary"]["size"] == max(cell["share"] for cell in found["size"])


def test_one_cell_of_coverage_by_hand(coverage: ModuleType, digits: FeatureSet) -> None:
    assert digits.val is not None
    adjusted = LogitAdjust().fit(digits.head, Training(digits.counts)).at(1.0)
    people = coverage.populate(digits, digits.val, (digits.head, adjusted))
    sizes, few, draws = torch.full((10,), 3), digits.counts < 20, 30
    cells = coverage.cover_real("digits", 3, people, sizes, few, draws, torch.Generator().manual_seed(1))
    found = {cell.figure: cell for cell in cells}
    assert found["balanced accuracy, adjusted"].truth == pytest.approx(balanced(adjusted, digits, "val"))
    rng, truth, held = torch.Generator().manual_seed(1), balanced(digits.head, digits, "val"), 0
    for _ in range(draws):
        labels, right, _ = people.draw(sizes, rng)
        hits = torch.tensor([int(right[labels == c].sum()) for c in range(10)])
        low, high = balanced_interval(Tally(hits, sizes, sizes))
        held += low <= truth <= high
    assert found["balanced accuracy"].truth == pytest.approx(truth)
    assert found["balanced accuracy"].share == pytest.approx(held / draws)


def test_draws_come_from_their_own_class(coverage: ModuleType) -> None:
    labels = torch.tensor([2, 0, 1, 0, 2, 2])
    a = torch.tensor([True, False, True, False, True, True])  # class 0 never right, 1 and 2 always
    b = torch.tensor([True, True, False, False, False, False])
    people = coverage.Population(labels, (a, b))
    drawn, right_a, right_b = people.draw(torch.tensor([900, 5, 900]), torch.Generator().manual_seed(0))
    assert torch.bincount(drawn).tolist() == [900, 5, 900]
    assert torch.equal(right_a, drawn > 0)
    assert not right_b[drawn == 1].any()
    assert float(right_b[drawn == 0].double().mean()) == pytest.approx(1 / 2, abs=0.06)  # 3.6 standard errors
    assert float(right_b[drawn == 2].double().mean()) == pytest.approx(1 / 3, abs=0.06)


def test_heads_of_the_equal_null_are_equal_and_different(coverage: ModuleType, digits: FeatureSet) -> None:
    assert digits.val is not None
    low, high = coverage.equals(digits, digits.val)
    assert balanced(low, digits, "val") == pytest.approx(balanced(high, digits, "val"), abs=0.005)
    assert float((low.bias - high.bias).abs().max()) > 0.5


def test_the_paired_test_rejects_a_plain_difference_and_no_identity(coverage: ModuleType) -> None:
    labels = torch.arange(40) % 4
    right, wrong = torch.ones(40, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)
    sizes, rng = torch.full((4,), 20), torch.Generator().manual_seed(0)
    assert coverage.rejected(coverage.Population(labels, (wrong, right)), sizes, False, 5, rng) == 1.0
    assert coverage.rejected(coverage.Population(labels, (right, right)), sizes, True, 5, rng) == 0.0


# two parameters


def test_gains_are_those_of_scikit_learn_on_the_same_draws(
    selection: ModuleType, digits: FeatureSet, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference and one method's gain at 5 a class, from the drawn validation sets on."""
    module = load("benchmarks/two_parameters.py")
    found = printed(module, cache, capsys, draws=2)
    (cell,) = [cell for cell in found["cells"] if cell["validation"] == 5]
    assert digits.val is not None
    rng = torch.Generator().manual_seed(0)
    vals = [digits.val.subset(selection.draw(digits.val.labels, [5] * 10, rng)) for _ in range(2)]
    reached = {}
    for name in ("logit-adjust", "offsets"):
        family = METHODS[name]().fit(digits.head, Training(digits.counts))
        reached[name] = np.array([balanced(choose(family, val).head, digits, "test") for val in vals])
    assert cell["reference"]["mean"] == pytest.approx(reached["logit-adjust"].mean())
    gain = reached["offsets"] - reached["logit-adjust"]
    assert cell["gain"]["offsets"]["mean"] == pytest.approx(gain.mean())
    assert cell["gain"]["offsets"]["se"] == pytest.approx(gain.std(ddof=1) / np.sqrt(2))
    assert set(found["summary"]["blend"]) == {"5", "20", "long-tailed"}
