"""Makes code and tables fit the page: a long line of code wraps and hangs, a wide table becomes cards on a phone.

It works on the finished page, and only marks what the style sheet then lays out.
"""

import html
import re
from itertools import zip_longest

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

#: What the site's column shows of a line of code, in characters; on a page without a table of contents at its side.
COLUMNS, WIDE_COLUMNS = 88, 118
#: What a phone shows of a table's row, in characters; a cell with more than this many is wrapped.
PHONE_CHARACTERS, CELL_CHARACTERS = 34, 14

BLOCK = re.compile(r'<div class="((?:language-([\w-]+) )?[^"]*\bhighlight\b[^"]*)">(.*?)</div>', re.DOTALL)
#: A line of aligned columns: two spaces or more within it.
ALIGNED = re.compile(r"\S {2,}\S")
LINE = re.compile(r'(<span id="__span-[\w-]+")>((?:<a [^>]*></a>)?(?:<span></span>)?(?:<span class="w">)?)( *)')
TABLE = re.compile(r"<table>(.*?)</table>", re.DOTALL)
ROW = re.compile(r"<tr>(.*?)</tr>", re.DOTALL)
CELL = re.compile(r"<(t[hd])([^>]*)>(.*?)</\1>", re.DOTALL)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Marks the blocks of code and the tables of a finished page."""
    columns = WIDE_COLUMNS if "toc" in page.meta.get("hide", ()) else COLUMNS
    return TABLE.sub(table, BLOCK.sub(lambda match: block(match, columns), output))


def text(markup: str) -> str:
    """What a piece of HTML shows."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def block(match: re.Match[str], columns: int = COLUMNS) -> str:
    """A block of code, whose long lines wrap, each by its own indentation; printed columns stay aligned if the page can show them."""
    classes, language, content = match.groups()
    lines = text(content).split("\n")
    if language == "text" and max(map(len, lines)) <= columns and sum(bool(ALIGNED.search(line)) for line in lines) > 1:
        return f'<div class="{classes} columns">{content}</div>'
    indented = LINE.sub(lambda line: f'{line[1]} style="--indent:{len(line[3])}">{line[2]}{line[3]}', content)
    return f'<div class="{classes} wraps">{indented}</div>'


def table(match: re.Match[str]) -> str:
    """A table; if a phone cannot show its columns side by side, each cell gets the head of its column, for a layout as cards."""
    rows = [[(tag, attributes, cell) for tag, attributes, cell in CELL.findall(row)] for row in ROW.findall(match[1])]
    widths = [max(min(len(text(cell).strip()), CELL_CHARACTERS) for _, _, cell in column) for column in _columns(rows)]
    if sum(widths) + 2 * len(widths) <= PHONE_CHARACTERS:
        return match[0]
    heads = [html.escape(text(cell).strip()) for _, _, cell in rows[0]]

    def labelled(row: re.Match[str]) -> str:
        found = iter(heads)
        return f'<tr role="row">{CELL.sub(lambda cell: _cell(cell, next(found, "")), row[1])}</tr>'

    return f'<table class="cards" role="table">{ROW.sub(labelled, match[1])}</table>'


def _columns(rows: list[list[tuple[str, str, str]]]) -> list[list[tuple[str, str, str]]]:
    return [list(column) for column in zip_longest(*rows, fillvalue=("td", "", ""))]


def _cell(match: re.Match[str], head: str) -> str:
    tag, attributes, content = match.groups()
    role = "columnheader" if tag == "th" else "cell"
    label = f' data-head="{head}"' if tag == "td" and head else ""
    empty = ' class="empty"' if not content.strip() else ""
    return f'<{tag}{attributes} role="{role}"{label}{empty}>{content}</{tag}>'
