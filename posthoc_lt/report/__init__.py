"""Numbers made readable: the comparison table, one sentence on it, and the forms commands print in."""

from __future__ import annotations

from posthoc_lt.report.formats import FORMATS, dump, render
from posthoc_lt.report.table import Row, Table
from posthoc_lt.report.text import verdict

__all__ = ["FORMATS", "Row", "Table", "dump", "render", "verdict"]
