"""Extraction by several processes: the file of one process, byte for byte, one voice, and an end whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks_data
import torch
from launch import Done, side_by_side, torchrun

from posthoc_lt.cli import run

NETWORK = ["extract", "--ckpt", "model.pt", "--arch", "ranks_data:build", "--data", "ranks_data:splits"]
COMMAND = [*NETWORK, "--device", "cpu", "-b", "8", "--out"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint of the trap's network, the shell standing there, and the file of one process."""
    torch.save(ranks_data.build().state_dict(), tmp_path / "model.pt")
    (tmp_path / "ranks_data.py").write_bytes(Path(ranks_data.__file__).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert run([*COMMAND, "one", "-q"]) == 0
    return tmp_path


def told(done: list[Done]) -> list[str]:
    """All lines that begin with Error, by whomever."""
    return [line for each in done for line in each.err.splitlines() if line.startswith("Error")]


def test_one_killed_ends_all_and_a_single_process_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TRAP", "killed")
        done = torchrun([*COMMAND, "out"], folder)
    assert done.status != 0
    assert done.out == ""
    assert not (folder / "out").exists()
    (parts,) = (path for path in folder.glob(".out.parts/*") if path.is_dir())
    assert not (parts / "train-000000000040.safetensors").exists()
    assert run([*COMMAND, "out", "-q"]) == 0
    assert (folder / "out").read_bytes() == (folder / "one").read_bytes()
    assert not list(folder.glob(".*"))


def test_several_go_on_where_one_was_interrupted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a sample that is left out is listed, by whomever it was met."""
    command = [*COMMAND, "out", "--on-error", "skip", "--format", "json"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TRAP", "interrupted")
    assert run(command) == 130
    monkeypatch.setenv("TRAP", "torn")
    done = side_by_side(["-m", "posthoc_lt", *command], folder)
    assert [each.status for each in done] == [0, 0], done
    assert "Going on from an interrupted run: 40 of 120 images" in done[0].err
    assert "Skipped 1 of 60 train samples" in done[0].err
    assert [row["samples"] for row in json.loads(done[0].out)["splits"]] == [59, 60]
    assert done[1].out == done[1].err == ""
    command[command.index("out")] = "alone"
    assert run(command) == 0
    assert (folder / "out").read_bytes() == (folder / "alone").read_bytes()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("trap", "message"), [("torn", r"splits('train')[50], which cannot be read"), ("full", "cannot be written")]
)
def test_what_one_process_meets_it_tells_and_all_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trap: str, message: str
) -> None:
    monkeypatch.setenv("TRAP", trap)
    done = side_by_side(["-m", "posthoc_lt", *COMMAND, "out"], folder)
    assert [each.status for each in done] == [1, 1]
    assert len(told(done)) == 1
    assert message in done[1].err
    assert not any("Traceback" in each.err or each.out for each in done)
    assert not (folder / "out").exists()
    monkeypatch.delenv("TRAP")
    assert run([*COMMAND, "out", "-q"]) == 0
    assert (folder / "out").read_bytes() == (folder / "one").read_bytes()


def test_what_all_processes_meet_is_told_once(tmp_path: Path) -> None:
    done = side_by_side(["-m", "posthoc_lt", "extract", "--nonsense"], tmp_path)
    assert [each.status for each in done] == [2, 2]
    assert len(told(done)) == 1
