"""Finds the sentences that are to be translated: in the outputs of the notebooks, in the sources of the site and of the checkers."""

import ast
import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tutorials.translation import labels, made, sentences
from tutorials.translation.blocks import CHINESE, ROOT, pictured
from tutorials.translation.sentences import AREAS

__all__ = ["AREAS", "gathered", "missing", "write"]

PICTURE = re.compile(r'<picture><source [^>]*srcset="data:[^,]*,([^"]*)"><img alt="([^"]*)" src="data:[^,]*,([^"]*)"></picture>')
NARROW = "application/vnd.llm-int8.narrow+svg"
#: What has words: two of them, or one with a capital and an end.
SENTENCE = re.compile(r"[A-Za-z]{2,}[,;:.]? [a-z{#]|[A-Za-z}] [a-z]{2,}|^[A-Z][a-z]+[.…]?$")
#: The scripts whose messages a reader of the Chinese edition sees.
SCRIPTS = ("javascripts/*.js", "playground/*.js", "theatre/*.js")
HOOKS = ("bits", "home", "playground", "predictions", "theatre", "tutorial_index", "notebooks")
#: minitriton's own messages are Triton's, and stay as Triton writes them.
CHECKERS = ("checks/*.py", "ladder.py", "guarding.py")
#: What looks like a sentence and is none: selectors, keys, markers, and errors of the build.
IGNORED = re.compile(
    "|".join(
        (
            r"#\w.*|.*data-method.*|figcaption button|Tab|Enter|Escape|label, legend|.*, summary, textarea|\.ladder .*|const .*",
            r"prediction \{.*|\{part\} .*|\{getattr_.*|\{\w+\} bit .*|\*\*\{taken.*|line \{number\}.*",
            r"\{\{.*|\\.*|\].*srcset.*|\[Notebook\].*|\?\?\? .*|\*\*You .*|HOW: .*|tutorials/\*.*",
            r".*is missing; run `npm.*|.*Pyodide's lock file.*|.*has no `> \*\*Predict.*",
            r"Predict|Note|Warning|Careful|Tip|Measured|Exercise|Verdict|Stopped|Block|Access",
            r"float16|int8|LLM\.int8\(\)|absmax, by vector|LLM\.int8\(\), float weights",
        )
    )
)

EXAMPLES = ("stage_examples.py",)


def gathered(area: str) -> dict[str, str]:
    """The messages of an area, with where each comes from."""
    found = {"figures": _figures, "chapters": _chapters, "site": _site, "hints": _hints, "records": _records}[area]()
    result: dict[str, str] = {}
    for message, place in found:
        if sentences.WORD.search(sentences.HOLE.sub("", message)) and not IGNORED.fullmatch(message):
            result.setdefault(message, place)
    return result


def missing(area: str) -> list[str]:
    """The messages of an area that have no translation."""
    catalog = sentences.read(area)
    return [message for message in gathered(area) if not catalog.get(message)]


def write() -> None:
    """Writes the catalogs anew: what is gathered, with the translations that there are, and what was added by hand, translated."""
    for area in AREAS:
        old, new = sentences.read(area), gathered(area)
        kept = [(message, old.get(message, ""), place) for message, place in new.items()]
        by_hand = [(message, text, "by hand") for message, text in old.items() if message not in new and text]
        sentences.write(area, kept + by_hand)


# ---- Notebooks ----------------------------------------------------------------------------------------------------------------


def _outputs() -> Iterator[tuple[str, dict[str, str], list[dict[str, Any]]]]:
    """(chapter, texts by MIME type, fields of a prediction) of each output."""
    for path in sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                data = {mime: "".join(text) for mime, text in output.get("data", {}).items()}
                yield path.stem, data, output.get("metadata", {}).get("prediction", [])


def _drawings(data: dict[str, str], fields: list) -> Iterator[tuple[str, str, str]]:
    """(description, wide drawing, narrow drawing) of each figure of an output."""
    if "image/svg+xml" in data:
        yield data["text/plain"], data["image/svg+xml"], data[NARROW]
    if fields:
        for narrow, alt, wide in PICTURE.findall(data["text/markdown"]):
            yield html.unescape(alt), base64.b64decode(wide).decode(), base64.b64decode(narrow).decode()


def _figures() -> Iterator[tuple[str, str]]:
    for chapter, data, fields in _outputs():
        for _, *drawings in _drawings(data, fields):
            for drawing in drawings:
                for text in labels.texts(drawing):
                    yield sentences.shape(text), chapter


def _chapters() -> Iterator[tuple[str, str]]:
    for chapter, data, fields in _outputs():
        for alt, *_ in _drawings(data, fields):
            yield sentences.shape(alt), chapter
        for field in fields:
            for text in (field["label"], *field.get("options", [field["shown"]])):
                yield sentences.shape(text), chapter
        if "text/markdown" in data and "image/svg+xml" not in data:
            for text in sentences_of(PICTURE.sub("", data["text/markdown"]), folded=bool(fields)):
                yield sentences.shape(text), chapter


