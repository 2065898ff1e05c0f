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
    return _launched(["torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"], command, folder)


def accelerate(command: list[str], folder: Path, processes: int = 2) -> Done:
    """``accelerate launch -m posthoc_lt`` and a command, in a folder.

    Without ``--multi_gpu``, which it finds out for itself where there are several, it starts a single process.
    """
    options = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", _free_port()]
    return _launched(["accelerate.commands.launch", *options], command, folder)


def _launched(launcher: list[str], command: list[str], folder: Path) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "posthoc_lt", *command],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def side_by_side(command: list[str], folder: Path, processes: int = 2) -> list[Done]:
    """Python with these arguments in each of several processes, as any launcher starts them and none ends them."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    shared = {**_environment(), **place, "WORLD_SIZE": str(processes)}
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
