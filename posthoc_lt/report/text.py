"""Words and percents for people: the terminal table and the one-sentence verdict."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from posthoc_lt.errors import listed, show
from posthoc_lt.evaluation import Evaluation
from posthoc_lt.metrics import GROUPS
from posthoc_lt.report.formats import NOTHING, grid
from posthoc_lt.stats import Paired
from posthoc_lt.yardstick import BALANCED

if TYPE_CHECKING:
    from posthoc_lt.report.table import Row, Table

_SPARE = ("knob", "overall", "medium", "many", "few")
"""Columns that give way on a narrow terminal, the first one first."""

_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def cells(table: Table) -> dict[str, list[str]]:
    """The table's columns by name, each a list of texts, one a row."""
    rows, seen = table.rows, [table.shown(row) for row in table.rows]
    return {
        "method": [_name(row) for row in rows],
        "knob": [_knobs(row) for row in rows],
        **{group: [_percent(evaluation.group(group)) for evaluation in seen] for group in GROUPS},
        seen[0].yardstick.short: [_score(evaluation) for evaluation in seen],
        "overall": [_percent(evaluation.accuracy) for evaluation in seen],
        "vs baseline": [_gain(row, row.clear and not table.flatters) for row in rows],
    }


def heading(table: Table) -> str:
    """What the figures were measured on, whether that flatters, and which classes they leave out."""
    seen = table.shown(table.rows[0])
    low, high = (f"{edge:g}" for edge in seen.edges)
    classes = seen.classes - len(seen.missing)
    line = f"{table.split}: {len(seen)} samples, {classes} classes; train counts: many > {high}, few < {low}"
    if table.flatters:
        line += "\nknobs were chosen on these samples: figures flatter"
    if seen.yardstick is not BALANCED:
        line += f"\njudged by {seen.yardstick.told}"
    if seen.missing:
        line += f"\nno sample, not scored: {listed(table.classes[c] for c in seen.missing)}"
    return line


def legend(table: Table) -> str:
    """What the figures are, and the marks that occur."""
    rows = table.rows
    compared, name = any(row.paired is not None for row in rows), table.shown(rows[0]).yardstick.name
    figures = "percent, ± 95% interval" + f"; vs baseline: {name}, paired, ± toward 0" * compared
    marks = {
        "> chosen": any(row.chosen for row in rows),
        "(control)": any(row.control for row in rows),
        "* clear of 0 after Holm": any(row.clear for row in rows) and not table.flatters,
    }
    return "\n".join([figures, "; ".join(mark for mark, occurs in marks.items() if occurs)]).rstrip()


def comparison(table: Table, width: int, color: bool) -> str:
    """The terminal table; see `Table.text`."""
    columns, width = cells(table), max(width, 20)
    # First the gaps close up, then columns go.
    for spare, gap in (("", 2), ("", 1), *((name, 1) for name in _SPARE)):
        columns.pop(spare, None)
        right = [column not in ("method", "knob") for column in columns]
        lines = grid(list(columns), list(zip(*columns.values(), strict=True)), right, gap).splitlines()
        if max(map(len, lines)) <= width:
            break
    body = [_styled(line, row, color) for line, row in zip(lines[2:], table.rows, strict=True)]
    above, below = (_wrapped(text, width) for text in (heading(table), legend(table)))
    return "\n".join([*above, *lines[:2], *body, *below])


def verdict(
    baseline: Evaluation,
    chosen: Evaluation,
    overall: Paired,
    few: Paired | None,
    many: Paired | None,
    split: str = "test",
    metric: str = "balanced-accuracy",
    values: tuple[float, float] | None = None,
) -> str:
    """One sentence on what the chosen head gains over the baseline and what it costs the head classes.

    Every difference but that of `values` comes with its paired 95% interval; one whose interval holds 0 is
    called unproven.

    Args:
        baseline, chosen: both on the split named.
        overall: the paired difference by their yardstick, which is balanced accuracy by default.
        few, many: the same within the few-shot and the many-shot classes; None where the group has no sample.
        split: on ``val``, where heads are chosen, the sentence says that figures flatter.
        metric: what was chosen by, a name of `posthoc_lt.search.FIGURES`.
        values: that metric before and after on the split, told first where it is not balanced accuracy.
    """
    where = f"On {split}" + (", which also served to choose and so flatters," if split == "val" else ",")
    if bool((baseline.predicted == chosen.predicted).all()):
        return f"{where} nothing changed: the chosen head predicts exactly as the untouched one."
    yardstick = baseline.yardstick
    clauses = {"balanced-accuracy": _moved(yardstick.name, baseline.score, chosen.score, overall)}
    if yardstick.cost is not None:
        old, new = (yardstick.mean_cost(each.score) for each in (baseline, chosen))
        clauses["balanced-accuracy"] += f" (a mean cost of {new:.3g} after {old:.3g})"
    for group, gain in (("few", few), ("many", many)):
        before, after = baseline.group(group), chosen.group(group)
        if gain is None or before is None or after is None:
            clauses[group] = f"{group}-shot classes are {NOTHING} (none has a sample)"
        else:
            name = metric_name(group) + (", the metric chosen by," if group == metric else "")
            clauses[group] = _moved(name, before, after, gain)
    if metric in clauses:
        clauses = {metric: clauses.pop(metric), **clauses}
    elif values is not None:
        clauses = {metric: _chosen_by(metric, *values), **clauses}
    return f"{where} {'; '.join(clauses.values())}."


