"""The source of the models' own code, as trees: what `readers.py` and `routers.py` read."""

import ast
import inspect
import textwrap

from torch import nn


def method_source(module_class: type[nn.Module], name: str) -> ast.AST | None:
    """The source of a method, None where there is none to read or where torch.nn.Module defines it."""
    method = inspect.getattr_static(module_class, name, None)
    method = method.fget if isinstance(method, property) else inspect.unwrap(method) if callable(method) else None
    if not inspect.isfunction(method) or method is getattr(nn.Module, name, None):
        return None
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, SyntaxError):  # made at run time; or a lambda
        return None


def is_self(node: ast.AST) -> bool:
    """Whether this is the name `self`."""
    return isinstance(node, ast.Name) and node.id == "self"
