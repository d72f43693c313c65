"""Puts the figures into their pages, as SVG and in two renderings: one for a wide page, one for a phone.

In the page their text follows the colours of the page, can be selected, and can be measured (tests/test_site_layout.py). It works on
the finished page, after the search index has taken the descriptions.
"""

import html
import re
from pathlib import PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

#: The colours of experiments/pages/style.py, and black, by the variable of docs/stylesheets/extra.css.
COLOURS = {
    "#4a90d9": "blue",
    "#e0862b": "orange",
    "#3fa36b": "green",
    "#d9574e": "red",
    "#9a72d0": "purple",
    "#70757e": "ink",
    "#000000": "ink",
}
IMAGE = re.compile(r'<img\b(?=[^>]*\bsrc="([^"]*)\.svg")(?=[^>]*\balt="([^"]*)")[^>]*>')
#: By the name of the file without its ending.
drawings: dict[str, tuple[str, str]] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Finds the figures that are there in both renderings, NAME.svg and NAME-narrow.svg."""
    drawings.clear()
    paths = {file.src_uri: file for file in files if file.src_uri.endswith(".svg")}
    for path, file in paths.items():
        phone = paths.get(f"{path.removesuffix('.svg')}-narrow.svg")
        if phone is not None:
            drawings[PurePosixPath(path).stem] = (file.content_string, phone.content_string)
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Replaces the images of a finished page that are such figures."""

    def drawn(match: re.Match[str]) -> str:
        name = PurePosixPath(match[1]).name
        if name not in drawings:
            return match[0]
        both = "".join(inline(svg, f"{name}-{kind}", kind) for svg, kind in zip(drawings[name], ("wide", "narrow"), strict=True))
        return f'<span class="drawing" role="img" aria-label="{match[2]}">{both}</span>'

    return IMAGE.sub(drawn, output)


def inline(svg: str, name: str, kind: str) -> str:
    """A drawing as an element of a page: its identifiers made unique, its colours made those of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{html.escape(name)}-", svg)
    for colour, variable in COLOURS.items():
        svg = svg.replace(colour, f"var(--figure-{variable})")
    return svg.replace("<svg", f'<svg class="{kind}" aria-hidden="true"', 1)
