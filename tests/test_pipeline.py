from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import posthoc_lt
from posthoc_lt import METHODS, Features, FeatureSet, PosthocError, Result, load_head
from posthoc_lt.data import Reader
from posthoc_lt.export import export
from posthoc_lt.extraction import open_source
from posthoc_lt.methods import DEFAULT_METHODS
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.methods.tau_norm import TauNorm
from posthoc_lt.pipeline import fit


@pytest.fixture(scope="module")
def result(case: Path) -> Result:
    return posthoc_lt.rebalance(case / "feats.safetensors")


def arrays(split: Features | None) -> tuple[np.ndarray, np.ndarray]:
    assert split is not None
    return split.x.numpy(), split.labels.numpy()


def test_the_embedded_case_gains_clearly_and_shows_its_controls(result: Result) -> None:
    """What the issue asks of the product on its own case: a gain clear of 0, few-shot up, refit shown."""
    rows = {row.method: row for row in result.comparison.rows}
    assert list(rows) == list(DEFAULT_METHODS)
    chosen = rows[result.method]
    assert chosen.chosen
    assert chosen.paired is not None
    assert chosen.paired.low > 0
    assert chosen.test is not None
    before = rows["baseline"].test
    assert before is not None
    few_before, few_after = before.group("few"), chosen.test.group("few")
    assert few_before is not None
    assert few_after is not None
    assert few_after > few_before + 0.05
    assert rows["refit"].control


