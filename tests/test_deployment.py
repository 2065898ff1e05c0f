"""Priors and targets through the whole pipeline: Bayes' rule where it is known, and what the commands say."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import json_of, out_of, refusal_of

from posthoc_lt import Features, FeatureSet, Head, PosthocError, fit, load_features, load_head, rebalance, save_features
from posthoc_lt.cli import run
from posthoc_lt.family import Line
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.pipeline.deployment import deployment_prior, estimated_shares, network_shares
from posthoc_lt.pipeline.fit import Selection
from posthoc_lt.priors import Shares
from posthoc_lt.search.likelihood import fit_knob
from posthoc_lt.search.unlabelled import match_prior

COUNTS = torch.tensor([600, 200, 60, 20])
TRAIN = (COUNTS / COUNTS.sum()).numpy()
TARGET = np.array([0.1, 0.2, 0.3, 0.4])
ANGLE = 2 * np.pi * np.arange(4) / 4
MEANS = 1.5 * np.stack([np.cos(ANGLE), np.sin(ANGLE)], axis=1)
HEAD = Head(torch.from_numpy(MEANS), torch.from_numpy(np.log(TRAIN) - (MEANS**2).sum(axis=1) / 2))
"""The exact posteriors under TRAIN."""


def draw(prior: np.ndarray[tuple[int, ...], np.dtype[np.float64]], samples: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)
    y = rng.choice(4, samples, p=prior)
    return Features(torch.from_numpy(MEANS[y] + rng.normal(size=(samples, 2))), torch.from_numpy(y))


def world(val: Features, test: Features | None = None) -> FeatureSet:
    return FeatureSet(HEAD, None, val, test, train_counts=COUNTS)


UNIFORM = np.full(4, 0.25)
GIVEN = Shares(tuple(TARGET), "file")


@pytest.mark.parametrize("target", [GIVEN, "train"], ids=str)
def test_for_calibrated_logits_tau_is_near_1_and_the_head_bayes_rule(target: Shares) -> None:
    """Validation is balanced, the target is not: chosen by what counts under the target."""
    found = fit(LogitAdjust(target_prior=target), world(draw(UNIFORM, 4000, 0)))
    assert found.choice.knob == pytest.approx(1.0, abs=0.15)
    shares = TARGET if target is GIVEN else TRAIN
    bayes = np.log(shares) - (MEANS**2).sum(axis=1) / 2
    x = draw(shares, 4000, 1).x.numpy()
    agree = (x @ MEANS.T + bayes).argmax(axis=1) == found.head(x).argmax(axis=1)
    assert agree.mean() > 0.98


def test_the_metric_that_chooses_is_accuracy_under_the_target() -> None:
    val = draw(UNIFORM, 300, 2)
    selection = Selection(rule="metric")
    found = fit(LogitAdjust(target_prior=GIVEN), world(val), selection=selection)
    labels = val.labels.numpy()

    def under_target(tau: float) -> float:
        bias = HEAD.bias.numpy() + np.log(TARGET) - tau * np.log(TRAIN)
        right = (val.x.numpy() @ MEANS.T + bias).argmax(axis=1) == labels
        return float(sum(TARGET[c] * right[labels == c].mean() for c in range(4)))

    assert found.choice.knob is not None
    assert found.choice.best is not None
    assert found.choice.best[0] == pytest.approx(under_target(found.choice.knob), abs=1e-12)
    assert found.choice.best[0] >= max(under_target(tau) for tau in np.linspace(0, 4, 801)) - 1e-12
    asked = Selection(metric="macro-f1").goal_of(LogitAdjust(target_prior=GIVEN), world(val))
    assert asked.metric == "macro-f1", "what was asked for stays"
    assert Selection().goal_of(LogitAdjust(), world(val)).metric == "balanced-accuracy"


def test_without_labels_predictions_are_spread_as_the_target_says() -> None:
    unlabelled = Features(draw(TARGET, 4000, 3).x)
    for target, expected in ((GIVEN, TARGET), ("uniform", UNIFORM)):
        found = fit(LogitAdjust(target_prior=target), world(unlabelled))  # type: ignore[arg-type]
        assert found.choice.decided_by == "label-free"
        mean = torch.softmax(found.head(unlabelled.x), dim=1).mean(dim=0).numpy()
        assert mean == pytest.approx(expected, abs=0.03 if target is GIVEN else 0.15)


def test_a_class_without_train_samples_is_masked_or_smoothed_on_request() -> None:
    counts = torch.tensor([600, 200, 60, 0])
    val = draw(UNIFORM, 200, 4)
    features = FeatureSet(HEAD, None, val, train_counts=counts)
    with pytest.raises(PosthocError, match="--zero-count smooth"):
        fit(LogitAdjust(), features)
    masked = fit(LogitAdjust(zero_count="mask"), features)
    assert masked.val is not None
    assert not bool((masked.val.predicted == 3).any())
    smooth = fit(LogitAdjust(zero_count="smooth"), features)
    assert smooth.val is not None
    assert bool((smooth.val.predicted == 3).any())
    assert all(bool(each.head.bias.isfinite().all()) for each in (masked, smooth))
    both = LogitAdjust(zero_count="mask", target_prior="train")
    assert fit(both, features).head.masked.tolist() == [False, False, False, True]
    unlabelled = replace(features, val=Features(val.x))
    assert fit(LogitAdjust(zero_count="mask"), unlabelled).choice.decided_by == "label-free"


def test_samples_of_a_masked_class_do_not_sway_the_likelihood() -> None:
    val = draw(UNIFORM, 200, 5)
    training = FeatureSet(HEAD, None, val, train_counts=torch.tensor([600, 200, 60, 0])).training
    family = LogitAdjust(zero_count="mask").fit(HEAD, training)
    kept = val.subset((val.labels != 3).nonzero().flatten())
    one, other = (fit_knob(family, each, torch.ones(len(each)).double()) for each in (val, kept))
    assert (one.knob, one.scale) == pytest.approx((other.knob, other.scale), abs=1e-6)
    assert match_prior(family, val, torch.tensor([0.5, 0.3, 0.2, 0.0]).double(), (0.0, 4.0)) > 0


def test_the_deployments_frequencies_are_found_from_unlabelled_samples() -> None:
    features = world(draw(UNIFORM, 4000, 6))
    found = deployment_prior(features, Features(draw(TARGET, 4000, 7).x))
    assert found.prior.numpy() == pytest.approx(TARGET, abs=0.05)
    shares = estimated_shares(found)
    assert shares.values == pytest.approx(found.prior.tolist())
    alone = deployment_prior(features, Features(draw(np.array([0.5, 0.5, 0, 0]), 50, 8).x))
    assert min(estimated_shares(alone).values) >= 0.5 / 50, "a share of 0 has no logarithm"
    off = Head(HEAD.weight, HEAD.bias + torch.tensor([1.0, -1.0, 0.5, -0.5]).double())
    biased = deployment_prior(replace(features, head=off), Features(draw(TARGET, 4000, 7).x))
    assert biased.prior.numpy() == pytest.approx(TARGET, abs=0.05), "a bias of each class's own is corrected on val"
    with pytest.raises(PosthocError, match="to calibrate on"):
        deployment_prior(replace(features, val=None), Features(draw(TARGET, 50, 9).x))


def test_the_interval_holds_what_few_validation_samples_leave_open() -> None:
    """Twelve draws of 4 classes; by the chance in the deployment samples alone it would hold a third of the truths."""
    held = 0
    for seed in range(12):
        found = deployment_prior(world(draw(UNIFORM, 40, 100 + seed)), Features(draw(TARGET, 1000, 200 + seed).x))
        held += int(((found.low.numpy() <= TARGET) & (found.high.numpy() >= TARGET)).sum())
    assert held >= 38
    single = deployment_prior(world(draw(UNIFORM, 1, 1)), Features(draw(TARGET, 100, 9).x))
    assert bool((single.low <= single.prior).all())


def test_the_networks_own_frequencies_are_those_it_was_made_with() -> None:
    assert network_shares(world(draw(UNIFORM, 8000, 10))).values == pytest.approx(TRAIN, rel=0.15)
    with pytest.raises(PosthocError, match="take the train counts"):
        network_shares(FeatureSet(HEAD, train_counts=COUNTS))


# The commands


def test_a_target_prior_from_a_file_is_said_and_kept(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "shares.txt").write_text("1 1 1 1 1 1 1 1 1 4")
    found = json_of("logit-adjust --target-prior shares.txt --out head.safetensors", capsys)
    assert found["metric"] == "weighted-accuracy"
    assert found["target_prior"] == {"source": "shares.txt", "shares": [1.0] * 9 + [4.0]}
    assert found["prior"] == "counts"
    cached = load_features(there / "feats.safetensors")
    shift = load_head(there / "head.safetensors").head.bias - cached.head.bias
    expected = torch.tensor([1.0] * 9 + [4.0]).log() - found["tau"] * (cached.counts / cached.counts.sum()).log()
    assert (shift - shift.mean()).tolist() == pytest.approx((expected - expected.mean()).tolist(), abs=1e-4)
    assert "accuracy under the target prior" in out_of("tau-search --target-prior shares.txt", capsys)
    equal = json_of("logit-adjust --tau 1.2 --prior uniform", capsys)
    assert equal["test"]["accuracy"] == equal["baseline"]["test"]["accuracy"]


def test_em_takes_deployment_samples_and_looks_at_no_label(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of test judges; the other half, its last class six times as frequent, is what the head will meet."""
    whole = load_features(there / "feats.safetensors")
    assert whole.test is not None
    judging, met = (whole.test.subset(torch.arange(start, 1000, 2)) for start in (0, 1))
    rows = met.subset(torch.cat([torch.arange(500), (met.labels == 9).nonzero().flatten().repeat(5)]))
    share = float((rows.labels == 9).double().mean())
    save_features(replace(whole, test=judging), there / "feats.safetensors", force=True)
    wrong = Features(rows.x, torch.zeros(len(rows), dtype=torch.int64))
    for name, split in (("unlabelled", Features(rows.x)), ("labelled", wrong)):
        save_features(replace(whole, train=None, val=None, test=split, train_counts=whole.counts), there / name)
    command = "tau-search --target-prior em --deploy-features"
    one, other = (json_of(f"{command} {name}", capsys) for name in ("unlabelled", "labelled"))
    assert one["target_prior"] == other["target_prior"]
    assert one["inputs"]["deploy_features"]["sha256"] == sha256((there / "unlabelled").read_bytes()).hexdigest()
    assert one["estimate"]["low"][9] < one["estimate"]["shares"][9] < one["estimate"]["high"][9]
    assert one["estimate"]["shares"][9] == pytest.approx(share, abs=0.1)
    assert run(["calibrate", "--deploy", "em", "--deploy-features", "unlabelled"]) == 0
    printed = capsys.readouterr()
    assert "9-ankle-boot" in printed.err.partition("percent")[2]
    assert "em " in printed.out
    save_features(replace(whole, test=Features(rows.x)), there / "deployed")
    assert (
        json_of("logit-adjust --tau 1 --target-prior em --features deployed", capsys)["target_prior"]
        == one["target_prior"]
    )


