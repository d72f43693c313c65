"""Which linear layers have parents that read the weight instead of calling the layer: found in the parents' source.

    time_step = self.dt_proj.weight @ time_step        # Mamba: a product of its own
    x = x.to(self.project_q.weight.dtype)              # wav2vec 2.0: codes would cast x to int8
    block.attention.output.weight.div_(2 ** i)         # RWKV: writes into the weights of modules further down

Such layers stay float. What counts is the code that `forward` can reach within its class: the methods it calls on `self`, and theirs.
Code under an `if` that the parent's own settings rule out does not count (Bloom slices its weights only with pretraining_tp > 1).
Nor does code that tells quantized weights apart (T5). A reader that is not found this way meets `guard.GuardedCodes`.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .source import is_self, method_source

#: What may be read of a weight without using its values or converting anything to its dtype.
_HARMLESS = {"device", "shape", "size", "ndim", "dim", "numel", "nelement", "is_cuda", "is_meta", "requires_grad", "requires_grad_", "grad"}
#: A condition that says one of these tells quantized weights apart; the last one, where only the dtype is read.
_AWARE = re.compile(r"int8|is_floating_point")
_AWARE_OF_DTYPE = re.compile(r"int8|is_floating_point|_is_quantized")


@dataclass(frozen=True)
class _Read:
    """One place that reads a weight: of which child (the parts of its name, from where it is known on), under which conditions."""

    child: tuple[str, ...]
    conditions: tuple[ast.expr, ...]


def weight_readers(model: nn.Module) -> dict[str, str]:
    """Returns the full names of linear layers whose weight a parent reads, each with that parent's class name."""
    found: dict[str, str] = {}
    for parent, module in model.named_modules():
        for read in _reads(type(module)):  # type: ignore[arg-type]
            if any(_is_ruled_out(test, module) for test in read.conditions):
                continue
            for name, child in module.named_modules():
                if _ends_with(name.split("."), read.child) and "weight" in child._parameters:
                    found.setdefault(f"{parent}.{name}".lstrip("."), type(module).__name__)
    return found


@functools.cache
def _reads(module_class: type[nn.Module]) -> tuple[_Read, ...]:
    """The places in a class from which `forward` reads the weight of a child."""
    reached: set[str] = set()
    pending, reads = ["forward"], list[_Read]()
    while pending:
        name = pending.pop()
        tree = None if name in reached else method_source(module_class, name)
        reached.add(name)
        if tree is not None:
            pending += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)]
            reads += _weights_read(tree, ())
    return tuple(reads)


def _weights_read(node: ast.AST, conditions: tuple[ast.expr, ...], parent: ast.AST | None = None) -> Iterator[_Read]:
    """The weights that the code below `node` reads."""
    if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.value, (ast.Attribute, ast.Subscript)):
        of_it = parent.attr if isinstance(parent, ast.Attribute) else ""
        aware = _AWARE_OF_DTYPE if of_it == "dtype" else _AWARE
        if of_it not in _HARMLESS and not any(aware.search(ast.unparse(test)) for test in conditions):
            yield _Read(_path(node.value), conditions)
    if isinstance(node, ast.If):
        below: list[tuple[ast.AST, tuple[ast.expr, ...]]] = [(node.test, (*conditions, node.test))]
        below += [(child, (*conditions, node.test)) for child in node.body]
        below += [(child, (*conditions, ast.UnaryOp(ast.Not(), node.test))) for child in node.orelse]
    else:
        below = [(child, conditions) for child in ast.iter_child_nodes(node)]
    for child, under in below:
        yield from _weights_read(child, under, node)


def _path(node: ast.expr) -> tuple[str, ...]:
    """`self.a.b` and `block.a.b` are ("a", "b"); `self.layers[i].a` is ("layers", "*", "a"), whichever `i`."""
    parts: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        parts.append(node.attr if isinstance(node, ast.Attribute) else "*")
        node = node.value
    return tuple(reversed(parts))


def _ends_with(name: list[str], path: tuple[str, ...]) -> bool:
    end = name[-len(path) :]
    return len(end) == len(path) and all(part in ("*", own) for part, own in zip(path, end, strict=True))


def _is_ruled_out(test: ast.expr, module: nn.Module) -> bool:
    """Whether a condition is false by the module's settings alone; what depends on anything else may be true."""
    if isinstance(test, ast.BoolOp):
        ruled_out = [_is_ruled_out(value, module) for value in test.values]
        return any(ruled_out) if isinstance(test.op, ast.And) else all(ruled_out)
    if not all(_is_setting(node) for node in ast.walk(test)):
        return False
    try:
        return not eval(compile(ast.fix_missing_locations(ast.Expression(test)), "<condition>", "eval"), {"self": module})
    except Exception:  # an attribute that is not there yet
        return False


def _is_setting(node: ast.AST) -> bool:
    """Whether this part of a condition is a constant, or an attribute that stays as the module was made."""
    if isinstance(node, ast.Attribute):
        return node.attr != "training"
    if isinstance(node, ast.Name):
        return node.id == "self"
    return isinstance(node, (ast.Constant, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.cmpop, ast.boolop, ast.unaryop, ast.expr_context))
