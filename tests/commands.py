"""Running commands in tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posthoc_lt.cli import run


def out_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(command.split()) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def json_of(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out_of(command + " --format json", capsys))
    return found


def refusal_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The status and the one paragraph of a command that must fail."""
    capsys.readouterr()
    status = run(command)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "fault of posthoc-lt" not in captured.err
    return status, captured.err
