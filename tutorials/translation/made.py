"""What commands write into pages from records: its translation is made sentence by sentence, so that new figures need no new one.

Where a page has such a part, between `<!-- begin: made by COMMAND -->` and `<!-- end -->`, its translation has the two lines alone; a
page of PAGES is made as a whole. Their sentences, the cells of tables and the descriptions of figures stand in tutorials/zh/records.po.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the catalogs lie in a folder that blocks.py names, and blocks.py asks this module what is made
    from tutorials.translation.sentences import Catalog

#: The translated pages that are made as a whole (experiments/pages/report.py).
PAGES = ("results.md",)
PART = re.compile(r"(?<=\n)(<!-- begin: made by [^\n]* -->\n)(.*?)(<!-- end -->)", re.DOTALL)
#: A block of code, a comment, the text of a heading, the description of an image, a cell, an item of a list, a paragraph.
PIECE = re.compile(
    r"^```(?s:.*?)^```$|<!--(?s:.*?)-->|^#+ (?P<heading>.+)$|^!\[(?P<alt>[^\]]*)\].*$|^\|(?P<row>.*)\|$|^- (?P<item>.+)$|^(?P<prose>.+)$",
    re.MULTILINE,
)


def without(page: str) -> str:
    """A page without what commands have written into it; the two lines around it stay."""
    return PART.sub(r"\1\3", page)


def parts(page: str) -> list[str]:
    """What commands have written into a page."""
    return [match[2] for match in PART.finditer(page)]


def filled(page: str, texts: Sequence[str]) -> str:
    """A page with these texts where `without` has left nothing."""
    rest = iter(texts)
    return PART.sub(lambda part: f"{part[1]}{next(rest)}{part[3]}", page)


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Where the sentences of a made text begin and end."""
    for piece in PIECE.finditer(text):
        for kind in ("heading", "alt", "item", "prose"):
            if piece[kind]:
                yield piece.span(kind)
        for cell in re.finditer(r"[^|]+", piece["row"] or ""):
            yield piece.start("row") + cell.start(), piece.start("row") + cell.end()


def in_chinese(text: str, catalog: "Catalog") -> str:
    """A made text with the sentences that the catalog knows in its language."""
    result, at = [], 0
    for start, end in spans(text):
        result += [text[at:start], catalog.say(text[start:end]) or text[start:end]]
        at = end
    return "".join([*result, text[at:]])
