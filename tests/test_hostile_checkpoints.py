"""Checkpoints made to run code, or to take all memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from by_path import EXAMPLES

from posthoc_lt import PosthocError
from posthoc_lt.checkpoint import read


def test_no_code_in_a_checkpoint_runs(hostile: ModuleType, tmp_path: Path) -> None:
    tried = list(hostile.code(tmp_path))
    assert len(tried) > 600
    assert {found for _, found in tried} == {"refused"}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["os.system", "open", "exec", "map"])
def test_the_code_would_have_run(hostile: ModuleType, tmp_path: Path, name: str) -> None:
    """Else the test above could not fail: torch's loader, told to trust, runs the very same file."""
    path, canary = tmp_path / "model.pt", tmp_path / "canary"
    make = sys.modules["hostile_checkpoints"].running(canary)[f"{name}, protocol 2, alone, zip"]
    make(path, canary)
    with pytest.raises(PosthocError):
        read(path)
    assert not canary.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(path, weights_only=False)
    assert canary.exists()


def test_bombs_are_refused_within_a_limit_of_memory() -> None:
    """In a process of their own: one that went off would take this one with it."""
    command = [sys.executable, str(EXAMPLES / "benchmarks" / "hostile.py"), "--only", "bombs", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["bad"] == []
    assert found["total"]["refused"] >= 25


def test_a_state_dict_that_holds_itself_is_found_once(tmp_path: Path) -> None:
    content: dict[str, object] = {"epoch": 3}
    content["model"] = {"fc.weight": torch.ones(2, 2), "state_dict": content}
    content["state_dict"] = content
    torch.save(content, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt")
    assert (found.weights.key, found.others, list(found.state)) == ("model", (), ["fc.weight"])
