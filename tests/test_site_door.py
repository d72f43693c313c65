"""The door in a real browser: where to go is on the first screen, the dial turns, the bits flip. `make docs-test` runs this."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright.sync_api")


pytestmark = pytest.mark.site

HOOKS = Path(__file__).parents[1] / "docs" / "hooks"
SCREENS = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}


def ends(locator):
    """Where elements end, in pixels from the top of the page."""
    return [locator.nth(i).bounding_box()["y"] + locator.nth(i).bounding_box()["height"] for i in range(locator.count())]


@pytest.mark.parametrize("screen", SCREENS)
def test_why_and_where_to_go_are_on_the_first_screen(open_page, screen):
    home = open_page("", viewport=SCREENS[screen])
    why = home.locator(".door .why")
    assert re.search(r"\d+ GB in 16 bits", why.inner_text())
    for part, count in ((".doors a", 2), (".where a", 9)):
        found = ends(why.locator(part))
        assert len(found) >= count
        assert max(found) < SCREENS[screen]["height"], part
    assert home.locator("#dial svg").bounding_box()["y"] < SCREENS[screen]["height"]


def test_the_whole_dial_is_on_the_first_screen_of_a_desktop(open_page):
    assert max(ends(open_page("", viewport=SCREENS["desktop"]).locator("#dial"))) < 900


def test_the_dial_has_its_picture_without_any_script(open_page):
    home = open_page("", java_script_enabled=False)
    assert home.locator("#dial polyline").count() == 2
    assert home.locator("#dial-int8").inner_text() == "74,815"


def test_the_dial_turns_by_keyboard_and_shows_every_computed_position(open_page):
    sys.path.insert(0, str(HOOKS))
    try:
        home_hook = importlib.import_module("home")
    finally:
        sys.path.remove(str(HOOKS))
    positions = home_hook.positions(home_hook.json.loads(home_hook.RECORD.read_text(encoding="utf-8")))["positions"]
    home = open_page("")
    dial = home.locator("#dial-factor")
    dial.focus()
    for point in reversed(positions):
        assert home.locator("#dial-value").inner_text() == str(point["factor"])
        assert home.locator("#dial-int8").inner_text() == home_hook.said(point["perplexity"]["int8 alone"])
        assert home.locator("#dial-decomposed").inner_text() == home_hook.said(point["perplexity"]["LLM.int8()"])
        for name, codes in point["codes"].items():
            assert home.locator(f'#dial tr[data-method="{name}"] td').all_inner_texts() == codes
        home.keyboard.press("ArrowLeft")


def test_the_doors_open(open_page):
    home = open_page("")
    home.get_by_role("link", name=re.compile(r"Start, \d+ minutes")).click()
    assert home.locator("h1").inner_text().startswith("LLM.int8() in five minutes")


@pytest.mark.parametrize("screen", SCREENS)
def test_the_map_has_a_station_for_each_chapter(open_page, screen):
    index = open_page("tutorials/", viewport=SCREENS[screen])
    stations = index.locator("ol.map .station")
    assert stations.count() == 12
    assert [int(n) for n in index.locator("ol.map .number").all_inner_texts()] == list(range(12))
    stations.nth(8).locator("a").click()
    assert index.locator("h1").inner_text().startswith("08.")


def test_flipping_bits_shows_the_number_that_numpy_reads(open_page):
    chapter = open_page("tutorials/00_bits_and_layers/")
    buttons = chapter.locator("#bits-float16 button")
    for pattern in (0x3C00, 0x4A5A, 0xC100, 0x0001, 0x7BFF, 0x7C00, 0xFC00, 0x7E00):
        for place, bit in enumerate(f"{pattern:016b}"):
            if buttons.nth(place).inner_text() != bit:
                buttons.nth(place).click()
        value = np.uint16(pattern).view(np.float16)
        shown = chapter.locator("#bits-float16-meaning b").inner_text().replace("−", "-").replace(" x 10", "e")
        if np.isnan(value):
            assert shown == "not a number"
        else:
            assert float(shown.replace("infinity", "inf")) == pytest.approx(float(value), rel=1e-9)
    assert chapter.locator("#bits-float16 button[aria-pressed=true]").count() == f"{0x7E00:b}".count("1")


def test_the_bits_of_an_int8_add_up(open_page):
    chapter = open_page("tutorials/00_bits_and_layers/")
    for place in range(8):
        chapter.locator("#bits-int8 button").nth(place).click()  # 22 becomes its complement
    assert chapter.locator("#bits-int8-meaning").inner_text() == "−128 + 64 + 32 + 8 + 1 = −23"
    chapter.get_by_role("button", name="65504, the largest").click()
    assert chapter.locator("#bits-float16-meaning b").inner_text() == "65504"
