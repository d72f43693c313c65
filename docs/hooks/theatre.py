"""Prepares the theatre: recorded launches, the first picture of each page, and the files that run Python in the browser.

Pictures are drawn by the page's own script, in Node, so that the first one is what the page draws afterwards. Python, NumPy and the
sources that the playground has already are taken from there.
"""

import html
import json
import re
import subprocess
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import playground  # the hook beside this one
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tutorials import chapter_kernels, explore, ladder, minitriton, stage_examples

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "theatre"
FIRST = "outliers"
#: What the ladder needs beside what the playground serves, in the folder that Python reads there.
SOURCES = [
    path
    for path in (
        *(ROOT / "tutorials" / f"{name}.py" for name in ("accesses", "blocks", "example", "ladder", "minitriton", "recording")),
        *sorted(ROOT.glob("tutorials/checks/*.py")),
    )
    if path.name not in ("launches.py", "kernel_checks.py") and path not in playground.SOURCES
]
#: What the page "A real model" computes with.
EXPLORE = [*sorted(ROOT.glob("reference/*.py")), *(ROOT / "tutorials" / name for name in ("__init__.py", "explore.py", "activations.bin"))]
#: A position of that page's controls in its text: block, column, threshold and factor.
POSITION = r"(\d+) (\d+) ([\d.]+) (\d+)"
#: The heading of a kernel of the ladder: its title and its anchor.
HEADING = re.compile(r"^## \d+\. (.*?) \{ #([\w-]+) \}$", re.MULTILINE)

DRAW = """
const [script, requests] = JSON.parse(require("fs").readFileSync(0, "utf8"));
import("data:text/javascript," + encodeURIComponent(script)).then(({ markup }) =>
  console.log(JSON.stringify(requests.map((request) => markup(...request)))));
"""
#: The thread that "Look inside" follows first.
THREAD = 37


@cache
def records() -> dict[str, dict[str, Any]]:
    """The recorded launches of the page "Watch", by name."""
    return {name: stage_examples.recorded(example) for name, example in stage_examples.EXAMPLES.items()}


