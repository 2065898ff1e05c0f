"""Commands killed before a write, or on a disk that fills up at it, as examples/benchmarks/hostile.py does to all."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from by_path import EXAMPLES

CODE = """
import json, sys, tempfile
from pathlib import Path
from hostile_faults import faults
with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(list(faults(Path(folder), sys.argv[1], sys.argv[2:]))))
"""


def tried(kind: str, *names: str) -> list[tuple[str, str]]:
    """In a process of its own, for it forks, and one fork of this one would have all its threads and files."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, kind, *names],
        cwd=EXAMPLES / "benchmarks",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([".", str(EXAMPLES.parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("killed", {"logit-adjust", "another checkpoint"}),
        ("full disk", {"import", "another checkpoint"}),
        ("large file", {"export to model.pt"}),
    ],
)
def test_nothing_is_harmed_and_the_same_command_finishes(kind: str, names: set[str]) -> None:
    found = tried(kind, *names)
    assert {name.rpartition(",")[0] for name, _ in found} == names
    assert [each for each in found if each[1] not in ("right", "refused")] == []
    assert sum(what == "refused" for _, what in found) > len(found) / 2
