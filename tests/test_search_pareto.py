from __future__ import annotations

import numpy as np
import pytest
import torch

from posthoc_lt.family import Line, Offsets, Sheet
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.search.pareto import Trade, _unbeaten, pareto


@pytest.mark.parametrize("seed", range(6))
def test_every_trade_of_a_fine_grid_is_on_or_under_the_curve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 4, size=60)
    weight, slope = rng.normal(size=(4, 3)), np.array([0.0, 1.0, 2.0, 4.0])
    family = Line(
        Head.without_bias(torch.from_numpy(weight)), Head(torch.zeros(4, 3).double(), torch.from_numpy(slope))
    )
    groups = {
        "many": torch.tensor([True, False, False, False]),
        "medium": torch.tensor([False, True, True, False]),
        "few": torch.tensor([False, False, False, True]),
    }
    found = pareto(family, Features(torch.from_numpy(x), torch.from_numpy(y)), groups, (0.0, 2.0))

    def figures(knob: float) -> tuple[float, float]:
        right = (x @ weight.T + knob * slope).argmax(axis=1) == y
        return right[y == 0].mean(), right[y == 3].mean()

    for trade in found:
        assert figures((trade.low + trade.high) / 2) == pytest.approx((trade.head, trade.tail), abs=1e-9)
    for knob in np.linspace(0.0007, 1.9993, 3001):
        head, tail = figures(knob)
        assert any(trade.head >= head - 1e-9 and trade.tail >= tail - 1e-9 for trade in found)
    heads, tails = [trade.head for trade in found], [trade.tail for trade in found]
    assert heads == sorted(heads, reverse=True)
    assert tails == sorted(tails)
    assert len(set(heads)) == len(set(tails)) == len(found)


def test_two_knobs_trade_over_every_line() -> None:
    """Of a sheet all lines; of offsets that may not stray their line."""
    rng = np.random.default_rng(1)
    val = Features(torch.from_numpy(rng.normal(size=(60, 3))), torch.from_numpy(rng.integers(0, 3, size=60)))
    groups = {name: torch.arange(3) == k for k, name in enumerate(("many", "medium", "few"))}
    steep = Head(torch.zeros(3, 3).double(), torch.tensor([0.0, 1.0, 2.0]).double())
    lines = tuple(Line(Head.without_bias(torch.from_numpy(rng.normal(size=(3, 3)))), steep) for _ in range(3))
    found = pareto(Sheet("gamma", (0.0, 0.5, 1.0), lines, (0.0, 0.0, 0.0)), val, groups, (0.0, 2.0))
    each = [trade for line in lines for trade in pareto(line, val, groups, (0.0, 2.0))]
    assert len({trade.outer["gamma"] for trade in found}) > 1
    for trade in each:
        assert any(best.head >= trade.head and best.tail >= trade.tail for best in found)
    for trade in found:
        line = lines[int(2 * trade.outer["gamma"])]
        assert (trade.head, trade.tail) in {(one.head, one.tail) for one in pareto(line, val, groups, (0.0, 2.0))}
    assert pareto(Offsets(lines[0], 0.0), val, groups, (0.0, 2.0)) == pareto(lines[0], val, groups, (0.0, 2.0))


def test_of_stretches_with_equal_figures_the_widest_stands() -> None:
    trades = [Trade(low, high, 0.6, 0.4) for low, high in ((0.0, 0.5), (1.0, 3.0), (3.0, 3.2))]
    better = Trade(0.5, 1.0, 0.7, 0.3)
    assert _unbeaten([*trades, better, Trade(3.2, 4.0, 0.5, 0.4)]) == [better, trades[1]]
