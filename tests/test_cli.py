"""The command line as a person meets it: what it prints and what it writes."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import json_of, out_of, refusal_of
from scipy.special import logsumexp

from posthoc_lt import METHODS, FeatureSet, Head, load_features, load_head, save_features
from posthoc_lt.cli import cli, run
from posthoc_lt.cli.demo import STEPS
from posthoc_lt.conformal import load_thresholds
from posthoc_lt.family import Certificate
from posthoc_lt.methods import DEFAULT_METHODS
from posthoc_lt.pipeline import Fitted

BLOCK = set(
    "accuracy balanced_accuracy balanced_accuracy_ci many medium few macro_f1 worst_class nll ece".split()  # noqa: SIM905
)


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
    assert [row["method"] for row in found["table"]] == list(DEFAULT_METHODS)
    assert found["head"] == "head.safetensors"
    assert found["optimism"] == pytest.approx(found["val"]["balanced_accuracy"] - found["procedure"])
    assert load_head(there / "head.safetensors").provenance["method"] == found["method"]
    judged = json_of("evaluate --head head.safetensors", capsys)["heads"]
    assert judged[f"saved: {found['method']}"]["test"] == found["test"]
    assert judged["baseline"]["test"] == found["baseline"]["test"]


def test_evaluate_shows_the_method_and_knob_of_a_saved_head(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_of("logit-adjust --tau 1.25 --out head.safetensors", capsys)
    assert "  logit-adjust saved tau=1.25 " in out_of("evaluate --head head.safetensors", capsys)
    assert ",saved,tau,1.25," in out_of("evaluate --head head.safetensors --format csv", capsys)


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "conformal"])
def test_the_head_that_a_command_reads_is_among_its_inputs(
    command: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_of("logit-adjust --tau 1 --out head.safetensors", capsys)
    files = {"features": "feats.safetensors", "head": "head.safetensors"}
    hashes = {
        name: {"path": path, "sha256": sha256((there / path).read_bytes()).hexdigest()} for name, path in files.items()
    }
    assert json_of(f"{command} --head head.safetensors", capsys)["inputs"] == hashes


@pytest.mark.parametrize("command", ["rebalance", "compare"])
def test_a_fit_that_stopped_short_is_told(
    command: str, there: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No penalty that these commands try is too small to be solved for, so the certificate is made up."""
    monkeypatch.setattr(Fitted, "certificate", Certificate(1.0, 1e-3, 7, converged=False))
    assert run([command, "--methods", "crt", "--format", "csv"]) == 0
    assert "crt stopped after 7 steps" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rebalance", "compare", "logit-adjust --tau 1", "evaluate"])
