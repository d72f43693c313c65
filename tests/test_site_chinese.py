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
