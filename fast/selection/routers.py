"""Which linear layers decide where a token goes: routers of a mixture of experts and their kin, found in the models' source.

    logits = self.layer(hidden_states).float()           # JetMoE
    top_k_logits, top_k_indices = logits.topk(self.top_k, dim=1)

Rounding a router to 8 bits changes which experts a token gets, and saves next to nothing: it has one output per expert. So what feeds
a `topk` or an `argmax` stays float. The operand is followed backwards through the assignments of the class that calls it, to the layers
that it calls: up to the nearest ones; or to all of them, where the class holds no other layers and does nothing but choose. A model of
transformers is followed to the nearest layers only: behind them is the whole network.

A gate with one output beside a router (`shared_expert_gate` of Qwen2-MoE weighs the shared expert by it) stays float likewise.
"""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..transformers_traits import is_pretrained
from .float_layers import is_float_linear
from .source import is_self, method_source

CHOOSES = ("topk", "argmax")

ROUTER = "its output chooses (it feeds a top-k), as a router's"
GATE = "a gate with one output beside a router"


def routers(model: nn.Module) -> dict[str, str]:
    """Returns the full names of linear layers that choose, each with the reason why it stays float."""
    found: dict[str, str] = {}
    choosers: set[nn.Module] = set()
    for name, module in model.named_modules():
        choices = _choices(type(module))
        if choices:
            choosers.add(module)
            found |= {f"{name}.{layer}".lstrip("."): ROUTER for layer in _layers_that_choose(module, choices)}
    for name, module in model.named_modules():
        if any(child in choosers for child in module.children()):
            for child_name, child in module.named_children():
                if is_float_linear(child) and getattr(child, "out_features", 0) == 1:
                    found.setdefault(f"{name}.{child_name}".lstrip("."), GATE)
    return found


@dataclass(frozen=True, eq=False)
class _Method:
    """A method of a class, as read."""

    tree: ast.FunctionDef
    parameters: tuple[str, ...]
    assignments: dict[str, list[tuple[int, ast.expr]]]
    returns: tuple[ast.expr, ...]


def _choices(module_class: type[nn.Module]) -> tuple[tuple[str, ast.expr], ...]:
    """What is chosen from in the code that `forward` reaches: the method, and the operand of its `topk` or `argmax`."""
    return tuple(
        (name, node.func.value if not _is_function(node.func) else node.args[0])
        for name, method in _methods(module_class).items()  # type: ignore[arg-type]
        for node in ast.walk(method.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHOOSES
        if not _is_function(node.func) or node.args
    )


def _is_function(called: ast.Attribute) -> bool:
    return isinstance(called.value, ast.Name) and called.value.id == "torch"


@functools.cache
def _methods(module_class: type[nn.Module]) -> dict[str, _Method]:
    """The methods of a class that `forward` reaches, by name."""
    found: dict[str, _Method] = {}
    pending, seen = ["forward"], set[str]()
    while pending:
        name = pending.pop()
        tree = None if name in seen else method_source(module_class, name)
        seen.add(name)
        if tree is None:
            continue
        pending += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)]
        function = next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)
        if function is not None:
            assignments: dict[str, list[tuple[int, ast.expr]]] = {}
            for target, line, value in _assignments(function):
                assignments.setdefault(target, []).append((line, value))
            returns = tuple(node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None)
            parameters = tuple(argument.arg for argument in (*function.args.posonlyargs, *function.args.args))[1:]
            found[name] = _Method(function, parameters, assignments, returns)
    return found


