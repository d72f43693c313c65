"""The theatre in a real, headless browser, at both widths: stepping without Python, the ladder with it."""

import json
import re

import pytest

pytest.importorskip("playwright.sync_api")

from tests.test_ladder import WRONG, solution, wrong_text
from tests.tools import browser
from tutorials import explore, ladder

pytestmark = pytest.mark.site

START_MILLISECONDS = 60_000
WIDTHS = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture
def ladder_page(open_page):
    """The ladder, with Python running."""
    page = open_page("theatre/write/", viewport=WIDTHS["desktop"])
    page.wait_for_selector("#status[data-state=ready]", timeout=START_MILLISECONDS)
    return page


def record(name):
    return json.loads((browser.SITE / "theatre" / "records" / f"{name}.json").read_text(encoding="utf-8"))


# Watch


def test_the_first_picture_is_there_without_any_script_and_is_the_one_that_the_script_draws(open_page):
    static = open_page("theatre/", java_script_enabled=False, viewport=WIDTHS["desktop"])
    live = open_page("theatre/", viewport=WIDTHS["desktop"])
    assert "Loads 4 entries of b" in static.inner_text(".stage-sentence")
    assert static.inner_text(".stage-picture") == live.inner_text(".stage-picture")
    assert static.locator(".cell.loads").count() == live.locator(".cell.loads").count() == 4


@pytest.mark.parametrize("width", WIDTHS)
def test_every_step_of_a_launch_can_be_reached_and_is_described(open_page, width):
    page = open_page("theatre/", viewport=WIDTHS[width])
    steps = record("outliers")["steps"]
    page.click("[data-action=first]")
    for n, step in enumerate(steps, 1):
        sentence = page.inner_text(".stage-sentence")
        assert sentence.startswith(f"Step {n} of {len(steps)}: program (0, 0), line {step['line']}: ")
        assert page.locator(".line.now .number").first.inner_text() == str(step["line"])
        assert [int(text.replace(",", "")) for text in page.locator(".counters td").all_inner_texts()] == step["bytes"]
        page.click("[data-action=step]")
    assert page.inner_text(".stage-sentence").endswith("The last step.")
    assert "nan" not in page.get_by_role("img", name=re.compile("^y, result")).inner_text()


def test_the_keyboard_steps_and_the_slider_as_well(open_page):
    page = open_page("theatre/", viewport=WIDTHS["desktop"])
    page.focus(".listing")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text(".stage-sentence").startswith("Step 2 of ")
    assert page.evaluate("document.activeElement.classList.contains('listing')")
    page.keyboard.press("a")
    assert "Loads 16 entries of a, 16 bytes." in page.inner_text(".stage-sentence")
    page.focus(".stage-controls input")
    page.keyboard.press("End")
    assert page.inner_text(".stage-sentence").endswith("The last step.")


def test_playing_goes_on_by_itself_and_pauses(open_page):
    page = open_page("theatre/", viewport=WIDTHS["desktop"])
    page.click("[data-action=first]")
    page.click("[data-action=run]")
    page.wait_for_function("document.querySelector('.stage-sentence').innerText.startsWith('Step 3 ')")
    page.click("[data-action=run]")
    assert page.inner_text("[data-action=run]") == "Play"


@pytest.mark.parametrize("width", WIDTHS)
def test_another_kernel_is_fetched_and_its_programs_can_be_gone_through(open_page, width):
    page = open_page("theatre/", viewport=WIDTHS[width])
    for name in ("tiles", "quantize", "copy", "epilogue"):
        page.select_option("#example", name)
        wanted = record(name)
        page.wait_for_function(
            "t => document.querySelector('.stage-sentence').innerText.startsWith(t)", arg=f"Step {wanted['opening'] + 1} of "
        )
        page.click("[data-action=first]")
        programs = [tuple(step["program"]) for step in wanted["steps"]]
        seen = [re.search(r"program (.*?), line", page.inner_text(".stage-sentence"))[1]]
        for _ in range(len(set(programs)) - 1):
            page.click("[data-action=program]")
            seen.append(re.search(r"program (.*?), line", page.inner_text(".stage-sentence"))[1])
        assert seen == [str(p[0]) if len(p) == 1 else f"({p[0]}, {p[1]})" for p in dict.fromkeys(programs)]
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]["width"]
    assert open_page("theatre/#quantize", viewport=WIDTHS[width]).wait_for_selector("#example").input_value() == "quantize"


@pytest.mark.parametrize("path", ["theatre/", "theatre/write/", "theatre/inside/", "theatre/explore/"])
def test_every_control_has_a_name(open_page, path):
    page = open_page(path, viewport=WIDTHS["desktop"])
    nameless = page.eval_on_selector_all(
        "article input, article select, article textarea, article button, article [role=img], article [role=region]",
        "all => all.filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.innerText || e.title)).map(e => e.outerHTML)",
    )
    assert nameless == []


# Write


def run(page, name, text):
    rung = page.locator(f".rung[data-name={name}]")
    rung.locator("textarea").fill(text)
    rung.locator(".run").click()
    message = rung.locator(".message:not(:text('Running…'))")
    message.wait_for()
    return message.get_attribute("data-state"), message.inner_text()


