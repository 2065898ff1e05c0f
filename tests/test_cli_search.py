"""How the command line chooses: metrics, rules, class weights, groups and the confidence set."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest
import torch
from commands import json_of, out_of
from sklearn.metrics import recall_score

from posthoc_lt import FeatureSet, rebalance
from posthoc_lt.cli import options
from posthoc_lt.pipeline import fit
from posthoc_lt.pipeline.fit import Selection
from posthoc_lt.search import FIGURES, RULES


def test_the_options_name_every_figure_and_rule() -> None:
    @click.command()
    @options.together(options.metric, options.select)
    def command() -> None: ...

    metric, select = (option.type for option in command.params)
    assert isinstance(metric, click.Choice)
    assert isinstance(select, click.Choice)
    assert set(metric.choices) == set(FIGURES)
    assert list(select.choices) == list(RULES)


def test_tau_search_tells_the_confidence_set(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("tau-search --select metric", capsys)
    low, high = found["tau_interval"]
    assert 0 <= low <= found["plateau"][0] <= found["tau"] <= found["plateau"][1] <= high <= 4
    assert f"95% confidence set of the best tau: {low:.4g} to {high:.4g}" in " ".join(
        out_of("tau-search", capsys).split()
    )
    assert "tau_interval" not in json_of("logit-adjust --tau 1", capsys)


def test_cross_fit_chooses_for_every_family(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("logit-adjust", "tau-norm --bias keep", "crt"):
        found = json_of(f"{command} --select cross-fit", capsys)
        assert found["decided_by"] == "cross-fit"
    assert "halves" in out_of("tau-search --select cross-fit", capsys)


def test_class_weights_come_from_a_file(there: Path, features: FeatureSet, capsys: pytest.CaptureFixture[str]) -> None:
    weights = np.array([0, 0, 0, 0, 0, 0, 0, 1, 2, 5])
    (there / "weights.txt").write_text(", ".join(map(str, weights)))
    chosen = "--metric weighted-accuracy --class-weight weights.txt --select metric"
    found = json_of(f"tau-search {chosen}", capsys)
    assert features.val is not None
    predicted = fit("logit-adjust", features, knob=found["tau"]).head(features.val.x.float()).argmax(dim=1)
    recalls = recall_score(features.val.labels, predicted, average=None)
    assert found["best"]["value"] == pytest.approx(np.average(recalls, weights=weights))
    assert found["best"]["value"] > np.average(recalls)
    floor = json_of("tau-search --subject-to weighted-accuracy>=0.9 --class-weight weights.txt", capsys)
    assert floor["val"]["few"] > 0.5
    whole = json_of(f"rebalance --methods logit-adjust {chosen}", capsys)
    assert whole["tau"] == found["tau"]
    again = rebalance(
        features, methods="logit-adjust", metric="weighted-accuracy", class_weight=weights, select="metric"
    )
    assert again.tau == found["tau"]
    assert "weighted accuracy, the metric chosen by, goes from" in whole["verdict"]


def test_groups_are_two_numbers_with_a_comma(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("logit-adjust --tau 1 --groups 10,400", capsys)
    assert found["arguments"]["groups"] == [10, 400]
    per_class = json_of("logit-adjust --tau 1 -v", capsys)["test"]["per_class"]
    few = [row["recall"] for row in per_class if row["train"] < 10]
    assert found["test"]["few"] == pytest.approx(np.mean(few))


def test_the_worst_class_can_be_chosen_by_and_held(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("tau-search --metric worst-class --select metric", capsys)
    assert found["val"]["worst_class"] == pytest.approx(found["best"]["value"])
    held = json_of("tau-search --subject-to worst-class>=0.45", capsys)
    assert held["val"]["worst_class"] >= 0.45


def test_the_verdict_on_a_group_tells_it_once_and_first(features: FeatureSet) -> None:
    result = rebalance(features, methods="logit-adjust", metric="few")
    assert result.verdict.startswith("On test, few-shot accuracy, the metric chosen by, ")
    assert result.verdict.count("few-shot") == 1
    assert "validation few-shot accuracy" in result.reason
    balanced = rebalance(features, methods="logit-adjust")
    assert "chosen by" not in balanced.verdict


def test_what_is_printed_is_short(features: FeatureSet) -> None:
    result = rebalance(features, methods="logit-adjust")
    assert repr(result.chosen).startswith("Fitted(logit-adjust, tau=")
    assert "test " in repr(result.chosen)
    assert repr(fit("ncm", features)).startswith("Fitted(ncm by none, val ")
    assert (
        repr(result.procedure)
        == f"Procedure({len(result.procedure.predicted)} predictions, figure={result.procedure.figure:.3f})"
    )


def test_a_selection_is_a_plain_value() -> None:
    one = Selection("weighted-accuracy", class_weight=(1.0, 2.0))
    assert one == Selection("weighted-accuracy", class_weight=(1.0, 2.0))
    assert one.free() == one
    held = Selection(subject_to=("weighted-accuracy>=0.5",), class_weight=(1.0, 2.0))
    assert held.free() == Selection()
    assert torch.is_tensor(held._goal().class_weight)
