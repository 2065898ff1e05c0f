from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.text import Text
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score

from posthoc_lt import Features, FeatureSet, Head, PosthocError
from posthoc_lt.evaluation import Evaluation, evaluate
from posthoc_lt.family import Family
from posthoc_lt.methods import METHODS
from posthoc_lt.metrics import group_classes
from posthoc_lt.report.plots import (
    frontiers,
    plot_classes,
    plot_confusion,
    plot_curve,
    plot_norms,
    plot_pareto,
    plot_reliability,
)
from posthoc_lt.report.plots.classes import arrows, band
from posthoc_lt.report.plots.confusion import confusion_changes
from posthoc_lt.report.plots.curve import steps
from posthoc_lt.report.plots.norms import norms
from posthoc_lt.report.plots.reliability import reliability
from posthoc_lt.search import BOUNDS, Choice, Goal, choose, pareto


@pytest.fixture(autouse=True)
def no_figure_is_left() -> Iterator[None]:
    yield
    pyplot.close("all")


def chosen(features: FeatureSet, name: str = "tau-norm") -> tuple[Family, Choice]:
    assert features.val is not None
    family = METHODS[name]().fit(features.head, features.training)
    return family, choose(family, features.val, Goal())


def judged(features: FeatureSet, head: Head) -> Evaluation:
    assert features.test is not None
    return evaluate(head, features.test, features.counts)


def shown(axes: Axes) -> dict[str, Text]:
    """Every text that is drawn, by its words."""
    axes.figure.canvas.draw()
    legend = axes.get_legend()
    assert legend is not None
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *legend.get_texts(), *axes.texts]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    ticks = [text for text in axes.get_xticklabels() if left <= text.get_position()[0] <= right]
    ticks += [text for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high]
    return {text.get_text(): text for text in [*texts, *ticks] if text.get_text()}


def assert_readable(axes: Axes) -> None:
    """Nothing is clipped, tiny, or printed over something else."""
    texts = list(shown(axes).values())
    page = axes.figure.bbox
    boxes = [text.get_window_extent() for text in texts]
    for n, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        assert float(text.get_fontsize()) >= 9
        assert page.x0 <= box.x0 < box.x1 <= page.x1, text
        assert page.y0 <= box.y0 < box.y1 <= page.y1, text
        assert not any(box.overlaps(other) for other in boxes[:n]), text
    legend = axes.get_legend()
    assert legend is not None
    assert not legend.get_window_extent().overlaps(axes.bbox.padded(-1))  # it hides no data
    assert not legend.get_window_extent().overlaps(axes.title.get_window_extent())


@pytest.mark.parametrize("name", ["tau-norm", "logit-adjust"])
def test_the_curve_drawn_is_the_metric_of_the_heads(name: str, features: FeatureSet) -> None:
    family, choice = chosen(features, name)
    made = steps(choice)
    assert features.val is not None
    middles = (np.array(made.edges[:-1]) + made.edges[1:]) / 2
    wide = np.flatnonzero(np.diff(made.edges) > 1e-3)[::7]
    assert len(wide) > 4
    for cell in wide:
        predicted = family.at(float(middles[cell]))(features.val.x.float()).argmax(1)
        assert made.values[cell] == pytest.approx(balanced_accuracy_score(features.val.labels, predicted))
    axes = plot_curve(choice, "balanced-accuracy", name)
    (drawn,) = [patch.get_data() for patch in axes.patches if hasattr(patch, "get_data")]
    assert drawn.values.tolist() == pytest.approx([100 * value for value in made.values])
    assert drawn.edges.tolist() == made.edges


def test_the_curve_says_what_it_shows(features: FeatureSet) -> None:
    _, choice = chosen(features)
    assert choice.knob is not None
    axes = plot_curve(choice, "balanced-accuracy", "tau-norm")
    texts = shown(axes)
    assert {"tau-norm: exact validation curve", r"$\tau$", "balanced accuracy on validation (%)"} <= set(texts)
    assert f"chosen {choice.knob:.3g} ({choice.decided_by})" in texts
    assert_readable(axes)
    other = shown(plot_curve(choice, "few", "cdt", knob="gamma"))
    assert {"cdt: exact validation curve", "gamma", "few-shot accuracy on validation (%)"} <= set(other)


