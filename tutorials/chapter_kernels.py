"""The Triton kernels of the chapters and of the ladder as text, for what runs or shows them elsewhere: each is written in one place."""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent

#: Kernels of the ladder that a chapter has, by another name.
OF_CHAPTERS = {
    "my_quantize_rows": "quantize_rows",
    "my_int8_product": "int8_product",
    "my_product": "scaled_product",
    "my_llm_int8": "llm_int8_product",
}
#: What a stub leaves out of its solution: (pattern, replacement). The others hold the signature alone.
BEGUN = {
    "my_llm_int8": (
        (r"    part = tl.zeros(?:.*\n)+?\n(?=    sa =)", "    # Here: the outlier columns.\n\n"),
        (r" \+ part \* sb\[None, :\]", ""),
    )
}


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
        for source in _kernels(script):
            if source.name in found:
                raise ValueError(f"two chapters have a kernel {source.name}: {found[source.name].chapter} and {source.chapter}")
            found[source.name] = source
    return found


def _kernels(script: Path) -> Iterator[Source]:
    text = script.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and _is_compiled(node) and not isinstance(node.body[0], ast.Pass):
            first = node.decorator_list[0].lineno
            yield Source(node.name, "\n".join(lines[first - 1 : node.end_lineno]) + "\n", script.stem)


def _is_compiled(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)


def solution(function: str) -> str:
    """The text of a kernel of the ladder."""
    if function in OF_CHAPTERS:
        name = OF_CHAPTERS[function]
        return every()[name].text.replace(f"def {name}(", f"def {function}(")
    return next(source.text for source in _kernels(FOLDER / "ladder_kernels.py") if source.name == function)


def stub(function: str) -> str:
    """What a reader of the ladder begins with."""
    text = solution(function)
    if function not in BEGUN:
        return text.partition("):\n")[0] + "):\n    pass\n"
    for pattern, replacement in BEGUN[function]:
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise ValueError(f"{pattern!r} is in the solution of {function} {count} times")
    return text
