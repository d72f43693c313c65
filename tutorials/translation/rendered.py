"""Sentences within Markdown and HTML that code has made: what the catalog knows is replaced, all else stays as it is."""

import html
import re

from tutorials.translation.sentences import Catalog

#: Elements whose text is no sentence of ours.
SKIPPED = ("code", "script", "style", "textarea", "svg", "math")
TOKEN = re.compile(r"(<!--.*?-->|<[^>]*>)", re.DOTALL)
SPOKEN = re.compile(r'\b(aria-label|aria-valuetext|alt|title|data-title|placeholder)="([^"]*)"')
LISTING = re.compile(r'<[^>]*class="(?:listing|number|arithmatex|katex)\b')


def in_html(markup: str, catalog: Catalog) -> str:
    """HTML with its texts, and the attributes that are read out, translated; code and drawings are left alone."""
    result: list[str] = []
    inside: list[str] = []
    for token in TOKEN.split(markup):
        tag = re.match(r"<(/?)([a-zA-Z][\w-]*)", token)
        if tag is None:
            result.append(token if inside or token.startswith("<!--") else _text(token, catalog))
            continue
        name = tag[2].lower()
        if inside:
            if name == inside[0]:
                inside = inside[1:] if tag[1] else [name, *inside]
        elif not tag[1] and (name in SKIPPED or LISTING.match(token)) and not token.endswith("/>"):
            inside = [name]
        result.append(SPOKEN.sub(lambda match: _attribute(match, catalog), token))
    return "".join(result)


def _text(text: str, catalog: Catalog) -> str:
    said = catalog.say(html.unescape(text))
    return text if said is None else html.escape(said, quote=False)


def _attribute(match: re.Match[str], catalog: Catalog) -> str:
    said = catalog.say(html.unescape(match[2]))
    return match[0] if said is None else f'{match[1]}="{html.escape(said)}"'


def in_markdown(text: str, catalog: Catalog) -> str:
    """Markdown with its paragraphs and the cells of its tables translated; blocks of code and HTML are left alone."""
    parts = re.split(r"(^ *```.*?^ *```|\n\s*\n)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.lstrip().startswith(("```", "<")) or not part.strip() else _paragraph(part, catalog) for part in parts)


def _paragraph(text: str, catalog: Catalog) -> str:
    stripped = text.strip()
    if stripped.startswith("|"):
        return re.sub(r"[^|\n]+", lambda cell: catalog.say(cell[0]) or cell[0], text)
    whole = catalog.say(text)
    if whole is not None:
        return whole
    if stripped.startswith("- "):
        return "\n".join(_answer(line, catalog) for line in text.split("\n"))
    return text


def _answer(line: str, catalog: Catalog) -> str:
    """A line `- label: **value**` (tutorials/predict.py)."""
    match = re.fullmatch(r"- (.*): \*\*(.*)\*\*", line)
    if match is None:
        return line
    label, shown = (catalog.say(part) or part for part in match.groups())
    return f"- {label}：**{shown}**"
