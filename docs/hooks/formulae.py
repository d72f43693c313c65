"""Typesets the formulae at build time with KaTeX, so that a page needs no script for them and makes no request to another host.

It works on the finished page, after the search index has taken the plain TeX. A formula that KaTeX cannot read is a warning, and so
ends a strict build.
"""

import html
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
    requests = [{"tex": html.unescape(tex), "displayMode": bracket == "["} for _, bracket, tex in found]
    done = subprocess.run(
        ["node", "-e", RENDER, str(KATEX / "katex.min.js")], input=json.dumps(requests), capture_output=True, text=True, check=True
    )
    results = iter(json.loads(done.stdout))

    def typeset(match: re.Match[str]) -> str:
        result = next(results)
        if "error" in result:
            log.warning("%s: KaTeX cannot read %r: %s", page.file.src_uri, html.unescape(match[3]), result["error"])
            return match[0]
        return f'<{match[1]} class="arithmatex">{result["html"]}</{match[1]}>'

    return FORMULA.sub(typeset, output)
