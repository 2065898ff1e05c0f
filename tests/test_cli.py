"""The command line as a person meets it: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from posthoc_lt import METHODS, Features, FeatureSet, load_features, load_head, save_features
from posthoc_lt.cli import cli, run
from posthoc_lt.cli.demo import STEPS

BLOCK = set(
    "accuracy balanced_accuracy balanced_accuracy_ci many medium few macro_f1 worst_class nll ece".split()  # noqa: SIM905
)


@pytest.fixture
def there(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with the case in it, and the shell standing there."""
    for name in ("model.pt", "feats.safetensors"):
        shutil.copyfile(case / name, tmp_path / name)
    (tmp_path / "data").symlink_to(case / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


def test_demo_runs_whole_and_again_and_its_commands_can_be_retyped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first = out_of("demo", capsys)
    for step in STEPS:
        assert f"$ {step}" in first
    assert "balanced accuracy rises by" in first
    assert "few-shot accuracy rises by" in first
    assert "(refit)" in first
    assert "posthoc-lt-demo/balanced.pt" in first
    written = {path: path.stat().st_mtime_ns for path in Path("posthoc-lt-demo").rglob("*") if path.is_file()}
    assert out_of("demo", capsys) == first
    assert {path: path.stat().st_mtime_ns for path in written} == written
    monkeypatch.chdir("posthoc-lt-demo")
    for step in STEPS:
        assert run(step.split()[1:]) == 0


def test_demo_does_not_overwrite_what_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.pt").write_text("precious")
    status, message = refusal_of(["demo", "--into", "mine"], capsys)
    assert status == 1
    assert "model.pt" in message
    assert (tmp_path / "mine" / "model.pt").read_text() == "precious"


@pytest.mark.parametrize(
    "command",
    ["extract --ckpt model.pt", "tau-search --features feats.safetensors", "logit-adjust --tau 1.0"],
)
def test_the_commands_of_the_design_run_as_typed(command: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert out_of(command, capsys)
    assert json_of(command, capsys)["command"] == command.split()[0]


@pytest.mark.parametrize(
    "command",
    [
        "logit-adjust --tau 1.0",
        "tau-search",
        "tau-search --method tau-norm --bias scale",
        "tau-search --method tau-norm --bias keep",
        *METHODS,
    ],
)
def test_json_of_a_fitted_method_is_that_of_the_design(
    command: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(command, capsys)
    keys = {"command", "version", "method", "metric", "select", "decided_by", "baseline", "val", "test", "head"}
    assert keys <= set(found)
    assert found["head"] is None
    for block in (found["val"], found["test"], found["baseline"]["val"], found["baseline"]["test"]):
        assert set(block) == BLOCK
    knob = METHODS[found["method"]].knob
    assert knob is None or isinstance(found[knob], float)
    assert len(found["inputs"]["features"]["sha256"]) == 64


def test_tau_0_is_the_baseline(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("logit-adjust --tau 0", capsys)
    assert found["test"] == found["baseline"]["test"]
    assert found["val"] == found["baseline"]["val"]


def test_verbose_adds_every_class(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    per_class = json_of("logit-adjust --tau 1 -v", capsys)["test"]["per_class"]
    assert [row["train"] for row in per_class] == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]
    assert "9-ankle-boot" in out_of("logit-adjust --tau 1 -v", capsys)


def test_rebalance_writes_the_head_that_it_reports(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("rebalance --out head.safetensors", capsys)
    assert [row["method"] for row in found["table"]] == list(METHODS)
    assert found["head"] == "head.safetensors"
    assert found["optimism"] == pytest.approx(
        found["val"]["balanced_accuracy"] - found["cross_fitted"][found["method"]]
    )
    assert load_head(there / "head.safetensors").provenance["method"] == found["method"]
    judged = json_of("evaluate --head head.safetensors", capsys)["heads"]
    assert judged[found["method"]]["test"] == found["test"]
    assert judged["baseline"]["test"] == found["baseline"]["test"]


@pytest.mark.parametrize("command", ["rebalance", "compare", "logit-adjust --tau 1", "evaluate"])
def test_tables_fit_a_terminal(command: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = out_of(command, capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_csv_and_markdown(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(out_of("compare --format csv", capsys))))
    assert [row["method"] for row in rows] == list(METHODS)
    assert 0 < float(rows[0]["balanced_accuracy"]) < 1
    assert "| --- |" in out_of("compare --format md", capsys)


def test_export_then_the_original_file_is_as_it_was(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (there / "model.pt").read_bytes()
    out_of("tau-norm --tau 1 --out head.safetensors", capsys)
    made = json_of("export --ckpt model.pt --head head.safetensors --out new.pt", capsys)
    assert made["changed"] == ["linear.weight", "linear.bias"]
    assert (there / "model.pt").read_bytes() == before
    patched = torch.load(there / "new.pt")
    assert torch.equal(patched["state_dict"]["linear.weight"], load_head(there / "head.safetensors").head.weight)
    assert patched["epoch"] == torch.load(there / "model.pt")["epoch"]


def test_extract_says_when_a_cache_is_up_to_date_and_refuses_another(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (there / "feats.safetensors").stat().st_mtime_ns
    assert run(["extract", "--ckpt", "model.pt"]) == 0
    assert "up to date" in capsys.readouterr().err
    status, message = refusal_of(["extract", "--ckpt", "model.pt", "--mean", "0.3"], capsys)
    assert (status, "--force" in message) == (1, True)
    assert (there / "feats.safetensors").stat().st_mtime_ns == before
    assert run(["extract", "--ckpt", "model.pt", "--mean", "0.3", "--limit", "20", "--force"]) == 0
    assert len(load_features(there / "feats.safetensors").splits()["test"]) == 20


def test_inspect_tells_files_apart(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_of("ncm --out head.safetensors", capsys)
    assert json_of("inspect model.pt", capsys)["arch"] == "cifar-resnet20"
    assert json_of("inspect feats.safetensors", capsys)["format"] == "feature file"
    assert json_of("inspect head.safetensors", capsys)["method"] == "ncm"


class Foreign(nn.Module):
    """A module of the user's own: pickled whole, it names a class that may not be loaded."""


def _write_bad_inputs(folder: Path, good: FeatureSet) -> None:
    (folder / "text.pt").write_text("not a checkpoint")
    torch.save(Foreign(), folder / "module.pt")
    shutil.copytree(folder / "data", folder / "nine", symlinks=False)
    for split in ("train", "val", "test"):
        shutil.rmtree(folder / "nine" / split / "9-ankle-boot")
    small = folder / "hollow" / "train"
    for name in ("a", "b"):
        (small / name).mkdir(parents=True)
    Image.new("L", (28, 28)).save(small / "a" / "1.png")
    (folder / "cut.safetensors").write_bytes((folder / "feats.safetensors").read_bytes()[:5000])
    assert good.val is not None
    broken = good.val.x.clone()
    broken[3, 4] = float("nan")
    save_features(FeatureSet(good.head, good.train, Features(broken, good.val.y)), folder / "nan.safetensors")
    (folder / "a-file").write_text("")


@pytest.mark.parametrize(
    ("command", "status", "named"),
    [
        ("extract --ckpt nowhere.pt", 1, "nowhere.pt"),
        ("extract --ckpt text.pt --out new", 1, "text.pt"),
        ("extract --ckpt module.pt --out new", 1, "Foreign"),
        ("extract --ckpt model.pt --data nowhere --out new", 1, "nowhere"),
        ("extract --ckpt model.pt --data hollow --out new", 1, "b"),
        ("extract --ckpt model.pt --data nine --out new", 1, "10 classes and 9"),
        ("extract --ckpt model.pt --out a-file/new", 1, "cannot be written"),
        ("extract --ckpt model.pt --out /proc/new", 1, "cannot be written"),
        ("extract --ckpt model.pt --arch nothing", 1, "nothing"),
        ("extract", 2, "--ckpt"),
        ("tau-search --features nan.safetensors", 1, "NaN"),
        ("tau-search --features cut.safetensors", 1, "cut.safetensors"),
        ("tau-search --features nowhere", 1, "extract --ckpt"),
        ("tau-search --features model.pt", 1, "model.pt"),
        ("tau-search --method crt", 2, "crt"),
        ("logit-adjust --tau abc", 2, "abc"),
        ("logit-adjust --tau nan", 1, "tau = nan"),
        ("logit-adjust --tau 1 --out a-file/head", 1, "cannot be written"),
        ("crt --l2 -1", 1, "l2 = -1"),
        ("ncm --transform l2n", 1, "cosine"),
        ("rebalance --groups 100 20", 1, "edges"),
        ("rebalance --device abacus", 1, "abacus"),
        ("evaluate --head feats.safetensors", 1, "not ours"),
        ("export --ckpt model.pt --head nowhere", 1, "nowhere"),
        ("export --ckpt model.pt --head feats.safetensors", 1, "not ours"),
        ("inspect a-file", 1, "a-file"),
        ("baulk", 2, "baulk"),
    ],
)
def test_bad_input_gets_one_clear_paragraph_and_leaves_nothing(
    command: str, status: int, named: str, there: Path, features: FeatureSet, capsys: pytest.CaptureFixture[str]
) -> None:
    _write_bad_inputs(there, features)
    before = sorted(os.listdir(there))
    found, message = refusal_of(command.split(), capsys)
    assert found == status
    assert named in message
    if status == 1:
        assert message.startswith("Error: ")
        assert message.count("\n") == 1, "one paragraph"
        assert "Wanted: " in message
        assert "Next: " in message
    assert sorted(os.listdir(there)) == before


def test_an_interrupt_is_not_a_traceback(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("posthoc_lt.cli.fit.fit", interrupted)
    status, message = refusal_of(["tau-search"], capsys)
    assert (status, "interrupted" in message) == (130, True)


def test_help_and_version_start_without_torch() -> None:
    probe = (
        "import sys; from posthoc_lt.cli import run\n"
        "assert run(['--help']) == 0 and run(['--version']) == 0\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_runs_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "posthoc_lt", "no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no-such" in done.stderr


def test_every_command_has_help_with_all_its_options_described(capsys: pytest.CaptureFixture[str]) -> None:
    import click

    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option) and option.name not in {"batch_size", "form"}:
                assert option.help, (name, option.name)
        assert run([name, "--help"]) == 0
    capsys.readouterr()


def test_a_constraint_is_kept_on_validation(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = json_of("tau-search --select metric", capsys)
    held = json_of("tau-search --select metric --subject-to many>=0.895", capsys)
    assert free["val"]["many"] < 0.895 <= held["val"]["many"]
    assert held["best"]["value"] <= free["best"]["value"]
    status, message = refusal_of(["tau-search", "--subject-to", "many>=0.99"], capsys)
    assert (status, "nearest misses by" in message) == (1, True)
    status, message = refusal_of(["tau-search", "--subject-to", "most>=0.9"], capsys)
    assert (status, "FIGURE>=NUMBER" in message) == (1, True)


@pytest.mark.parametrize("metric", ["macro-f1", "g-mean", "harmonic-mean", "few"])
def test_any_figure_can_be_chosen_by(metric: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(f"rebalance --methods logit-adjust --methods crt --metric {metric}", capsys)
    assert found["metric"] == metric
    assert found["cross_fitted"][found["method"]] == max(found["cross_fitted"].values())


def test_the_trades_of_head_against_tail_are_shown(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trades = json_of("tau-search --pareto", capsys)["pareto"]
    assert [trade["many"] for trade in trades] == sorted((trade["many"] for trade in trades), reverse=True)
    assert [trade["few"] for trade in trades] == sorted(trade["few"] for trade in trades)
    middle = (trades[-1]["tau_from"] + trades[-1]["tau_to"]) / 2
    at_it = json_of(f"logit-adjust --tau {middle}", capsys)["val"]
    assert (at_it["many"], at_it["few"]) == pytest.approx((trades[-1]["many"], trades[-1]["few"]))
    assert "best trades" in out_of("tau-search --pareto", capsys)
