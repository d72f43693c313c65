"""What README and pages say, against what is there: their code runs, the files and tests that they name exist."""

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import numpy as np
import pytest

import fast
import reference
from experiments import records
from experiments.pages import perplexity as perplexity_page
from experiments.pages import profile, tables

ROOT = Path(__file__).parents[1]
PACKAGES = ("reference", "fast", "emulator", "tests", "experiments", "tutorials")
#: Every file of the repository by its path, without what was built.
FILES = {
    path.relative_to(ROOT).as_posix()
    for top in ROOT.iterdir()
    if top.name in (".ci", ".github") or not top.name.startswith((".", "build", "node_modules", "site"))
    for path in (top.rglob("*") if top.is_dir() else [top])
    if path.is_file()
}
PROSE = [ROOT / path for path in sorted(FILES) if path.endswith((".py", ".md", ".toml", ".yml", "Makefile"))]
RUNNABLE = [ROOT / "README.md", ROOT / "docs" / "index.md"]
NAMED_FILE = re.compile(r"(?<![\w/.*{<}-])((?:\.\./)*(?:[\w-]+/)*[\w-]+\.(?:py|md|toml|yml|ipynb|json|css|js))\b(?![\w(])")
#: A placeholder, a record that a command will write, a file of a saved model, the file that a reader of a how-to makes.
FOREIGN = re.compile(r"\b[A-Z]{2,}[_.]|^build/|-cuda\.json|\b(?:config|day)\.json|\b(?:softmax|check)\.py")
NAMED_COMMAND = re.compile(r"python -m (\w+)\.([\w.]+\w)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_python_shown_on_a_first_page_runs(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    with fast.backend("cpu"):  # as on the reader's machine, not in the interpreter
        for block in blocks:
            exec(compile(block, name(page), "exec"), {})


def test_the_lines_of_the_first_page_are_the_method():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    scope: dict = {}
    exec(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0], scope)
    np.testing.assert_array_equal(scope["y"], reference.llm_int8_matmul(scope["x"], scope["w"]))


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_table_of_the_readme_is_the_one_that_the_demo_printed(name):
    record = records.read("perplexity")
    assert record is not None
    assert tables.table(*perplexity_page.cells(record["rows"])) in (ROOT / name).read_text(encoding="utf-8")


def test_both_readmes_have_the_same_code_and_lead_to_the_same_files():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    for pattern in (r"```.*?```", r"\]\((?!README)([^)]*)\)", r"`[^`\n]+`"):
        assert sorted(re.findall(pattern, english, re.DOTALL)) == sorted(re.findall(pattern, chinese, re.DOTALL))


def test_the_counts_on_the_page_of_the_kernels_are_those_of_the_profiler():
    record, earlier = records.read("profile"), records.read("profile-earlier")
    assert record is not None
    assert earlier is not None
    page = profile.PAGE.read_text(encoding="utf-8")
    assert profile.with_tables(page, record["rows"], earlier["rows"]) == page


def test_the_demo_leaves_the_records_alone_that_the_pages_repeat():
    # Its times differ from run to run: `make test` after `make demo` would find the README out of date.
    recipe = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = [line for line in recipe.splitlines() if "-m experiments.perplexity" in line]
    assert command.endswith("--out build/perplexity.json")


@pytest.mark.parametrize("file", PROSE, ids=name)
def test_every_file_and_command_that_prose_names_exists(file):
    assert [word for text in prose(file) for word in missing(text, file)] == []


def prose(file: Path) -> list[str]:
    """What people read in a file: all of a page; the comments and docstrings of Python, the comments of anything else."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return [text]
    if file.suffix != ".py":
        return re.findall(r"#.*", text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    return docstrings + [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]


def missing(text: str, file: Path) -> list[str]:
    """The files and commands in `text` that are not there; a path may start at the root or beside `file`, or be the end of one."""
    words = [word for word in NAMED_FILE.findall(text) if not FOREIGN.search(word)]
    if file.name == "verification.md":  # its table has the test files of the day that it was measured
        words = [word for word in words if not word.startswith("test_")]
    files = [re.sub(r"(\b\d\d_\w+)\.md$", r"\1.ipynb", word) for word in words]  # the page that the site makes of it
    ends = {word: word.rpartition("../")[2] for word in files}  # a page of the site may have its file elsewhere in the repository
    gone = [
        word for word in files if not (file.parent / word).exists() and not any(f"/{path}".endswith(f"/{ends[word]}") for path in FILES)
    ]
    commands = [f"{package}.{module}" for package, module in NAMED_COMMAND.findall(text) if package in PACKAGES and module != "NAME"]
    runnable = {path.removesuffix(".py").removesuffix("/__main__") for path in FILES if path.endswith(".py")}
    return gone + [command for command in commands if command.replace(".", "/") not in runnable]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("see `tests/test_docs.py`, docs/index.md and laws.py", ["laws.py"]),
        ("[the layer](../fast/linear.py), fast/missing/linear.py", ["fast/missing/linear.py"]),
        ("experiments/NAME.py, config.json, `python -m tests.tools.mutants --list`, python -m pytest", []),
        ("python -m experiments.nothing", ["experiments.nothing"]),
        ("https://example.org/setup.py and *_test.py and {name}.py", []),
    ],
)
def test_a_name_that_is_nowhere_is_seen(text, gone):
    assert missing(text, ROOT / "tests" / "test_docs.py") == gone
