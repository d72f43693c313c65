"""Shows code as it stands in the repository, so that what a chapter explains cannot drift from what runs."""

import ast
import inspect
import textwrap
from collections.abc import Callable


def show(*functions: Callable) -> None:
    """Prints each function's source, its docstring left out, under the path of its file."""
    print("\n\n".join(_body(f) for f in functions))


def _body(function: Callable) -> str:
    function = inspect.unwrap(getattr(function, "fn", function))  # a Triton kernel keeps its Python function in .fn
    text = textwrap.dedent(inspect.getsource(function))
    lines = text.splitlines()
    definition = ast.parse(text).body[0]
    first = definition.body[0]
    if ast.get_docstring(definition) is not None:
        del lines[first.lineno - 1 : first.end_lineno]
    return f"# {function.__module__.replace('.', '/')}.py\n" + "\n".join(lines)