def sentences_of(markdown: str, folded: bool = False) -> Iterator[str]:
    """The paragraphs and the cells of tables of an output; of a folded one without the list of answers, which its fields have."""
    markdown = re.sub(r"<summary>.*?</summary>|</?details>|^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", markdown):
        text = paragraph.strip()
        if text.startswith("|"):
            yield from (cell.strip() for line in text.split("\n") for cell in line.strip("|").split("|"))
        elif not text.startswith("<") and not re.fullmatch(r"\$.*\$", text) and not (folded and text.startswith("- ")):
            yield text


# ---- Records ------------------------------------------------------------------------------------------------------------------


def _records() -> Iterator[tuple[str, str]]:
    """What is made from records, but for what other catalogs have and what a message with placeholders says, which is written by hand."""
    known = sentences.catalog("site", "chapters", "figures")
    own = sentences.Catalog({message: text for message, text in sentences.read("records").items() if "{" in message})
    for text, place in _made():
        if known.say(text) is None and own.say(text) is None:
            yield sentences.shape(text), place


def _made() -> Iterator[tuple[str, str]]:
    """The sentences of the made parts of translated pages, and the labels of the pictures of records."""
    from experiments import records
    from experiments.pages import phone, style
    from experiments.pages.report import DRAWN

    for page in CHINESE:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for part in [text] if page in made.PAGES else made.parts(text):
            yield from ((part[start:end], page) for start, end in made.spans(part))
    for name in sorted(pictured()):
        record, draw = records.read(name), DRAWN[name]
        for figure in draw(record) if record else ():
            wide, narrow = style.svg(figure), style.svg(phone.narrow(figure))
            yield from ((text, name) for drawing in (wide, narrow) for text in labels.texts(drawing))


# ---- Sources ------------------------------------------------------------------------------------------------------------------


def _site() -> Iterator[tuple[str, str]]:
    from tutorials.translation import navigation

    yield from ((title, "mkdocs.yml") for title in navigation.titles())
    for pattern in SCRIPTS:
        for path in sorted((ROOT / "docs").glob(pattern)):
            if path.name not in ("tongue.js", "worker.js"):
                yield from ((text, path.name) for text in _script(path.read_text(encoding="utf-8")))
    for name in HOOKS:
        yield from ((text, f"hooks/{name}.py") for text in _python(ROOT / "docs" / "hooks" / f"{name}.py"))
    for name in EXAMPLES:
        yield from ((text, name) for text in _python(ROOT / "tutorials" / name))


def _hints() -> Iterator[tuple[str, str]]:
    for pattern in CHECKERS:
        for path in sorted((ROOT / "tutorials").glob(pattern)):
            for text in _python(path):
                yield text, path.name


def _python(path: Path) -> Iterator[str]:
    """The sentences among the strings of a module, documentation left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and not isinstance(parents[node], ast.FormattedValue):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else _hole(ast.unparse(part.value)) for part in node.values)  # type: ignore[attr-defined]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if isinstance(parents[node], ast.Expr | ast.JoinedStr):
                continue
            text = node.value
        else:
            continue
        yield from _shown(text)


def _hole(expression: str) -> str:
    """A placeholder by what fills it."""
    name = "_".join(re.findall(r"[A-Za-z0-9]+", re.sub(r"'[^']*'|\"[^\"]*\"", "", expression)))
    return f"{{{name[:24].strip('_') if name[:1].isalpha() else 'x'}}}"


def _shown(text: str) -> Iterator[str]:
    """What a string shows: the text between tags, and what their attributes say."""
    if "<" not in text:
        if SENTENCE.search(text):
            yield from (sentences.shape(line) for line in text.split("\n") if SENTENCE.search(line))
        return
    said = re.findall(r'(?:aria-label|title|aria-valuetext)="([^"]*)"', text)
    for part in (*said, *re.split(r"<[^>]*>", text)):
        part = html.unescape(part).strip()
        if sentences.WORD.search(sentences.HOLE.sub("", part)) and not re.fullmatch(r"[\w.{}-]+=.*", part):
            yield sentences.shape(part)


def _script(text: str) -> Iterator[str]:
    """The sentences among the strings and templates of a script."""
    text = re.sub(r"^\s*(//|/?\*).*$|/\*\*.*?\*/| // .*$", "", text, flags=re.MULTILINE)
    at = 0
    while at < len(text):
        if text[at] == '"':
            end = re.compile(r'"(?:[^"\\\n]|\\.)*"').match(text, at)
            if end:
                yield from _shown(end[0][1:-1])
                at = end.end()
                continue
        if text[at] == "`":
            whole, inner, at = _template(text, at)
            yield from _shown(whole)
            for expression in inner:
                yield from _script(expression)
            continue
        at += 1


def _template(text: str, start: int) -> tuple[str, list[str], int]:
    """A template with placeholders for its expressions, these, and where it ends."""
    at, whole, inner = start + 1, "", []
    while text[at] != "`":
        if text.startswith("${", at):
            depth, end = 1, at + 2
            while depth:
                if text[end] == "`":
                    *_, end = _template(text, end)
                    continue
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            expression = text[at + 2 : end - 1]
            inner.append(expression)
            whole += _hole(re.sub(r"`.*`", "", expression, flags=re.DOTALL))
            at = end
        else:
            whole += text[at]
            at += 1
    return whole, inner, at + 1