def shortfall(baseline: Evaluation, split: str) -> str:
    """One sentence on what is wrong with the untouched head: how far its rare classes lag, and what they lose to."""
    there = [(group, share) for group in GROUPS if (share := baseline.group(group)) is not None]
    (head, high), (tail, low) = there[0], there[-1]
    if head == tail:
        return f"On {split}, every class is {head}-shot; the untouched head has {100 * high:.1f}% accuracy on them."
    lost = ~baseline.right & baseline.groups[tail][baseline.labels]
    frequent = baseline.counts[baseline.predicted[lost]] > baseline.counts[baseline.labels[lost]]
    told = f"On {split}, the untouched head has {100 * high:.1f}% {head}-shot and {100 * low:.1f}% {tail}-shot accuracy"
    if not len(frequent):
        return f"{told}."
    most = 100 * float(frequent.double().mean())
    return f"{told}; {most:.0f}% of its mistakes on {tail}-shot classes name a more frequent class."


def metric_name(metric: str) -> str:
    """A metric in words.

    >>> metric_name("few"), metric_name("macro-f1")
    ('few-shot accuracy', 'macro F1')
    """
    if metric in GROUPS:
        return f"{metric}-shot accuracy"
    return {"g-mean": "G-mean", "macro-f1": "macro F1", "worst-class": "worst-class accuracy"}.get(
        metric, metric.replace("-", " ")
    )


def _chosen_by(metric: str, before: float, after: float) -> str:
    old, new = f"{100 * before:.1f}%", f"{100 * after:.1f}%"
    return f"{metric_name(metric)}, the metric chosen by, " + (
        f"stays at {old}" if old == new else f"goes from {old} to {new}"
    )


def _moved(what: str, before: float, after: float, gain: Paired) -> str:
    interval = f"points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    values = f"from {100 * before:.1f}% to {100 * after:.1f}%"
    if gain.clear:
        return f"{what} {'rises' if gain.delta > 0 else 'falls'} by {100 * abs(gain.delta):.1f} {interval}, {values}"
    moved = f"stays at {100 * before:.1f}%" if gain.delta == 0 else f"goes {values}"
    return f"{what} {moved}, a difference of {100 * gain.delta:+.1f} {interval} that is not clear of 0"


def _name(row: Row) -> str:
    name = show(row.method, 18)
    label = (f"({name})" if row.control else name) + (f" {show(row.options, 18)}" if row.options else "")
    return ("> " if row.chosen else "  ") + label


def _knobs(row: Row) -> str:
    knobs = {**row.outer, **({} if row.knob is None or row.value is None else {row.knob: row.value})}
    return " ".join(f"{show(name, 8)}={number:.3g}" for name, number in knobs.items())


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}"


def _score(seen: Evaluation) -> str:
    """The wider half of the interval: the other may have been cut at 0 or 100."""
    (low, high), middle = seen.score_ci, seen.score
    return f"{100 * middle:.1f} ±{100 * max(high - middle, middle - low):4.1f}"


def _gain(row: Row, star: bool) -> str:
    if row.paired is None:
        return ""
    gain = row.paired
    # The interval is uneven: its side toward 0 is the one that a star depends on.
    reach = max([gain.delta - gain.low] * (gain.delta >= 0) + [gain.high - gain.delta] * (gain.delta <= 0))
    return f"{100 * gain.delta:+.1f} ±{100 * reach:4.1f} {'*' if star else ' '}"


def _styled(line: str, row: Row, color: bool) -> str:
    if not color or not (row.chosen or row.control):
        return line
    return f"{_BOLD if row.chosen else _DIM}{line}{_PLAIN}"


def _wrapped(text: str, width: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, width)]
