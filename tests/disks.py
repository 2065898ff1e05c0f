"""Disks of one's own for `test_faults_disk`: run by ``unshare``, in whose name space nobody else sees them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from posthoc_lt.cli import run


def mount(place: Path, options: str) -> None:
    """An empty disk of its own at `place`."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def found(command: str) -> tuple[int, str]:
    """How a command ended, and all that it said."""
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        return run(command.split()), told.getvalue()


def main() -> None:
    """Run commands on a disk with no space, on one that cannot be written to, and with no space for temporary files."""
    commands = json.loads(sys.argv[1])
    full, fixed, temporary = (Path(name).absolute() for name in ("full", "fixed", "temporary"))
    mount(full, "size=1m")
    mount(fixed, "size=1m")
    (full / "large").write_bytes(bytes(1 << 20))
    (fixed / "kept.safetensors").write_text("mine")
    subprocess.run(["mount", "-o", "remount,ro", str(fixed)], check=True)
    ends = {}
    for name, command in commands.items():
        ends[f"{name}, full"] = found(f"{command} --out {full}/{name}")
        ends[f"{name}, read-only"] = found(f"{command} --out {fixed}/{name}")
    left = sorted(path.name for place in (full, fixed) for path in place.iterdir())
    (full / "large").unlink()
    again = {name: found(f"{command} --out {full}/{name}") for name, command in commands.items()}
    mount(temporary, "size=16k")
    os.environ["TMPDIR"] = str(temporary)
    import tempfile

    tempfile.tempdir = None  # it is looked for anew
    ends["import, no space for temporary files"] = found(
        "import --train wide.npy,labels.npy --val wide.npy,labels.npy --fit-head --out wide.safetensors"
    )
    print(json.dumps({"ends": ends, "left": left, "again": again}))


if __name__ == "__main__":
    main()
