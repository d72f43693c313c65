"""Shows code from the files of the repository, so that a chapter explains the code that runs."""

import ast
import inspect
import textwrap
from collections.abc import Callable

from IPython.display import display


def show(*functions: Callable) -> None:
    """Prints each function's source, its docstring left out, under the path of its file."""
    print("\n\n".join(_body(f) for f in functions))


def beside(*rows: tuple[str, tuple[Callable, str], tuple[Callable, str]]) -> None:
    """Shows a line of code below its formula and above its twin, as one card each.

    Args:
        rows: (TeX without bars or dollars, (function of `reference`, how its statement begins), (Triton kernel, likewise)).

    Raises:
        LookupError: no statement of the function begins so.
    """
    text = "\n\n".join(_card(*row) for row in rows)
    display({"text/markdown": text, "text/plain": text}, raw=True)


def _card(formula: str, *twins: tuple[Callable, str]) -> str:
    codes = [
        f"```python\n# {language}, {_path(twin[0])}\n{statement(*twin)}\n```"
        for language, twin in zip(("NumPy", "Triton"), twins, strict=True)
    ]
    return "\n\n".join(['<div class="beside" markdown="1">', f"${formula}$", *codes, "</div>"])


def part(function: Callable, first: str, last: str) -> None:
    """Prints the lines of `function` from the one that begins with `first` to the next that begins with `last`.

    Raises:
        LookupError: there is no such line.
    """
    lines = [line for line in _source(function).splitlines() if not line.lstrip().startswith("# --8<--")]
    start = _line(function, lines, first, 0)
    end = _line(function, lines, last, start) + 1
    print(f"# {_path(function)}\n" + textwrap.dedent("\n".join(lines[start:end])))


def _line(function: Callable, lines: list[str], beginning: str, start: int) -> int:
    found = (number for number, line in enumerate(lines) if number >= start and line.lstrip().startswith(beginning))
    number = next(found, None)
    if number is None:
        raise LookupError(f"{_plain(function).__qualname__} has no line that begins with {beginning!r}")
    return number


def statement(function: Callable, beginning: str) -> str:
    """The first statement of `function` that begins with `beginning`, in one line.

    Raises:
        LookupError: there is none.
    """
    text = _source(function)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt):
            code = ast.get_source_segment(text, node) or ""
            if code.startswith(beginning):
                return " ".join(code.split())
    raise LookupError(f"{_plain(function).__qualname__} has no statement that begins with {beginning!r}")


def _plain(function: Callable) -> Callable:
    return inspect.unwrap(getattr(function, "fn", function))  # a Triton kernel keeps its Python function in .fn


def _source(function: Callable) -> str:
    return textwrap.dedent(inspect.getsource(_plain(function)))


def _body(function: Callable) -> str:
    text = _source(function)
    lines = text.splitlines()
    definition = ast.parse(text).body[0]
    first = definition.body[0]
    if ast.get_docstring(definition) is not None:
        del lines[first.lineno - 1 : first.end_lineno]
    lines = [line for line in lines if not line.lstrip().startswith("# --8<--")]  # where pages of the site cut their pieces
    return f"# {_path(function)}\n" + "\n".join(lines)


def _path(function: Callable) -> str:
    return f"{_plain(function).__module__.replace('.', '/')}.py"