def test_the_class_plot_says_what_it_shows_in_plain_numbers(features: FeatureSet) -> None:
    _, choice = chosen(features)
    axes = plot_classes(judged(features, features.head), judged(features, choice.head), "test")
    texts = shown(axes)
    wanted = {"each class before and after", "train samples of the class", "accuracy of the class on test (%)"}
    assert wanted | {"before", "after, better", "after, worse", "few < 20", "medium", "many > 100"} <= set(texts)
    ticks = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert ticks == ["5", "10", "20", "50", "100", "200", "500"]
    assert_readable(axes)


@pytest.mark.parametrize("counts", [(0, 3, 9, 40), (1, 60, 5000, 800000), (7, 7, 7, 7), (0, 0, 0, 0)])
def test_any_train_counts_keep_readable_ticks(counts: tuple[int, ...]) -> None:
    y = torch.arange(4).repeat_interleave(3)
    head = Head(torch.eye(4), torch.zeros(4))
    x = torch.nn.functional.one_hot(y.roll(1), 4).float()
    found = evaluate(head, Features(x, y), torch.tensor(counts))
    axes = plot_classes(found, found, "val")
    assert_readable(axes)
    ticks = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert 1 <= len(ticks) <= 12
    assert all(tick.isdigit() for tick in ticks)
    assert ("0" in ticks) == (0 in counts)
    low, high = axes.get_xlim()
    assert low < min(counts)
    assert max(counts) < high


def test_every_class_with_a_sample_is_drawn_where_its_figures_say() -> None:
    y = torch.tensor([0, 0, 2, 2])
    head, counts = Head(torch.eye(3), torch.zeros(3)), torch.tensor([50, 20, 5])
    before = evaluate(head, Features(torch.eye(3)[[0, 0, 0, 2]], y), counts)
    after = evaluate(head, Features(torch.eye(3)[[0, 1, 2, 2]], y), counts)
    made = arrows(before, after)
    assert (made.counts, made.before, made.after) == ([50, 5], [1, 0.5], [0.5, 1])
    axes = plot_classes(before, after, "test")
    points = [np.asarray(each.get_offsets()).tolist() for each in axes.collections]
    assert points[2:] == [[[50, 100], [5, 50]], [[5, 100]], [[50, 50]]]


def test_beyond_150_classes_medians_and_quartiles_stand_for_classes() -> None:
    generator = np.random.default_rng(0)
    counts, values = generator.integers(1, 500, 400).astype(float), generator.random(400)
    made = band(counts.tolist(), values.tolist())
    order = np.argsort(counts, kind="stable")
    for k, part in enumerate(np.array_split(order, 20)):
        low, middle, high = np.quantile(values[part], [0.25, 0.5, 0.75])
        assert (made.low[k], made.middle[k], made.high[k]) == pytest.approx((low, middle, high))
        assert counts[part].min() <= made.counts[k] <= counts[part].max()
    head = Head(torch.eye(400), torch.zeros(400))
    y = torch.arange(400)
    found = evaluate(head, Features(torch.eye(400)[y.roll(1)], y), torch.tensor(counts))
    axes = plot_classes(found, found, "test")
    assert len(axes.collections) == 2
    assert_readable(axes)


def test_norms_are_those_of_the_rows_in_order_of_class_size(features: FeatureSet) -> None:
    _, choice = chosen(features)
    moved = Head(features.head.weight, features.head.bias + 1)
    heads = {"baseline": features.head, "logit-adjust": moved, "tau-norm": choice.head}
    made = norms(heads, features.counts)
    order = np.argsort(features.counts.numpy(), kind="stable")
    assert made.counts == features.counts.numpy()[order].tolist()
    assert list(made.values) == ["baseline", "tau-norm"]  # a moved bias moves no norm
    for name, values in made.values.items():
        lengths = np.linalg.norm(heads[name].weight.numpy().astype(np.float64), axis=1)
        assert values == pytest.approx((lengths / lengths.mean())[order].tolist())
    assert_readable(plot_norms(heads, features.counts))


