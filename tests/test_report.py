from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posthoc_lt.errors import PosthocError
from posthoc_lt.evaluation import Evaluation, difference, evaluate, group_difference
from posthoc_lt.features import Features
from posthoc_lt.head import Head
from posthoc_lt.report import Row, Table, dump, verdict
from posthoc_lt.stats import Paired

COUNTS = torch.tensor([500, 200, 50, 10])
NAMES = ("cat", "dog", "=cmd()", "owl")


def seen(predicted: Tensor, labels: Tensor | None = None, counts: Tensor = COUNTS) -> Evaluation:
    """An evaluation with exactly these predictions: one-hot features under an identity head."""
    y = torch.arange(4).repeat_interleave(25) if labels is None else labels
    x = torch.nn.functional.one_hot(predicted, 4).float() * 5
    return evaluate(Head(torch.eye(4), torch.zeros(4)), Features(x, y), counts)


def guess(*right: int) -> Tensor:
    """25 samples a class, so many of each right, the others taken for the first class (or the second)."""
    parts = [torch.tensor([c] * n + [int(c == 0)] * (25 - n)) for c, n in enumerate(right)]
    return torch.cat(parts)


BASE, REFIT, BEST = guess(24, 20, 10, 2), guess(24, 20, 10, 3), guess(22, 20, 18, 17)


def table() -> Table:
    rows = [
        Row("baseline", control=True, test=seen(BASE), val=seen(BASE)),
        Row("refit", control=True, test=seen(REFIT), val=seen(REFIT)),
        Row("logit-adjust", "tau", 1.23456, chosen=True, test=seen(BEST), val=seen(BASE)),
        Row("crt", "l2", 1e-5, test=seen(guess(24, 25, 20, 11)), val=seen(BASE)),
    ]
    return Table.against(rows, NAMES)


def line_of(text: str, method: str) -> str:
    return next(line for line in text.splitlines() if method in line)


def test_rows_are_compared_with_the_baseline_and_adjusted_by_holm() -> None:
    made = table()
    assert made.split == "test"
    assert made.rows[0].paired is None
    assert made.rows[0].adjusted_p is None
    gains = [row.paired for row in made.rows[1:]]
    assert [gain.delta for gain in gains if gain] == pytest.approx([0.01, 0.21, 0.24])
    # McNemar's test of 1 : 0 (mid-p), 23 : 2 and 24 : 0 disagreements.
    p = [0.5, *(math.erfc(net / math.sqrt(2 * k)) for net, k in ((21, 25), (24, 24)))]
    assert [gain.p for gain in gains if gain] == pytest.approx(p)
    assert [row.adjusted_p for row in made.rows[1:]] == pytest.approx([p[0], 2 * p[1], 3 * p[2]])
    assert [row.clear for row in made.rows] == [False, False, True, True]


def test_the_terminal_table_shows_the_figures_and_marks() -> None:
    text = table().text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.splitlines()[0] == "test: 100 samples, 4 classes; train counts: many > 100, few < 20"
    assert text.splitlines()[-2:] == [
        "percent, ± 95% interval; vs baseline: balanced accuracy, paired, ± toward 0",
        "> chosen; (control); * clear of 0 after Holm",
    ]
    # Recalls .96 .8 .4 .08 of 25 each, their variances drawn a little toward .56·.44; the interval's wider half.
    own = [25 / 24 * share * (1 - share) for share in (0.96, 0.8, 0.4, 0.08)]
    drawn = [(24 * each + 1.5 * 0.56 * 0.44) / 25.5 for each in own]
    size, z2 = 16 * 0.56 * 0.44 / (sum(drawn) / 25), 1.959964**2
    middle = (0.56 * size + z2 / 2) / (size + z2)
    reach = 100 * (0.56 - middle + math.sqrt(z2 * middle * (1 - middle) / (size + z2)))
    assert line_of(text, "(baseline)").split() == [
        "(baseline)",
        "88.0",
        "40.0",
        "8.0",
        "56.0",
        "±",
        f"{reach:.1f}",
        "56.0",
    ]
    best = line_of(text, "logit-adjust").split()
    assert best[:6] == [">", "logit-adjust", "tau=1.23", "84.0", "72.0", "68.0"]
    gain = difference(seen(BASE), seen(BEST))
    assert best[-4:] == ["+21.0", "±", f"{100 * (0.21 - gain.low):.1f}", "*"]
    gain = difference(seen(BASE), seen(REFIT))
    assert line_of(text, "refit").split()[-3:] == ["+1.0", "±", f"{100 * (0.01 - gain.low):.1f}"]
    assert line_of(text, "crt").split()[1] == "l2=1e-05"


