"""The page that leads into the tutorial: a map of the chapters, two routes, and times that are counted and not claimed.

Everything on the map comes from the notebooks: a chapter's title, its question, what it needs and what it asks for.
"""

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

import edition
import notebooks
from edition import ENGLISH, Edition
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from tutorials import times
from tutorials.times import Effort
from tutorials.translation import blocks

#: Which chapters to read, in order; what a chapter needs comes before it, on its own route or on the first.
ROUTES = {
    "models": ("00", "01", "02", "03", "04", "05", "06", "10", "11"),
    "kernels": ("07", "08", "09"),
}


@dataclass(frozen=True)
class Chapter:
    """One chapter as the map shows it.

    Attributes:
        number: two digits.
        stem: of its files and its page.
        title: without the number.
        question: the last sentence of its question.
        needs: the numbers of the chapters that it builds on.
        effort: what it asks of its reader.
    """

    number: str
    stem: str
    title: str
    question: str
    needs: tuple[str, ...]
    effort: Effort


def chapters(of: Edition = ENGLISH) -> list[Chapter]:
    """All chapters, in order, with the titles and questions of an edition."""
    return [_chapter(notebook, of) for notebook in notebooks.notebooks()]


def _chapter(notebook: Path, of: Edition) -> Chapter:
    opening = "".join(json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]["source"])
    text = " ".join(opening.split())
    needed = text.partition("**You need**")[2].partition("**You leave with**")[0]
    parts = re.split(r"[;.] ", needed)
    needs = tuple(n for part in parts if not re.search(r"\bhelps\b|\bif\b", part) for n in re.findall(r"\]\((\d\d)_", part))
    title, question = _asked(of.prose(notebook.stem).get(blocks.digest(opening), opening))
    return Chapter(notebook.stem[:2], notebook.stem, title, question, needs, notebooks.effort(notebook))


def _asked(opening: str) -> tuple[str, str]:
    """The title of a chapter, and the last sentence of its question: the paragraph that opens with a bold word."""
    heading, *paragraphs = opening.strip().split("\n\n")
    title = re.sub(r"^# \d\d[.．。] *| *\{[^}]*\}$", "", heading.partition("\n")[0])
    question = next((paragraph for paragraph in paragraphs if paragraph.startswith("**")), "")
    asked = " ".join(re.sub(r"^\*\*.*?\*\*", "", question).split())
    return title, re.split(r"(?<=[.?]) |(?<=[。？])(?=.)", asked)[-1]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the map, the routes and the rule that the times follow."""
    if page.file.src_uri != "tutorials/index.md":
        return markdown
    of = edition.of(config)
    every = chapters(of)
    filled = {
        "routes": "\n".join(of.say(line) for line in routes(every).split("\n")),
        "map": map_of(every),
        "words": times.WORDS_PER_MINUTE,
        "lines": times.LINES_PER_MINUTE,
        "prediction": f"{60 * times.PREDICTION_MINUTES:.0f}",
        "picture": f"{60 * times.PICTURE_MINUTES:.0f}",
        "exercise": times.EXERCISE_MINUTES,
        "solution": of.say("one") if times.SOLUTION_LINE_MINUTES == 1 else times.SOLUTION_LINE_MINUTES,
        "longest": times.LONGEST,
    }
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: str(filled[match[1]]), markdown)


def routes(every: list[Chapter]) -> str:
    """The two routes with their times, as a list."""
    lines = []
    for name, text in (
        ("models", "**Models**: what int8 does to a language model, and how the outliers are kept out of it."),
        (
            "kernels",
            "**Kernels**: how a GPU computes it, written in Triton; after chapters 01 and 03, and 06 for the product. "
            "[Watch](../theatre/index.md) the kernels step by step, [write](../theatre/write.md) a ladder of ten in the browser.",
        ),
    ):
        own = [chapter for chapter in every if chapter.number in ROUTES[name]]
        reading, exercises = (sum(getattr(chapter.effort, part) for chapter in own) for part in ("reading", "exercise"))
        lines.append(f"- {text} {len(own)} chapters, {hours(reading)} to read, {hours(exercises)} for the exercises.")
    return "\n".join(lines)


def hours(minutes: int) -> str:
    """Minutes as people say them."""
    whole, rest = divmod(minutes, 60)
    return " ".join([*([f"{whole} h"] if whole else []), *([f"{rest} min"] if rest or not whole else [])])


def map_of(every: list[Chapter]) -> str:
    """The chapters as stations of two lines, one below the other, as HTML."""
    stations = []
    for chapter in every:
        route = next(name for name, numbers in ROUTES.items() if chapter.number in numbers)
        needs = f' <span class="needs">after {", ".join(chapter.needs)}</span>' if chapter.needs else ""
        stations.append(
            f'<li class="station {route}"><a href="{chapter.stem}/"><span class="number">{chapter.number}</span>'
            f'<span class="about"><strong>{html.escape(chapter.title)}</strong> '
            f'<span class="asked">{_inline(chapter.question)}</span></span></a>'
            f'<span class="minutes">{chapter.effort.reading} min to read, {chapter.effort.exercise} for the exercise{needs}</span></li>'
        )
    return f'<ol class="map" markdown="0">{"".join(stations)}</ol>'


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(re.sub(r"\*([^*]+)\*", r"\1", text), quote=False))