def test_the_whole_ladder_can_be_climbed(ladder_page):
    page = ladder_page
    for count, name in enumerate(ladder.RUNGS, 1):
        state, text = run(page, name, solution(name))
        assert (state, text.split(":")[0]) == ("right", "right"), text
        assert page.inner_text("#progress") == f"{count} of 10 kernels written."
        page.locator(f".rung[data-name={name}] .stage-controls input").focus()
        page.keyboard.press("End")
        assert page.locator(f".rung[data-name={name}] .missing").count() == 0
    page.reload()
    assert page.inner_text("#progress") == "10 of 10 kernels written."
    assert page.locator("[data-name=copy] textarea").input_value() == solution("copy")
    assert page.locator(".ladder a.passed").count() == 10


def test_a_wrong_kernel_gets_its_hint_and_its_picture(ladder_page):
    for name in ladder.RUNGS:
        how = next(iter(WRONG[name]))
        _, fault, hint = WRONG[name][how]
        state, text = run(ladder_page, name, wrong_text(name, how))
        assert state == "wrong"
        assert fault in text
        assert hint in text
    stage = ladder_page.locator("[data-name=masked-copy] .stage-sentence")
    assert "Stopped: program 3 loads offset" in stage.inner_text()


def test_an_answer_that_never_ends_is_stopped_and_start_over_brings_the_stub_back(open_page):
    page = open_page("theatre/write/", viewport=WIDTHS["phone"])
    page.wait_for_selector("#status[data-state=ready]", timeout=START_MILLISECONDS)
    rung = page.locator(".rung[data-name=copy]")
    stub = rung.locator("textarea").input_value()
    page.clock.install()
    rung.locator("textarea").fill("while True: pass")
    rung.locator(".run").click()
    page.clock.fast_forward(21_000)
    rung.locator(".message:has-text('Stopped')").wait_for()
    page.wait_for_selector("#status[data-state=ready]", timeout=START_MILLISECONDS)
    rung.locator(".reset").click()
    assert rung.locator("textarea").input_value() == stub
    assert run(page, "copy", stub)[1] == "not yet: my_copy stores nothing. Write it, then run it again."


def test_the_editor_indents_and_lets_go_of_the_keyboard(ladder_page):
    editor = ladder_page.locator("[data-name=copy] textarea")
    editor.fill("def f():")
    editor.press("End")
    editor.press("Enter")
    assert editor.input_value() == "def f():\n    "
    editor.press("Escape")
    editor.press("Tab")
    assert ladder_page.evaluate("document.activeElement.classList.contains('run')")


# Look inside


@pytest.mark.parametrize("width", WIDTHS)
def test_what_the_compiler_made_can_be_stepped_through(open_page, width):
    page = open_page("theatre/inside/", viewport=WIDTHS[width])
    for part in ("row", "tile"):
        root = page.locator(f"#{part}")
        root.locator("[data-action=first]").click()
        count = int(root.locator(".at").get_attribute("max")) + 1
        before = ""
        for n in range(1, count + 1):
            sentence = root.locator(".stage-sentence").inner_text()
            assert sentence.startswith(f"Step {n} of {count}, ")
            picture = root.locator(".stage-picture").inner_html()
            assert picture != before
            before = picture
            root.locator("[data-action=step]").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]["width"]


def test_another_thread_is_followed_by_keyboard(open_page):
    page = open_page("theatre/inside/", viewport=WIDTHS["desktop"])
    page.focus("#thread")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert "Thread 1 holds x[4] to x[7]." in page.inner_text("#row .stage-sentence")
    assert page.inner_text("#owned").startswith("Thread 1 holds 32 entries of the tile: rows 0, 8, 32, 40; columns 2, 3, ")


def test_the_tile_opens_where_one_block_is_multiplied_and_the_next_is_on_its_way(open_page):
    static = open_page("theatre/inside/", java_script_enabled=False, viewport=WIDTHS["desktop"])
    assert "On its way: block 1 of K." in static.inner_text("#tile .stage-sentence")
    assert static.locator("#tile .panel .pending").count() == 512
    assert static.locator("#tile .panel .arrived").count() == 512


# A real model


@pytest.mark.parametrize("width", WIDTHS)
def test_the_model_can_be_explored(open_page, width):
    page = open_page("theatre/explore/", viewport=WIDTHS[width])
    first = page.inner_text(".verdict")
    assert "Error of Y in int8 alone: 4.80 %; by LLM.int8(): 1.47 %" in first
    page.wait_for_selector("#status[data-state=ready]", timeout=START_MILLISECONDS)
    for button in page.locator("button.try").all():
        settings = json.loads(button.get_attribute("data-settings"))
        found = explore.compute(**settings)
        button.click()
        alone, decomposed = (f"{100 * error:.2f} %" for error in found["errors"])
        page.wait_for_function(
            "t => document.querySelector('.verdict').innerText.includes(t)",
            arg=f"Error of Y in int8 alone: {alone}; by LLM.int8(): {decomposed}, with {len(found['outliers'])} of 576 columns",
        )
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]["width"]
    page.focus("#column")
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('#picture').innerText.includes('Column 0: values and codes')")
    page.locator("svg.columns").click(position={"x": 100, "y": 50})
    page.wait_for_function("!document.querySelector('#picture').innerText.includes('Column 0: values and codes')")
    assert page.locator("#explore.stale").count() == 0
