"""The Chinese edition of the site: translated prose in place of the original's, short sentences from the catalogs, a switch on each page.

mkdocs.zh.yml builds it, into site/zh. Code, outputs and figures are those of the English one (tutorials/translation). A page without a
translation appears in English below a line that says so. A block whose translation is missing or outdated appears in English and is a
warning, which ends a strict build. Headings keep the English ids, so that links and the switch work with the same fragment.
"""

import json
import logging
import re
from dataclasses import dataclass
from functools import cache

import markdown as markdown_package
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tutorials.translation import blocks, labels, made, rendered, sentences
from tutorials.translation.sentences import Catalog

log = logging.getLogger("mkdocs.hooks.edition")

HEADING = re.compile(r"^(#{1,6}) (.*?)(?: *\{:? *(#[\w-]+) *\})? *$")
#: Pages whose English words are there on purpose.
BILINGUAL = ("glossary.md",)
NOTE = '<p class="only-english" lang="zh">这一页只有英文版。</p>'
#: What Python in the browser needs, and the scripts: the Chinese pages use those of the English site.
SHARED = re.compile(r"playground/(?!index\.md).*|theatre/.*\.(?:js|css)")
SCRIPT = re.compile(
    r'(<script type="module" src=|<link rel="stylesheet" href=)"(?:\.\./)?(page\.js|theatre\.css|(?:watch|write|inside|explore)\.js)"'
)
SEARCH_BUTTON = '<label class="md-header__button md-icon" for="__search">'
CHINESE_CELL = re.compile(r"<td([^>]*)>([^<]*[\u4e00-\u9fff][^<]*)</td>")


@dataclass(frozen=True)
class Edition:
    """What a hook needs of the edition that is built. The English one gives everything back as it is.

    Attributes:
        catalog: of the short sentences; None in English.
    """

    catalog: Catalog | None = None

    def prose(self, name: str) -> dict[str, str]:
        """The translations of a document's blocks, by the hash of their originals; empty in English."""
        return {} if self.catalog is None else translations(name)

    def say(self, text: str) -> str:
        """A short sentence, or what stands in for it."""
        return text if self.catalog is None else self.catalog.say(text) or text

    def markdown(self, text: str) -> str:
        """Markdown that code has made."""
        return text if self.catalog is None else rendered.in_markdown(text, self.catalog)

    def drawing(self, svg: str) -> str:
        """A figure with its labels."""
        return svg if self.catalog is None else labels.translated(svg, sentences.catalog("figures", "chapters", "records"))


ENGLISH = Edition()


def of(config: MkDocsConfig) -> Edition:
    """The edition that a configuration builds."""
    return chinese() if is_chinese(config) else ENGLISH


def is_chinese(config: MkDocsConfig) -> bool:
    """Whether it is the Chinese one."""
    return str(config.theme["language"]).startswith("zh")


@cache
def chinese() -> Edition:
    """The Chinese edition."""
    return Edition(sentences.catalog("site", "chapters", "figures"))


# ---- Prose --------------------------------------------------------------------------------------------------------------------


@cache
def translations(name: str) -> dict[str, str]:
    """The translations of a chapter or a page, with the ids of the English headings, by the hash of their originals."""
    document = blocks.document(name)
    pairs = blocks.read(document)
    identities = iter(ids("\n\n".join(pair.original for pair in pairs if pair.original is not None)))
    result = {}
    for pair in pairs:
        if pair.original is None:
            continue
        key = blocks.digest(pair.original)
        own = [next(identities) for _ in headings(pair.original)]
        if pair.state != "translated":
            log.warning("%s, block %s: its translation is %s (python -m tutorials.translation)", name, key, pair.state)
            continue
        assert pair.translation is not None
        count = len(headings(pair.translation))
        if count != len(own):
            log.warning("%s, block %s: %d headings, the original has %d", name, key, count, len(own))
            continue
        result[key] = identified(pair.translation, own)
    return result


def page_text(name: str) -> str:
    """A translated page; sections without a translation are those of the original."""
    original = (blocks.ROOT / "docs" / name).read_text(encoding="utf-8")
    if name in made.PAGES:
        return _made(original)
    document = blocks.document(name)
    known = translations(name)
    page = "\n\n".join(known.get(blocks.digest(section), section) for section in blocks.originals(document)) + "\n"
    return made.filled(page, [_made(part) for part in made.parts(original)])


