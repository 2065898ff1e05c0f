"""The versions that are declared, and those that CI tests."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_ci_installs_the_lowest_version_of_all_that_is_declared() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python has it from 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tools = extras.pop("dev")
    declared = {*project["dependencies"], *chain.from_iterable(extras.values())}
    lowest = [line for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    assert lowest == sorted(each.replace(">=", "==") for each in declared)
    names = [each.partition("==")[0] for each in lowest]
    assert len(set(names)) == len(names), "a package has two bounds"
    assert {tool for tool in tools if tool.partition(">=")[0] in names} <= declared
