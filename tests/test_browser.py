"""The report in a real browser, where there is one: playwright and a Chromium of the system."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_page import HOSTILE, made_of

import posthoc_lt
from posthoc_lt import FeatureSet

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@pytest.fixture(scope="module")
def page_file(features: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    posthoc_lt.rebalance(features, methods=["logit-adjust", "tau-norm"]).report(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_loads_without_an_error_and_fits_the_screen(
    page_file: Path, browser: Any, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    assert said == []
    assert asked == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = page.locator("figure svg")
    assert figures.count() == 6
    assert all(figures.nth(k).bounding_box()["height"] > 100 for k in range(6))
    page.close()


def test_a_press_on_a_heading_sorts_and_a_second_turns_the_order(
    page_file: Path, browser: Any, features: FeatureSet
) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())

    def column(number: int) -> list[str]:
        texts: list[str] = page.locator(f"table.sortable tbody td:nth-child({number})").all_inner_texts()
        return texts

    counts = features.counts.sort().values
    page.get_by_role("button", name="train samples").click()
    assert column(3) == [str(n) for n in counts.tolist()]
    page.get_by_role("button", name="train samples").click()
    assert column(3) == [str(n) for n in torch.flip(counts, (0,)).tolist()]
    page.get_by_role("button", name="class").focus()
    page.keyboard.press("Enter")
    assert column(1) == sorted(features.classes)
    assert page.locator("th[aria-sort]").count() == 1
    page.close()


def test_names_are_shown_as_text_found_by_typing_and_fit_a_phone(browser: Any, tmp_path: Path) -> None:
    names = (*HOSTILE, *(f"species {c}" for c in range(20)))
    made_of(names, per_class=2).report(tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())  # type: ignore[func-returns-value]
    page.goto((tmp_path / "report.html").as_uri())
    told = [element.inner_text() for element in page.locator("table.sortable bdi").all()]
    assert told[0] == HOSTILE[0]
    assert told[2] == HOSTILE[2]
    assert told[4] == "x" * 200
    assert len(told) == len(names)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_label("Find a class").fill("SPECIES 1")
    seen = page.locator("table.sortable tbody tr:visible").count()
    assert seen == 11  # 1, 10 … 19
    page.get_by_label("Find a class").fill("")
    assert page.locator("table.sortable tbody tr:visible").count() == len(names)
    assert dialogs == []
    page.close()


def test_the_page_prints_with_nothing_cut_off(page_file: Path, browser: Any, features: FeatureSet) -> None:
    page = browser.new_page(viewport={"width": 718, "height": 1000})  # A4 less its margins
    page.emulate_media(media="print")
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert page.locator(".find").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()
