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

#: Rooms of `fast`, from the ground up: a room imports those below it and its own. A file alone is a room.
ROOMS = (
    ("codes", "interpreter", "transformers_traits"),
    ("arguments",),
    ("weights", "bitsandbytes_checkpoint"),
    ("cpu", "kernels"),
    ("dispatch",),
    ("operators",),
    ("absmax",),
    ("zeropoint", "vectorwise", "decomposition", "linear"),
    ("selection", "distributed"),
    ("huggingface",),
    ("model",),
    ("__init__",),
)

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
    """The modules of the repository that a file imports; `from package import name` is an import of package.name where that is a file."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


def room(name: str) -> str:
    return "__init__" if name == "fast" else name.split(".")[1]


def arrows_up(edges: Graph) -> list[str]:
    """Imports in `fast` from one room into a room that is not below it."""
    floor = {name: height for height, names in enumerate(ROOMS) for name in names}
    inside = ((a, b) for a, others in edges.items() for b in others if {a.partition(".")[0], b.partition(".")[0]} == {"fast"})
    found = ((a, b, room(a), room(b)) for a, b in inside)
    return sorted(f"{a} imports {b}" for a, b, here, there in found if here != there and not floor[there] < floor[here])


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


def test_the_rooms_of_fast_import_what_is_below_them():
    assert {room(name) for name in graph() if name.partition(".")[0] == "fast"} == {name for names in ROOMS for name in names}
    assert arrows_up(graph()) == []


FAULTS = {
    "a circle": (circle, {"fast.huggingface": {"fast.model"}}),
    "a circle of three": (circle, {"reference.absmax": {"reference.vectorwise"}}),
    "the fast path imports the reference": (wrong_arrows, {"fast.codes": {"reference.absmax"}}),
    "an experiment imports the tests": (wrong_arrows, {"experiments.tune": {"tests.comparison"}}),
    "the reference imports the fast path": (wrong_arrows, {"reference.absmax": {"fast.absmax"}}),
    "a room imports one above": (arrows_up, {"fast.cpu.layer": {"fast.operators"}}),
    "an engine imports the other": (arrows_up, {"fast.cpu.product": {"fast.kernels.product"}}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_import_is_seen(fault):
    check, added = FAULTS[fault]
    edges = graph()
    assert check(edges | {name: edges[name] | others for name, others in added.items()})
