"""The built site in a real, headless browser: `make docs-test` builds it and runs this."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")

from tests.tools import browser

pytestmark = pytest.mark.site

ROOT = Path(__file__).parents[1]
PLAYGROUND = ROOT / "docs" / "playground"
START_MILLISECONDS = 60_000


def _load_play():
    spec = importlib.util.spec_from_file_location("play", PLAYGROUND / "play.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


play = _load_play()


@pytest.fixture
def playground(open_page):
    """The playground, with Python running."""
    page = open_page("playground/")
    page.wait_for_selector("#status[data-state=ready]", timeout=START_MILLISECONDS)
    return page


@pytest.mark.parametrize("path", browser.pages(), ids=lambda path: path or "home")
def test_a_page_loads_whole_from_the_site_alone(open_page, path):
    page = open_page(path)
    assert page.locator("h1").count() == 1
    assert page.locator(".katex-error, .arithmatex:not(:has(.katex))").count() == 0
    broken = page.eval_on_selector_all("article img", "all => all.filter(i => !i.naturalWidth || !i.alt.trim()).map(i => i.src)")
    assert broken == []
    assert page.locator(".drawing:not([role=img][aria-label])").count() == 0


def test_a_page_without_formulae_errors_would_be_noticed(open_page, address):
    page = open_page("playground/")
    page.evaluate("document.querySelector('article').insertAdjacentHTML('beforeend', '<span class=arithmatex>x</span>')")
    assert page.locator(".katex-error, .arithmatex:not(:has(.katex))").count() == 1


def test_search_finds_a_word_of_the_contract(open_page):
    page = open_page("")
    page.keyboard.press("s")
    page.keyboard.type("numerics", delay=20)
    page.wait_for_selector(".md-search-result__link[href*='contract/']")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_gets_the_colours_their_system_asks_for(open_page, scheme):
    page = open_page("", color_scheme=scheme)
    assert page.get_attribute("body", "data-md-color-scheme") == {"light": "default", "dark": "slate"}[scheme]


# Predictions


CHAPTER = "tutorials/01_absmax/"


def test_without_scripts_a_result_is_folded_and_opens(open_page):
    page = open_page(CHAPTER, java_script_enabled=False)
    result = page.locator("details.prediction").first
    assert not page.locator("form.prediction").first.is_visible()
    assert result.get_attribute("open") is None
    result.locator("summary").click()
    assert result.locator("strong").first.is_visible()


def test_every_prompt_of_a_page_has_one_result(open_page):
    page = open_page(CHAPTER)
    assert page.locator("form.prediction").count() == page.locator("details.prediction").count() > 3
    assert page.locator("details.prediction[open]").count() == 0


def test_a_guess_opens_the_result_and_is_compared_by_keyboard_alone_and_kept(open_page):
    page = open_page(CHAPTER)
    form, result = page.locator("form.prediction").first, page.locator("details.prediction").first
    page.evaluate("document.querySelector('form.prediction input').focus()")
    page.keyboard.press("Enter")
    assert form.locator(".advice").inner_text() == "Answer first. A rough guess is enough."
    page.keyboard.type("0,11")
    page.keyboard.press("Tab")
    page.keyboard.type("[127 5 1]")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # the first option
    page.keyboard.press("Enter")
    said = ["You said 0,11. Computed: 0.1. Close: off by 10 %.", "Right: 127, 5, 1.", "You said 0.5. Computed: 0.08."]
    assert form.locator(".compared").all_inner_texts() == said
    assert result.get_attribute("open") is not None

    page.reload()
    assert form.locator(".compared").all_inner_texts() == said
    assert result.get_attribute("open") is not None
    form.locator("button").click()  # Guess again
    assert form.locator("input").first.input_value() == ""
    page.reload()
    assert page.locator("details.prediction[open]").count() == 0


@pytest.mark.parametrize(
    ("answer", "guess", "state", "said"),
    [
        ("0.244", "0.244", "right", "Right: 0.244."),
        ("0.244", "0.2441", "right", "Right: 0.244."),
        ("0.244", "1/4", "close", "Close: off by 2.5 %."),
        ("0.244", "0.5", "off", "2 times too large."),
        ("133144", "2^17", "close", "Close: off by 1.6 %."),
        ("8847360", "8.8 million", "close", "off by 0.54 %."),
        ("1024", "1,024", "right", "Right: 1024."),
        ("12.5", "12,5 %", "right", "Right: 12.5."),
        ("-95", "95", "off", "You said 95. Computed: -95."),
        ("-95", "−95", "right", "Right: -95."),
        ("0", "3", "off", "You said 3. Computed: 0."),
        ("1.08e+06", "1000", "off", "1,080 times too small."),
    ],
)
def test_a_number_is_read_as_people_write_it_and_compared_as_they_would(open_page, address, answer, guess, state, said):
    page = open_page("glossary/")
    compare = "async ([a, g]) => (await import('../javascripts/predictions.js')).compare({kind: 'number', answer: a, shown: a}, g)"
    got, text = page.evaluate(compare, [answer, guess])
    assert (got, text.endswith(said)) == (state, True), text


# The playground


def expected(settings):
    """The texts that the page has to show for these settings, as the reference computes them here."""
    result = play.compute(**settings)
    chosen = next(m for m in result["methods"] if (m["quantizer"], m["granularity"]) == (settings["quantizer"], settings["granularity"]))
    texts = {
        "#error-int8": f"{100 * chosen['int8']:.2f} %",
        "#error-decomposed": f"{100 * chosen['decomposed']:.2f} %",
        "#distinct-int8": str(result["int8"]["distinct"]),
        "#distinct-decomposed": str(result["decomposed"]["distinct"]),
        "#outlier-columns": str(len(result["outliers"])),
    }
    for m in result["methods"]:
        for kind in ("int8", "decomposed"):
            texts[f"tr[data-method='{m['quantizer']}, {m['granularity']}'] [data-kind={kind}] .value"] = f"{100 * m[kind]:.2f} %"
    return result, texts


def shown(page, texts):
    return {selector: page.inner_text(selector) for selector in texts}


def turn(page, settings):
    """Moves the controls, and waits until the page shows what they say."""
    for name in ("outlier", "threshold"):
        page.fill(f"#{name}", f"{settings[name]:g}")
    for name in ("granularity", "quantizer"):
        page.select_option(f"#{name}", settings[name])
    page.wait_for_selector(f"tr.chosen[data-method='{settings['quantizer']}, {settings['granularity']}']")


def test_the_first_picture_is_there_without_any_script(open_page):
    _, texts = expected(play.DEFAULTS)
    assert shown(open_page("playground/", java_script_enabled=False), texts) == texts


def test_the_first_picture_makes_the_point():
    result = play.compute(**play.DEFAULTS)
    chosen = next(m for m in result["methods"] if (m["quantizer"], m["granularity"]) == ("absmax", "vector"))
    assert chosen["int8"] > 10 * chosen["decomposed"]


@pytest.mark.parametrize("outlier", [2, 100])
def test_turning_the_outliers_leaves_the_product_as_it_was(outlier):
    x, w = play.operands(float(outlier))
    plain_x, plain_w = play.operands(1.0)
    difference = abs(x.astype(float) @ w.T.astype(float) - plain_x.astype(float) @ plain_w.T.astype(float))
    # Each entry of X and W was rounded at most twice in float32 by its scaling: 4 factors of 1 +- 2**-24 on each of 32 products.
    assert (difference <= 4.01 * 2.0**-24 * (abs(plain_x.astype(float)) @ abs(plain_w.T.astype(float)))).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"outlier": 2.0, "threshold": 6.0, "granularity": "vector", "quantizer": "absmax"},
        {"outlier": 100.0, "threshold": 6.0, "granularity": "tensor", "quantizer": "absmax"},
        {"outlier": 33.0, "threshold": 20.0, "granularity": "row", "quantizer": "zeropoint"},
        {"outlier": 60.0, "threshold": 0.0, "granularity": "vector", "quantizer": "zeropoint"},
        {"outlier": 47.0, "threshold": 2.5, "granularity": "tensor", "quantizer": "zeropoint"},
    ],
    ids=str,
)
def test_the_page_shows_the_numbers_that_the_reference_gives(playground, settings):
    result, texts = expected(settings)
    turn(playground, settings)
    playground.wait_for_function("([s, t]) => document.querySelector(s).innerText === t", arg=next(iter(texts.items())))
    assert shown(playground, texts) == texts

    playground.focus("#map-int8-codes")
    row, column = 3, play.OUTLIERS[0] + 1
    for key in ["ArrowDown"] * (row + 1) + ["ArrowRight"] * column:  # the first key only brings up the cursor
        playground.keyboard.press(key)
    text = playground.inner_text("#probe")
    assert text.startswith(f"Token {row}, feature {column}: x = {result['x'][row][column]:.4f}.")
    assert f"Int8 alone: code {result['int8']['codes'][row][column]}, error {result['int8']['error'][row][column]:.4f}" in text


def test_a_slider_moves_by_keyboard_and_the_page_with_it(playground):
    before = playground.inner_text("#error-int8")
    playground.focus("#outlier")
    for _ in range(5):
        playground.keyboard.press("ArrowRight")
    _, texts = expected({**play.DEFAULTS, "outlier": 65.0})
    playground.wait_for_function("t => document.querySelector('#error-int8').innerText === t", arg=texts["#error-int8"])
    assert playground.inner_text("#error-int8") != before
    assert playground.inner_text("#outlier-value") == "65"


def test_each_suggestion_says_what_the_page_shows_once_it_is_followed(playground):
    for name, moved in play.SUGGESTIONS.items():
        numbers = playground.locator(f".computed[data-suggestion={name}]").all()
        texts = {f"#{number.get_attribute('data-shown-in')}": number.inner_text() for number in numbers}
        assert texts, name
        turn(playground, {**play.DEFAULTS, "outlier": 47.0, "threshold": 2.5})  # from elsewhere: the defaults would show themselves
        playground.click(f"button.try[data-try={name}]")
        _, wanted = expected(play.DEFAULTS | moved)
        playground.wait_for_function("w => Object.entries(w).every(([s, t]) => document.querySelector(s).innerText === t)", arg=wanted)
        assert shown(playground, texts) == texts, name
        assert playground.locator(".play.stale").count() == 0


def test_a_control_moved_before_python_runs_does_not_pass_old_numbers_off_as_new(open_page, address):
    page = open_page("")
    page.route("**/playground/worker.js", lambda route: route.fulfill(body="", content_type="text/javascript"))  # it never answers
    page.goto(f"{address}playground/")
    before = page.inner_text("#error-int8")
    page.fill("#outlier", "2")
    page.wait_for_selector(".play.stale")
    assert page.inner_text("#error-int8") == before
    assert "Until then the page shows outlier size 60, threshold 6, vector, absmax." in page.inner_text("#status")
    assert page.locator("#status").bounding_box()["y"] < page.locator("#verdict").bounding_box()["y"]
    page.fill("#outlier", "60")
    page.wait_for_selector(".play:not(.stale)")


def test_on_a_phone_the_controls_stay_in_sight_and_fit_one_screen_with_the_maps(open_page):
    width, height = browser.VIEWS["phone"]
    page = open_page("playground/", viewport={"width": width, "height": height})
    page.evaluate("document.querySelector('.play').scrollIntoView()")
    for selector in (".controls", ".verdict", "#map-x", "#map-int8-error", "#map-decomposed-error"):
        box = page.locator(selector).bounding_box()
        assert box["y"] >= 0, selector
        assert box["y"] + box["height"] <= height, selector
    page.evaluate("document.querySelector('#probe').scrollIntoView({block: 'end'})")
    page.evaluate("scrollBy(0, 250)")
    assert 0 <= page.locator(".controls").bounding_box()["y"] < 60


def test_every_map_is_drawn_and_described(playground):
    for name in ("x", "int8-codes", "int8-error", "decomposed-codes", "decomposed-error"):
        canvas = playground.locator(f"#map-{name}")
        assert "16 tokens by 32 features" in canvas.get_attribute("aria-label")
        colours = canvas.evaluate("c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size")
        assert colours > 10


def test_every_control_has_a_name(playground):
    nameless = playground.eval_on_selector_all(
        "article input, article select, article textarea, article button, article canvas",
        "all => all.filter(e => !(e.labels?.length || e.getAttribute('aria-label') || e.innerText || e.title)).map(e => e.outerHTML)",
    )
    assert nameless == []


def test_the_browser_gets_the_sources_of_this_repository_unmodified():
    served = [path for path in (browser.SITE / "playground").rglob("*.py") if path.name != "play.py"]
    assert {path.parent.name for path in served} == {"reference", "tutorials", "checks"}
    for path in served:
        assert path.read_bytes() == (ROOT / path.relative_to(browser.SITE / "playground")).read_bytes()


# The exercises


def solutions():
    """The folded solutions of the notebooks, by the name of the function that they define."""
    found = {}
    for notebook in sorted((ROOT / "tutorials").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            for code in re.findall(r"<details>.*?```python\n(.*?)```", "".join(cell["source"]), re.DOTALL):
                found.update({name: code for name in re.findall(r"^def (my_\w+)", code, re.MULTILINE)})
    return found


def run_exercise(page, name, code):
    section = page.locator(f".exercise[data-name={name}]")
    section.locator("textarea").fill(code)
    section.locator(".run").click()
    section.locator(".message:not(:text('Running…'))").wait_for()
    message = section.locator(".message")
    return message.get_attribute("data-state"), message.inner_text()


def test_every_exercise_says_not_yet_to_its_stub_and_right_to_its_solution(playground):
    names = playground.eval_on_selector_all(".exercise", "all => all.map(e => e.dataset.name)")
    assert len(names) >= 1
    for name in names:
        stub = playground.locator(f".exercise[data-name={name}] textarea").input_value()
        state, text = run_exercise(playground, name, stub)
        assert (state, text.split(":")[0]) == ("wrong", "not yet")
        functions = re.search(r"^def (my_\w+).*?(?=^checks\.|^my_\w+ =|\Z)", stub, re.DOTALL | re.MULTILINE)
        answer = stub.replace(functions[0], solutions()[functions[1]] + "\n\n")
        state, text = run_exercise(playground, name, answer)
        assert (state, text.split(":")[0]) == ("right", "right"), text


def test_a_wrong_answer_is_told_what_is_wrong(playground):
    truncating = (
        "def my_absmax(x):\n    s = np.abs(x).max()\n    return (x * (127 / s)).astype(np.int8), s / 127\n\nchecks.absmax(my_absmax)"
    )
    state, text = run_exercise(playground, "my_absmax", truncating)
    assert state == "wrong"
    assert "expected" in text


def test_an_error_in_an_answer_is_reported(playground):
    state, text = run_exercise(playground, "my_absmax", "1 / 0")
    assert (state, text) == ("wrong", "ZeroDivisionError: division by zero")


def test_an_answer_that_never_ends_is_stopped_and_python_starts_again(open_page):
    page = open_page("playground/")
    page.wait_for_selector("#status[data-state=ready]", timeout=START_MILLISECONDS)
    page.clock.install()
    section = page.locator(".exercise[data-name=my_absmax]")
    section.locator("textarea").fill("while True: pass")
    section.locator(".run").click()
    page.clock.fast_forward(21_000)
    section.locator(".message:has-text('Stopped')").wait_for()
    page.wait_for_selector("#status[data-state=ready]", timeout=START_MILLISECONDS)
    assert run_exercise(page, "my_absmax", "1 + 1") == ("", "2")


def test_an_answer_survives_a_reload(playground):
    editor = playground.locator(".exercise[data-name=my_absmax] textarea")
    stub = editor.input_value()
    editor.fill("# mine")
    playground.reload()
    assert editor.input_value() == "# mine"
    playground.locator(".exercise[data-name=my_absmax] .reset").click()
    assert editor.input_value() == stub