def test_tables_fit_a_terminal(command: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = out_of(command, capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_csv_and_markdown(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(out_of("compare --format csv", capsys))))
    assert [row["method"] for row in rows] == list(DEFAULT_METHODS)
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


def test_floors_bind_the_choice_of_a_method(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("rebalance --metric many --subject-to few>=0.9", capsys)
    assert found["method"] != "baseline"
    assert found["val"]["few"] >= 0.9
    assert "baseline" not in found["cross_fitted"]
    for command in ("rebalance", "logit-adjust --tau 0", "crt --l2 0.001", "baseline"):
        status, message = refusal_of([*command.split(), "--subject-to", "few>=1"], capsys)
        assert (status, "few>=" in message) == (1, True)


def test_compare_says_what_it_leaves_out(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_features(there / "feats.safetensors")
    counted = FeatureSet(whole.head, None, whole.val, whole.test, train_counts=whole.counts)
    save_features(counted, there / "c.safetensors")
    assert set(json_of("compare --features c.safetensors", capsys)["skipped"]) == {
        *("affine", "crt", "lda", "lws", "ncm", "refit", "ridge")
    }
    assert run(["compare", "--features", "c.safetensors"]) == 0
    assert "Left out refit" in capsys.readouterr().err


def test_csv_of_two_splits_is_one_table(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(out_of("evaluate --format csv", capsys))))
    assert [row["split"] for row in rows] == ["val", "test"]


def test_a_layer_without_bias_is_told_in_time(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_features(there / "feats.safetensors")
    save_features(replace(whole, head=Head.without_bias(whole.head.weight)), there / "nb.safetensors")
    assert run(["logit-adjust", "--tau", "1", "--features", "nb.safetensors"]) == 0
    assert "--add-bias" in capsys.readouterr().err
    assert run(["tau-norm", "--tau", "1", "--features", "nb.safetensors"]) == 0
    assert "--add-bias" not in capsys.readouterr().err


def test_counts_stand_in_for_a_train_folder(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "part").mkdir()
    for split in ("val", "test"):
        (there / "part" / split).symlink_to((there / "data" / split).resolve())
    command = ["extract", "--ckpt", "model.pt", "--data", "part", "--out"]
    status, message = refusal_of([*command, "new.safetensors"], capsys)
    assert (status, "--counts" in message) == (1, True)
    (there / "counts.txt").write_text("[500, 299, 179, 107, 64,\n38, 23, 13, 8, 5]")
    assert run([*command, "new.safetensors", "--counts", "counts.txt"]) == 0
    with_counts = json_of("logit-adjust --features new.safetensors", capsys)
    assert with_counts["test"] == json_of("logit-adjust", capsys)["test"]
    (there / "counts.txt").write_text("500 299")
    status, message = refusal_of([*command, "other", "--counts", "counts.txt"], capsys)
    assert (status, "2 train counts for 10 classes" in message) == (1, True)


def test_calibrate_makes_probabilities_that_hold_better(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("calibrate --out prob.safetensors", capsys)
    before, after = (row for row in found["rows"] if row["under"] == "uniform")
    assert after["nll"] < before["nll"]
    assert after["ece"] < before["ece"]
    made, cached = load_head(there / "prob.safetensors").head, load_features(there / "feats.safetensors")
    assert cached.test is not None
    logits = made(cached.test.x).double().numpy()
    labels = cached.test.labels.numpy()
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    assert after["nll"] == pytest.approx(-log_p[np.arange(len(labels)), labels].mean(), abs=1e-6)
    assert json_of("export --ckpt model.pt --head prob.safetensors --out prob.pt", capsys)["changed"]
    shares = [row for row in json_of("calibrate --deploy train", capsys)["rows"] if row["under"] == "train"]
    assert shares[1]["nll"] < shares[0]["nll"] + 1e-9
    (there / "shares.txt").write_text("1 2")
    status, message = refusal_of(["calibrate", "--deploy", "shares.txt"], capsys)
    assert (status, "10 numbers" in message) == (1, True)


@pytest.mark.parametrize("kind", ["marginal", "classwise", "interpolated", "prevalence"])
def test_conformal_sets_cover(kind: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(f"conformal --kind {kind} --alpha 0.2 --out sets-{kind}.safetensors", capsys)
    (row,) = found["rows"]
    assert row["coverage"] > 0.7
    assert 0.5 < row["mean_size"] < 10
    assert found["unsupported"] == []
    assert load_thresholds(there / f"sets-{kind}.safetensors").kind == kind
    if kind == "classwise":
        scarce = json_of("conformal --kind classwise --alpha 0.01", capsys)
        assert len(scarce["unsupported"]) == 10, "20 samples a class do not support 1 %"


@pytest.mark.parametrize("floor", ["many>=0.9", "many>=0.8875", "few>=0.95"])
def test_a_floor_that_is_met_exactly_is_met(floor: str, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """72 of 80 is 0.9, whatever its last bits."""
    figure, _, value = floor.partition(">=")
    found = json_of(f"tau-search --subject-to {floor}", capsys)
    assert found["val"][figure] >= float(value) - 1e-9


def test_a_calibrated_head_and_thresholds_say_what_they_are(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_of("calibrate --out prob.safetensors", capsys)
    assert "figures flatter" in out_of("evaluate --head prob.safetensors", capsys)
    assert json_of("inspect prob.safetensors", capsys)["arch"] == "cifar-resnet20"
    out_of("conformal --out sets.safetensors", capsys)
    assert json_of("inspect sets.safetensors", capsys)["kind"] == "classwise"
