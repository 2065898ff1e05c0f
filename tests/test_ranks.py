"""Processes that work together: what each of them gets, alone and in company."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launch import side_by_side

from posthoc_lt import ranks


def test_alone_everything_is_the_identity() -> None:
    rows = torch.randn(3, 2)
    with ranks.joined(), ranks.alone():
        assert (ranks.rank(), ranks.world(), ranks.neighbours()) == (0, 1, 1)
        assert ranks.share(5) == range(5)
        assert ranks.total(rows) is rows
        assert ranks.gathered(rows) is rows
        assert ranks.first("any")
        assert ranks.first("any")


@given(items=st.integers(0, 10**9), world=st.integers(1, 999))
def test_shares_are_all_items_in_order_and_of_equal_size(items: int, world: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "world", lambda: world)
        shares = []
        for rank in range(world):
            patch.setattr(ranks, "rank", lambda rank=rank: rank)
            shares.append(ranks.share(items))
    edges = [0, *(share.stop for share in shares)]
    assert [share.start for share in shares] == edges[:-1]
    assert edges[-1] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_three_processes_agree(tmp_path: Path) -> None:
    script = str(Path(__file__).parent / "ranks_at_work.py")
    done = side_by_side([script, str(tmp_path)], tmp_path, processes=3)
    assert [each.status for each in done] == [0, 0, 0], done
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [each["world"] for each in found] == [[rank, 3, 3] for rank in range(3)]
    for case, items in enumerate((0, 1, 7)):
        assert [item for each in found for item in each["shares"][case]] == list(range(items))
    assert sorted(each["first"] for each in found) == [False, False, True]
    for each in found:
        assert each["total"] == pytest.approx([0.3, 111.0], rel=1e-15)
        assert each["total"] == found[0]["total"]
        assert each["gathered"] == [[1, 2], [3, 4], [2, 3], [4, 5], [6, 7], [8, 9]]
        assert each["mask"] == [True, False, False]
        assert each["alone"] == [0, 1, 1]
        assert each["read"] == "by 0"
    assert not list(tmp_path.glob(".*"))
    assert "cannot be reached" in (tmp_path / "left").read_text()
