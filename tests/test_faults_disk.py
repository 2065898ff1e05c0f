"""Disks that are full or cannot be written to: real ones, in a name space of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import disks
import numpy as np
import pytest

from posthoc_lt import Features, FeatureSet, Head, save_features


def _possible() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
    )


pytestmark = pytest.mark.skipif(not _possible(), reason="needs unshare and user name spaces, to mount disks of its own")

COMMANDS = {
    "features.safetensors": "import --train x.npy,y.npy --val x.npy,y.npy --fit-head",
    "features.npz": "dump",
    "head.safetensors": "logit-adjust --tau 1",
    "probable.safetensors": "calibrate",
    "sets.safetensors": "conformal",
    "page.html": "report --methods logit-adjust",
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("disks")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 20)).astype(np.float32), np.arange(60) % 3
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    np.save(folder / "wide.npy", np.random.default_rng(1).normal(size=(600, 40)))
    np.save(folder / "labels.npy", np.arange(600) % 3)
    head = Head(np.eye(3, 20), np.zeros(3))
    save_features(
        FeatureSet(head, Features(x, y), Features(x + 1, y), Features(x + 2, y)),
        folder / "feats.safetensors",
    )
    root = Path(disks.__file__).parent.parent
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, disks.__file__, json.dumps(COMMANDS)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("disk", "why"), [("full", "No space left on device"), ("read-only", "Read-only file system")])
def test_it_is_told(ended: Any, name: str, disk: str, why: str) -> None:
    status, told = ended["ends"][f"{name}, {disk}"]
    assert status == 1, told
    assert why in told
    assert "Traceback" not in told
    assert "fault of posthoc-lt" not in told


def test_nothing_is_left_and_the_same_again_finishes(ended: Any) -> None:
    assert ended["left"] == ["kept.safetensors", "large"]
    assert {name: status for name, (status, _) in ended["again"].items()} == dict.fromkeys(COMMANDS, 0)


def test_no_space_for_temporary_files(ended: Any) -> None:
    """Written to through a memory map it would end the process without a word."""
    status, told = ended["ends"]["import, no space for temporary files"]
    assert status == 1
    assert "No space left on device" in told