def _assignments(function: ast.FunctionDef) -> Iterator[tuple[str, int, ast.expr]]:
    """Each name that is assigned to, the line, and what is assigned."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            targets, value = [node.target], node.value
        elif isinstance(node, ast.For):
            targets, value = [node.target], node.iter
        else:
            continue
        for target in targets:
            yield from ((part.id, node.lineno, value) for part in ast.walk(target) if isinstance(part, ast.Name))


def _layers_that_choose(module: nn.Module, choices: tuple[tuple[str, ast.expr], ...]) -> set[str]:
    """Names, within the module, of the linear layers that feed what it chooses from."""
    every = {name for name, layer in module.named_modules() if name and is_float_linear(layer)}
    if not every:
        return set()
    if not is_pretrained(module) and _Slice(module, every, to_the_nearest=False).of(choices) == every:
        return every
    return _Slice(module, every, to_the_nearest=True).of(choices)


class _Slice:
    """The linear layers of a module from which some of its expressions are computed."""

    def __init__(self, module: nn.Module, every: set[str], to_the_nearest: bool) -> None:
        self.module, self.every, self.to_the_nearest = module, every, to_the_nearest
        self.methods = _methods(type(module))  # type: ignore[arg-type]
        self.found: set[str] = set()
        self.seen: set[tuple[str, int] | tuple[str, str]] = set()

    def of(self, expressions: tuple[tuple[str, ast.expr], ...]) -> set[str]:
        """The layers behind expressions, each given with its method."""
        for method, expression in expressions:
            self._follow(method, expression)
        return self.found

    def _follow(self, method: str, node: ast.AST) -> None:
        if (method, id(node)) in self.seen:
            return
        self.seen.add((method, id(node)))
        if isinstance(node, ast.Call) and (path := _path_from_self(node.func)):
            if self._takes_layers(path):
                return
            if len(path) == 1 and path[0] in self.methods:
                for value in self.methods[path[0]].returns:
                    self._follow(path[0], value)
        elif isinstance(node, ast.Attribute) and (path := _path_from_self(node)) and path[-1] == "weight":
            self._takes_layers(path[:-1])
        elif isinstance(node, ast.Name):
            self._follow_name(method, node)
        for child in ast.iter_child_nodes(node):
            self._follow(method, child)

    def _takes_layers(self, path: tuple[str, ...]) -> bool:
        """Notes the linear layers of the child that `path` names; returns whether they are as far as to go."""
        names = [name for name, _ in self.module.named_modules() if name and _matches(name.split("."), path)]
        layers = {layer for name in names for layer in self.every if layer == name or layer.startswith(f"{name}.")}
        # Deeper than its direct children, a part of the network is no head of the choice, but what comes before it.
        if self.to_the_nearest and any(layer.count(".") > name.count(".") + 1 for name in names for layer in layers):
            return True
        self.found |= layers
        return bool(layers) and self.to_the_nearest

    def _follow_name(self, method: str, name: ast.Name) -> None:
        for line, value in self.methods[method].assignments.get(name.id, ()):
            if line < name.lineno:
                self._follow(method, value)
        if name.id in self.methods[method].parameters and (method, name.id) not in self.seen:
            self.seen.add((method, name.id))
            for caller, value in self._given(method, name.id):
                self._follow(caller, value)

    def _given(self, method: str, parameter: str) -> Iterator[tuple[str, ast.expr]]:
        """What other methods of the class give for a parameter of `method`."""
        position = self.methods[method].parameters.index(parameter)
        for caller, other in self.methods.items():
            for node in ast.walk(other.tree):
                if isinstance(node, ast.Call) and _path_from_self(node.func) == (method,):
                    if position < len(node.args):
                        yield caller, node.args[position]
                    yield from ((caller, keyword.value) for keyword in node.keywords if keyword.arg == parameter)


def _path_from_self(node: ast.AST) -> tuple[str, ...]:
    """`self.a.b` is ("a", "b"), `self.layers[i].a` is ("layers", "*", "a"); anything else is ()."""
    parts: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        parts.append(node.attr if isinstance(node, ast.Attribute) else "*")
        node = node.value
    return tuple(reversed(parts)) if is_self(node) else ()


def _matches(name: list[str], path: tuple[str, ...]) -> bool:
    return len(name) == len(path) and all(part in ("*", own) for part, own in zip(path, name, strict=True))
