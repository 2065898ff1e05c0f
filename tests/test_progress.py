from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from posthoc_lt import progress
from posthoc_lt.cli import run

SLOW = """
import time
from posthoc_lt import progress
progress.PATIENCE = {patience}
for step in progress.through(["ncm", "crt", "lws"], "fitting", "methods"):
    for _ in progress.through(range(2), "solving", "penalties"):
        time.sleep(0.15)
print("done")
"""


def told_on_a_terminal(code: str) -> tuple[str, str]:
    """What a program prints, and what it tells a terminal of 80 columns on standard error meanwhile."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs) as process:
        out = process.communicate()[0].decode()
    os.close(theirs)
    told = b""
    try:
        while block := os.read(ours, 1 << 16):
            told += block
    except (OSError, BlockingIOError):  # the other end is closed: all was read
        pass
    os.close(ours)
    assert process.returncode == 0, told
    return out, told.decode()


def test_a_bar_names_what_is_in_work_and_goes_when_all_is_done() -> None:
    out, told = told_on_a_terminal(SLOW.format(patience=0.1))
    assert out == "done\n"
    frames = told.replace("\x1b[A", "\r").split("\r")
    assert any("fitting" in frame and "1/3 methods" in frame and "crt" in frame for frame in frames)
    assert any("solving" in frame and "1/2 penalties" in frame for frame in frames)
    assert all(len(frame.rstrip("\n")) <= 80 for frame in frames)
    assert [frame for frame in frames if frame][-1].strip() == ""


def test_there_is_none_within_the_patience_in_silence_or_in_other_processes_than_the_first() -> None:
    lines = f"    {SLOW.format(patience=0.1)}".replace("\n", "\n    ")
    silent = f"from posthoc_lt import progress, ranks\nwith progress.silence():\n{lines}\n"
    code = f"{SLOW.format(patience=60)}\n{silent}\nranks.rank = lambda: 1\n{SLOW.format(patience=0.1)}"
    assert told_on_a_terminal(code) == ("done\n" * 3, "")


def test_a_file_on_standard_error_gets_none(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.bar("fitting", 3, "methods") as shown:
        for _ in range(3):
            shown.update()
    assert capfd.readouterr() == ("", "")


def test_quiet_silences_a_command_and_nothing_after_it(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[bool] = []
    real = progress.bar

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(progress._silent.get())
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "bar", watched)
        assert run(["compare", "--methods", "ncm", "--quiet"]) == 0
        assert run(["compare", "--methods", "ncm"]) == 0
    assert True in seen
    assert False in seen
    assert capsys.readouterr().err == ""
