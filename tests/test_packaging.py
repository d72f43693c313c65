"""What the project says of itself, in pyproject.toml, constraints, workflow and Makefile, agrees."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def release(version: str) -> tuple[int, ...]:
    """(5, 17) of "5.17.0"."""
    numbers = tuple(map(int, version.split(".")))
    return numbers[:-1] if len(numbers) == 3 and numbers[-1] == 0 else numbers


def test_the_lowest_versions_are_those_that_the_project_allows():
    requirements = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    allowed = dict(re.match(r"([\w-]+)>=([\d.]+)", r).groups() for r in requirements if ">=" in r)
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8"), re.MULTILINE))
    # NumPy's newest is what an old Torch has to be tested with: it changes what the interpreter may do.
    assert {name: release(v) for name, v in pinned.items()} == {n: release(v) for n, v in allowed.items() if n != "numpy"}


def test_every_step_of_the_workflows_is_a_target_that_runs_here_too():
    steps = [
        step
        for path in (*WORKFLOWS, ROOT / ".ci" / "run")
        for step in re.findall(r"^\s*(?:- run: )?make (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(steps) > 5
    matrix = {
        word
        for path in WORKFLOWS
        for words in re.findall(r"target: \[(.*)\]", path.read_text(encoding="utf-8"))
        for word in words.split(", ")
    }
    assert {word for step in steps for word in step.split() if re.fullmatch("[a-z-]+", word)} | matrix <= TARGETS


def test_every_package_that_is_installed_says_that_it_has_types():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert [package for package in packages if not (ROOT / package / "py.typed").exists()] == []


def test_changelog_and_citation_have_the_version_of_the_project():
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_every_target_of_the_makefile_is_in_its_help():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^make ([a-z-]+)", done.stdout, re.MULTILINE)) == TARGETS


def test_pre_commit_runs_what_is_there():
    entries = re.findall(r"entry: \.venv/bin/python -m (\S+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert entries == ["ruff", "ruff", "mypy", "experiments.report", "pytest"]
