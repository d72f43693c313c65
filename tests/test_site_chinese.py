"""The Chinese edition in a browser: its search finds chapters, and the switch stays on the page."""

import pytest

pytestmark = pytest.mark.site


@pytest.mark.parametrize("word", ["离群值", "混合精度分解", "缩放因子"])
def test_search_finds_chapters(open_page, word):
    page = open_page("zh/")
    page.keyboard.press("s")
    page.keyboard.insert_text(word)
    page.wait_for_selector(".md-search-result__link[href*='zh/tutorials/']")


@pytest.mark.parametrize("path", ["", "tutorials/05_decomposition/", "howto/cpu/", "speed/"])
def test_the_switch_leads_to_the_same_page_and_back(open_page, path):
    page = open_page(path)
    assert page.get_attribute("html", "lang") == "en"
    page.click("a.tongue")
    page.wait_for_url(f"**/zh/{path}")
    assert page.get_attribute("html", "lang") == "zh"
    page.click("a.tongue")
    page.wait_for_url(lambda url: url.endswith(f"/{path}") and "/zh/" not in url)


def test_the_glossary_keeps_its_english_words(open_page):
    cells = open_page("zh/glossary/").locator("td:nth-child(2)").all_inner_texts()
    assert len(cells) > 40
    assert [cell for cell in cells if any("\u4e00" <= character <= "\u9fff" for character in cell)] == []


@pytest.mark.parametrize("path", ["zh/results/", "zh/kernels/", "zh/howto/mixture_of_experts/"])
def test_what_commands_have_written_is_chinese_too(open_page, path):
    page = open_page(path)
    assert page.locator(".only-english").count() == 0
    headings = page.locator("article :is(h1, h2, h3)").all_inner_texts()
    assert [heading for heading in headings if not any("\u4e00" <= character <= "\u9fff" for character in heading)] == []
    assert page.locator("article table").count() > 2


def test_ids_of_what_commands_have_written_are_the_english_ones(open_page):
    found = {
        path: open_page(path).evaluate("[...document.querySelectorAll('article :is(h2, h3)')].map(heading => heading.id)")
        for path in ("results/", "zh/results/")
    }
    assert found["results/"] == found["zh/results/"]
