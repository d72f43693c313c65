"""The Triton kernels of the chapters as text, for what runs or shows them elsewhere: the source of each is its chapter alone."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    """One kernel: its text, decorator included, and the chapter that it is taken from."""

    name: str
    text: str
    chapter: str


@functools.cache
def every() -> dict[str, Source]:
    """The functions of all chapters that Triton compiles, by name, in reading order; stubs of exercises are left out."""
    found: dict[str, Source] = {}
    for script in sorted(FOLDER.glob("[0-9][0-9]_*.py")):
        text = script.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if not isinstance(node, ast.FunctionDef) or not _is_compiled(node) or isinstance(node.body[0], ast.Pass):
                continue
            if node.name in found:
                raise ValueError(f"two chapters have a kernel {node.name}: {found[node.name].chapter} and {script.stem}")
            first = node.decorator_list[0].lineno
            found[node.name] = Source(node.name, "\n".join(lines[first - 1 : node.end_lineno]) + "\n", script.stem)
    return found


def _is_compiled(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)
