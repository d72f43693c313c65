"""Short sentences that are made in code, with numbers and names in them, and their translations: catalogs in tutorials/zh/*.po.

A message has `#` for each number and `{name}` for whatever else is filled in. A sentence is looked up by its shape: its numbers replaced
by `#`, or, if that is not there, as an instance of a message with placeholders; what fills a placeholder is looked up in the same way.
A translation takes its numbers in the order of the message; where it needs another order it names some of them, `{1}`.
docs/javascripts/tongue.js does the same in the browser, for what a page writes while it runs.
"""

import io
import re
from collections.abc import Iterable, Iterator
from functools import cache

from tutorials.translation.blocks import CHAPTERS

AREAS = ("figures", "chapters", "site", "hints", "records")

#: A number on its own, not a part of a word (int8); the same in tongue.js.
NUMBER = r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?![\w]|\.\d)"
HOLE = re.compile(r"#|\{[A-Za-z_]\w*\}")
WORD = re.compile(r"[A-Za-z]{2}")


def shape(text: str) -> str:
    """A sentence with `#` for its numbers, white space made single."""
    return re.sub(NUMBER, "#", " ".join(text.split()))


class Catalog:
    """Messages with their translations.

    Args:
        messages: translations by message; empty ones are left out.
    """

    def __init__(self, messages: dict[str, str]) -> None:
        self.messages = {message: translation for message, translation in messages.items() if translation}
        patterns = [message for message in self.messages if re.search(r"\{[A-Za-z_]\w*\}", message)]
        self.patterns = [(_compiled(message), message) for message in sorted(patterns, key=lambda one: -len(HOLE.sub("", one)))]
        self.known: dict[str, str | None] = {}

    def say(self, text: str) -> str | None:
        """The translation of a sentence, or None; what stands around it in white space is kept."""
        words = " ".join(text.split())
        if not WORD.search(words):
            return None
        if words not in self.known:
            self.known[words] = self._say(words)
        found = self.known[words]
        if found is None:
            return None
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        return f"{before}{found}{after}"

    def _say(self, words: str) -> str | None:
        message, numbers = shape(words), re.findall(NUMBER, words)
        # A # that stands in the sentence itself, as in a link's target, is no hole: such a sentence needs a message with a placeholder.
        if message in self.messages and message.count("#") == len(numbers):
            return filled(self.messages[message], numbers, {})
        for pattern, message in self.patterns:
            match = pattern.fullmatch(words)
            if match:
                holes = HOLE.findall(message)
                numbers = [part for hole, part in zip(holes, match.groups(), strict=True) if hole == "#"]
                named = {hole[1:-1]: self.say(part) or part for hole, part in zip(holes, match.groups(), strict=True) if hole != "#"}
                return filled(self.messages[message], numbers, named)
        return None

    def lines(self, text: str) -> str:
        """A text of several lines, each translated if it is known."""
        return "\n".join(self.say(line) or line for line in text.split("\n"))


def _compiled(message: str) -> re.Pattern[str]:
    parts = HOLE.split(message)
    holes = [f"({NUMBER})" if hole == "#" else "(.*?)" for hole in HOLE.findall(message)]
    return re.compile("".join(re.escape(part) + hole for part, hole in zip(parts, [*holes, ""], strict=True)))


def filled(translation: str, numbers: list[str], named: dict[str, str]) -> str:
    """A translation with its numbers and names; `#` takes the next of the numbers that it does not name."""
    own = set(re.findall(r"\{(\d+)\}", translation))
    rest = iter([number for place, number in enumerate(numbers, 1) if str(place) not in own])

    def fill(match: re.Match[str]) -> str:
        if match[0] == "#":
            return next(rest)
        name = match[0][1:-1]
        return numbers[int(name) - 1] if name.isdigit() else named[name]

    return re.sub(r"#|\{\w+\}", fill, translation)


def read(area: str) -> dict[str, str]:
    """The messages of tutorials/zh/AREA.po with their translations, in the order of the file."""
    from babel.messages import pofile

    path = CHAPTERS / f"{area}.po"
    if not path.exists():
        return {}
    catalog = pofile.read_po(io.BytesIO(path.read_bytes()))
    return {str(message.id): str(message.string) for message in catalog if message.id}


def write(area: str, messages: Iterable[tuple[str, str, str]]) -> None:
    """Writes tutorials/zh/AREA.po: (message, translation, where it comes from) each."""
    from babel.messages import Catalog as Messages
    from babel.messages import pofile

    catalog = Messages(locale="zh_Hans", charset="utf-8", fuzzy=False)
    for message, translation, place in messages:
        catalog.add(message, translation, auto_comments=[place])
    lines = io.BytesIO()
    pofile.write_po(lines, catalog, width=0, omit_header=True, no_location=True)
    (CHAPTERS / f"{area}.po").write_bytes(lines.getvalue())


@cache
def catalog(*areas: str) -> Catalog:
    """The catalog of some areas; of what two of them have, the first counts."""
    messages: dict[str, str] = {}
    for area in reversed(areas):
        messages |= read(area)
    return Catalog(messages)


def faults() -> dict[str, list[str]]:
    """Translations that do not have the numbers and the placeholders of their messages, by area."""
    return {area: list(_faults(read(area))) for area in AREAS}


def _faults(messages: dict[str, str]) -> Iterator[str]:
    for message, translation in messages.items():
        if not translation:
            continue
        holes = HOLE.findall(message)
        named = {hole for hole in holes if hole != "#"}
        used = set(re.findall(r"\{[A-Za-z_]\w*\}", translation))
        count, own = holes.count("#"), re.findall(r"\{(\d+)\}", translation)
        right = translation.count("#") + len(own) == count and set(own) <= {str(n + 1) for n in range(count)} and len(set(own)) == len(own)
        # A plural's ending has no counterpart, and may be left out.
        if not right or not used <= named:
            yield f"{message!r}: {translation!r}"
