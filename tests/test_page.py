from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refusal_of

import posthoc_lt
from posthoc_lt import Features, FeatureSet, Head, PosthocError, Result
from posthoc_lt.cli import run
from posthoc_lt.evaluation import evaluate
from posthoc_lt.methods.blend import Blend
from posthoc_lt.methods.logit_adjust import LogitAdjust
from posthoc_lt.pipeline.story import story
from posthoc_lt.priors import Shares
from posthoc_lt.report.page import page

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """What a browser would see: every element closed in order, and the text of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def result(features: FeatureSet) -> Result:
    return posthoc_lt.rebalance(features, methods=["logit-adjust", "tau-norm"])


def made_of(classes: tuple[str, ...], per_class: int = 4, methods: str = "logit-adjust") -> Result:
    """A result on random features with these class names."""
    count = len(classes)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count).repeat_interleave(per_class)
    train = torch.arange(count).repeat_interleave(torch.arange(count) % 300 + 1)

    def split(labels: torch.Tensor) -> Features:
        x = torch.randn(len(labels), 16, generator=generator)
        x[torch.arange(len(labels)), labels % 16] += 2
        return Features(x, labels)

    head = Head(torch.randn(count, 16, generator=generator), torch.zeros(count))
    features = FeatureSet(head, val=split(y), test=split(y), classes=classes, train_counts=train.bincount())
    return posthoc_lt.rebalance(features, methods=methods)


def test_the_page_tells_verdict_table_figures_classes_and_origin(result: Result) -> None:
    text = page(story(result))
    seen = Page(text)
    words = " ".join(" ".join(parts) for parts in seen.texts.values())
    assert result.verdict in words
    assert result.reason in words
    labels = [attributes.get("aria-label") or "" for attributes in seen.of("svg") if attributes.get("role") == "img"]
    assert len(labels) == 6
    assert all(len(label) > 40 for label in labels)
    assert seen.texts["bdi"] == list(result.features.classes)
    assert result.features.provenance["checkpoint_sha256"] in words
    assert posthoc_lt.__version__ in words
    before, after = (each.test for each in (result.fitted[0], result.chosen))
    assert before is not None
    assert after is not None
    for seen_head in (before, after):
        assert f"{100 * seen_head.balanced_accuracy:.1f}" in words
        for right, n in zip(seen_head.tally.right.tolist(), seen_head.tally.actual.tolist(), strict=True):
            assert f">{100 * right / n:.1f}</td>" in text
    headings = [tag for tag, _ in seen.tags if tag in ("h1", "h2", "h3")]
    assert headings.count("h1") == 1
    assert headings[0] == "h1"


def test_nothing_is_fetched_and_only_the_one_script_may_run(result: Result) -> None:
    text = page(story(result))
    seen = Page(text)
    for tag, attributes in seen.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    (policy,) = [each["content"] for each in seen.of("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_every_id_is_there_once_and_every_reference_finds_its_own(result: Result) -> None:
    text = page(story(result))
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:xlink:href="#|url\(#|aria-labelledby=")([^")]+)', text)
    assert references
    assert set(references) <= set(ids)


def test_the_same_result_gives_the_same_bytes(features: FeatureSet, result: Result, tmp_path: Path) -> None:
    result.report(tmp_path / "one.html")
    posthoc_lt.rebalance(features, methods=["logit-adjust", "tau-norm"]).report(tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    with pytest.raises(PosthocError, match="exists and holds something else"):
        made_of(("a", "b")).report(tmp_path / "one.html")


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "שלום עולם \u202egnp.exe",
    "x" * 200,
    "$\\frac{a}{b}$ & <b>",
    "\x1b[31mred",
)


def test_class_names_are_shown_as_text_whatever_they_hold() -> None:
    text = page(story(made_of(HOSTILE, per_class=6)))
    seen = Page(text)
    assert [attributes for tag, attributes in seen.tags if tag in ("img", "b")] == []
    assert len(seen.of("script")) == 1
    names = seen.texts["bdi"]
    assert names[0] == HOSTILE[0]
    assert names[1] == HOSTILE[1]
    assert names[2] == HOSTILE[2]
    assert names[3].startswith("שלום עולם")
    assert names[4] == HOSTILE[4]
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_thousands_of_classes_stay_small() -> None:
    text = page(story(made_of(tuple(f"species {c}" for c in range(1000)), per_class=1)))
    assert len(text) < 614_000  # 8,142 classes under 5 MB
    assert len(Page(text).texts["bdi"]) == 1000


def test_a_missing_class_and_a_missing_group_are_said_to_be() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0, 0, 1, 1])
    head = Head(torch.randn(3, 4, generator=generator), torch.zeros(3))
    val, test = (Features(torch.randn(4, 4, generator=generator), y) for _ in range(2))
    features = FeatureSet(head, val=val, test=test, train_counts=torch.tensor([300, 200, 2]))
    text = page(story(posthoc_lt.rebalance(features, methods="logit-adjust")))
    assert text.count('<td class="number">n/a</td>') >= 3
    assert "nan" not in re.sub(r"<[^>]*>", "", text).lower()


@pytest.mark.parametrize("method", ["tau-norm-adjust", "offsets", "blend"])
def test_a_method_whose_line_validation_chose_is_drawn_without_a_confidence_set(
    features: FeatureSet, method: str
) -> None:
    result = posthoc_lt.rebalance(features, methods=method)
    assert result.method == method
    assert result.chosen.choice.interval is None
    axes = result.plot()
    labels = axes.get_legend_handles_labels()[1]
    assert "same validation result" in labels
    assert "95% set" not in labels
    captions = " ".join(figure.caption for figure in story(result).figures)
    assert "95%" not in captions
    Page(page(story(result)))


def test_the_curve_is_named_by_the_metric_that_it_shows(features: FeatureSet) -> None:
    """Accuracy under the target, not the balanced accuracy that was asked for in its place."""
    method = LogitAdjust(target_prior=Shares(tuple(range(1, 11)), "met"))
    result = posthoc_lt.rebalance(features, methods=[method])
    assert result.chosen.method == method
    assert result.plot("tau").get_ylabel() == "weighted accuracy on validation (%)"


def test_the_trades_drawn_are_those_of_heads_that_the_method_offers(features: FeatureSet) -> None:
    """A mix stays between its ends: far past 1 others would be drawn."""
    result = posthoc_lt.rebalance(features, methods=[Blend(other="ncm")])
    family, val = result.fitted[1].family, features.val
    assert val is not None
    offered = [evaluate(family.at(mix / 400), val, features.counts) for mix in range(401)]
    reached = {(each.group("many"), each.group("few")) for each in offered}
    line = result.plot("pareto").get_lines()[0]
    drawn = [(x / 100, y / 100) for x, y in np.asarray(line.get_xydata()).tolist()]
    assert drawn
    assert all(any(pair == pytest.approx(other) for other in reached) for pair in drawn)


def test_the_command_writes_the_page_and_says_what_it_found(
    there: Path, result: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", "--methods", "logit-adjust", "--methods", "tau-norm"]) == 0
    told = capsys.readouterr()
    assert " ".join(told.out.split()) == result.verdict
    assert "Wrote report.html" in told.err
    assert (there / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    status, error = refusal_of(["report", "--out", "model.pt", "--force"], capsys)
    assert status == 1
    assert "model.pt" in error


def test_what_was_wrong_is_told_in_figures(result: Result) -> None:
    """Against numpy on the untouched head's predictions."""
    features, before = result.features, result.fitted[0].test
    assert features.test is not None
    assert before is not None
    counts, y = features.counts.numpy(), features.test.labels.numpy()
    predicted = features.head(features.test.x.float()).argmax(1).numpy()
    of_class = {c: float(np.mean(predicted[y == c] == c)) for c in range(10)}
    many, few = (
        100 * np.mean([of_class[c] for c in np.flatnonzero(group).tolist()]) for group in (counts > 100, counts < 20)
    )
    lost = (counts[y] < 20) & (predicted != y)
    share = 100 * np.mean(counts[predicted[lost]] > counts[y[lost]])
    told = story(result).wrong
    assert f"{many:.1f}% many-shot and {few:.1f}% few-shot accuracy" in told
    assert f"{share:.0f}% of its mistakes on few-shot classes" in told


def test_the_page_tells_how_to_make_it_again(result: Result, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = story(result).facts["call"]
    assert call == "posthoc_lt.rebalance(features, methods=['logit-adjust', 'tau-norm'])"
    line = ["report", "--methods", "ncm", "--out", "a report.html"]
    assert run(line) == 0
    assert "Left out" not in capsys.readouterr().err
    text = (there / "a report.html").read_text(encoding="utf-8")
    assert "<dd>posthoc-lt report --methods ncm --out &#39;a report.html&#39;</dd>" in text
    assert hashlib.sha256((there / "feats.safetensors").read_bytes()).hexdigest() in text


def test_the_command_says_which_methods_it_left_out(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without train features only methods that need class counts can be fitted."""
    features = posthoc_lt.load_features(there / "feats.safetensors")
    bare = FeatureSet(
        features.head, None, features.val, features.test, features.classes, features.provenance, features.counts
    )
    posthoc_lt.save_features(bare, there / "bare.safetensors")
    assert run(["report", "--features", "bare.safetensors", "--out", "bare.html"]) == 0
    told = capsys.readouterr().err
    assert "Left out crt: features without a labelled train split" in told
    assert "Left out ncm" in told
