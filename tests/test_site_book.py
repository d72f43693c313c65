"""The book as it is printed: every figure is there, tables are tables, nothing lies beyond the page."""

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")

from experiments import book
from tests.tools import browser

pytestmark = pytest.mark.site

#: Width of a page without its margins, in CSS pixels (book.STYLE); and one on which a screen would have the layout of a phone.
PAPER, NARROW = 826, 700
WIDTHS = "nodes => nodes.map(node => node.getBoundingClientRect().width)"
BEYOND = """() => [...document.querySelectorAll('table, pre, svg.wide, .katex-display > .katex, p, img')]
  .filter(node => node.getBoundingClientRect().right > document.body.clientWidth + 1)
  .map(node => `${node.closest('section')?.id} ${node.tagName}: ${node.textContent.trim().slice(0, 60)}`)"""


@pytest.fixture(scope="module", params=book.EDITIONS)
def page(request):
    """The whole book as a page, in the layout of print."""
    text = book.assembled(book.EDITIONS[request.param], {})
    with tempfile.NamedTemporaryFile("w", suffix=".html", dir=book.SITE, encoding="utf-8") as file, browser.browser() as chromium:
        file.write(text)
        file.flush()
        opened = chromium.new_page()
        opened.emulate_media(media="print")
        opened.goto(Path(file.name).as_uri(), wait_until="load")
        yield opened


def test_every_figure_is_in_its_wide_layout_however_narrow_the_paper(page):
    page.set_viewport_size({"width": NARROW, "height": 1000})
    wide = page.eval_on_selector_all("svg.wide", WIDTHS)
    assert len(wide) > 40
    assert min(wide) > 100
    assert page.locator("svg.narrow").count() == 0


def test_tables_are_tables(page):
    page.set_viewport_size({"width": NARROW, "height": 1000})
    shown = page.eval_on_selector_all("table.cards tr", "rows => rows.map(row => getComputedStyle(row).display)")
    assert set(shown) == {"table-row"}


def test_nothing_lies_beyond_the_page(page):
    page.set_viewport_size({"width": PAPER, "height": 1000})
    assert page.evaluate(BEYOND) == []
