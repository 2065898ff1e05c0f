from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posthoc_lt.errors import PosthocError
from posthoc_lt.report import FORMATS, dump, render
from posthoc_lt.stats import Paired


def test_dump_is_strict_json_in_the_order_given() -> None:
    value = {
        "z": math.nan,
        "a": [math.inf, np.float32(0.5), np.int64(3), np.bool_(True)],
        "t": torch.tensor([[1.0, math.nan]]),
        "p": Paired(0.0, 0.0, 0.0, 1.0),
        "dtype": torch.float16,
        "name": "owl\x1b[31m\x7f\u202eé",
        5: None,
    }
    text = dump(value)
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(read) == ["z", "a", "t", "p", "dtype", "name", "5"]
    assert read["z"] is None
    assert read["a"] == [None, 0.5, 3, True]
    assert read["t"] == [[1.0, None]]
    assert read["p"] == {"delta": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert read["dtype"] == "torch.float16"
    assert read["name"] == value["name"]
    assert all(c == "\n" or " " <= c <= "~" for c in text)


ROWS = [
    {"class": "owl|*", "recall": 0.12345, "n": 3, "val": {"few": None, "ci": [0.1, 0.25]}, "ok": True},
    {"class": "=1+1", "recall": -0.5, "n": 10},
]


def test_render_flattens_rows_in_every_format() -> None:
    assert render(ROWS, "table").splitlines() == [
        "class  recall   n  val.few  val.ci    ok",
        "-----  ------  --  -------  --------  ---",
        "owl|*  0.1235   3      n/a  0.1 0.25  yes",
        "=1+1     -0.5  10      n/a  n/a       n/a",
    ]
    assert list(csv.reader(io.StringIO(render(ROWS, "csv")))) == [
        ["class", "recall", "n", "val.few", "val.ci", "ok"],
        ["owl|*", "0.12345", "3", "", "0.1 0.25", "True"],
        ["'=1+1", "-0.5", "10", "", "", ""],
    ]
    assert json.loads(render(ROWS, "json")) == {"rows": ROWS}
    assert render(ROWS, "md").splitlines()[1:3] == [
        "| --- | ---: | ---: | ---: | --- | --- |",
        r"| owl\|\* | 0.1235 | 3 | n/a | 0.1 0.25 | yes |",
    ]
    with pytest.raises(PosthocError, match="format 'xml'"):
        render(ROWS, "xml")


def test_shares_are_percents_to_people_and_fractions_to_machines() -> None:
    rows = [{"split": "val", "n": 3, "few": 0.12345}, {"split": "test", "n": 1, "few": None}]
    assert render(rows, "table", {"few"}).splitlines()[::2] == ["split  n  few %", "val    3   12.3"]
    assert render(rows, "md", {"few"}).splitlines()[::3] == ["| split | n | few % |", "| test | 1 | n/a |"]
    for form in ("json", "csv"):
        assert render(rows, form, {"few"}) == render(rows, form)


def test_render_of_no_rows_prints_no_rows() -> None:
    assert json.loads(render([], "json")) == {"rows": []}
    for form in FORMATS:
        assert "n/a" not in render([], form)


@given(st.text(min_size=1))
def test_no_text_reaches_a_spreadsheet_as_a_formula_or_a_terminal_as_control(text: str) -> None:
    [_, [cell]] = csv.reader(io.StringIO(render([{"a": text}], "csv"), newline=""))
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    if text.isprintable():
        assert cell in (text, "'" + text)
    for form in FORMATS:
        assert all(c == "\n" or c.isprintable() for c in render([{text: text}], form))


def test_a_wide_table_closes_its_gaps_and_then_cuts_its_texts() -> None:
    rows = [{f"column {k}": 1.5 for k in range(7)}]
    spaced = render(rows, "table").splitlines()
    assert spaced[0].startswith("column 0  column 1")
    rows = [{f"column {k}": 1.5 for k in range(8)} | {"x": 1, "y": 2}]
    close = render(rows, "table").splitlines()
    assert close[0].startswith("column 0 column 1")
    named = render([{"class": "x" * 200, "recall": 0.5}, {"class": "owl", "recall": 1.0}], "table")
    assert max(map(len, named.splitlines())) <= 80
    assert "x" * 39 + "…" in named
    assert "x" * 200 in render([{"class": "x" * 200}], "csv")
