"""The import graph of the whole repository: which package may import which, and no circle among files.

Read from the source, imports inside functions included: what is loaded late is needed all the same.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: What each package may import of the others; nothing imports `tests` or `tutorials` but they themselves.
ARROWS = {
    "reference": set(),
    "fast": set(),
    "emulator": set(),
    "experiments": {"reference", "fast", "emulator"},
    "tests": {"reference", "fast", "emulator", "experiments", "tutorials"},
    "tutorials": {"reference", "fast", "emulator", "experiments"},
    "docs": {"reference", "fast", "experiments", "tutorials"},
}

#: What the two engines of `fast` may import of it beside their own files, and who may import them.
ENGINES = ("fast.cpu", "fast.kernels")
BELOW = {f"fast.{name}" for name in ("codes", "choice", "interpreter", "arguments", "weights", "guard")}
ABOVE = {"fast.dispatch", "fast.eager"}

Graph = dict[str, set[str]]


def files() -> dict[str, Path]:
    """Module name -> file, of every Python file in the repository's packages."""
    found = {}
    for package in ARROWS:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> Iterator[str]:
    """The modules of the repository that a file imports; `from package import name` is an import of package.name where that is a file.

    Imports for types alone do not count: nothing is loaded.
    """
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *(node.module.split(".") if node.module else [])])
            inner = [f"{source}.{alias.name}" for alias in node.names]
            targets = [one if one in known else source for one in inner]
        else:
            continue
        for target in targets:
            parts = target.split(".")
            whole = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in known), None)
            if whole is not None and whole != name:
                yield whole


@cache
def graph() -> Graph:
    found = files()
    return {name: set(imported(name, path, set(found))) for name, path in found.items()}


def circle(edges: Graph) -> list[str]:
    """Some circle of imports, its first module repeated at its end; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(edges) if (found := walk(name, []))), [])


def wrong_arrows(edges: Graph) -> list[str]:
    """Imports from one package into another that ARROWS does not have."""
    arrows = ((a, b) for a, others in edges.items() for b in others)
    packages = ((a, b, a.partition(".")[0], b.partition(".")[0]) for a, b in arrows)
    return sorted(f"{a} imports {b}" for a, b, here, there in packages if here != there and there not in ARROWS[here])


def engine(name: str) -> str | None:
    """The engine that a module belongs to."""
    return next((one for one in ENGINES if f"{name}.".startswith(f"{one}.")), None)


def engine_arrows(edges: Graph) -> list[str]:
    """Imports that the engines of `fast` must not have: of each other, of what is above them, and from elsewhere."""
    arrows = ((a, b) for a, others in edges.items() for b in others if engine(a) != engine(b) and a.startswith("fast."))
    return sorted(f"{a} imports {b}" for a, b in arrows if (b not in BELOW if engine(a) else a not in ABOVE))


def test_every_package_of_the_repository_is_read():
    edges = graph()
    packages = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert packages - {"build", "dist", "node_modules", "site"} <= set(ARROWS)
    assert "reference.absmax" in edges["reference.zeropoint"]
    assert "fast.kernels.arithmetic" in edges["fast.kernels.decode"]
    assert "fast.huggingface" in edges["fast.model"]  # from inside a function


def test_no_circle_of_imports():
    assert circle(graph()) == []


def test_no_arrow_between_packages_that_the_house_does_not_have():
    assert wrong_arrows(graph()) == []


def test_the_engines_of_fast_stand_between_what_is_below_and_above_them():
    found = graph()
    assert set(found) >= BELOW | ABOVE
    assert engine_arrows(found) == []


FAULTS = {
    "a circle": (circle, {"fast.huggingface": {"fast.model"}}),
    "a circle of three": (circle, {"reference.absmax": {"reference.vectorwise"}}),
    "the fast path imports the reference": (wrong_arrows, {"fast.codes": {"reference.absmax"}}),
    "an experiment imports the tests": (wrong_arrows, {"experiments.tune": {"tests.comparison"}}),
    "the reference imports the fast path": (wrong_arrows, {"reference.absmax": {"fast.absmax"}}),
    "an engine imports what is above it": (engine_arrows, {"fast.cpu.layer": {"fast.operators"}}),
    "a room beside reaches into an engine": (engine_arrows, {"fast.linear": {"fast.kernels.operands"}}),
    "an engine imports the other": (engine_arrows, {"fast.cpu.product": {"fast.kernels.product"}}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_import_is_seen(fault):
    check, added = FAULTS[fault]
    edges = graph()
    assert check(edges | {name: edges[name] | others for name, others in added.items()})
