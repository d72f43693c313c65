"""Prose and its translation, block by block: a Markdown cell of a chapter, a section of a page.

A translation stands below a marker, `<!-- cell HASH -->` or `<!-- section HASH -->`; HASH is that of the original. When the original
changes, its hash does, and the translation is outdated until somebody has read both.
"""

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tutorials.translation import made

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS, PAGES = ROOT / "tutorials" / "zh", ROOT / "docs" / "zh"
MARKER = re.compile(r"^<!-- (?:cell|section) ([0-9a-f]{12}) -->\n", re.MULTILINE)
FENCE = re.compile(r"\s*(```+|~~~+)")

#: The pages of docs/ whose sections are translated.
TRANSLATED = (
    "index.md",
    "tutorials/index.md",
    "tutorials/five_minutes.md",
    "playground/index.md",
    "theatre/index.md",
    "theatre/write.md",
    "theatre/inside.md",
    "theatre/explore.md",
    "contract.md",
    "bounds.md",
    "kernels.md",
    "paper_map.md",
    "emulator.md",
    "glossary.md",
    "howto/quantize_a_model.md",
    "howto/mixture_of_experts.md",
    "howto/cpu.md",
    "howto/bitsandbytes.md",
    "howto/several_devices.md",
    "howto/measure_on_your_gpu.md",
    "howto/check_your_kernel.md",
)

#: All pages of docs/ that have a Chinese edition; the others appear in English there.
CHINESE = (*TRANSLATED, *made.PAGES)


class Document(NamedTuple):
    """A text with its translation: its name as the command takes it, and both files."""

    name: str
    original: Path
    translation: Path


@dataclass(frozen=True)
class Pair:
    """A block and its translation.

    Attributes:
        original: the English text; None if there is none any more.
        translation: the Chinese text; None if it is missing.
        old: the hash below which an outdated translation stands; None if it is up to date.
    """

    original: str | None
    translation: str | None
    old: str | None = None

    @property
    def state(self) -> str:
        """One of "translated", "missing", "outdated", "orphaned"."""
        if self.translation is None:
            return "missing"
        if self.original is None:
            return "orphaned"
        return "outdated" if self.old else "translated"


def digest(text: str) -> str:
    """The hash of a block."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


def documents() -> list[Document]:
    """Everything that has a Chinese edition: chapters, then pages."""
    scripts = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
    chapters = [Document(script.stem, script, CHAPTERS / f"{script.stem}.md") for script in scripts]
    return chapters + [Document(page, ROOT / "docs" / page, PAGES / page) for page in TRANSLATED]


def document(name: str) -> Document:
    """The document of this name, which there must be."""
    return next(one for one in documents() if one.name == name)


def pictured() -> set[str]:
    """The records of which a translated page shows a picture, results/NAME.png or results/NAME-2.png."""
    texts = ((ROOT / "docs" / page).read_text(encoding="utf-8") for page in CHINESE)
    return {name for text in texts for name in re.findall(r"results/([\w-]+?)(?:-\d+)?\.png", text)}


def originals(document: Document) -> list[str]:
    """The blocks of the English text."""
    text = document.original.read_text(encoding="utf-8")
    return cells(text) if document.original.suffix == ".py" else sections(text)


def cells(script: str) -> list[str]:
    """The Markdown cells of a percent script."""
    import jupytext

    notebook = jupytext.reads(script, fmt="py:percent")
    return [cell.source.strip() for cell in notebook.cells if cell.cell_type == "markdown"]


def sections(text: str) -> list[str]:
    """The sections of a page, without what commands have written into it (made.py); the first one holds its front matter, too."""
    parts: list[list[str]] = [[]]
    for line, in_code in lines(made.without(text)):
        if not in_code and line.startswith("## "):
            parts.append([])
        parts[-1].append(line)
    return ["\n".join(part).strip() for part in parts]


def lines(text: str) -> Iterator[tuple[str, bool]]:
    """The lines of a Markdown text, each with whether it belongs to fenced code."""
    fence: str | None = None
    for line in text.splitlines():
        opening = FENCE.match(line)
        if opening and fence is None:
            fence = opening[1]
        elif opening and line.strip() == fence:
            fence = None
        yield line, fence is not None or opening is not None


def blocks(text: str) -> list[tuple[str, str]]:
    """The hashes and the texts of a file of translations.

    Raises:
        ValueError: there is text above the first marker, or a hash stands there twice.
    """
    before, *rest = MARKER.split(text)
    found = [(key, block.strip()) for key, block in zip(rest[::2], rest[1::2], strict=True)]
    if before.strip():
        raise ValueError(f"text above the first marker: {before.strip()[:60]!r}")
    keys = [key for key, _ in found]
    if len(set(keys)) < len(keys):
        raise ValueError(f"a marker stands there twice: {next(key for key in keys if keys.count(key) > 1)}")
    return found


def pairs(english: Sequence[str], translated: Sequence[tuple[str, str]]) -> list[Pair]:
    """Each block of the original with its translation; one that has neither its own hash nor a counterpart at its place is orphaned."""
    mine, theirs = [digest(text) for text in english], [key for key, _ in translated]
    by_hash = dict(translated)
    result = []
    for change, a, b, c, d in difflib.SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        left = [(key, block) for key, block in translated[c:d] if key not in mine] if change != "equal" else []
        for key, text in zip(mine[a:b], english[a:b], strict=True):
            if key in by_hash:
                result.append(Pair(text, by_hash[key]))
            elif left:
                old, block = left.pop(0)
                result.append(Pair(text, block, old))
            else:
                result.append(Pair(text, None))
        result += [Pair(None, block, key) for key, block in left]
    return result


def read(document: Document) -> list[Pair]:
    """A document, block by block; without its translation every block is missing."""
    translation = document.translation
    text = translation.read_text(encoding="utf-8") if translation.exists() else ""
    return pairs(originals(document), blocks(text))


def marker(document: Document, key: str) -> str:
    """The line above a block's translation."""
    return f"<!-- {'cell' if document.original.suffix == '.py' else 'section'} {key} -->"


def skeleton(document: Document) -> str:
    """The file of translations as it should be: English where a translation is missing, the old one below a note where it is outdated."""
    parts = []
    for pair in read(document):
        if pair.original is None:
            continue
        body = pair.translation if pair.state == "translated" else pair.original
        if pair.state == "outdated":
            body = f"{pair.translation}\n\n{pair.original}"
        parts.append(f"{marker(document, digest(pair.original))}\n{body}\n")
    return "\n".join(parts)
