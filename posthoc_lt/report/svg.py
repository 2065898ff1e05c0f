"""Matplotlib axes as SVG that lies inside a page, takes its colours, and says in words what it shows."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING

from posthoc_lt.report.plots.style import AFTER, BEFORE, WORSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""What text and axes are drawn in, to be told from data colours and given over to the page."""


def svg(axes: Axes, name: str, alt: str) -> str:
    """The figure of `axes` as one ``<svg>`` element.

    Text stays text; ids get the prefix `name`, so that figures on one page do not refer to each other's clips; the
    colours of text and axes become the page's own (``currentColor``), grey its muted one, blue its accent, vermilion
    that of losses.

    Args:
        axes: drawn, on a figure of their own.
        name: of letters and hyphens, unique on the page.
        alt: what the figure shows, for those who cannot see it.
    """
    from matplotlib import rc_context

    figure = axes.get_figure(root=True)
    assert figure is not None  # axes without a figure cannot be drawn on

    _ink(axes)
    out = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with rc_context(settings):  # type: ignore[arg-type]  # the stubs list every key as a literal
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator"), None))
    text = out.getvalue()
    text = (
        text[text.index("<svg") :]
        .replace(INK, "currentColor")
        .replace(BEFORE, "var(--muted)")
        .replace(AFTER, "var(--accent)")
        .replace(WORSE, "var(--down)")
    )
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    size = re.search(r'viewBox="[^"]+"', text)
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {size[0] if size else ""} role="img"'
    label = f'aria-label="{html.escape(alt)}"'
    return re.sub(r"<svg[^>]*>", lambda _: f"{head} {label}>", text, count=1)


def _ink(axes: Axes) -> None:
    """Draw what is not data in `INK`."""
    legend = axes.get_legend()
    texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *(legend.get_texts() if legend else ()), *axes.texts]
    for text in texts:
        text.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.tick_params(color=INK, labelcolor=INK)
