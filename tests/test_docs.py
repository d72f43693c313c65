"""What README and pages say, against what is there: their code runs, the files and tests that they name exist."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import fast
import reference
from experiments import perplexity, profile, records

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = [ROOT / "README.md", ROOT / "docs" / "index.md"]
NAMED_FILE = re.compile(r"`((?:reference|fast|emulator|tests|tutorials|docs|experiments)/[\w/]+\.\w+)`")
NAMED_TEST = re.compile(r"`(test_\w+\.py)`")
NAMED_COMMAND = re.compile(r"python -m (\w+)\.(\w+)")


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


def test_the_table_of_the_readme_is_the_one_that_the_demo_printed():
    record = records.read("perplexity")
    assert record is not None
    assert records.table(*perplexity.cells(record["rows"])) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_counts_on_the_page_of_the_kernels_are_those_of_the_profiler():
    record = records.read("profile")
    assert record is not None
    page = profile.PAGE.read_text(encoding="utf-8")
    assert profile.with_tables(page, record["rows"]) == page


def test_the_demo_leaves_the_records_alone_that_the_pages_repeat():
    # Its times differ from run to run: `make test` after `make demo` would find the README out of date.
    recipe = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = [line for line in recipe.splitlines() if "-m experiments.perplexity" in line]
    assert command.endswith("--out build/perplexity.json")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_file_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    missing = [path for path in NAMED_FILE.findall(text) if not (ROOT / path).exists()]
    missing += [test for test in NAMED_TEST.findall(text) if not (ROOT / "tests" / test).exists()]
    missing += [f"{package}.{module}" for package, module in NAMED_COMMAND.findall(text) if not module_exists(package, module)]
    assert missing == []


def module_exists(package: str, module: str) -> bool:
    return package not in ("reference", "fast", "experiments", "tutorials", "tests") or (ROOT / package / f"{module}.py").exists()