@pytest.mark.parametrize(
    ("command", "status", "named"),
    [
        ("logit-adjust --target-prior em", 1, "it judges, and does not choose"),
        ("calibrate --deploy em", 1, "--deploy-features"),
        ("logit-adjust --target-prior em --deploy-features feats.safetensors", 1, "whose samples are test"),
        ("tau-search --deploy-features feats.safetensors", 1, "without anything to estimate"),
        ("calibrate --deploy-features feats.safetensors", 1, "without anything to estimate"),
        ("logit-adjust --target-prior nowhere.txt", 1, "correct --target-prior"),
        ("logit-adjust --prior zero.txt", 1, "class 2"),
        ("logit-adjust --prior short.txt", 1, "10 numbers"),
        ("tau-search --method tau-norm --prior model", 2, "--method logit-adjust"),
        ("logit-adjust --zero-count ignore", 2, "ignore"),
    ],
)
def test_what_cannot_be_had_is_refused(
    command: str, status: int, named: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (there / "zero.txt").write_text("1 1 0 1 1 1 1 1 1 1")
    (there / "short.txt").write_text("1 2")
    found, message = refusal_of(command.split(), capsys)
    assert (found, named in " ".join(message.split())) == (status, True), message


def test_an_empty_class_on_the_command_line(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_features(there / "feats.safetensors")
    counts = whole.counts.clone()
    counts[9] = 0
    save_features(replace(whole, train=None, train_counts=counts), there / "gap.safetensors")
    for command in ("logit-adjust", "calibrate"):
        status, message = refusal_of([command, "--features", "gap.safetensors"], capsys)
        assert (status, "--zero-count mask" in message) == (1, True)
        assert run([command, "--features", "gap.safetensors", "--zero-count", "mask"]) == 0
        assert "Never predicted, for want of a train sample: 9-ankle-boot" in capsys.readouterr().err
        assert run([command, "--features", "gap.safetensors", "--zero-count", "smooth"]) == 0
    out_of("logit-adjust --features gap.safetensors --zero-count mask --out masked.safetensors", capsys)
    made = json_of("export --ckpt model.pt --head masked.safetensors --out masked.pt", capsys)
    assert made["changed"] == ["linear.weight", "linear.bias"]


def test_calibrate_judges_under_three_populations(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "shares.txt").write_text("9 1 1 1 1 1 1 1 1 1")
    rows = json_of("calibrate --deploy shares.txt", capsys)["rows"]
    assert [(row["under"], row["head"]) for row in rows] == [
        (under, head) for under in ("uniform", "train", "shares.txt") for head in ("as it was", "calibrated")
    ]
    whole = load_features(there / "feats.safetensors")
    assert whole.test is not None
    log_p = whole.head(whole.test.x).double().log_softmax(dim=1).gather(1, whole.test.labels[:, None])[:, 0]
    shares = {"uniform": torch.ones(10), "train": whole.counts, "shares.txt": torch.tensor([9.0] + [1.0] * 9)}
    for row in rows[::2]:
        weight = shares[row["under"]].double() / shares[row["under"]].sum()
        by_class = torch.stack([log_p[whole.test.labels == c].mean() for c in range(10)])
        assert row["nll"] == pytest.approx(-float(weight @ by_class), abs=1e-6)
    assert len({tuple(row) for row in rows}) == 1


def test_methods_are_ranked_under_the_target_where_it_is_the_metric() -> None:
    """Cross-fitting chooses each fold's knob by what counts under the target, as fitting does."""
    features = world(draw(UNIFORM, 400, 12), draw(TARGET, 400, 13))
    aimed = LogitAdjust(target_prior=GIVEN)
    found = rebalance(features, methods=[aimed], metric="weighted-accuracy", class_weight=GIVEN.values)
    assert found.chosen.method == aimed
    assert found.chosen.label == "logit-adjust (target_prior=file)"
    assert found.scores[found.chosen.label] > found.scores["baseline"] + 0.05


def test_the_line_of_a_target_starts_from_it() -> None:
    family = LogitAdjust(target_prior=GIVEN).fit(HEAD, world(draw(UNIFORM, 5, 11)).training)
    assert isinstance(family, Line)
    assert family.origin.bias.numpy() == pytest.approx(HEAD.bias.numpy() + np.log(TARGET))
    assert family.direction.bias.numpy() == pytest.approx(-np.log(TRAIN))


def test_a_target_and_class_weights_of_ones_own_cannot_both_lead(features: FeatureSet) -> None:
    """One set of weights can lead the choice: the target's would be passed over without a word."""
    weights = tuple(float(c + 1) for c in range(10))
    method = LogitAdjust(target_prior="train")
    floor = Selection(subject_to=("weighted-accuracy>=0.1",), class_weight=weights)
    with pytest.raises(PosthocError, match="--metric weighted-accuracy"):
        fit(method, features, selection=floor)
    own = fit(method, features, selection=Selection(metric="weighted-accuracy", class_weight=weights))
    assert own.choice.decided_by in ("likelihood", "guard")