def test_the_legend_explains_the_marks_that_occur() -> None:
    base, better = Row("baseline", control=True, test=seen(BASE)), Row("crt", test=seen(BEST))
    assert Table.against([base, better], NAMES).text().endswith("(control); * clear of 0 after Holm")
    assert Table.against([base, replace(better, test=seen(REFIT))], NAMES).text().endswith("toward 0\n(control)")
    alone = Table.against([replace(base, control=False, chosen=True)], NAMES).text()
    assert alone.endswith("percent, ± 95% interval\n> chosen")
    assert Table((better,), NAMES).text().endswith("\npercent, ± 95% interval")


def test_the_side_of_an_interval_toward_zero_is_shown() -> None:
    """The interval of a gain is uneven: the shorter side decides whether it is clear of 0, and so does the star."""
    gain = Paired(0.05, 0.01, 0.12, 0.01)
    made = Table.against([Row("baseline", test=seen(BASE)), Row("crt", test=seen(BEST))], NAMES)
    up = replace(made, rows=(made.rows[0], replace(made.rows[1], paired=gain)))
    down = replace(made, rows=(made.rows[0], replace(made.rows[1], paired=Paired(-0.05, -0.12, -0.01, 0.01))))
    assert "+5.0 ± 4.0 *" in up.text()
    assert "-5.0 ± 4.0 *" in down.text()


def test_columns_line_up() -> None:
    lines = table().text().splitlines()
    start = lines[1].index("balanced") + len("balanced")
    assert lines[2][start - 1] == "-"
    assert all(line[start - 1].isdigit() for line in lines[3:7])


@settings(max_examples=20)
@given(st.integers(40, 120))
def test_the_table_fits_its_terminal(width: int) -> None:
    text = table().text(width)
    assert max(map(len, text.splitlines())) <= width
    assert "vs baseline" in text
    assert "> logit-adjust" in text
    header = line_of(text, "method").split()
    shown = [name in header for name in ("few", "many", "medium", "overall", "knob")]
    assert shown == sorted(shown, reverse=True)  # they give way from the last to the first
    assert all(shown) or width < 74


def test_the_widest_figures_fit_80_columns() -> None:
    labels = torch.arange(4).repeat_interleave(2)
    right, wrong = seen(labels, labels), seen(torch.tensor([0, 1, 1, 0, 0, 0, 0, 0]), labels)
    rows = [
        Row("baseline", control=True, test=wrong),
        Row("logit-adjust", "tau", -0.7049, chosen=True, test=right),
    ]
    text = Table.against(rows, NAMES).text()
    assert max(map(len, text.splitlines())) <= 80
    assert line_of(text, "logit-adjust").split()[2:5] == ["tau=-0.705", "100.0", "100.0"]
    assert re.search(r"100\.0 ±[0-9]{2}\.[0-9] +100\.0 +\+75\.0 ±[0-9]{2}\.[0-9]", text)


def test_an_absurd_width_still_prints() -> None:
    assert "> logit-adjust" in table().text(0)


def test_figures_on_which_knobs_were_chosen_are_said_to_flatter_and_get_no_stars() -> None:
    rows = [replace(row, test=None, val=row.test, paired=None, adjusted_p=None) for row in table().rows]
    honest = Table.against(rows, NAMES)
    assert "*" in line_of(honest.text(), "logit-adjust")
    made = Table.against(rows, NAMES, chosen_on="val")
    text = made.text()
    assert text.splitlines()[1] == "knobs were chosen on these samples: figures flatter"
    for form in (text, made.markdown(), made.html()):
        assert "flatter" in form
        assert "Holm" not in form
        assert "*" not in form
    record, (first, *_) = made.records()[2], csv.DictReader(io.StringIO(made.csv()))
    assert record["p"] is record["p_holm"] is None
    assert record["gain"] == pytest.approx(0.21)
    assert first["p_holm"] == ""


def test_figures_of_another_split_than_the_one_chosen_on_do_not_flatter() -> None:
    made = replace(table(), chosen_on="val")
    assert not made.flatters
    assert made.text() == table().text()
    assert made.records() == table().records()


