"""Nothing of the built site is cut off, too small or too faint: every page, on a desktop and on a phone, in light and in dark."""

from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")

from tests.tools import browser

pytestmark = pytest.mark.site

MEASURE = (Path(__file__).parent / "tools" / "layout.js").read_text(encoding="utf-8")
#: Width and height in CSS pixels; on a phone, the least size of a figure's label.
VIEWS = {"desktop": ((1440, 900), 0), "phone": ((390, 844), 10)}
SCHEMES = {"light": "default", "dark": "slate"}


@pytest.fixture(scope="module")
def page():
    """A page of the site that is opened again and again: style sheets and fonts come from the browser's cache."""
    assert (browser.SITE / "index.html").exists(), "build the site first: make docs"
    with browser.server() as address, browser.browser() as chromium:
        context = chromium.new_context(base_url=address)
        yield context.new_page()
        context.close()


def complaints(page):
    """What is wrong with an opened page, by view and colour scheme."""
    # All that can be opened is; transitions would be measured half-way.
    page.add_style_tag(content="*, ::before, ::after { transition: none !important; animation: none !important; }")
    page.evaluate("document.querySelectorAll('article details').forEach((details) => (details.open = true))")
    found = []
    for view, ((width, height), label) in VIEWS.items():
        page.set_viewport_size({"width": width, "height": height})
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found.append(f"{view}: the page scrolls sideways")
        for scheme, name in SCHEMES.items():
            page.evaluate("name => document.body.setAttribute('data-md-color-scheme', name)", name)
            first = scheme == "light"
            settings = {"clipping": view if first else None, "labels": label if first else 0}
            found += [f"{view}, {scheme}: {text}" for text in page.evaluate(MEASURE, settings)]
    return found


@pytest.mark.parametrize("path", browser.pages(), ids=lambda path: path or "home")
def test_nothing_of_a_page_is_cut_too_small_or_too_faint(page, path):
    page.goto(path, wait_until="load")
    assert complaints(page) == []


#: Faults of each kind, and what has to be said about them.
FAULTS = {
    "code that does not wrap": ("<pre><code>" + 200 * "x" + "</code></pre>", "desktop, light: cut"),
    "a table in a box that hides it": (
        '<div style="overflow:hidden"><table><tr>' + 60 * "<td>1234567</td>" + "</tr></table></div>",
        "desktop, light: cut",
    ),
    "a formula on a desktop that scrolls": (
        '<div class="arithmatex"><div style="width: 3000px">x</div></div>',
        "desktop, light: cut",
    ),
    "text out of its box": ('<p style="width: 2000px">wide</p>', "desktop, light: beyond the page"),
    "a page that scrolls": ('<p style="width: 500px">wide</p>', "phone: the page scrolls sideways"),
    "grey on white": ('<p style="color: #8a8f98">grey</p>', "desktop, light: contrast 3."),
    "grey on black": ('<p style="color: #6b6f76">grey</p>', "desktop, dark: contrast 3."),
    "faint by opacity": ('<p style="opacity: .5">grey</p>', "desktop, light: contrast"),
    "text on a filled cell": (
        '<svg width="99" height="50"><path d="M0 0H99V50H0Z" fill="#4a90d9"/><text x="20" y="30" style="fill: #555">cell</text></svg>',
        "desktop, light: contrast",
    ),
    "a label out of its figure": (
        '<span class="drawing"><svg viewBox="0 0 90 20"><text x="60" y="15" style="font-size: 12px">a long label</text></svg></span>',
        'desktop, light: label out of its figure: "a long label"',
    ),
    "two labels on top of each other": (
        '<span class="drawing"><svg viewBox="0 0 90 20"><text x="9" y="15">one</text><text x="12" y="16">two</text></svg></span>',
        'desktop, light: labels on top of each other: "one", "two"',
    ),
    "a label that shrinks with its figure": (
        '<span class="drawing"><svg class="narrow" viewBox="0 0 900 100"><text y="50" style="font-size: 12px">label</text></svg></span>',
        'phone, light: label of 4.8 px: "label"',
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_page_with_this_fault_would_be_noticed(page, fault):
    markup, said = FAULTS[fault]
    page.goto("glossary/", wait_until="load")
    page.evaluate("markup => document.querySelector('article').insertAdjacentHTML('beforeend', markup)", markup)
    assert [text for text in complaints(page) if text.startswith(said)], complaints(page)
