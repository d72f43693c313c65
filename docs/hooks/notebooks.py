"""Turns the executed notebooks of tutorials/ into pages of the site.

Each notebook becomes one Markdown page, so that search, admonitions, formulae, links and their checking work as on any other page:

- a block quote that opens with a bold word, `> **Predict.** ...`, becomes an admonition of that title;
- `<details><summary>Solution</summary>` becomes a folded admonition;
- a result that is to be predicted stays folded, and its prompt gets fields and a button (predictions.py);
- imports, the code of figures, checks and long measurements are folded, printed source code is highlighted, pictures become files
  (figures.py);
- links to notebooks, documents and source files become links to the pages where the site shows them.
"""

import base64
import html
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edition
import predictions
from edition import ENGLISH, Edition
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tutorials import times
from tutorials.translation import blocks

FOLDER = Path(__file__).resolve().parents[2] / "tutorials"
NAV_ENTRY = "tutorials/*"

#: The kinds of admonition, by the bold word that opens a block quote.
KINDS = {"Predict": "question", "Note": "note", "Warning": "warning", "Careful": "warning", "Tip": "tip", "Measured": "info"}
KINDS |= {"先猜一猜": "question", "说明": "note", "当心": "warning", "提示": "tip", "实测": "info"}

NARROW = "application/vnd.llm-int8.narrow+svg"
#: A picture inside of a folded result (tutorials/folding.py): the one for a phone, the description, the other.
FOLDED_PICTURE = re.compile(r'<picture><source [^>]*srcset="data:[^,]*,([^"]*)"><img alt="([^"]*)" src="data:[^,]*,([^"]*)"></picture>')
FOLDED = re.compile(r"<details>\n<summary>.*?</summary>\n\n(.*)\n\n</details>", re.DOTALL)

DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>\n(.*?)\n\s*</details>", re.DOTALL)
QUOTE = re.compile(r"(?:^>.*\n?)+", re.MULTILINE)
SOURCE_OUTPUT = re.compile(r"# \w[\w/]*\.py\n")
#: A line of a cell that only imports and sets options.
PREPARES = re.compile(r"(import|from|np\.set_printoptions|torch\.set_grad_enabled|os\.environ\[|kernel_checks\.guard|#|\)|\s|$)")
#: A cell that shows a piece of a file and does nothing else.
SHOWS = re.compile(r'source\.(show|part)\((?:[^"()]|"[^"]*")*\)')
#: A line that raises if a claim of the chapter does not hold, and one that makes text, or a table, from a record or from files.
CHECKS = re.compile(r"^\s*assert ", re.MULTILINE)
WRITES = re.compile(r"^\s*(recorded\.say|source\.beside)\(", re.MULTILINE)
#: A cell with more lines than this, and no kernel in it, is a measurement: the page shows what it prints.
LONG = 20
CHECKER = re.compile(r"^\s*(?:print\()?(kernel_checks|checks)\.(?!guard_)\w+\(", re.MULTILINE)


@dataclass(frozen=True)
class Picture:
    """A picture of a page: its path in the site and its bytes."""

    path: str
    content: bytes


def notebooks() -> list[Path]:
    """The executed notebooks, in reading order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts one page per notebook where the navigation says `tutorials/*`."""
    pages = [f"tutorials/{notebook.stem}.md" for notebook in notebooks()]
    for entry in config.nav or []:
        for title, children in entry.items():
            if isinstance(children, list) and NAV_ENTRY in children:
                at = children.index(NAV_ENTRY)
                entry[title] = [*children[:at], *pages, *children[at + 1 :]]
    if str(FOLDER) not in config.watch:
        config.watch.append(str(FOLDER))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, their pictures, and the notebooks and scripts themselves."""
    for notebook in notebooks():
        markdown, pictures = page(notebook, edition.of(config))
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=markdown))
        for picture in pictures:
            files.append(File.generated(config, picture.path, content=picture.content))
        for original in (notebook, notebook.with_suffix(".py")):
            files.append(File.generated(config, f"tutorials/{original.name}", abs_src_path=str(original)))
    return files


def page(notebook: Path, of: Edition = ENGLISH) -> tuple[str, list[Picture]]:
    """The Markdown of a notebook, and its pictures. The times are those of the English page, in each edition."""
    title, rest, pictures = content(notebook, of)
    links = f"[Notebook]({notebook.name}){{ .md-button download }} [Script]({notebook.stem}.py){{ .md-button download }}"
    taken = effort(notebook)
    minutes = (
        f"**{taken.reading} minutes** to read, **{taken.exercise}** for the [exercise](#exercise); [how this is counted](index.md#times)."
    )
    return f"{title}\n\n{links}\n{{ .downloads }}\n\n{of.say(minutes)}\n{{ .minutes }}\n{rest}", pictures


def effort(notebook: Path) -> times.Effort:
    """What a notebook's page asks of its reader."""
    return times.of_page(content(notebook)[1])


def content(notebook: Path, of: Edition = ENGLISH) -> tuple[str, str, list[Picture]]:
    """The title of a notebook, the Markdown below it, and its pictures, in an edition of the site."""
    translations = of.prose(notebook.stem)
    parts: list[str] = []
    pictures: list[Picture] = []
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(prose(translations.get(blocks.digest(source), source)))
        elif cell["cell_type"] == "code" and source.strip():
            stem = f"{notebook.stem}-{number:02d}"
            for output in cell["outputs"]:
                if fields := output.get("metadata", {}).get("prediction"):
                    said = [field | {"label": of.say(field["label"])} for field in fields]
                    parts[-1] = predictions.asked(parts[-1], said, stem)
            shown, of_cell = outputs(cell["outputs"], f"tutorials/{stem}", of)
            pictures += of_cell
            parts += [code(source, bool(of_cell)), *shown]
    title, _, rest = "\n\n".join(parts).partition("\n")
    return title, rest, pictures


