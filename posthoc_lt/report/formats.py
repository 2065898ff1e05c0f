"""Rows in the forms that ``--format`` names: table, json, csv, md."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass

from posthoc_lt.errors import PosthocError, show

FORMATS = ("table", "json", "csv", "md")
"""What ``--format`` takes."""

_WHOLE = 1 << 20
"""A limit for `show` that cuts no name."""

NOTHING = "n/a"
"""How a figure that does not exist is shown to a person; a machine gets null or an empty cell."""


def dump(obj: object) -> str:
    r"""One JSON text, keys in the order given; NaN and infinity, which JSON has not, become null.

    Tensors and arrays become lists, dataclasses objects, anything else unknown its text. Only ASCII is
    written, so a class name cannot carry a control sequence to a terminal.

    >>> dump({"tau": 1.0, "few": float("nan")})
    '{\n  "tau": 1.0,\n  "few": null\n}'
    """
    return json.dumps(_plain(obj), indent=2, allow_nan=False)


def render(rows: Sequence[Mapping[str, object]], form: str, percent: Collection[str] = ()) -> str:
    """Rows of any command's result in one of `FORMATS`, columns in the order in which keys first appear.

    A nested mapping becomes columns ``outer.inner``; a list becomes one cell. JSON is one object, ``{"rows": [...]}``.
    The columns named in `percent` hold fractions of 1: people read them in percent, machines as they are.

    Raises:
        PosthocError: there is no such format.

    >>> print(render([{"class": "cat", "recall": 0.5}], "csv"), end="")
    class,recall
    cat,0.5
    """
    if form not in FORMATS:
        raise PosthocError(f"format {show(form)!r}", "one of " + ", ".join(FORMATS), "give --format table")
    if form == "json":
        return dump({"rows": list(rows)})
    flat = [_flat(row) for row in rows]
    header = list(dict.fromkeys(key for row in flat for key in row))
    values = [[row.get(key) for key in header] for row in flat]
    if form == "csv":
        return csv_text(header, values)
    spelled = [_percent if key in percent else _cell for key in header]
    cells = [[spell(value) for spell, value in zip(spelled, row, strict=True)] for row in values]
    numeric = [all(map(_numeric, column)) for column in zip(*values, strict=True)]
    names = [show(key) + " %" * (key in percent) for key in header]
    return _fitting(names, cells, numeric) if form == "table" else markdown(names, cells, numeric)


def _fitting(header: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """The grid within 80 columns, if it can be: first its gaps close up, then its texts are cut."""
    made = grid(header, cells, right)
    for limit in (_WHOLE, 40, 24):
        if max(map(len, made.splitlines())) <= 80:
            break
        made = grid(header, [[show(cell, limit) for cell in row] for row in cells], right, gap=1)
    return made


def grid(header: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], gap: int = 2) -> str:
    """Lines of aligned columns, `gap` spaces apart, under an underlined header; `right` says which align right."""
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        sides: list[Callable[[int], str]] = [c.rjust if r else c.ljust for c, r in zip(row, right, strict=False)]
        return (" " * gap).join(side(width) for side, width in zip(sides, widths, strict=False)).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, cells)])


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """The same as a Markdown table; nothing in a cell can end it or become markup."""

    def line(row: Iterable[str]) -> str:
        return "| " + " | ".join(row) + " |"

    rule = ["---:" if r else "---" for r in right]
    return "\n".join([line(map(escaped, header)), line(rule), *(line(map(escaped, row)) for row in cells)])


def html_table(header: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """The same as an HTML table for a notebook; every cell is escaped."""

    def line(row: Sequence[str], tag: str) -> str:
        sides = ("right" if r else "left" for r in right)
        made = (
            f'<{tag} style="text-align: {side}">{html.escape(c)}</{tag}>' for c, side in zip(row, sides, strict=False)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "\n".join(line(row, "td") for row in cells)
    return f"<table>\n<thead>{line(header, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def html_paragraph(text: str) -> str:
    """Lines of text as one HTML paragraph, escaped."""
    return f"<p>{'<br>'.join(map(html.escape, text.splitlines()))}</p>"


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV with full-precision numbers, empty cells for what is not there, and text that no spreadsheet runs.

    A text cell that begins with ``= + - @`` would be read as a formula: it gets a leading apostrophe. Control
    characters are spelled out, as CSV is printed to terminals too. Numbers keep their sign.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_inert(key) for key in header])
    writer.writerows([[_inert(value) for value in row] for row in rows])
    return out.getvalue()


def _numeric(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _inert(value: object) -> object:
    value = _plain(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    text = show(" ".join(map(str, value)) if isinstance(value, list) else value, _WHOLE)
    return "'" + text if text.lstrip().startswith(tuple("=+-@＝＋－＠")) else text


def _cell(value: object) -> str:
    value = _plain(value)
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(_cell, value)) if isinstance(value, list) else show(value)


def _percent(value: object) -> str:
    share = _plain(value)
    return f"{100 * share:.1f}" if isinstance(share, int | float) else _cell(value)


def escaped(text: str) -> str:
    """Text in which nothing is Markdown's markup."""
    return "".join("\\" + c if c in "\\`*_[]<>|~" else c for c in text.strip())


def _flat(row: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in row.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        found.update(inner)
    return found


def _plain(obj: object) -> object:
    """The value in JSON's own types."""
    if obj is None or isinstance(obj, bool | str):
        return obj
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple | set | frozenset):
        return [_plain(value) for value in obj]
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, int):
        return int(obj)
    if is_dataclass(obj) and not isinstance(obj, type):
        return _plain(asdict(obj))
    as_list = getattr(obj, "tolist", None)  # tensors, arrays and their scalars
    return _plain(as_list()) if callable(as_list) else str(obj)