def test_two_configurations_of_a_method_are_told_apart_in_every_form() -> None:
    rows = [
        Row("baseline", control=True, test=seen(BASE)),
        Row("tau-norm", "tau", 1.88, test=seen(REFIT)),
        Row("tau-norm", "tau", 1.23, options="bias=scale", chosen=True, test=seen(BEST)),
        Row("refit", "l2", 1e-5, options="<b>|\x1b[31m", control=True, test=seen(REFIT)),
    ]
    made = Table.against(rows, NAMES)
    text = made.text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "> tau-norm bias=scale " in text
    assert "  tau-norm  " in text
    assert "  (refit) <b>|\\x1b[31m " in text
    assert "> tau-norm bias=scale   tau=1.23 " in made.text(100)
    assert "| \\> tau-norm bias=scale |" in made.markdown()
    assert "tau-norm bias=scale</td>" in made.html()
    assert "&lt;b&gt;|" in made.html()
    assert [record.get("options") for record in made.records()] == [None, None, "bias=scale", "<b>|\x1b[31m"]
    assert list(made.records()[2])[:3] == ["method", "options", "tau"]
    assert "options" not in made.records()[0]
    rows_of = list(csv.DictReader(io.StringIO(made.csv())))
    assert list(rows_of[0])[:3] == ["method", "options", "knob"]
    assert [row["options"] for row in rows_of[:3]] == ["", "", "bias=scale"]
    assert "options" not in table().csv()


def test_colour_adds_nothing_but_escapes() -> None:
    made = table()
    assert re.sub("\x1b\\[[0-9]+m", "", made.text(color=True)) == made.text()
    assert line_of(made.text(color=True), "logit-adjust").startswith("\x1b[1m")
    assert "\x1b" not in made.text()


def test_empty_groups_and_missing_classes_are_told() -> None:
    labels = torch.tensor([0, 0, 3, 3])
    row = Row("baseline", control=True, val=seen(torch.tensor([0, 0, 3, 0]), labels))
    made = Table((row,), ("cat", "dog\x1b[31m", "=cmd()", "owl"))
    text = made.text()
    assert "val: 4 samples, 2 classes" in text
    assert "no sample, not scored: dog\\x1b[31m, =cmd()" in text
    assert line_of(text, "(baseline)").split()[:4] == ["(baseline)", "100.0", "n/a", "50.0"]
    assert made.records()[0]["val"]["missing"] == ["dog\x1b[31m", "=cmd()"]  # type: ignore[index]


def test_val_is_shown_where_a_row_has_no_test() -> None:
    made = table()
    half = Table((made.rows[0], replace(made.rows[1], test=None)), NAMES)
    assert half.split == "val"
    assert "val: 100 samples" in half.text()


def test_a_table_without_a_common_split_or_baseline_is_refused() -> None:
    a, b = Row("a", val=seen(BASE)), Row("b", test=seen(BASE))
    with pytest.raises(PosthocError, match="common split"):
        Table((a, b), NAMES)
    with pytest.raises(PosthocError, match="no rows"):
        Table((), NAMES)
    with pytest.raises(PosthocError, match="without 'baseline'"):
        Table.against([a], NAMES)
    with pytest.raises(PosthocError, match="same split"):
        Table.against([Row("baseline", val=seen(BASE[:50], torch.arange(2).repeat_interleave(25))), a], NAMES)


def test_records_are_json_with_both_splits() -> None:
    record = json.loads(dump(table().records()[2]))
    assert list(record) == [
        "method", "tau", "control", "chosen", "val", "test", "gain", "gain_ci", "p", "p_holm",
    ]  # fmt: skip
    assert record["tau"] == 1.23456
    assert record["test"]["few"] == pytest.approx(0.68)
    assert record["val"]["few"] == pytest.approx(0.08)
    low, high = record["gain_ci"]
    assert record["gain"] == pytest.approx(0.21)
    assert low < 0.21 < high
    first = table().records(verbose=True)[0]
    assert "tau" not in first
    assert first["gain"] is first["gain_ci"] is first["p"] is first["p_holm"] is None
    assert [c["class"] for c in first["test"]["per_class"]] == list(NAMES)  # type: ignore[index]


