"""The labels of a figure in another language: the drawing is shared, its texts are replaced.

matplotlib writes a label of one line as a text with an anchor, which holds for the new text as well. A label of several lines it
writes as one text per line, each placed by its left end: its new lines get the anchor that the old ones had in common.
"""

import html
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tutorials.translation.sentences import Catalog

GROUP = re.compile(r'(<g id="text_\d+">)(.*?)(</g>)', re.DOTALL)
TEXT = re.compile(r"<text (?P<attributes>[^>]*)>(?P<text>[^<]*)</text>")
SIZE = re.compile(r"font-size: ([\d.]+)px")
PLACE = re.compile(r'transform="translate\(([-\d.]+) ([-\d.]+)\)(?: rotate\(([-\d.]+)\))?"')
#: The faces of ordinary machines, for a drawing that stands alone: Windows, macOS, Linux.
FONTS = "'Microsoft YaHei', 'PingFang SC', 'Noto Sans CJK SC', 'Source Han Sans SC', 'WenQuanYi Micro Hei', sans-serif"
CHINESE = re.compile(r"[\u2e80-\u9fff\uff00-\uffef\u3000-\u303f“”]")
#: Where a line of Chinese may break: before a character that is neither punctuation nor the inside of a word.
BREAK = re.compile(
    r"(?<=[^\x00-\x7f（“])(?=[^\x00-\x7f，。；：、）”])|(?<=[，。；：、）”])(?=\w)|(?<=[^\x00-\x7f])(?=\w)|(?<=\w)(?=[\u4e00-\u9fff（])| "
)


@dataclass(frozen=True)
class Line:
    """One line of a label of several: its text, its size, where it begins, and its direction in degrees."""

    text: str
    size: float
    start: tuple[float, float]
    turned: float

    def at(self, share: float) -> tuple[float, float]:
        """The point at a share of its length."""
        along = share * width(self.text) * self.size
        angle = math.radians(self.turned)
        return self.start[0] + along * math.cos(angle), self.start[1] + along * math.sin(angle)


@cache
def width(text: str) -> float:
    """How wide a text is, in sizes of its font: DejaVu Sans, and a square for each Chinese character."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    latin = CHINESE.sub("", text)
    measured = TextToPath().get_text_width_height_descent(latin, FontProperties(family="DejaVu Sans", size=100), False)[0] if latin else 0
    return len(text) - len(latin) + measured / 100


def joined(parts: list[str]) -> str:
    """A label's lines as one sentence; a word that was broken at its hyphen is whole again."""
    return re.sub(r"(?<=\w)-\n(?=\w)", "-", "\n".join(parts)).replace("\n", " ")


def parts_of(group: str) -> list[str]:
    """The lines of a label."""
    return [html.unescape(match["text"]).strip() for match in TEXT.finditer(group)]


def texts(svg: str) -> Iterator[str]:
    """The labels of a drawing."""
    for _, group, _ in GROUP.findall(svg):
        yield joined(parts_of(group))


def translated(svg: str, catalog: Catalog) -> str:
    """The drawing with the labels that the catalog knows replaced."""
    return GROUP.sub(lambda group: f"{group[1]}{_label(group[2], catalog)}{group[3]}", svg)


def _label(group: str, catalog: Catalog) -> str:
    old = parts_of(group)
    said = catalog.say(joined(old)) if old else None
    if said is None:
        return group
    if len(old) == 1:
        return TEXT.sub(lambda match: f"<text {_faces(match['attributes'])}>{html.escape(said, quote=False)}</text>", group)
    found = [_line(match) for match in TEXT.finditer(group)]
    new = said.split("\n") if "\n" in said else wrapped(said, len(old), max(width(text) for text in old))
    share, anchor = min(((0.0, "start"), (0.5, "middle"), (1.0, "end")), key=lambda each: _spread(found, each[0]))
    first, second = (line.at(share) for line in found[:2])
    leading = second[0] - first[0], second[1] - first[1]
    down = (len(old) - len(new)) / 2  # fewer lines stand in the middle of the old ones
    attributes = re.sub(r"text-anchor: \w+; ", "", next(TEXT.finditer(group))["attributes"])
    style = _faces(PLACE.sub("", attributes).strip()).replace('style="', f'style="text-anchor: {anchor}; ')
    result = []
    for number, text in enumerate(new):
        x, y = (first[axis] + (number + down) * leading[axis] for axis in (0, 1))
        turn = f" rotate({found[0].turned:g})" if found[0].turned else ""
        place = f'transform="translate({x:.2f} {y:.2f}){turn}"'
        result.append(f"<text {style} {place}>{html.escape(text, quote=False)}</text>")
    return "\n    ".join(["", *result]) + "\n   "


def _line(match: re.Match[str]) -> Line:
    attributes = match["attributes"]
    size, place = SIZE.search(attributes), PLACE.search(attributes)
    if size is None or place is None:
        raise ValueError(f"a label of several lines without a size or a place: {match[0]}")
    return Line(html.unescape(match["text"]), float(size[1]), (float(place[1]), float(place[2])), float(place[3] or 0))


def _spread(found: list[Line], share: float) -> float:
    """How far apart the lines lie, along their direction, at a share of their lengths."""
    angle = math.radians(found[0].turned)
    along = [x * math.cos(angle) + y * math.sin(angle) for x, y in (line.at(share) for line in found)]
    return max(along) - min(along)


def _faces(attributes: str) -> str:
    return re.sub(r", sans-serif", f", {FONTS}", attributes, count=1)


def wrapped(text: str, count: int, most: float) -> list[str]:
    """A text in up to `count` lines, as few as fit `most`, of nearly the same width."""
    pieces = [piece for piece in _pieces(text) if piece]
    total = width(text)
    lines = max(1, min(count, math.ceil(total / most - 1e-6)))
    aim = total / lines
    result = [""]
    for piece in pieces:
        if len(result) < lines and result[-1] and width(result[-1] + piece) > aim * 1.12:
            result.append("")
        result[-1] += piece
    return [line.strip() for line in result]


def _pieces(text: str) -> list[str]:
    """Where a text may break, it is cut; its spaces stay with what is before them."""
    cuts = sorted({match.end() for match in BREAK.finditer(text)})
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
