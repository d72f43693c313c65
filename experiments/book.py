"""The tutorial as a book, one PDF per language, made from the built site: `make book`.

    python -m experiments.book                    build/llm-int8.pdf and build/llm-int8.zh.pdf, and copies in site/
    python -m experiments.book --edition zh

Chromium prints it in two passes: the first tells on which page each chapter begins, the second has these numbers in the table of
contents. Figures, formulae and code are those of the pages; what needs a browser is left out.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from . import command
from .command import InputError

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"


class Edition(NamedTuple):
    """A language: the folder of its pages below the site, the name of the PDF, and what the title page, the contents and the link say."""

    folder: str
    name: str
    language: str
    title: str
    subtitle: str
    contents: str
    link: str


EDITIONS = {
    "en": Edition(
        "",
        "llm-int8.pdf",
        "en",
        "LLM.int8()",
        "8-bit matrix multiplication for language models, explained and verified",
        "Contents",
        "The book, PDF",
    ),
    "zh": Edition("zh/", "llm-int8.zh.pdf", "zh", "LLM.int8()", "语言模型的 8 位矩阵乘法，讲清楚，验证过", "目录", "整本书，PDF"),
}
#: The pages, in reading order: the chapters stand where the star is.
PAGES = ("tutorials/five_minutes", "tutorials/*", "contract", "bounds", "kernels", "results", "glossary")

#: What only a browser has a use for.
DROPPED = (
    "//script", "//form", "//button", "//details[contains(@class,'code')]", "//*[local-name()='svg' and @class='narrow']",
    "//*[@id='bits']",
    *(f"//*[contains(@class,'{name}')]" for name in ("headerlink", "downloads", "try-it", "md-source-file", "minutes", "only-english")),
)  # fmt: skip

#: So many characters of code have room in a line; longer ones are made smaller, down to this share of their size, or else wrap.
COLUMNS, SMALLEST = 95, 0.65

#: A page has the proportions of A4 and is a quarter larger, which printing undoes: so wide that tables and figures lie as on a screen.
STYLE = """
@page { size: 262.5mm 371.25mm; margin: 25mm 22mm 27mm; @bottom-center { content: counter(page); font: 11pt sans-serif; color: #555; } }
@page :first { @bottom-center { content: ""; } }
html { font-size: 100%; } body { background: #fff; margin: 0; display: block; }
.md-typeset { font-size: 12.5pt; line-height: 1.5; }
section.page { break-before: page; }
.title { height: 290mm; display: flex; flex-direction: column; justify-content: center; text-align: center; }
.title h1 { font-size: 42pt; margin: 0; } .title p { font-size: 16pt; color: #444; }
nav.contents { break-before: page; } nav.contents li { display: flex; list-style: none; margin: .35em 0; }
nav.contents ul { margin: 0; padding: 0; } nav.contents .dots { flex: 1; border-bottom: 1px dotted #999; margin: 0 .5em .3em; }
.md-typeset pre > code, .md-typeset pre { white-space: pre-wrap; overflow-wrap: anywhere; overflow: visible; }
.md-typeset table:is(:not([class]), .cards) { display: table; width: 100%; overflow: visible; font-size: 10pt; table-layout: auto; }
.md-typeset table:is(:not([class]), .cards) :is(th, td) { min-width: 0; padding: .3em .5em; overflow-wrap: break-word; }
.md-typeset table:is(:not([class]), .cards) code { overflow-wrap: anywhere; white-space: normal; }
.md-typeset table:is(:not([class]), .cards):has(th:nth-child(8)) { font-size: 8.5pt; }
.md-typeset table:is(:not([class]), .cards):has(th:nth-child(8)) :is(th, td) { padding: .3em; }
thead { display: table-header-group; }
.md-typeset__scrollwrap, .md-typeset__table, .highlight, .beside, .output { overflow: visible; display: block; margin: 0; }
.drawing, figure, .katex-display, pre, tr, .admonition-title { break-inside: avoid; }
h1, h2, h3 { break-after: avoid; } .drawing svg { max-width: 100%; height: auto; }
.katex-display { overflow: visible; } .katex-display > .katex { white-space: normal; }
details > summary { list-style: none; } a { text-decoration: none; }
"""


WHOLE = """<!doctype html><html lang="{language}" dir="ltr"><head><meta charset="utf-8"><title>{title}</title>{styles}
<style>{style}</style></head>
<body data-md-color-scheme="default" data-md-color-primary="custom"><div class="md-typeset">
<div class="title"><h1>{title}</h1><p>{subtitle}</p></div>
<nav class="contents"><h1>{contents}</h1><ul>{lines}</ul></nav>{sections}</div></body></html>"""


def pages(edition: Edition, site: Path = SITE) -> list[str]:
    """The paths of the edition's pages below its folder, in reading order.

    Raises:
        InputError: the site has not been built.
    """
    found: list[str] = []
    for name in PAGES:
        folder = site / edition.folder
        if name.endswith("*"):
            found += sorted(f"tutorials/{path.name}" for path in (folder / "tutorials").glob("[0-9][0-9]_*") if path.is_dir())
        else:
            found.append(name)
    missing = [name for name in found if not (site / edition.folder / name / "index.html").is_file()]
    if missing or len(found) == len(PAGES) - 1:
        raise InputError(f"{site} lacks {', '.join(missing) or 'the chapters'}: run make docs")
    return found


def assembled(edition: Edition, numbers: dict[str, int], site: Path = SITE) -> str:
    """The whole book as one page of HTML, to lie in the site's folder; numbers: on which page each part begins, as far as known."""
    from lxml import etree, html

    parts = pages(edition, site)
    anchors = {name: f"part-{number}" for number, name in enumerate(parts)}
    sections, lines = [], []
    for name in parts:
        document = html.parse(str(site / edition.folder / name / "index.html"), html.HTMLParser(encoding="utf-8"))
        (article,) = document.xpath("//article")
        for wanted in DROPPED:
            for element in article.xpath(f".{wanted}"):
                element.drop_tree()
        for folded in article.iter("details"):
            folded.set("open", "")
        for code in article.iter("pre"):
            longest = max(map(len, code.text_content().split("\n")))
            if COLUMNS < longest <= COLUMNS / SMALLEST:
                code.set("style", f"font-size: {COLUMNS / longest:.2f}em")
        _relink(article, PurePosixPath(edition.folder, name), edition, anchors)
        title = "".join(article.xpath("string(.//h1[1])")).strip()
        number = numbers.get(anchors[name], "000")
        entry = f'<a href="#{anchors[name]}">{_escaped(title)}</a><span class="dots"></span><span>{number}</span>'
        lines.append(f"<li>{entry}</li>")
        language = article.get("lang") or edition.language
        body = "".join(etree.tostring(child, encoding="unicode", method="html") for child in article)
        sections.append(f'<section class="page" id="{anchors[name]}" lang="{language}">{body}</section>')
    styles = "".join(f'<link rel="stylesheet" href="{path.relative_to(site).as_posix()}">' for path in _stylesheets(site))
    return WHOLE.format(styles=styles, style=STYLE, lines="".join(lines), sections="".join(sections), **edition._asdict())


def _stylesheets(site: Path) -> list[Path]:
    return [
        *sorted((site / "assets" / "stylesheets").glob("*.css")),
        *(site / name for name in ("stylesheets/extra.css", "katex/katex.min.css")),
    ]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _relink(article: object, page: PurePosixPath, edition: Edition, anchors: dict[str, str]) -> None:
    """Links between the book's pages lead inside it; ids get the page's own prefix; other links keep their text; pictures are found."""
    own = anchors[page.relative_to(edition.folder).as_posix() if edition.folder else page.as_posix()]
    for element in article.iter():  # type: ignore[attr-defined]
        if not isinstance(element.tag, str):
            continue
        if (identity := element.get("id")) and not re.search(r"-(?:wide|narrow)-", identity):
            element.set("id", f"{own}-{identity}")
        if element.tag == "img" and (source := element.get("src")) and "://" not in source:
            element.set("src", _resolved(page, source))
        if element.tag != "a" or not (target := element.get("href")) or "://" in target:
            continue
        path, _, fragment = target.partition("#")
        place = _resolved(page, path).removesuffix("/").removeprefix(edition.folder) if path else None
        known = own if place is None else anchors.get(place)
        if known is None:
            del element.attrib["href"]
        else:
            element.set("href", f"#{known}-{fragment}" if fragment else f"#{known}")


def _resolved(page: PurePosixPath, target: str) -> str:
    return os.path.normpath((page / target).as_posix()) + ("/" if target.endswith("/") else "")


def printed(text: str, chromium: str, target: Path, site: Path = SITE) -> None:
    """Prints a page of HTML, which lies in the site's folder while it is read."""
    with tempfile.TemporaryDirectory() as profile, tempfile.NamedTemporaryFile("w", suffix=".html", dir=site, encoding="utf-8") as page:
        page.write(text)
        page.flush()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--no-pdf-header-footer",
            "--generate-pdf-document-outline",
        ]
        asked = [chromium, *options, "--virtual-time-budget=30000", f"--print-to-pdf={target}", f"file://{page.name}"]
        subprocess.run(asked, check=True, capture_output=True, timeout=300)


def begins(pdf: Path) -> dict[str, int]:
    """On which page, from 1, each part of a printed book begins."""
    from pypdf import PdfReader

    reader = PdfReader(pdf)
    places = {name.lstrip("/"): reader.get_destination_page_number(place) for name, place in reader.named_destinations.items()}
    return {name: page + 1 for name, page in places.items() if page is not None and re.fullmatch(r"part-\d+", name)}


def find_chromium() -> str:
    """The browser.

    Raises:
        InputError: there is none.
    """
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        raise InputError("no Chromium found: apt-get install chromium, or set CHROMIUM to its path")
    return path


def make(edition: Edition, folder: Path, site: Path = SITE) -> Path:
    """Prints an edition into `folder`, and copies it into the site; returns the file."""
    chromium, target = find_chromium(), folder / edition.name
    folder.mkdir(parents=True, exist_ok=True)
    printed(assembled(edition, {}, site), chromium, target, site)
    printed(assembled(edition, begins(target), site), chromium, target, site)
    shutil.copy(target, site / edition.name)
    link_from_home(edition, site)
    return target


def link_from_home(edition: Edition, site: Path = SITE) -> None:
    """Adds a link to the book beside the buttons of the edition's home page, unless it is there: only now there is a book."""
    home = site / edition.folder / "index.html"
    text = home.read_text(encoding="utf-8")
    target = "../" * edition.folder.count("/") + edition.name
    if f'href="{target}"' not in text:
        link = f' <a class="md-button" href="{target}">{edition.link}</a>'
        home.write_text(re.sub(r'(<p class="doors">.*?)(</p>)', rf"\1{link}\2", text, count=1, flags=re.DOTALL), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = command.Parser(prog="python -m experiments.book", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edition", choices=sorted(EDITIONS), action="append", help="default: both")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="the folder (default build/)")
    options: argparse.Namespace = parser.parse_args(arguments)
    for name in options.edition or sorted(EDITIONS):
        print("wrote", make(EDITIONS[name], options.out))


if __name__ == "__main__":
    command.run_command(main)