def test_the_pareto_plot_holds_every_trade_and_every_head(features: FeatureSet) -> None:
    family, choice = chosen(features, "logit-adjust")
    assert features.val is not None
    groups = group_classes(features.counts)
    judged_on_val = {
        name: evaluate(head, features.val, features.counts)
        for name, head in {"baseline": features.head, "logit-adjust": choice.head}.items()
    }
    trades = pareto(family, features.val, groups, BOUNDS)
    made = frontiers({"logit-adjust": trades}, judged_on_val)
    predicted = choice.head(features.val.x.float()).argmax(1)
    recalls = recall_score(features.val.labels, predicted, average=None)
    wanted = [recalls[groups[name].numpy()].mean() for name in ("many", "few")]
    assert made.points["logit-adjust"] == pytest.approx(wanted)
    assert not any(
        head > made.points["baseline"][0] and tail < made.points["baseline"][1]
        for head, tail in made.curves["logit-adjust"]
        if head <= made.points["baseline"][0]
    )
    axes = plot_pareto(made)
    assert {"baseline", "logit-adjust"} <= set(shown(axes))
    (line, *points) = axes.lines
    assert np.asarray(line.get_xydata()).tolist() == [[100 * h, 100 * t] for h, t in made.curves["logit-adjust"]]
    assert len(points) == 2


def test_reliability_is_that_of_bins_of_equal_mass(features: FeatureSet) -> None:
    seen = judged(features, features.head)
    made = reliability(seen)
    assert features.test is not None
    p = torch.softmax(features.head(features.test.x.float()).double(), 1).numpy()
    confidence, right = p.max(1), p.argmax(1) == features.test.labels.numpy()
    parts = np.array_split(np.argsort(confidence, kind="stable"), 15)
    assert made.confidence == pytest.approx([confidence[part].mean() for part in parts], abs=1e-6)
    assert made.accuracy == pytest.approx([right[part].mean() for part in parts], abs=1e-6)
    few = np.isin(features.test.labels.numpy(), np.flatnonzero(features.counts.numpy() < 20))
    assert made.gaps["few"] == pytest.approx((confidence - right)[few].mean(), abs=1e-6)
    assert_readable(plot_reliability(seen, seen, "test"))


def test_confusions_that_changed_most_are_told_with_their_numbers(features: FeatureSet) -> None:
    _, choice = chosen(features)
    before, after = judged(features, features.head), judged(features, choice.head)
    made = confusion_changes(before, after)
    one, two = (confusion_matrix(seen.labels, seen.predicted, labels=range(10)) for seen in (before, after))
    moved = np.abs(two - one) * (1 - np.eye(10))
    assert [abs(each.after - each.before) for each in made] == sorted(moved.ravel(), reverse=True)[: len(made)]
    for each in made:
        assert (each.before, each.after) == (one[each.true, each.predicted], two[each.true, each.predicted])
    axes = plot_confusion(before, after, [f"$c{c}$ 猫" for c in range(10)], "test")
    axes.figure.canvas.draw()  # warns of a missing glyph, and warnings are errors
    assert axes.get_yticklabels()[-1].get_text() == rf"\$c{made[0].true}\$ □ → \$c{made[0].predicted}\$ □"
    assert len(plot_confusion(before, before, features.classes, "test").patches) == 0


def test_plots_draw_on_the_axes_given_and_save(features: FeatureSet, tmp_path: Path) -> None:
    _, choice = chosen(features)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    assert plot_curve(choice, "balanced-accuracy", "tau-norm", left) is left
    found = judged(features, features.head)
    assert plot_classes(found, found, "test", right) is right
    for axes in (left, right):
        assert_readable(axes)
    figure.savefig(tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_a_knob_that_was_not_chosen_on_a_curve_is_refused(features: FeatureSet) -> None:
    with pytest.raises(PosthocError, match="not chosen on a validation curve"):
        plot_curve(Choice(1.0, features.head, "given"), "balanced-accuracy", "logit-adjust")
