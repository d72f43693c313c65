"""Prepares the theatre: recorded launches, the first picture of each page, and the files that run Python in the browser.

Pictures are drawn by the page's own script, in Node, so that the first one is what the page draws afterwards. Python, NumPy and the
sources that the playground has already are taken from there.
"""

import html
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tutorials import stage_examples

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "theatre"
FIRST = "outliers"

DRAW = """
const [script, requests] = JSON.parse(require("fs").readFileSync(0, "utf8"));
import("data:text/javascript," + encodeURIComponent(script)).then(({ markup }) =>
  console.log(JSON.stringify(requests.map(([record, at]) => markup(record, at)))));
"""


@cache
def records() -> dict[str, dict[str, Any]]:
    """The recorded launches of the page "Watch", by name."""
    return {name: stage_examples.recorded(example) for name, example in stage_examples.EXAMPLES.items()}


def drawn(*requests: tuple[dict[str, Any], int]) -> list[str]:
    """The HTML that docs/theatre/stage.js makes of (record, step)."""
    script = (FOLDER / "stage.js").read_text(encoding="utf-8")
    done = subprocess.run(["node", "-e", DRAW], input=json.dumps([script, requests]), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the records."""
    for name, record in records().items():
        files.append(File.generated(config, f"theatre/records/{name}.json", content=json.dumps(record)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the first pictures."""
    if page.file.src_uri == "theatre/index.md":
        return watch(markdown)
    return markdown


def watch(markdown: str) -> str:
    """The page of recorded launches, open in the middle of the first."""
    record = records()[FIRST]
    options = "".join(
        f'<option value="{name}"{" selected" if name == FIRST else ""}>{html.escape(one["title"])}</option>'
        for name, one in records().items()
    )
    (first,) = drawn((record, record["opening"]))
    filled = markdown.replace("{{ options }}", options).replace("{{ watch }}", first)
    return f'{filled}\n\n{data(record=record, at=record["opening"])}\n<script type="module" src="watch.js"></script>\n'


def data(**values: Any) -> str:
    """Values for a page's script."""
    text = json.dumps(values).replace("</", "<\\/")
    return f'<script type="application/json" id="theatre-data">{text}</script>'
