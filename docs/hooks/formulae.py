"""Typesets the formulae at build time with KaTeX, so that a page needs no script for them and makes no request to another host.

It works on the finished page, after the search index has taken the plain TeX. A formula that KaTeX cannot read is a warning, and so
ends a strict build.
"""

import html
import itertools
import json
import logging
import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.formulae")

ROOT = Path(__file__).resolve().parents[2]
KATEX = ROOT / "node_modules" / "katex" / "dist"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)

RENDER = """
const katex = require(process.argv[1]);
const formulae = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(formulae.map(({tex, displayMode}) => {
  try { return {html: katex.renderToString(tex, {displayMode, strict: "error", throwOnError: true})}; }
  catch (error) { return {error: String(error.message)}; }
})));
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds KaTeX's style sheet and fonts."""
    if not KATEX.exists():
        raise PluginError(f"{KATEX} is missing; run `npm install --no-package-lock`")
    paths = [KATEX / "katex.min.css", *sorted((KATEX / "fonts").glob("*.woff2"))]
    for path in paths:
        files.append(File.generated(config, f"katex/{path.relative_to(KATEX).as_posix()}", abs_src_path=str(path)))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Replaces the formulae of a finished page by what KaTeX makes of them."""
    found = FORMULA.findall(output)
    if not found:
        return output
    # Formulae that stand side by side may stand below each other on a phone, so each is typeset by itself.
    apart = [parts(html.unescape(tex)) if bracket == "[" else [html.unescape(tex)] for _, bracket, tex in found]
    requests = [{"tex": tex, "displayMode": bracket == "["} for (_, bracket, _), every in zip(found, apart, strict=True) for tex in every]
    done = subprocess.run(
        ["node", "-e", RENDER, str(KATEX / "katex.min.js")], input=json.dumps(requests), capture_output=True, text=True, check=True
    )
    results, counts = iter(json.loads(done.stdout)), map(len, apart)

    def typeset(match: re.Match[str]) -> str:
        every = list(itertools.islice(results, next(counts)))
        for result in every:
            if "error" in result:
                log.warning("%s: KaTeX cannot read %r: %s", page.file.src_uri, html.unescape(match[3]), result["error"])
                return match[0]
        return f'<{match[1]} class="arithmatex">{" ".join(result["html"] for result in every)}</{match[1]}>'

    return FORMULA.sub(typeset, output)


def parts(tex: str) -> list[str]:
    """The formulae of a display that a wide space separates, outside of any group or environment."""
    found, start, depth = [], 0, 0
    for token in re.finditer(r"\\(?:begin|left)\b|\\(?:end|right)\b|\\q?quad\b|\\.|[{}]", tex):
        if token[0] in ("{", r"\begin", r"\left"):
            depth += 1
        elif token[0] in ("}", r"\end", r"\right"):
            depth -= 1
        elif token[0] in (r"\quad", r"\qquad") and depth == 0:
            found.append(tex[start : token.start()])
            start = token.end()
    return [*found, tex[start:]]
