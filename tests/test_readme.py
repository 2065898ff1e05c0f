"""The README's words, held to what the program does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from by_path import load

import posthoc_lt
from posthoc_lt import METHODS, FeatureSet
from posthoc_lt.cli import cli
from posthoc_lt.methods import DEFAULT_METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_ci_runs_the_readme_s_own_test_command() -> None:
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "/pytest" in line]
    assert command.replace("pip install", "pip install -q") in (ROOT / ".ci" / "run").read_text()


def test_every_command_and_flag_named_exists() -> None:
    context = click.Context(cli)
    lines = re.findall(r"posthoc-lt ([a-z-]+)([^`\n#|]*)", README)
    assert len(lines) > 10
    for name, rest in lines:
        command = cli.get_command(context, name)
        assert command is not None, name
        flags = {flag for option in command.params for flag in option.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest)) <= flags, (name, rest)


def test_the_page_of_commands_is_what_they_print() -> None:
    page = load("commands.py")
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run: python examples/commands.py"


def test_the_table_of_methods_has_a_row_for_each() -> None:
    section = README.partition("## Methods")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", section, flags=re.MULTILINE)) == set(METHODS)


def test_the_output_shown_is_the_output_printed(features: FeatureSet) -> None:
    """To a point: another processor may round a prediction the other way."""
    (shown,) = blocks("text")
    printed = posthoc_lt.rebalance(features).comparison.text()
    shown_rows, printed_rows = ([line for line in text.splitlines() if "±" in line] for text in (shown, printed))
    shown_rows, printed_rows = ([line for line in rows if "percent" not in line] for rows in (shown_rows, printed_rows))
    assert len(shown_rows) == len(DEFAULT_METHODS)
    for row, actual in zip(shown_rows, printed_rows, strict=True):
        assert re.findall(r"[a-z-]+", row)[0] == re.findall(r"[a-z-]+", actual)[0]
        numbers, others = ([float(n) for n in re.findall(r"(?<![=\d])-?\d+\.\d\b", text)] for text in (row, actual))
        assert numbers == pytest.approx(others, abs=1.0)


def test_the_method_in_eight_lines_works_as_pasted(case: Path, tmp_path: Path, features: FeatureSet) -> None:
    (code,) = [block for block in blocks("python") if "class Margin" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    shutil.copytree(ROOT / "posthoc_lt", tmp_path / "posthoc_lt", ignore=shutil.ignore_patterns("demo", "__pycache__"))
    (tmp_path / "posthoc_lt" / "methods" / "margin.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "posthoc_lt", "margin", "--tau", "2.0", "--format", "json"],
        cwd=case,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    counts = features.counts.double().numpy()
    assert features.test is not None
    logits = features.head(features.test.x).double().numpy() + 2.0 * counts**-0.25
    assert found["tau"] == 2.0
    accuracy = np.mean(logits.argmax(axis=1) == features.test.labels.numpy())
    assert found["test"]["accuracy"] == pytest.approx(accuracy, abs=2e-3)
