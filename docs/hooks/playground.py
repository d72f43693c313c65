"""Prepares the playground: its first picture, its exercises, and the files that run Python in the browser.

The first picture is computed here, by `reference`, with the very functions that the page runs in the browser afterwards. The exercises
are the cells of the notebooks that call a checker on a stub.
"""

import hashlib
import html
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "playground"
PYODIDE = ROOT / "node_modules" / "pyodide"
RUNTIME = ("pyodide.js", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
#: What Pyodide's own lock file says about its build of NumPy, which its npm package does not contain.
NUMPY = "numpy-2.0.2-cp312-cp312-pyodide_2024_0_wasm32.whl"
NUMPY_SHA256 = "ebb61241d962b98b21597d7ce43b67668a6d5bab3acec4fbe958657320d7cd08"

#: The checkers of exercises that need no kernel.
CHECKERS = [
    path
    for path in sorted(ROOT.glob("tutorials/checks/*.py"))
    if not path.stem.endswith("kernel") and path.stem not in ("kernel_checks", "launches", "launching", "poisoning")
]

#: The Python files that the browser runs, unmodified.
SOURCES = (*sorted(ROOT.glob("reference/*.py")), ROOT / "tutorials" / "__init__.py", ROOT / "tutorials" / "guarding.py", *CHECKERS)

STUB = re.compile(r"^checks\.\w+\((my_\w+)\)$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds Pyodide, NumPy's wheel and the Python sources."""
    if not PYODIDE.exists():
        raise PluginError(f"{PYODIDE} is missing; run `npm install --no-package-lock`")
    wheel = FOLDER / NUMPY
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != NUMPY_SHA256:
        raise PluginError(f"{wheel} is not the file that Pyodide's lock file names")
    for path in (*(PYODIDE / name for name in RUNTIME), wheel):
        files.append(File.generated(config, f"playground/pyodide/{path.name}", abs_src_path=str(path)))
    for path in SOURCES:
        files.append(File.generated(config, f"playground/{path.relative_to(ROOT).as_posix()}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the first picture and the exercises."""
    if page.file.src_uri != "playground/index.md":
        return markdown
    play = _play()
    first = play.compute(**play.DEFAULTS)
    sources = [path.relative_to(ROOT).as_posix() for path in SOURCES] + ["play.py"]
    markdown = markdown.replace("{{ bars }}", bars(first)).replace("{{ exercises }}", exercises())
    markdown = re.sub(r"\{\{ (\w+) \}\}", lambda match: facts(first)[match[1]], markdown)
    suggestions = {name: play.DEFAULTS | moved for name, moved in play.SUGGESTIONS.items()}
    computed = {name: facts(play.compute(**settings)) for name, settings in suggestions.items()}
    markdown = re.sub(r"\{\{ (\w+)\.(\w+) \}\}", lambda match: _computed(match[1], match[2], computed[match[1]]), markdown)
    data = json.dumps({"first": first, "sources": sources, "suggestions": suggestions}).replace("</", "<\\/")
    return (
        f'{markdown}\n\n<script type="application/json" id="playground-data">{data}</script>\n'
        '<script type="module" src="page.js"></script>\n'
    )


def _computed(suggestion: str, fact: str, of_suggestion: dict[str, str]) -> str:
    """A number of a suggestion, marked with where the page shows it once its controls are set."""
    element = fact.replace("_", "-")
    return f'<span class="computed" data-suggestion="{suggestion}" data-shown-in="{element}">{of_suggestion[fact]}</span>'


def facts(result: dict) -> dict[str, str]:
    """The figures of the sentence above the maps."""
    settings = result["settings"]
    mine = next(m for m in result["methods"] if (m["quantizer"], m["granularity"]) == (settings["quantizer"], settings["granularity"]))
    return {
        "error_int8": percent(mine["int8"]),
        "error_decomposed": percent(mine["decomposed"]),
        "distinct_int8": str(result["int8"]["distinct"]),
        "distinct_decomposed": str(result["decomposed"]["distinct"]),
        "outlier_columns": str(len(result["outliers"])),
    }


def bars(result: dict) -> str:
    """The table of errors, whose cells are also the bars of a chart."""
    top = max(max(m["int8"], m["decomposed"]) for m in result["methods"])
    settings = result["settings"]
    rows = []
    for m in result["methods"]:
        chosen = (m["quantizer"], m["granularity"]) == (settings["quantizer"], settings["granularity"])
        cells = "".join(
            f'<td data-kind="{kind}"><span class="bar {kind}" style="--share:{m[kind] / top:.4f}"></span>'
            f"<span class=value>{percent(m[kind])}</span></td>"
            for kind in ("int8", "decomposed")
        )
        name = f"{m['quantizer']}, {m['granularity']}"
        rows.append(f'<tr data-method="{name}"{" class=chosen" if chosen else ""}><th scope="row">{name}</th>{cells}</tr>')
    return "".join(rows)


def percent(value: float) -> str:
    """A relative error as the page prints it; page.js has the same."""
    return f"{100 * value:.2f} %"


def exercises() -> str:
    """An editor, a button and a place for the checker's message for each exercise of the notebooks."""
    result = []
    for notebook in sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")
        for cell in cells:
            source = "".join(cell["source"])
            stub = STUB.search(source)
            if cell["cell_type"] == "code" and stub and "NotImplemented" in source:
                name = stub[1]
                result.append(
                    f'<section class="exercise" data-name="{name}">'
                    f'<h3 id="{name}"><code>{name}</code></h3>'
                    f'<p>From <a href="../tutorials/{notebook.stem}/#exercise">{html.escape(title)}</a></p>'
                    f'<textarea aria-label="Your answer: {name}" spellcheck="false" autocomplete="off" autocapitalize="off" '
                    f'rows="{source.count(chr(10)) + 4}">{html.escape(source)}</textarea>'
                    '<p><button class="md-button md-button--primary run" type="button">Run</button> '
                    '<button class="md-button reset" type="button">Start over</button></p>'
                    '<pre class="message" role="status" aria-live="polite"></pre></section>'
                )
    return "".join(result)


def _play() -> ModuleType:
    spec = importlib.util.spec_from_file_location("play", FOLDER / "play.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