def test_the_table_agrees_with_sklearn(result: Result, features: FeatureSet) -> None:
    table = result.table
    assert isinstance(table, pandas.DataFrame)
    x, y = arrays(features.test)
    logits = x.astype(np.float32) @ result.head.weight.numpy().T + result.head.bias.numpy()
    expected = balanced_accuracy_score(y, logits.argmax(axis=1))
    row = table[table["method"] == result.method].iloc[0]
    assert row["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)


def same(one: Result, two: Result) -> None:
    assert (one.method, one.knobs) == (two.method, two.knobs)
    assert torch.equal(one.head.weight, two.head.weight)
    assert torch.equal(one.head.bias, two.head.bias)


def test_path_set_and_arrays_give_the_same_result(result: Result, features: FeatureSet) -> None:
    names = ["logit-adjust", "tau-norm", "ncm"]
    from_path = posthoc_lt.rebalance(features, methods=names)
    head = features.head
    splits = [arrays(split) for split in (features.train, features.val, features.test)]
    same(from_path, posthoc_lt.rebalance(head, *splits, methods=names))
    same(from_path, posthoc_lt.rebalance((head.weight.numpy(), head.bias.numpy()), *splits, methods=names))
    same(from_path, posthoc_lt.rebalance((head, *splits), methods=names))
    same(result, posthoc_lt.rebalance(features))


def test_class_counts_may_stand_in_for_train(features: FeatureSet) -> None:
    counted = posthoc_lt.rebalance(features.head, features.counts.numpy(), arrays(features.val))
    assert set(counted.skipped) == {"affine", "crt", "lda", "lws", "ncm", "refit", "ridge"}
    assert all("train features" in reason for reason in counted.skipped.values())
    assert {each.name for each in counted.fitted} == {"baseline", "logit-adjust", "scale", "tau-norm"}
    with pytest.raises(PosthocError, match="train features, which ncm is fitted on"):
        posthoc_lt.rebalance(features.head, features.counts, arrays(features.val), methods=["ncm"])


class Inputs:
    """A loader of a split's images, in batches."""

    def __init__(self, split: Reader) -> None:
        self.dataset = split

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return iter(self.dataset.batches(128))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_arrays_that_lie_on_the_gpu_give_the_same_result(features: FeatureSet) -> None:
    splits = [[torch.from_numpy(part).cuda() for part in arrays(split)] for split in (features.val, features.test)]
    found = posthoc_lt.rebalance(features.head, features.counts.cuda(), *splits, methods="logit-adjust")
    expected = posthoc_lt.rebalance(features, methods="logit-adjust", device="cpu")
    assert found.tau == pytest.approx(expected.tau, abs=1e-3)


def test_a_network_in_memory_gives_the_same_head_and_a_patched_copy(
    case: Path, result: Result, original_model: Callable[[], nn.Module]
) -> None:
    model = original_model()
    model.load_state_dict(torch.load(case / "model.pt")["state_dict"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = open_source(case / "model.pt", case / "data")
    loaders = {name: Inputs(source.split(name)) for name in ("train", "val", "test")}
    found = posthoc_lt.rebalance(model, *loaders.values(), methods=["logit-adjust", "tau-norm"])
    assert torch.allclose(
        found.head.weight,
        posthoc_lt.rebalance(result.features, methods=["logit-adjust", "tau-norm"]).head.weight,
        rtol=1e-2,
    )
    inputs, _ = next(iter(loaders["test"]))
    patched = found.apply()
    assert found.features.test is not None
    expected = found.head(found.features.test.x[: len(inputs)])
    assert torch.allclose(patched(inputs), expected, atol=2e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_torch_loaders_are_taken_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    loader, other = (DataLoader(TensorDataset(inputs, y), batch_size=16) for inputs in (x, torch.randn(60, 4)))
    found = posthoc_lt.rebalance(model, loader, other, methods=["logit-adjust"])
    assert found.apply()(x).shape == (60, 3)
    with pytest.raises(PosthocError, match="train and a validation loader"):
        posthoc_lt.rebalance(model, loader)


def test_test_labels_never_reach_the_choice(result: Result, features: FeatureSet) -> None:
    """Any test labels, or none, leave head, knob and method as they are."""
    assert features.test is not None
    shuffled = Features(features.test.x, features.test.labels[torch.randperm(len(features.test))])
    same(result, posthoc_lt.rebalance(replace(features, test=shuffled)))
    same(result, posthoc_lt.rebalance(replace(features, test=None)))
    same(result, posthoc_lt.rebalance(replace(features, test=Features(features.test.x))))


def test_without_test_the_verdict_says_that_validation_flatters(features: FeatureSet) -> None:
    found = posthoc_lt.rebalance(replace(features, test=None), methods=["logit-adjust"])
    assert "flatters" in found.verdict
    assert found.comparison.split == "val"


def test_the_best_cross_fitted_method_is_chosen(result: Result) -> None:
    assert "refit" not in result.scores
    assert result.scores[result.method] == max(result.scores.values())
    assert result.method in result.reason


def test_the_untouched_head_is_kept_where_nothing_beats_it() -> None:
    """Validation as long-tailed as train, by its own calibrated logits: adjusting can only lose accuracy."""
    rng = np.random.default_rng(0)
    counts = np.array([900, 90, 10])
    means = 2.0 * np.eye(3)
    y = np.repeat(np.arange(3), counts)
    x, other = (means[y] + rng.normal(size=(len(y), 3)) for _ in range(2))
    head = (means, np.log(counts / counts.sum()) - (means**2).sum(axis=1) / 2)
    found = posthoc_lt.rebalance(head, (x, y), (other, y), metric="accuracy", select="metric", methods=["ncm"])
    assert found.method == "baseline"
    assert found.knobs == {}
    assert found.tau is None
    assert "nothing changed" in found.verdict


def test_compare_shows_what_was_asked_for_beside_the_baseline(features: FeatureSet) -> None:
    table = posthoc_lt.compare(features, methods=["refit", TauNorm(bias="scale")])
    assert [row.method for row in table.comparison.rows] == ["baseline", "refit", "tau-norm"]
    assert not any(row.chosen for row in table.comparison.rows)


def test_a_knob_that_is_given_is_taken(features: FeatureSet) -> None:
    fitted = fit("logit-adjust", replace(features, val=None), knob=1.0)
    assert (fitted.choice.knob, fitted.choice.decided_by, fitted.val) == (1.0, "given", None)
    counts = features.counts.double()
    expected = features.head.bias.double() - (counts / counts.sum()).log()
    shift = fitted.head.bias.double() - expected
    assert torch.allclose(shift, shift.mean().expand_as(shift), atol=1e-5)


def test_nothing_is_chosen_on_train_or_test(features: FeatureSet) -> None:
    for split in (None, Features(torch.zeros(3, 64))):
        with pytest.raises(PosthocError, match="val/ folder"):
            posthoc_lt.rebalance(replace(features, val=split))
    with pytest.raises(PosthocError, match="will not do"):
        fit("crt", replace(features, val=None))


def test_without_validation_tau_is_1_and_says_that_it_is_untuned(features: FeatureSet) -> None:
    for name in ("logit-adjust", "tau-norm"):
        choice = fit(name, replace(features, val=None)).choice
        assert (choice.knob, choice.decided_by) == (1.0, "untuned")


def test_unlabelled_validation_chooses_the_tau_that_spreads_predictions_evenly(features: FeatureSet) -> None:
    assert features.val is not None
    unlabelled = Features(features.val.x)
    fitted = fit("logit-adjust", replace(features, val=unlabelled))
    assert fitted.choice.decided_by == "label-free"
    assert fitted.choice.knob is not None
    logits = features.head(features.val.x).double().numpy()
    counts = features.counts.numpy()
    log_prior = np.log(counts / counts.sum())

    def divergence(tau: float) -> float:
        mean = softmax(logits - tau * log_prior, axis=1).mean(axis=0)
        return float(np.sum(0.1 * (np.log(0.1) - np.log(mean))))

    assert divergence(fitted.choice.knob) <= min(divergence(t) for t in np.linspace(0, 4, 2001)) + 1e-9


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda f: posthoc_lt.rebalance(f, methods=["magic"]), "method 'magic'"),
        (lambda f: posthoc_lt.rebalance(f, metric="f1"), "metric 'f1'"),
        (lambda f: posthoc_lt.rebalance(f, select="best"), "rule 'best'"),
        (lambda f: posthoc_lt.rebalance(f, edges=(5, 1)), "group edges"),
        (lambda f: posthoc_lt.rebalance(f, device="tpu"), "device"),
        (lambda f: posthoc_lt.rebalance("nowhere.safetensors"), "nowhere.safetensors"),
        (lambda f: posthoc_lt.rebalance(object()), "type object"),
        (lambda f: posthoc_lt.rebalance(f.head, f.counts, 7), "val of type int"),
    ],
)
def test_what_cannot_be_used_is_refused(call: Callable[[FeatureSet], object], named: str, features: FeatureSet) -> None:
    with pytest.raises(PosthocError, match=named):
        call(features)


def test_saving_keeps_the_head_and_where_it_comes_from(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "head.safetensors")
    saved = load_head(tmp_path / "head.safetensors")
    assert torch.equal(saved.head.weight, result.head.weight)
    assert saved.provenance["method"] == result.method
    assert {name: float(saved.provenance[name]) for name in result.knobs} == result.knobs != {}
    assert saved.provenance["checkpoint_sha256"] == result.features.provenance["checkpoint_sha256"]


def test_export_from_python(result: Result, case: Path, tmp_path: Path) -> None:
    made = result.export(case / "model.pt", tmp_path / "balanced.pt", data=case / "data")
    content = torch.load(tmp_path / "balanced.pt")
    assert torch.equal(content["state_dict"]["linear.weight"], result.head.weight)
    assert made.changed == ("linear.weight", "linear.bias")
    with pytest.raises(PosthocError, match="export"):
        result.apply()


@pytest.mark.parametrize("kind", [None, "tau", "classes", "norms", "pareto", "reliability", "confusion"])
def test_plots_show_the_numbers(result: Result, kind: str | None) -> None:
    from matplotlib import pyplot

    axes = result.plot(kind)
    assert axes.get_xlabel()
    assert axes.get_title()
    pyplot.close("all")
    with pytest.raises(PosthocError, match="one of tau, classes, norms, pareto, reliability, confusion"):
        result.plot("pie")


def test_a_notebook_shows_names_as_text(features: FeatureSet) -> None:
    names = ("<script>alert(1)</script>", *features.classes[1:])
    shown = posthoc_lt.rebalance(replace(features, classes=names), methods=["logit-adjust"])._repr_html_()
    assert "<script>" not in shown
    assert "<table>" in shown


def test_every_head_predicts_the_same_once_the_original_code_loads_it(
    case: Path, features: FeatureSet, tmp_path: Path, original_model: Callable[[], nn.Module]
) -> None:
    """Each method's patched checkpoint, in code that knows nothing of us, against its head in numpy."""
    images = open_source(case / "model.pt", case / "data").split("test")
    inputs = torch.cat([batch for batch, _ in images.batches(256)])[::4]
    x = arrays(features.test)[0][::4]
    for name in METHODS:
        head = fit(name, features).head
        out = tmp_path / f"{name}.pt"
        export(case / "model.pt", head, out, features=features, data=case / "data")
        model = original_model()
        model.load_state_dict(torch.load(out)["state_dict"])
        with torch.inference_mode():
            patched = model(inputs).double().numpy()
        expected = x.astype(np.float64) @ head.weight.double().numpy().T + head.bias.double().numpy()
        top = np.sort(expected, axis=1)
        clear = top[:, -1] - top[:, -2] > 2e-3 * np.abs(expected).max(axis=1)
        assert clear.mean() > 0.98
        assert (patched.argmax(axis=1) == expected.argmax(axis=1))[clear].all(), name


def test_a_limit_leaves_the_train_counts_whole(case: Path) -> None:
    """Priors and groups are those of what the network was trained on, however few images are tried."""
    few = posthoc_lt.extract(case / "model.pt", case / "data", limit=30)
    assert few.train is not None
    assert len(few.train) == 30
    assert few.counts.tolist() == [500, 299, 179, 107, 64, 38, 23, 13, 8, 5]


def test_a_solved_head_comes_with_its_certificate(result: Result) -> None:
    found = {each.name: each.certificate for each in result.fitted}
    assert {name for name, certificate in found.items() if certificate is not None} == {"affine", "crt", "lws", "refit"}
    assert all(certificate.converged for certificate in found.values() if certificate is not None)


def test_two_settings_of_one_method_are_told_apart(features: FeatureSet) -> None:
    """The order in which they are given decides nothing, and each keeps its own score."""
    settings = [LogitAdjust(prior="uniform"), LogitAdjust()]
    one, two = (posthoc_lt.rebalance(features, methods=order) for order in (settings, settings[::-1]))
    same(one, two)
    assert one.chosen.method == LogitAdjust()
    assert set(one.scores) == {"baseline", "logit-adjust", "logit-adjust (prior=uniform)"}
    assert one.scores["logit-adjust (prior=uniform)"] == pytest.approx(one.scores["baseline"])
    again = posthoc_lt.rebalance(features, methods=["tau-norm", "tau-norm", METHODS["baseline"]])
    assert [each.name for each in again.fitted] == ["baseline", "tau-norm"]


def test_the_procedure_is_judged_on_folds_without_a_say(features: FeatureSet) -> None:
    """With labels that no feature explains, choosing the best of seven looks good and is worth nothing."""
    assert features.val is not None
    flattered, honest = [], []
    for seed in range(6):
        rng = torch.Generator().manual_seed(seed)
        labels = features.val.labels[torch.randperm(len(features.val), generator=rng)]
        found = posthoc_lt.rebalance(replace(features, val=Features(features.val.x, labels), test=None))
        flattered.append(max(found.scores.values()))
        honest.append(found.procedure.figure)
    assert np.mean(flattered) > np.mean(honest)
    assert np.mean(honest) == pytest.approx(0.1, abs=0.03)


def test_splits_may_come_bundled_with_their_head(features: FeatureSet) -> None:
    head, splits = features.head, [arrays(split) for split in (features.train, features.val, features.test)]
    pair = (head.weight.numpy(), head.bias.numpy())
    expected = posthoc_lt.rebalance(features, methods="logit-adjust")
    for found in (
        posthoc_lt.rebalance((pair, *splits), methods="logit-adjust"),
        posthoc_lt.rebalance((pair, splits[0]), val=splits[1], test=splits[2], methods="logit-adjust"),
        posthoc_lt.rebalance(pair, *splits, methods=[METHODS["logit-adjust"]]),
    ):
        same(expected, found)
        assert found.features.test is not None
    with pytest.raises(PosthocError, match="beside features that hold their own"):
        posthoc_lt.rebalance(features, val=splits[1])
    with pytest.raises(PosthocError, match="each once"):
        posthoc_lt.rebalance((pair, *splits), val=splits[1])


def test_lists_and_views_are_taken_for_what_they_are() -> None:
    rng = np.random.default_rng(0)
    weight, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.arange(40) % 2
    x = (np.eye(2)[y] + rng.normal(size=(40, 2)))[::-1]
    y = y[::-1]
    found = posthoc_lt.rebalance(weight.tolist(), [30, 3], (x, y.tolist()), (x + 0, None), methods="logit-adjust")
    assert found.features.counts.tolist() == [30, 3]
    assert not found.features.head.has_bias
    assert found.features.test is not None
    assert found.features.test.y is None


def test_a_figure_of_a_group_is_cross_fitted_where_folds_lack_the_group(features: FeatureSet) -> None:
    assert features.val is not None
    labels = features.val.labels
    one = (labels == 9).nonzero().flatten()[:1]
    kept = torch.cat([(labels < 7).nonzero().flatten(), one])
    found = posthoc_lt.rebalance(replace(features, val=features.val.subset(kept)), metric="few", methods="logit-adjust")
    assert 0 <= found.scores["logit-adjust"] <= 1


def test_one_method_is_fitted_from_a_path_and_one_floor_from_a_string(case: Path, features: FeatureSet) -> None:
    path = case / "feats.safetensors"
    assert torch.equal(posthoc_lt.fit("ncm", path).head.weight, posthoc_lt.fit("ncm", features).head.weight)
    found = posthoc_lt.rebalance(path, methods="logit-adjust", subject_to="many>=0.85")
    assert found.chosen.val is not None
    assert (found.chosen.val.group("many") or 0) >= 0.85 - 1e-9


def test_only_tau_has_a_value_without_validation(features: FeatureSet) -> None:
    """w/pi^1 would throw away all but the rarest class: no paper sets gamma unseen."""
    bare = replace(features, val=None)
    assert fit("logit-adjust", bare).choice.decided_by == "untuned"
    with pytest.raises(PosthocError, match="set --gamma"):
        fit("scale", bare)
    assert features.val is not None
    unlabelled = replace(features, val=Features(features.val.x))
    assert fit("scale", unlabelled).choice.decided_by == "label-free"
