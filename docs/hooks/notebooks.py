"""Turns the executed notebooks of tutorials/ into pages of the site.

Each notebook becomes one Markdown page, so that search, admonitions, formulae, links and their checking work as on any other page:

- a block quote that opens with a bold word, `> **Predict.** ...`, becomes an admonition of that title;
- `<details><summary>Solution</summary>` becomes a folded admonition;
- the code of a figure and the imports are folded, printed source code is highlighted, pictures become files;
- links to notebooks, documents and source files become links to the pages where the site shows them.
"""

import base64
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tutorials import times

FOLDER = Path(__file__).resolve().parents[2] / "tutorials"
NAV_ENTRY = "tutorials/*"

#: The kinds of admonition, by the bold word that opens a block quote.
KINDS = {"Predict": "question", "Note": "note", "Warning": "warning", "Careful": "warning", "Tip": "tip", "Measured": "info"}

DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>\n(.*?)\n\s*</details>", re.DOTALL)
QUOTE = re.compile(r"(?:^>.*\n?)+", re.MULTILINE)
SOURCE_OUTPUT = re.compile(r"# \w[\w/]*\.py\n")
#: A line of a cell that only imports and sets options.
PREPARES = re.compile(r"(import|from|np\.set_printoptions|torch\.set_grad_enabled|os\.environ\[|kernel_checks\.guard|#|\)|\s|$)")
#: A line that raises if a claim of the chapter does not hold, and one that makes text from a record.
CHECKS = re.compile(r"^\s*assert ", re.MULTILINE)
WRITES = re.compile(r"^\s*recorded\.say\(", re.MULTILINE)
CHECKER = re.compile(r"^\s*(?:print\()?(kernel_checks|checks)\.\w+\(", re.MULTILINE)


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
        markdown, pictures = page(notebook)
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=markdown))
        for picture in pictures:
            files.append(File.generated(config, picture.path, content=picture.content))
        for original in (notebook, notebook.with_suffix(".py")):
            files.append(File.generated(config, f"tutorials/{original.name}", abs_src_path=str(original)))
    return files


def page(notebook: Path) -> tuple[str, list[Picture]]:
    """The Markdown of a notebook, and its pictures."""
    parts: list[str] = []
    pictures: list[Picture] = []
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(prose(source))
        elif cell["cell_type"] == "code" and source.strip():
            shown, of_cell = outputs(cell["outputs"], f"tutorials/{notebook.stem}-{number:02d}")
            pictures += of_cell
            parts += [code(source, bool(of_cell)), *shown]
    title, _, rest = "\n\n".join(parts).partition("\n")
    links = f"[Notebook]({notebook.name}){{ .md-button download }} [Script]({notebook.stem}.py){{ .md-button download }}"
    effort = times.of_page(rest)
    taken = f"**{effort.reading} minutes** to read, **{effort.exercise}** for the [exercise](#exercise); [how this is counted](index.md#times)."
    return f"{title}\n\n{links}\n{{ .downloads }}\n\n{taken}\n{{ .minutes }}\n{rest}", pictures


def prose(source: str) -> str:
    """A Markdown cell, in the site's Markdown."""
    return DETAILS.sub(_folded, QUOTE.sub(_admonition, links(source)))


def _admonition(match: re.Match[str]) -> str:
    text = re.sub(r"^> ?", "", match[0], flags=re.MULTILINE).strip()
    opening = re.match(r"\*\*([\w ]+)[.:]\*\*\s*", text)
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
    """A code cell; folded if it only imports and sets options, draws a picture, checks what the text has claimed, or writes sentences."""
    checker = CHECKER.search(source)
    fence = _fence(source.strip("\n"), "python")
    if draws and not checker:
        return f'??? code "Code of this figure"\n\n{textwrap.indent(fence, "    ")}'
    if all(PREPARES.match(line) for line in source.splitlines()):
        return f'??? code "Imports"\n\n{textwrap.indent(fence, "    ")}'
    if CHECKS.search(source) and "@triton.jit" not in source:
        return f'??? code "Code of this check"\n\n{textwrap.indent(fence, "    ")}'
    if WRITES.search(source):
        return f'??? code "Code of this text"\n\n{textwrap.indent(fence, "    ")}'
    if checker and checker[1] == "checks" and "NotImplemented" in source:
        return f"{fence}\n\n[Run this exercise in the browser](../playground/index.md#exercises){{ .try-it }}"
    return fence


def outputs(every: list[dict[str, Any]], stem: str) -> tuple[list[str], list[Picture]]:
    """The outputs of a cell in Markdown, and the pictures among them; `stem` starts the pictures' paths."""
    shown: list[str] = []
    pictures: list[Picture] = []
    for output in every:
        data = output.get("data", {})
        if "image/png" in data:
            picture = Picture(f"{stem}-{len(pictures)}.png", base64.b64decode("".join(data["image/png"])))
            alt = output.get("metadata", {}).get("image/png", {}).get("alt") or "".join(data.get("text/plain", ""))
            pictures.append(picture)
            shown.append(f"![{_alt(alt)}]({Path(picture.path).name}){{ .figure }}")
        elif "text/markdown" in data:
            shown.append(prose("".join(data["text/markdown"])))
        elif "text/html" in data:
            shown.append(f'<div class="output" markdown="0">{"".join(data["text/html"])}</div>')
        else:
            text = "".join(output.get("text") or data.get("text/plain", "")).strip("\n")
            if SOURCE_OUTPUT.match(text):
                shown.append(_fence(text, "python"))
            elif text:
                shown.append(_fence(text, ".text .output .no-copy"))
    return shown, pictures


def _alt(text: str) -> str:
    return re.sub(r"([\[\]\\`*_$])", r"\\\1", " ".join(text.split()))


def _fence(text: str, language: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}{f' {{ {language} }}' if language.startswith('.') else language}\n{text}\n{ticks}"
