"""The book: what is kept of the site's pages, where its links lead, and the link to it; the last test prints a small one."""

import shutil

import pytest

pytest.importorskip("lxml", reason="the extra docs has it")

from experiments import book

PAGE = """<html><body><article{lang}><h1 id="top">{title}<a class="headerlink" href="#top">x</a></h1><h2 id="law">Law</h2>
<p>{body}</p><details class="success"><summary>Solution</summary><p>solved</p></details><details class="code"><p>imports</p></details>
<form><input></form><script>1</script><img src="../picture.png"></article></body></html>"""


@pytest.fixture
def site(tmp_path):
    bodies = {
        "contract": '<a href="../bounds/#law">bounds</a> <a href="#law">here</a> <a href="../speed/">speed</a> <a href="https://a.b">out</a>'
    }
    for name in (
        "tutorials/five_minutes",
        "tutorials/00_bits",
        "tutorials/01_absmax",
        "contract",
        "bounds",
        "kernels",
        "results",
        "glossary",
    ):
        for folder in ("", "zh/"):
            path = tmp_path / folder / name / "index.html"
            path.parent.mkdir(parents=True)
            path.write_text(PAGE.format(title=f"The {name}", body=bodies.get(name, name), lang=' lang="en"' if name == "kernels" else ""))
    for folder in ("", "zh/"):
        (tmp_path / folder / "index.html").write_text('<p class="doors"><a href="a">a</a>\n<a href="b">b</a></p><p>rest</p>')
    return tmp_path


def test_long_lines_of_code_are_made_smaller_not_broken(site):
    page = site / "bounds" / "index.html"
    lines = "\n".join("x" * n for n in (40, book.COLUMNS + 19))
    page.write_text(page.read_text().replace("<h2", f"<pre>{lines}</pre><pre>{'y' * book.COLUMNS}</pre><pre>{'z' * 200}</pre><h2", 1))
    text = book.assembled(book.EDITIONS["en"], {}, site)
    assert f'<pre style="font-size: {book.COLUMNS / (book.COLUMNS + 19):.2f}em">xxx' in text
    assert "<pre>yyy" in text
    assert "<pre>zzz" in text


def test_chapters_stand_in_order_between_the_other_pages(site):
    assert book.pages(book.EDITIONS["en"], site)[:4] == ["tutorials/five_minutes", "tutorials/00_bits", "tutorials/01_absmax", "contract"]


def test_a_site_that_lacks_pages_is_refused_and_names_them(site):
    shutil.rmtree(site / "zh" / "bounds")
    with pytest.raises(book.InputError, match=r"lacks bounds: run make docs"):
        book.pages(book.EDITIONS["zh"], site)


@pytest.mark.parametrize("name", book.EDITIONS)
def test_links_lead_inside_of_the_book_or_nowhere(site, name):
    text = book.assembled(book.EDITIONS[name], {}, site)
    assert 'href="#part-4-law">bounds</a>' in text
    assert 'href="#part-3-law">here</a>' in text
    assert "<a>speed</a>" in text
    assert 'href="https://a.b"' in text
    assert text.count('id="part-3-law"') == 1
    assert f'src="{book.EDITIONS[name].folder}picture.png"' in text


def test_what_only_a_browser_uses_is_left_out_and_solutions_are_open(site):
    text = book.assembled(book.EDITIONS["en"], {}, site)
    assert "imports" not in text
    assert "<form" not in text
    assert "<script" not in text
    assert "headerlink" not in text
    assert '<details class="success" open' in text
    assert '<section class="page" id="part-5" lang="en">' in text


def test_the_contents_have_the_numbers_that_were_found(site):
    text = book.assembled(book.EDITIONS["en"], {"part-1": 7}, site)
    assert '<a href="#part-1">The tutorials/00_bits</a><span class="dots"></span><span>7</span>' in text


def test_the_home_page_leads_to_the_book_once(site):
    for _ in range(2):
        for edition in book.EDITIONS.values():
            book.link_from_home(edition, site)
    assert (site / "index.html").read_text().count('href="llm-int8.pdf">The book, PDF</a></p>') == 1
    assert (site / "zh" / "index.html").read_text().count('href="../llm-int8.zh.pdf"') == 1


@pytest.mark.site
def test_a_printed_book_begins_its_parts_where_the_contents_say(site, tmp_path):
    made = book.make(book.EDITIONS["en"], tmp_path / "out", site)
    assert book.begins(made) == {f"part-{number}": number + 3 for number in range(8)}  # a title page, the contents, a page each
    assert (site / "llm-int8.pdf").read_bytes() == made.read_bytes()
