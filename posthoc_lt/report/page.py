"""The report: one HTML file that tells what was wrong, what each fix buys, what it costs and how sure that is."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from posthoc_lt.errors import PosthocError, show
from posthoc_lt.evaluation import Evaluation, difference, group_difference
from posthoc_lt.metrics import GROUPS, recall
from posthoc_lt.report.plots.reliability import reliability
from posthoc_lt.report.table import Row, Table
from posthoc_lt.report.text import cells, heading, legend
from posthoc_lt.stats import Paired

_NAME = 200
"""Characters of a class name that a page shows."""


@dataclass(frozen=True)
class Figure:
    """A drawn figure: what it is about, its SVG, and a sentence to read it by."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True, eq=False)
class Story:
    """What the page tells, every number already computed.

    Args:
        title: the page's title.
        verdict: a sentence on what was gained and what it cost.
        wrong: a sentence on what is wrong with the untouched head.
        reason: why this method, and what such a choice is worth on samples left out of it.
        knob: how its knob came about.
        notes: what the reader should know besides, a sentence each.
        table: every method against the baseline.
        before, after: the untouched and the chosen head on the split that the table shows.
        figures: to look at.
        facts: where it all comes from, and how to make it again.
    """

    title: str
    verdict: str
    wrong: str
    reason: str
    knob: str
    notes: Sequence[str]
    table: Table
    before: Evaluation
    after: Evaluation
    figures: Sequence[Figure]
    facts: Mapping[str, str]


def page(story: Story) -> str:
    """The whole page: styles, script and figures in it, nothing to fetch; every text escaped.

    A content security policy allows the one script, by its hash, and nothing from elsewhere.

    Raises:
        PosthocError: Jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise PosthocError("no Jinja2", "the extra for reports", "pip install 'posthoc-lt[report]'") from None
    here = files("posthoc_lt.report")
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html").read_text(encoding="utf-8"))
    return template.render(
        story=story,
        style=style,
        script=script,
        digest=digest,
        split=story.table.split,
        tiles=_tiles(story),
        heading=heading(story.table).splitlines(),
        legend=legend(story.table).splitlines(),
        methods=_methods(story.table),
        calibration=_calibration(story),
        classes=_classes(story),
    )


def _tiles(story: Story) -> list[dict[str, str]]:
    """The few figures to see first, each with its paired interval."""
    before, after = story.before, story.after
    found = [_tile(before.yardstick.name, before.score, after.score, difference(before, after))]
    for group in reversed(GROUPS):
        old, new, gain = before.group(group), after.group(group), group_difference(before, after, group)
        if old is not None and new is not None and gain is not None:
            found.append(_tile(f"{group}-shot accuracy", old, new, gain))
    return found


def _tile(name: str, before: float, after: float, gain: Paired) -> dict[str, str]:
    low, high = (f"{100 * end:+.1f}" for end in (gain.low, gain.high))
    return {
        "name": name,
        "before": _percent(before),
        "after": _percent(after),
        "moved": f"{100 * gain.delta:+.1f}",
        "interval": f"[{low}, {high}]",
        "way": _way(gain.delta) if gain.clear else "",
    }


def _methods(table: Table) -> dict[str, object]:
    """The comparison's cells, gains first; and for each gain the ends of its interval on a scale from 0 to 100.

    Each group's accuracy comes with its change from the first row, the untouched head.
    """
    columns = cells(table)
    order = ["method", "vs baseline", *reversed(GROUPS), "balanced", "overall", "knob"]
    ends = [abs(end) for row in table.rows if row.paired for end in (row.paired.low, row.paired.high)]
    reach = max([*ends, 1e-9])
    base = table.shown(next(row for row in table.rows if row.paired is None))
    rows = []
    for number, row in enumerate(table.rows):
        changes = {name: _change(group_difference(base, table.shown(row), name)) for name in GROUPS if row.paired}
        made = [{"text": columns[name][number], **changes.get(name, {"moved": "", "way": ""})} for name in order]
        rows.append({"cells": made, "chosen": row.chosen, "control": row.control, "bar": _bar(row, reach)})
    return {"header": order, "rows": rows}


def _change(gain: Paired | None) -> dict[str, str]:
    if gain is None:
        return {"moved": "", "way": ""}
    return {"moved": f"{100 * gain.delta:+.1f}", "way": _way(gain.delta)}


def _way(change: float) -> str:
    """The style of a change."""
    return "up" if change > 0 else "down" if change < 0 else ""


def _bar(row: Row, reach: float) -> dict[str, float] | None:
    if row.paired is None:
        return None
    ends = {"low": row.paired.low, "at": row.paired.delta, "high": row.paired.high}
    return {name: round(50 + 48 * value / reach, 2) for name, value in ends.items()}


def _calibration(story: Story) -> list[dict[str, str]]:
    """NLL, ECE and the groups' signed confidence gaps of the two heads."""
    rows = []
    for name, seen in (("untouched head", story.before), ("chosen head", story.after)):
        gaps = reliability(seen).gaps
        shown = {f"gap, {group}": "n/a" if gap is None else f"{100 * gap:+.1f}" for group, gap in gaps.items()}
        rows.append({"head": name, "NLL": f"{seen.nll:.3f}", "ECE": _percent(seen.ece), **shown})
    return rows


def _classes(story: Story) -> list[dict[str, object]]:
    """A row a class: numbers to sort by, None where a class has no sample."""
    before, after = recall(story.before.tally).tolist(), recall(story.after.tally).tolist()
    group = {c: name for name in GROUPS for c in story.before.groups[name].nonzero().flatten().tolist()}
    counts, samples = story.before.counts.tolist(), story.before.tally.actual.tolist()
    rows = []
    for c, name in enumerate(story.table.classes):
        told = {"name": show(name, _NAME), "group": group[c], "train": counts[c], "samples": samples[c]}
        old, new = round(100 * before[c], 1), round(100 * after[c], 1)
        seen = {"before": old, "after": new, "moved": round(100 * (after[c] - before[c]), 1), "low": min(old, new)}
        rows.append(told | (seen if samples[c] else {"before": None}))
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
