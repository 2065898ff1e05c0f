"""Curves in a line of text, colours, and encodings that lack what we print."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
import torch

from posthoc_lt import Features, FeatureSet, Head
from posthoc_lt.cli import run
from posthoc_lt.cli.terminal import SPELLED, colourful
from posthoc_lt.evaluation import Evaluation, evaluate
from posthoc_lt.metrics import recall
from posthoc_lt.pipeline import fit
from posthoc_lt.report.spark import BARS, COLUMNS, class_lines, curve_lines, spark


def test_heights_are_eighths_of_the_range_and_ends_belong_to_it() -> None:
    assert spark([k / 8 + 1 / 16 for k in range(8)], 0, 1) == BARS
    assert spark([-1.0, 0.0, 1.0, 2.0], 0, 1) == "▁▁██"
    assert spark([0.5, 0.5], 0.5, 0.5) == "▁▁"


def test_the_line_is_the_curve_with_the_knob_and_its_set_in_place(features: FeatureSet) -> None:
    choice = fit("logit-adjust", features).choice
    told, line, marks = curve_lines(choice, "tau")
    found = re.fullmatch(r"tau from 0 to (\S+), height ([\d.]+)% to ([\d.]+)%; \^ chosen, \[ \] the 95% set:", told)
    assert found is not None
    last = float(found[1])
    low, high = (float(found[n]) / 100 for n in (2, 3))
    assert choice.knob is not None
    assert choice.interval is not None
    assert len(line) == COLUMNS
    width = last / COLUMNS
    for mark, at in (("^", choice.knob), ("[", choice.interval[0]), ("]", choice.interval[1])):
        assert abs((marks.index(mark) + 0.5) * width - at) <= 0.51 * width
    assert features.val is not None
    for k in range(0, COLUMNS, 7):
        head = Head(features.head.weight, features.head.bias - (k + 0.5) * width * (features.counts / 1236).log())
        share = evaluate(head, features.val, features.counts).balanced_accuracy
        assert abs(BARS.index(line[k]) - 8 * (share - low) / (high - low)) <= 1.05


def of_counts(counts: list[int], seed: int) -> Evaluation:
    """A head that guesses, on three samples a class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(len(counts)).repeat_interleave(3)
    x = torch.nn.functional.one_hot(torch.where(torch.rand(len(y), generator=generator) < 0.6, y, y.roll(1))).float()
    return evaluate(Head(torch.eye(len(counts)), torch.zeros(len(counts))), Features(x, y), torch.tensor(counts))


@pytest.mark.parametrize("classes", [9, 500])
def test_classes_stand_from_the_rarest_to_the_most_frequent(classes: int) -> None:
    counts = np.random.default_rng(0).permutation(np.arange(1, classes + 1)).tolist()
    before, after = of_counts(counts, 1), of_counts(counts, 2)
    told, old, new = class_lines(before, after)
    assert f"from 1 to {classes} train samples" in told
    columns = min(classes, COLUMNS)
    order = np.argsort(counts)
    bins = [np.array([order[i] for i in part]) for part in np.array_split(np.arange(classes), columns)]
    if classes == 9:
        means = [recall(each.tally).numpy()[np.concatenate(bins)] for each in (before, after)]
        low, high = min(map(min, means)), max(map(max, means))
        for line, row in ((old, means[0]), (new, means[1])):
            assert line.split()[1] == "".join(BARS[min(7, int(8 * (v - low) / (high - low)))] for v in row)
    assert len(old) == len(new) == len("before ") + columns
    assert max(map(len, (old, new))) <= 80


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert colourful(Terminal())
    assert not colourful(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "")  # no-color.org: only where not empty
    assert colourful(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colourful(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not colourful(Terminal())


def test_what_an_encoding_lacks_is_spelled_out() -> None:
    said = "82.5 ± 2.3 … a → b ▁█ τ 猫"
    assert said.encode("ascii", SPELLED) == b"82.5 +- 2.3 ... a -> b _# tau \\u732b"
    assert said.encode("latin-1", SPELLED).decode("latin-1") == "82.5 ± 2.3 ... a -> b _# tau \\u732b"
    assert said.encode("utf-8", SPELLED).decode() == said


def test_a_terminal_without_our_characters_gets_lines_of_80_columns(
    there: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp437"))
    assert run(["tau-search"]) == 0
    sys.stdout.flush()
    lines = raw.getvalue().decode("cp437").splitlines()
    assert any(set(line) <= set("_.-:=+*#▄█") and len(line) == COLUMNS for line in lines)
    assert max(map(len, lines)) <= 80
    assert not any("\\u" in line for line in lines)
