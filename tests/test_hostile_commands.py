"""Commands that no one means: wrong usage or one clear error, and every input as it was."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from commands import refusal_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def typed(hostile: ModuleType) -> ModuleType:
    return sys.modules["hostile_commands"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=False))
def test_random_commands(
    hostile: ModuleType, typed: ModuleType, tmp_path_factory: pytest.TempPathFactory, chance: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("typed")
    typed.prepare(folder)
    words = typed.command(chance)
    with typed.standing_in(folder), hostile.limited_memory():
        assert typed.outcome(words) in ("right", "refused")


@pytest.mark.parametrize(
    "command",
    [
        "logit-adjust --prior counts.txt --out counts.txt --force",
        "logit-adjust --target-prior counts.txt --out counts.txt --force",
        "rebalance --metric weighted-accuracy --class-weight counts.txt --out counts.txt --force",
        "import --train x.npz --head head.safetensors --classes counts.txt --out counts.txt --force",
        "calibrate --head head.safetensors --deploy counts.txt --out counts.txt --force",
    ],
)
def test_no_command_overwrites_what_its_options_name(
    typed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    typed.prepare(tmp_path)
    with typed.standing_in(tmp_path):
        status, told = refusal_of(command.split(), capsys)
    assert status == 1
    assert "an input of this command" in told
    assert (tmp_path / "counts.txt").read_text() == "3, 1, 1"


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_wrong_usage(
    typed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with typed.standing_in(tmp_path):
        status, told = refusal_of(["inspect", name], capsys)
    assert status == 2
    assert "no name that a file can have" in told


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
@pytest.mark.parametrize("option", ["--classes", "--counts"])
def test_a_text_without_end_is_refused(
    hostile: ModuleType, typed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    typed.prepare(tmp_path)
    command = ["import", "--val", "feats.safetensors", "--head", "head.safetensors", "--out", "o", option, "/dev/zero"]
    with typed.standing_in(tmp_path), hostile.limited_memory():
        status, told = refusal_of(command, capsys)
    assert status == 1
    assert "longer than any list" in told
