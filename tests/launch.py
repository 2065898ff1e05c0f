"""Starting several processes that work together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Done(NamedTuple):
    """How a process ended, and what it said."""

    status: int
    out: str
    err: str


def torchrun(command: list[str], folder: Path, processes: int = 2) -> Done:
    """``torchrun -m posthoc_lt`` and a command, in a folder."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone", "-m", "posthoc_lt"]
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def side_by_side(command: list[str], folder: Path, processes: int = 2) -> list[Done]:
    """Python with these arguments in each of several processes, as any launcher starts them and none ends them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**_environment(), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=120) for process in started]
    return [Done(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), "."])}