def _made(text: str) -> str:
    """What a command has written, with the ids of the English headings."""
    return identified(made.in_chinese(text, sentences.catalog("records", "site", "chapters", "figures")), ids(text))


def headings(text: str) -> list[str]:
    """The lines that are headings, outside of code."""
    return [line for line, in_code in blocks.lines(text) if not in_code and HEADING.match(line)]


def ids(text: str) -> list[str]:
    """The ids that a page's headings get, in order."""
    reader = markdown_package.Markdown(extensions=["toc", "attr_list"])
    reader.convert("\n\n".join(headings(text)))

    def flat(tokens: list[dict]) -> list[str]:
        return [one for token in tokens for one in (token["id"], *flat(token["children"]))]

    return flat(reader.toc_tokens)  # type: ignore[attr-defined]


def identified(text: str, own: list[str]) -> str:
    """A text whose headings get these ids."""
    rest, result = iter(own), []
    for line, in_code in blocks.lines(text):
        match = None if in_code else HEADING.match(line)
        result.append(f"{match[1]} {match[2]} {{ #{next(rest)} }}" if match else line)
    return "\n".join([*result, ""] if text.endswith("\n") else result)


# ---- Events -------------------------------------------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Translates the titles of the navigation."""
    if is_chinese(config):
        config.nav = _titled(config.nav)
        config.watch.extend([str(blocks.CHAPTERS), str(blocks.PAGES)])
    return config


def _titled(nav: object) -> list:
    assert isinstance(nav, list)
    return [{chinese().say(title): _below(below) for title, below in entry.items()} if isinstance(entry, dict) else entry for entry in nav]


def _below(nav: object) -> object:
    return _titled(nav) if isinstance(nav, list) else nav


@event_priority(-100)  # after the hooks that add files
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Puts translated pages in place of the originals, and leaves out what the Chinese pages share with the English site."""
    if not is_chinese(config):
        return files
    for name in blocks.CHINESE:
        original = files.get_file_from_path(name)
        assert original is not None
        files.remove(original)
        files.append(File.generated(config, name, content=page_text(name)))
    for file in list(files):
        if SHARED.fullmatch(file.src_uri):
            files.remove(file)
    files.append(File.generated(config, "javascripts/sentences.js", content=_sentences()))
    return files


def _sentences() -> str:
    """The catalog for the browser, as a module."""
    messages = sentences.catalog("site", "hints", "chapters").messages
    return f"export const messages = {json.dumps(messages, ensure_ascii=False, indent=0)};\n"


@event_priority(-100)
def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Says on top of a page that it is in English."""
    if is_chinese(config) and not _translated(page):
        return re.sub(r"^# .*$", lambda title: f"{title[0]}\n\n{NOTE}", markdown, count=1, flags=re.MULTILINE)
    return markdown


def _translated(page: Page) -> bool:
    source = page.file.src_uri
    return source in blocks.CHINESE or re.fullmatch(r"tutorials/\d\d_\w+\.md", source) is not None


def on_page_content(markup: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translates the short sentences of a Chinese page; says of Chinese words in an English one that they are."""
    if not is_chinese(config):
        return CHINESE_CELL.sub(r'<td lang="zh"\1>\2</td>', markup)
    catalog = chinese().catalog
    assert catalog is not None
    return rendered.in_html(markup, catalog) if _translated(page) and page.file.src_uri not in BILINGUAL else markup


@event_priority(-100)
def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Adds the switch, and points a Chinese page at the scripts of the English site."""
    root = "../" * page.url.count("/")
    if is_chinese(config):
        target, label, language = f"{root}../{page.url}", "English", "en"
        folder = page.url.split("/")[0]
        output = SCRIPT.sub(rf'\1"{root}../{folder}/\2"', output)
        if not _translated(page):
            output = output.replace('<article class="', '<article lang="en" class="', 1)
    else:
        target, label, language = f"{root}zh/{page.url}", "中文", "zh"
    link = f'<a class="md-header__button tongue" href="{target}" hreflang="{language}" lang="{language}" rel="alternate">{label}</a>'
    return output.replace(SEARCH_BUTTON, link + SEARCH_BUTTON, 1)