def test_the_frame_and_the_csv_say_the_same() -> None:
    made = table()
    frame = made.frame()
    assert frame["method"].tolist() == ["baseline", "refit", "logit-adjust", "crt"]
    assert frame["few"].tolist() == pytest.approx([0.08, 0.12, 0.68, 0.44])
    assert math.isnan(frame["gain"][0])
    rows = list(csv.DictReader(io.StringIO(made.csv())))
    assert list(rows[0]) == list(frame.columns)
    assert rows[0]["gain"] == rows[0]["value"] == ""
    assert float(rows[2]["value"]) == 1.23456
    assert float(rows[2]["low"]) == frame["low"][2]
    assert float(rows[1]["gain_low"]) < 0  # a negative number stays one


def test_markdown_and_html_hold_every_row_and_escape() -> None:
    made = table()
    text = made.markdown()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 6
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}
    assert r"| \> logit-adjust | tau=1.23 | 84.0 |" in text
    page = replace(made, rows=(replace(made.rows[0], method="<b>x"), *made.rows[1:]))._repr_html_()
    assert html.escape("(<b>x)") in page
    assert "<p>test: 100 samples, 4 classes; train counts: many &gt; 100, few &lt; 20</p>" in page
    assert page.endswith("<br>&gt; chosen; (control); * clear of 0 after Holm</p>")
    assert "<b>" not in page
    assert page.count("<tr>") == 5


def test_the_verdict_gives_gains_and_costs_with_their_intervals() -> None:
    base, best = seen(BASE), seen(BEST)
    few, many = (group_difference(base, best, group) for group in ("few", "many"))
    assert few is not None
    assert many is not None
    gain = difference(base, best)
    overall, tail, head = (f"[{100 * each.low:+.1f}, {100 * each.high:+.1f}]" for each in (gain, few, many))
    told = verdict(base, best, gain, few, many)
    assert told == (
        f"On test, balanced accuracy rises by 21.0 points {overall}, from 56.0% to 77.0%; "
        f"few-shot accuracy rises by 60.0 points {tail}, from 8.0% to 68.0%; "
        f"many-shot accuracy goes from 88.0% to 84.0%, a difference of -4.0 points {head} that is not clear of 0."
    )
    assert told.count(". ") == 0


def test_the_verdict_says_when_it_was_read_on_val_and_when_nothing_moved() -> None:
    base, other = seen(BASE), seen(REFIT)
    told = verdict(base, other, difference(base, other), None, group_difference(base, other, "many"), "val")
    assert told.startswith("On val, which also served to choose and so flatters, balanced accuracy goes from 56.0%")
    assert "few-shot classes are n/a" in told
    # 50 samples without a disagreement: z²/(50 + z²).
    assert told.endswith(
        "many-shot accuracy stays at 88.0%, a difference of +0.0 points [-7.1, +7.1] that is not clear of 0."
    )
    assert "nothing changed" in verdict(base, base, difference(base, base), None, None)


def test_the_verdict_tells_the_metric_that_was_chosen_by() -> None:
    base, best = seen(BASE), seen(BEST)

    def told(metric: str, values: tuple[float, float] | None) -> str:
        return verdict(base, best, difference(base, best), None, None, "test", metric, values)

    assert told("macro-f1", (0.5012, 0.749)).startswith(
        "On test, macro F1, the metric chosen by, goes from 50.1% to 74.9%; balanced accuracy rises by 21.0 points"
    )
    assert "medium-shot accuracy, the metric chosen by, stays at 40.0%; balanced" in told("medium", (0.4, 0.4))
    assert told("balanced-accuracy", (0.56, 0.77)) == told("macro-f1", None)
    assert told("balanced-accuracy", None).startswith("On test, balanced accuracy rises")


@settings(max_examples=60)
@given(st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3), st.floats(0.001, 0.2))
def test_the_verdict_calls_no_difference_real_whose_interval_holds_zero(deltas: list[float], se: float) -> None:
    gains = [Paired(d, d - 1.96 * se, d + 1.96 * se, 0.5) for d in deltas]
    overall, few, many = gains
    clauses = verdict(seen(BASE), seen(BEST), overall, few, many).split("; ")
    for gain, clause in zip(gains, clauses, strict=True):
        holds = gain.low <= 0 <= gain.high
        assert ("not clear of 0" in clause) == holds
        assert ((" rises by " in clause) or (" falls by " in clause)) != holds
        assert (" rises " in clause) <= (gain.delta > 0)