def prose(source: str) -> str:
    """A Markdown cell, in the site's Markdown."""
    return DETAILS.sub(_folded, QUOTE.sub(_admonition, links(source)))


def _admonition(match: re.Match[str]) -> str:
    text = re.sub(r"^> ?", "", match[0], flags=re.MULTILINE).strip()
    opening = re.match(r"\*\*([\w ]+)[.:。：]\*\*\s*", text)
    if not opening:
        return match[0]
    kind = KINDS.get(opening[1].split()[0], "note")
    return f'!!! {kind} "{opening[1]}"\n\n{textwrap.indent(text[opening.end() :], "    ")}\n'


def _folded(match: re.Match[str]) -> str:
    return f'??? success "{match[1].strip()}"\n\n{textwrap.indent(match[2].strip(chr(10)), "    ")}\n'


def links(source: str) -> str:
    """Points the links of a notebook, which are paths in the repository, at the pages of the site."""
    source = re.sub(r"\]\((\d\d_\w+)\.(?:ipynb|py)(#[^)]*)?\)", r"](\1.md\2)", source)
    source = re.sub(r"\]\(\.\./docs/([^)]*)\)", r"](../\1)", source)

    def module(match: re.Match[str]) -> str:
        return f"](../api/{match[1]}.md#{match[1]}.{match[2].replace('/', '.')})"

    return re.sub(r"\]\(\.\./(reference|fast)/([\w/]+)\.py\)", module, source)


def code(source: str, draws: bool) -> str:
    """A code cell; folded if the page is read without it, and left out if all it does is to show a piece of a file."""
    checker = CHECKER.search(source)
    if not checker and SHOWS.fullmatch(source.strip()):
        return ""
    fence = _fence(source.strip("\n"), "python")
    title = None if checker else folded(source, draws)
    if title:
        return f'??? code "{title}"\n\n{textwrap.indent(fence, "    ")}'
    if checker and checker[1] == "checks" and "NotImplemented" in source:
        return f"{fence}\n\n[Run this exercise in the browser](../playground/index.md#exercises){{ .try-it }}"
    return fence


def folded(source: str, draws: bool) -> str | None:
    """The title under which a code cell is folded, or None if it stays open: kernels, and what is short and computes."""
    if draws:
        return "Code of this figure"
    if all(PREPARES.match(line) for line in source.splitlines()):
        return "Imports"
    if "@triton.jit" in source:
        return "Code of the mistakes" if "HOW: tl.constexpr" in source else None
    if WRITES.search(source):
        return "Code of this text"
    if CHECKS.search(source):
        return "Code of this check"
    return "Code of this measurement" if source.strip().count("\n") >= LONG else None


def outputs(every: list[dict[str, Any]], stem: str, of: Edition = ENGLISH) -> tuple[list[str], list[Picture]]:
    """The outputs of a cell in Markdown, and the pictures among them; `stem` starts the pictures' paths."""
    shown: list[str] = []
    pictures: list[Picture] = []

    def picture(wide: str, narrow: str, alt: str) -> str:
        path = f"{stem}-{len(pictures) // 2}"
        for drawing, ending in ((wide, ""), (narrow, "-narrow")):
            pictures.append(Picture(f"{path}{ending}.svg", of.drawing(drawing).encode()))
        return f"![{_alt(of.say(alt))}]({Path(path).name}.svg){{ .figure }}"

    def unfolded(match: re.Match[str]) -> str:
        narrow, wide = (base64.b64decode(data).decode() for data in match.group(1, 3))
        return picture(wide, narrow, html.unescape(match[2]))

    for output in every:
        data = output.get("data", {})
        if "image/svg+xml" in data:
            shown.append(picture("".join(data["image/svg+xml"]), "".join(data[NARROW]), "".join(data["text/plain"])))
        elif "prediction" in output.get("metadata", {}):
            body = FOLDED.fullmatch("".join(data["text/markdown"]))
            assert body is not None
            shown.append(predictions.result(printed(prose(FOLDED_PICTURE.sub(unfolded, of.markdown(body[1]))))))
        elif "text/markdown" in data:
            shown.append(prose(of.markdown("".join(data["text/markdown"]))))
        elif "text/html" in data:
            shown.append(f'<div class="output" markdown="0">{"".join(data["text/html"])}</div>')
        else:
            text = "".join(output.get("text") or data.get("text/plain", "")).strip("\n")
            if text:
                shown.append(printed(_fence(text, "python" if SOURCE_OUTPUT.match(text) else "text")))
    return shown, pictures


def printed(markdown: str) -> str:
    """Marks the blocks of printed text."""
    return re.sub(r"^(```+)text$", r"\1 { .text .output .no-copy }", markdown, flags=re.MULTILINE)


def _alt(text: str) -> str:
    return re.sub(r"([\[\]\\`*_$])", r"\\\1", " ".join(text.split()))


def _fence(text: str, language: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}{language}\n{text}\n{ticks}"
