"""Other class frequencies and the costs of mistakes: what heads are chosen and judged by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import json_of, out_of, refusal_of
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from posthoc_lt import FeatureSet, PosthocError, compare, fit, rebalance
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.metrics import Tally
from posthoc_lt.pipeline.fit import Selection
from posthoc_lt.priors import Shares
from posthoc_lt.stats import balanced_interval, mean_interval, paired
from posthoc_lt.yardstick import BALANCED, Yardstick

Floats = NDArray[np.float64]
TARGET = np.array([0.5, 0.3, 0.2, 0.0])
COST = np.array([[0, 1, 2, 4], [1, 0, 1, 1], [3, 3, 0, 8], [1, 1, 1, 0.5]])
SHARES = Shares((1, 1, 1, 1, 1, 1, 1, 1, 1, 9), "field")
rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def expected(y: Floats, predicted: Floats, target: Floats | None, cost: Floats | None) -> float:
    worth = (y == predicted).astype(float) if cost is None else 1 - cost[y, predicted] / cost.max()
    if target is None and cost is not None:
        return float(worth.mean())
    present = np.unique(y)
    means = [worth[y == c].mean() for c in present]
    return float(np.average(means, weights=None if target is None else target[present]))


@given(rows, st.booleans(), st.booleans())
def test_a_score_its_interval_and_difference(
    sample: list[tuple[int, int, int]], with_target: bool, with_cost: bool
) -> None:
    y, before, after = (np.array(column) for column in zip(*[*sample, (0, 0, 1)], strict=True))
    target, cost = TARGET if with_target else None, COST if with_cost else None
    made = Yardstick(*(None if each is None else torch.from_numpy(each) for each in (target, cost)))
    one, two = (expected(y, predicted, target, cost) for predicted in (before, after))
    labels, a, b = map(torch.from_numpy, (y, before, after))
    assert made.score(labels, a, 4) == pytest.approx(one)
    low, high = made.interval(labels, a, 4)
    assert 0 <= low <= one + 1e-9
    assert one - 1e-9 <= high <= 1
    found = made.difference(labels, a, b, 4)
    assert found.delta == pytest.approx(two - one, abs=1e-12)
    assert found.low - 1e-12 <= found.delta <= found.high + 1e-12
    assert found.clear <= (found.p < 0.05)
    if with_cost:
        weight = np.ones(len(y)) if target is None else (target / np.bincount(y, minlength=4).clip(1))[y]
        assert made.mean_cost(one) == pytest.approx(np.average(COST[y, before], weights=weight))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_right_and_wrong_are_worth_1_and_0(sample: list[tuple[int, bool, bool]]) -> None:
    labels, a, b = (torch.tensor(column) for column in zip(*sample, strict=True))
    size, right = torch.bincount(labels, minlength=4), torch.bincount(labels[a], minlength=4)
    assert mean_interval(labels, a, 4) == pytest.approx(balanced_interval(Tally(right, size, size)))
    whole, half = paired(labels, a, b, 4), paired(labels, a / 2, b / 2, 4)
    assert (half.delta, half.p) == pytest.approx((whole.delta / 2, whole.p))
    if bool((a != b).any()):
        assert (half.low, half.high) == pytest.approx((whole.low / 2, whole.high / 2), abs=1e-9)


@pytest.mark.parametrize("samples", [1, 3, 20])
def test_the_interval_of_utility_covers(samples: int) -> None:
    """Sixty classes, with costs of several sizes; 1,000 draws."""
    rng = np.random.default_rng(5)
    chance = rng.dirichlet([6, 1, 1, 1], size=60)
    y = np.repeat(np.arange(60), samples)
    worth = 1 - np.array([0.0, 0.2, 0.5, 1.0])
    truth = float((chance @ worth).mean())
    labels, held = torch.from_numpy(y), 0
    for _ in range(1000):
        drawn = (rng.random((len(y), 1)) > chance[y].cumsum(axis=1)[:, :3]).sum(axis=1)
        low, high = mean_interval(labels, torch.from_numpy(worth[drawn]), 60)
        held += low <= truth <= high
    assert 0.93 <= held / 1000 <= 0.985


@pytest.mark.parametrize("sizes", [(5,) * 20, (60, 40, 25, 15, 12, 10, 8, 8, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1)])
def test_the_paired_test_of_utility_errs_no_more_often_than_it_says(sizes: tuple[int, ...]) -> None:
    """Two heads whose worth differs by steps of several sizes, up as often as down; 1,000 draws."""
    rng, labels = np.random.default_rng(5), torch.from_numpy(np.repeat(np.arange(20), sizes))
    wrong = 0
    for _ in range(1000):
        a, b = (
            torch.from_numpy(rng.choice([0.0, 0.5, 0.8, 1.0], p=[0.1, 0.1, 0.2, 0.6], size=len(labels))) for _ in "ab"
        )
        same = torch.from_numpy(rng.random(len(labels)) < 0.7)
        wrong += paired(labels, a, torch.where(same, a, b), 20).p < 0.05
    assert wrong / 1000 <= 0.065


def test_costs_are_chosen_by_exactly(features: FeatureSet) -> None:
    assert features.val is not None
    cost = np.where(np.eye(10) > 0, 0.0, 1.0)
    cost[7:, :5] = 12.0
    selection = Selection("utility", "metric", cost=tuple(map(tuple, cost.tolist())))
    found = fit("logit-adjust", features, selection=selection)
    y, x = features.val.labels.numpy(), features.val.x.float()

    def utility(tau: float) -> float:
        head = fit("logit-adjust", features, knob=tau).head
        return float(1 - cost[y, head(x).argmax(dim=1).numpy()].mean() / 12)

    assert found.choice.best is not None
    assert found.choice.best[0] >= max(utility(tau) for tau in np.linspace(0.01, 3.99, 40)) - 1e-9
    assert found.choice.best[0] == pytest.approx(utility(found.knobs["tau"]), abs=1e-6)
    assert found.val is not None
    assert found.val.score == pytest.approx(found.choice.best[0])
    zero_one = Selection("utility", "metric", cost=tuple(map(tuple, (1.0 - np.eye(10)).tolist())))
    plain = fit("logit-adjust", features, selection=Selection("accuracy", "metric"))
    assert fit("logit-adjust", features, selection=zero_one).knobs == plain.knobs
    path = rebalance(features, methods="crt", metric="utility", cost=cost, select="metric")
    assert path.verdict.startswith("On test, utility ")
    assert "a mean cost of" in path.verdict
    assert path.comparison.rows[0].test is not None
    assert path.comparison.rows[0].test.yardstick.cost is not None


def test_every_head_is_judged_under_the_target(features: FeatureSet) -> None:
    target = np.array(SHARES.values) / sum(SHARES.values)
    found = compare(features, methods=["logit-adjust", "tau-norm"], target_prior=SHARES)
    made = found.fitted[1].method
    assert isinstance(made, LogitAdjust)
    assert made.target_prior == SHARES
    gains = []
    for row in found.comparison.rows:
        assert row.test is not None
        recall = [float(row.test.right[row.test.labels == c].double().mean()) for c in range(10)]
        assert row.test.score == pytest.approx(np.dot(target, recall))
        gains.append(row.test.score)
        if row.paired is not None:
            assert row.paired.delta == pytest.approx(gains[-1] - gains[0])
    text = found.comparison.text()
    assert "judged by accuracy under the target prior" in text
    assert "on target" in text
    assert "accuracy under the target prior, paired" in " ".join(text.split())
    assert "accuracy under the target prior" in rebalance(features, methods="logit-adjust", target_prior="train").reason
    frame = found.table
    assert frame["target_accuracy"][0] == pytest.approx(gains[0])


def test_by_default_nothing_is_added(features: FeatureSet) -> None:
    found = compare(features, methods="logit-adjust")
    assert found.fitted[0].test is not None
    assert found.fitted[0].test.yardstick is BALANCED
    assert "judged by" not in found.comparison.text()
    assert not {"utility", "target_accuracy", "cost"} & set(found.comparison.records()[0]["test"])  # type: ignore[call-overload]


def test_methods_that_a_table_could_not_tell_apart_are_refused(features: FeatureSet) -> None:
    two = [LogitAdjust(target_prior=Shares(values)) for values in ((1.0,) * 10, (2.0,) * 9 + (1.0,))]
    with pytest.raises(PosthocError, match="a name of their own"):
        compare(features, methods=two)


# The commands


def test_the_commands_take_frequencies(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "shares.txt").write_text("1 1 1 1 1 1 1 1 1 9")
    one = json_of("tau-search --target-prior shares.txt", capsys)
    chosen = "--methods logit-adjust --target-prior shares.txt"
    whole = json_of(f"rebalance {chosen}", capsys)
    assert whole["target_prior"] == {"source": "shares.txt", "shares": [1.0] * 9 + [9.0]}
    assert whole["tau"] == one["tau"]
    assert whole["test"]["target_accuracy"] == one["test"]["target_accuracy"]
    assert whole["baseline"]["test"]["target_accuracy"] == one["baseline"]["test"]["target_accuracy"]
    assert json_of(f"compare {chosen}", capsys)["table"][1]["test"] == whole["test"]
    assert "judged by accuracy under the target prior" in out_of(f"compare {chosen} --prior uniform", capsys)


def test_the_commands_take_costs(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = np.where(np.eye(10) > 0, 0, np.arange(1, 11)[:, None])
    (there / "cost.csv").write_text("\n".join(",".join(map(str, row)) for row in cost))
    np.save(there / "cost.npy", cost)
    told = [
        json_of(f"tau-search --metric utility --cost {name} --select metric", capsys)
        for name in ("cost.csv", "cost.npy")
    ]
    assert told[0]["tau"] == told[1]["tau"]
    test = told[0]["test"]
    assert test["cost"] == pytest.approx(10 * (1 - test["utility"]))
    assert test["cost_ci"][0] < test["cost"] < test["cost_ci"][1]
    printed = out_of("compare --methods logit-adjust --metric utility --cost cost.csv", capsys)
    assert "judged by utility, 1 - cost/10" in printed


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("tau-search --metric utility", "give --cost FILE"),
        ("tau-search --cost cost.csv", "give --metric utility"),
        ("tau-search --metric utility --cost short.csv", "2 rows of costs for 10 classes"),
        ("tau-search --metric utility --cost ragged.csv", "rows of different lengths"),
        ("compare --metric utility --cost words.csv", "no matrix of numbers"),
        ("compare --metric utility --cost missing.csv", "no matrix of numbers"),
        ("rebalance --methods crt --prior uniform", "add logit-adjust"),
        ("rebalance --target-prior em", "it judges, and does not choose"),
        ("report --target-prior nowhere.txt", "correct --target-prior"),
    ],
)
def test_what_does_not_fit_is_refused(
    command: str, named: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (there / "cost.csv").write_text("\n".join(" ".join("1" * 10) for _ in range(10)))
    (there / "short.csv").write_text("0 1\n1 0")
    (there / "ragged.csv").write_text("0 1\n1")
    (there / "words.csv").write_text("a b\nc d")
    status, message = refusal_of(command.split(), capsys)
    assert (status, named in " ".join(message.split())) == (1, True), message


@pytest.mark.parametrize(
    "cost", [torch.ones(2, 3), torch.zeros(2, 2), -torch.ones(2, 2), torch.full((2, 2), torch.nan)]
)
def test_costs_are_a_square_of_numbers_from_0(cost: torch.Tensor) -> None:
    with pytest.raises(PosthocError, match="correct --cost"):
        Yardstick(cost=cost)
