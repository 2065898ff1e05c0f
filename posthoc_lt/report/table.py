"""The comparison table: a row a method, one figure a cell, in every form it is read in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from posthoc_lt.errors import PosthocError, listed, show
from posthoc_lt.evaluation import Evaluation, difference
from posthoc_lt.metrics import GROUPS, macro_f1, worst_class
from posthoc_lt.report.formats import csv_text, escaped, html_paragraph, html_table, markdown
from posthoc_lt.report.text import cells, comparison, heading, legend
from posthoc_lt.stats import LEVEL, Paired, holm
from posthoc_lt.yardstick import BALANCED

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Row:
    """One method's line.

    Args:
        method: its name.
        knob: the name of its knob, such as ``tau``; None where it has none.
        value: the knob's value.
        control: whether it is a control (baseline, refit) rather than a candidate.
        chosen: whether selection took it.
        val, test: what it does on these splits.
        paired: its gain over the baseline on the split shown; None for the baseline.
        adjusted_p: the p-value of that gain after Holm across the table.
        options: what tells it from another row of the same method, such as ``bias=scale``.
        outer: the value of its outer knob by name, where it has two.
    """

    method: str
    knob: str | None = None
    value: float | None = None
    control: bool = False
    chosen: bool = False
    val: Evaluation | None = None
    test: Evaluation | None = None
    paired: Paired | None = None
    adjusted_p: float | None = None
    options: str = ""
    outer: Mapping[str, float] = field(default_factory=dict)

    @property
    def clear(self) -> bool:
        """Whether the gain, or the loss, is clear of 0 after Holm."""
        return self.adjusted_p is not None and self.adjusted_p < 1 - LEVEL


@dataclass(frozen=True, eq=False)
class Table:
    """Rows to compare, in the order shown.

    Args:
        rows: at least one.
        classes: C class names.
        chosen_on: the split that knobs were chosen on, ``val``; None where all were given.

    Raises:
        PosthocError: there is no row, or no split that every row was evaluated on.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    chosen_on: str | None = None

    def __post_init__(self) -> None:
        if not self.rows or all(any(getattr(row, name) is None for row in self.rows) for name in ("test", "val")):
            raise PosthocError(
                f"a table of {listed(row.method for row in self.rows) or 'no rows'} without a common split",
                "at least one row, all of them evaluated on val or all on test",
                "evaluate every method on the same labelled split",
            )

    @classmethod
    def against(
        cls,
        rows: Sequence[Row],
        classes: Sequence[str],
        baseline: str = "baseline",
        chosen_on: str | None = None,
    ) -> Table:
        """The table with every row compared to the baseline's, paired, and adjusted by Holm.

        Args:
            rows: with their evaluations.
            classes: C class names.
            baseline: the name of the method to compare with.
            chosen_on: the split that knobs were chosen on, if any.

        Raises:
            PosthocError: there is no such row, or rows come from different splits.
        """
        bare = cls(tuple(rows), tuple(classes), chosen_on)
        base = next((row for row in rows if row.method == baseline), None)
        if base is None:
            raise PosthocError(
                f"a table without {show(baseline)!r}",
                "the untouched head as a row",
                f"add it, or compare with one of {listed(row.method for row in rows)}",
            )
        gains = {n: difference(bare.shown(base), bare.shown(row)) for n, row in enumerate(rows) if row is not base}
        adjusted = dict(zip(gains, holm([gain.p for gain in gains.values()]), strict=True))
        made = (replace(row, paired=gains.get(n), adjusted_p=adjusted.get(n)) for n, row in enumerate(rows))
        return replace(bare, rows=tuple(made))

    @property
    def split(self) -> str:
        """The split shown: test where every row has it, else val."""
        return "val" if any(row.test is None for row in self.rows) else "test"

    @property
    def flatters(self) -> bool:
        """Whether the split shown is the one that knobs were chosen on, which no test of the gains survives."""
        return self.split == self.chosen_on

    def shown(self, row: Row) -> Evaluation:
        """The row's evaluation on the split shown."""
        found = row.test if self.split == "test" else row.val
        assert found is not None  # the constructor has seen to it
        return found

    def records(self, verbose: bool = False) -> list[dict[str, object]]:
        """A dict a row for JSON: the method, its knob, both splits' metric blocks and the paired gain."""
        return [self._record(row, verbose) for row in self.rows]

    def _record(self, row: Row, verbose: bool) -> dict[str, object]:
        def block(split: Evaluation | None) -> dict[str, object] | None:
            return None if split is None else split.block(self.classes, verbose)

        gain = row.paired
        return {
            "method": row.method,
            **({"options": row.options} if row.options else {}),
            **row.outer,
            **({} if row.knob is None else {row.knob: row.value}),
            "control": row.control,
            "chosen": row.chosen,
            "val": block(row.val),
            "test": block(row.test),
            "gain": None if gain is None else gain.delta,
            "gain_ci": None if gain is None else [gain.low, gain.high],
            "p": None if gain is None or self.flatters else gain.p,
            "p_holm": None if self.flatters else row.adjusted_p,
        }

    def _flat(self, row: Row) -> dict[str, object]:
        seen, gain = self.shown(row), row.paired
        low, high = seen.balanced_accuracy_ci
        return {
            "method": row.method,
            **({"options": row.options} if any(each.options for each in self.rows) else {}),
            "knob": row.knob,
            "value": row.value,
            **{name: row.outer.get(name) for each in self.rows for name in each.outer},
            "control": row.control,
            "chosen": row.chosen,
            "split": self.split,
            **{name: seen.group(name) for name in GROUPS},
            "balanced_accuracy": seen.balanced_accuracy,
            "low": low,
            "high": high,
            **_scored(seen),
            "accuracy": seen.accuracy,
            "macro_f1": macro_f1(seen.tally),
            "worst_class": worst_class(seen.tally),
            "nll": seen.nll,
            "ece": seen.ece,
            "gain": None if gain is None else gain.delta,
            "gain_low": None if gain is None else gain.low,
            "gain_high": None if gain is None else gain.high,
            "p": None if gain is None or self.flatters else gain.p,
            "p_holm": None if self.flatters else row.adjusted_p,
        }

    def frame(self) -> pandas.DataFrame:
        """A pandas frame of the split shown: a row a method, figures as fractions of 1."""
        import pandas

        return pandas.DataFrame([self._flat(row) for row in self.rows])

    def csv(self) -> str:
        """The frame as CSV, in full precision; text that a spreadsheet would run is made inert."""
        rows = [self._flat(row) for row in self.rows]
        return csv_text(list(rows[0]), [list(row.values()) for row in rows])

    def text(self, width: int = 80, color: bool = False) -> str:
        """For a terminal of `width` columns: figures in percent, the chosen row marked, a legend below.

        Where the columns do not fit, the knob, overall accuracy and the groups give way, in this order.
        """
        return comparison(self, width, color)

    def markdown(self) -> str:
        """For a README or an issue: the same cells as `text`, every column."""
        header, rows, right = self._cells()
        return f"{heading(self)}\n\n{markdown(header, rows, right)}\n\n{escaped(legend(self))}\n"

    def html(self) -> str:
        """For a notebook: the same cells as `text`, every column."""
        above, below = map(html_paragraph, (heading(self), legend(self)))
        return f"{above}\n{html_table(*self._cells())}\n{below}"

    def _repr_html_(self) -> str:
        return self.html()

    def _cells(self) -> tuple[list[str], list[list[str]], list[bool]]:
        columns = cells(self)
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        return list(columns), rows, [name not in ("method", "knob") for name in columns]


def _scored(seen: Evaluation) -> dict[str, object]:
    """The score by another yardstick than balanced accuracy, which `gain` then is of."""
    if seen.yardstick is BALANCED:
        return {}
    key, (low, high) = seen.yardstick.key, seen.score_ci
    return {key: seen.score, f"{key}_low": low, f"{key}_high": high}