def drawn(*requests: tuple, script: str = "stage.js") -> list[str]:
    """The HTML that `markup` of a script in docs/theatre makes of (record, step, ...)."""
    text = (FOLDER / script).read_text(encoding="utf-8")
    done = subprocess.run(["node", "-e", DRAW], input=json.dumps([text, requests]), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the records and the sources."""
    for name, record in records().items():
        files.append(File.generated(config, f"theatre/records/{name}.json", content=json.dumps(record)))
    for path in (*SOURCES, *(path for path in EXPLORE if path not in playground.SOURCES)):
        files.append(File.generated(config, f"playground/{path.relative_to(ROOT).as_posix()}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the first pictures."""
    fill = FILLED.get(page.file.src_uri)
    return fill(markdown) if fill else markdown


def watch(markdown: str) -> str:
    """The page of recorded launches, open in the middle of the first."""
    record = records()[FIRST]
    options = "".join(
        f'<option value="{name}"{" selected" if name == FIRST else ""}>{html.escape(one["title"])}</option>'
        for name, one in records().items()
    )
    (first,) = drawn((record, record["opening"]))
    filled = markdown.replace("{{ options }}", options).replace("{{ watch }}", first)
    return with_script(filled, "watch.js", record=record, at=record["opening"])


def write(markdown: str) -> str:
    """The page of the ladder: an editor, a verdict, a picture and a folded solution for each kernel."""
    stubs = {name: chapter_kernels.stub(rung.function) for name, rung in ladder.RUNGS.items()}
    begun = {name: rung.record(stubs[name], minitriton.compiled(stubs[name], rung.function)) for name, rung in ladder.RUNGS.items()}
    pictures = dict(zip(begun, drawn(*((record, 0) for record in begun.values())), strict=True))
    titles = {anchor: title for title, anchor in HEADING.findall(markdown)}
    links = "".join(f'<li><a href="#{name}" data-title="{titles[name]}">{titles[name]}</a></li>' for name in ladder.RUNGS)
    markdown = markdown.replace("{{ ladder }}", links)
    markdown = markdown.replace("{{ quantize chapter }}", chapter_kernels.every()["quantize_rows"].chapter)
    markdown = re.sub(r"^\{\{ rung ([\w-]+) \}\}$", lambda m: _rung(m[1], stubs[m[1]], pictures[m[1]]), markdown, flags=re.MULTILINE)
    sources = [path.relative_to(ROOT).as_posix() for path in (*playground.SOURCES, *SOURCES)]
    return with_script(markdown, "../write.js", records=begun, sources=sources)


def _rung(name: str, stub: str, picture: str) -> str:
    function = ladder.RUNGS[name].function
    solution = textwrap.indent(f"```python\n{chapter_kernels.solution(function)}```", "    ")
    return (
        f'<section class="rung theatre exercise" data-name="{name}" markdown="0">'
        f'<textarea aria-label="Your kernel: {function}" spellcheck="false" autocomplete="off" autocapitalize="off" '
        f'rows="{stub.count(chr(10)) + 9}">{html.escape(stub)}</textarea>'
        '<p><button class="md-button md-button--primary run" type="button">Run</button> '
        '<button class="md-button reset" type="button">Start over</button></p>'
        '<pre class="message" role="status" aria-live="polite"></pre>'
        "<p><b>Your kernel on a small example</b></p>"
        f'<div class="stage" role="group" aria-label="{function} on a small example">{picture}</div></section>\n\n'
        f'??? success "Solution"\n\n{solution}\n'
    )


def inside(markdown: str) -> str:
    """The page of what the compiler made, from its record."""
    record = json.loads((FOLDER / "inside.json").read_text(encoding="utf-8"))
    opening = next(n for n, step in enumerate(record["tile"]["steps"]) if step["kind"] == "multiply")
    row, tile = drawn((record["row"], 0, "row", THREAD), (record["tile"], opening, "tile", THREAD), script="inside_pictures.js")
    count = record["tile"]["owners"].count(THREAD)
    values = {"row": row, "tile": tile, "thread": THREAD, "arch": record["arch"], "triton": record["triton"]}
    values["owned"] = f"Thread {THREAD} holds {count} entries of the tile."
    for part in ("row", "tile"):
        chapter = record[part]["chapter"]
        values |= {f"{part} chapter": chapter, f"{part} number": chapter[:2]}
    markdown = re.sub(r"\{\{ ([\w ]+) \}\}", lambda match: str(values[match[1]]), markdown)
    return with_script(markdown, "../inside.js", record=record, opening=opening, thread=THREAD)


def real_model(markdown: str) -> str:
    """The page of recorded activations; the numbers of its suggestions are computed."""
    first = explore.compute(**explore.DEFAULTS)
    (picture,) = drawn((first,), script="explore_picture.js")

    def suggestion(match: re.Match[str]) -> str:
        return f'<button class="try" type="button" data-settings="{html.escape(json.dumps(at(*match.groups()[:4])))}">{match[5]}</button>'

    def error(match: re.Match[str]) -> str:
        return playground.percent(explore.compute(**at(*match.groups()[1:]))["errors"][match[1] == "decomposed"])

    def columns(match: re.Match[str]) -> str:
        found = explore.compute(**at(*match.groups()))["outliers"]
        return f"{'column' if len(found) == 1 else 'columns'} {' and '.join(map(str, found))}"

    markdown = re.sub(rf"\{{\{{ outliers {POSITION} \}}\}}", columns, markdown)
    markdown = re.sub(rf"\{{\{{ try {POSITION} \| (.*?) \}}\}}", suggestion, markdown)
    markdown = re.sub(rf"\{{\{{ (int8|decomposed) {POSITION} \}}\}}", error, markdown)
    values = explore.DEFAULTS | {"threshold": 6, "exponent": 0, "picture": picture}
    markdown = re.sub(r"\{\{ (\w+) \}\}", lambda match: str(values[match[1]]), markdown)
    return with_script(markdown, "../explore.js", first=first, sources=[path.relative_to(ROOT).as_posix() for path in EXPLORE])


def at(block: str, column: str, threshold: str, factor: str) -> dict[str, Any]:
    """A position of the controls."""
    return {"block": int(block), "column": int(column), "threshold": float(threshold), "factor": int(factor)}


def with_script(markdown: str, script: str, **values: Any) -> str:
    """A page with its script and the values that the script reads."""
    text = json.dumps(values).replace("</", "<\\/")
    data = f'<script type="application/json" id="theatre-data">{text}</script>'
    return f'{markdown}\n\n{data}\n<script type="module" src="{script}"></script>\n'


FILLED: dict[str, Callable[[str], str]] = {
    "theatre/index.md": watch,
    "theatre/write.md": write,
    "theatre/inside.md": inside,
    "theatre/explore.md": real_model,
}
