"""The small faults that `tests.tools.mutants` makes, and how each is named: by file, function and mutation."""

import ast
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    """The text from `start` to `end` of a file, replaced; `change` says it without the names around it."""

    file: str
    operator: str
    start: int
    end: int
    replacement: str
    change: str = ""

    def apply(self, source: str) -> str:
        return source[: self.start] + self.replacement + source[self.end :]


COMPARISONS: dict[type, tuple[str, ...]] = {
    ast.Lt: ("<=", ">"), ast.LtE: ("<", ">="), ast.Gt: (">=", "<"), ast.GtE: (">", "<="), ast.Eq: ("!=",), ast.NotEq: ("==",),
    ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
OPERATORS: dict[type, tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "%"), ast.Mod: ("%", "//"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "&"), ast.Pow: ("**", "*"),
}  # fmt: skip

#: Names that stand for a rounding, a reduction, a type: each with what it might have been by mistake.
NAMES = {
    "rint": ("floor", "trunc"), "round_": ("trunc_",), "maximum": ("minimum",), "minimum": ("maximum",), "max": ("min",), "min": ("max",),
    "amax": ("amin",), "amin": ("amax",), "any": ("all",), "all": ("any",), "isfinite": ("isnan",), "isinf": ("isnan",),
    "isnan": ("isinf",), "sum": ("max",), "cumsum": ("cumprod",), "float32": ("float16",), "float64": ("float16",), "int64": ("int32",),
    "int32": ("int8",), "int8": ("int16",), "uint8": ("int32",), "reciprocal": ("square",), "abs": ("negative",), "float": ("half",),
}  # fmt: skip


def mutants(file: str, source: str) -> list[Mutant]:
    """Every mutant of one file, in order."""
    tree = ast.parse(source)
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    ascii_only = source.isascii()

    def offset(line: int, column: int) -> int:
        if not ascii_only:  # columns count bytes
            column = len(source[lines[line - 1] : lines[line]].encode()[:column].decode())
        return lines[line - 1] + column

    def span(node: Any) -> tuple[int, int]:
        return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)

    def text(node: Any) -> str:
        return source[slice(*span(node))]

    def between(left: Any, right: Any, symbol: str) -> tuple[int, int]:
        """Where the operator between two operands stands."""
        start = source.index(symbol, span(left)[1], span(right)[0])
        return start, start + len(symbol)

    def of(node: ast.AST) -> Iterator[tuple[str, tuple[int, int], str, str]]:
        """Kind, place, replacement and change of each mutant that a node gives."""
        for operator, where, replacement, *change in of_node(node):
            yield operator, where, replacement, change[0] if change else f"{source[slice(*where)]} to {replacement.strip('()')}"

    def of_node(node: ast.AST) -> Iterator[tuple]:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                symbol = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
                          ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in"}[type(op)]  # fmt: skip
                for other in COMPARISONS[type(op)]:
                    yield "comparison", between(left, right, symbol), other
            case ast.BoolOp(op=op, values=[left, right, *_]):
                symbols = ("and", "or") if isinstance(op, ast.And) else ("or", "and")
                yield "and/or", between(left, right, symbols[0]), symbols[1]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                symbol, other = OPERATORS[type(op)]
                yield "operator", between(left, right, symbol), other
            case ast.AugAssign(target=target, op=op, value=value):
                symbol, other = OPERATORS[type(op)]
                where = between(target, value, symbol + "=")
                yield "accumulation", where, other + "="
                yield "accumulation", where, "="
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
                symbol = text(node).removesuffix(text(operand)).strip(" (")
                yield "unary operator", span(node), text(operand), f"{symbol} left out"
            case ast.Constant(value=bool() as value):
                yield "constant", span(node), str(not value)
            case ast.Constant(value=int() | float() as value):
                yield "constant", span(node), f"({text(node)} + 1)"
                yield "constant", span(node), f"({text(node)} - 1)"
            case ast.If(test=test) | ast.IfExp(test=test):
                yield "condition", span(test), f"(not ({text(test)}))", "negated"
            case ast.Expr(value=ast.Call()):
                yield "statement left out", span(node), "pass", "call"
            case ast.Call():
                yield from of_call(node)
            case ast.Subscript(slice=ast.Tuple(elts=[ast.Slice(), ast.Constant(value=None)]) as index):
                yield "axis", span(index), "None, :"
            case ast.Subscript(slice=ast.Tuple(elts=[ast.Constant(value=None), ast.Slice()]) as index):
                yield "axis", span(index), ":, None"
            case ast.Attribute(attr=name) if name in NAMES:
                start = span(node)[1] - len(name)
                for other in NAMES[name]:
                    yield "rounding, reduction or type", (start, start + len(name)), other

    def of_call(node: ast.Call) -> Iterator[tuple]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "where" and len(node.args) == 3:
            yield "branch", span(node), text(node.args[1]), "always the first"
            yield "branch", span(node), text(node.args[2]), "always the second"
        if name in ("range", "tl.range") and len(node.args) == 3:
            first, last, step = map(text, node.args)
            yield "trip count", span(node.args[1]), f"{last} - {step}", "without the last"
            yield "trip count", span(node.args[1]), f"{last} + {step}", "one more"
            yield "trip count", span(node.args[0]), f"{first} + {step}", "without the first"
        if name == "cdiv":
            yield "trip count", span(node), f"({text(node.args[0])} // {text(node.args[1])})", "rounded down"
        for keyword in node.keywords:
            if keyword.arg == "mask":
                yield "mask", span(keyword.value), f"({text(keyword.value)}) | True", "left out"

    skipped = set(_unseen(tree))
    found = [
        Mutant(file, operator, start, end, replacement, change)
        for node in ast.walk(tree)
        if node not in skipped
        for operator, (start, end), replacement, change in of(node)
        if source[start:end] != replacement
    ]
    return sorted({mutant[:5]: mutant for mutant in found}.values(), key=lambda mutant: mutant[2:5] + mutant[1:2])


def _unseen(tree: ast.AST) -> Iterator[ast.AST]:
    """What is no behaviour: documentation, types, imports, messages of errors, and asserts, which tell the type checker something."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.Raise() | ast.JoinedStr() | ast.Assert():
                yield from ast.walk(node)
            case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=ast.expr() as annotation):
                yield from ast.walk(annotation)
            case ast.FunctionDef(returns=returns, decorator_list=decorators, args=arguments):
                for part in (*decorators, *([returns] if returns else []), *(a.annotation for a in arguments.args if a.annotation)):
                    yield from ast.walk(part)
            case ast.Call(func=ast.Attribute(attr="float32") as number):  # a number, which takes the type of what it meets
                yield number
            case ast.Call(func=ast.Attribute(attr="errstate" | "device_of" | "TypeVar" | "getLogger" | "autocast")):
                yield from ast.walk(node)


def scopes(source: str) -> list[str]:
    """For each line the function around it, with what it is in ("Int8Linear.forward"), or the name of a constant; elsewhere "module"."""
    tree = ast.parse(source)
    found = ["module"] * (source.count("\n") + 2)

    def enter(body: list[ast.stmt], outer: str) -> None:
        for node in body:
            name = getattr(node, "name", "")
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = f"{outer}.{name}".strip(".")
            elif isinstance(node, ast.Assign) and not outer:
                name = ast.unparse(node.targets[0])
            else:
                name = outer
            if name:
                found[node.lineno : (node.end_lineno or node.lineno) + 1] = [name] * ((node.end_lineno or node.lineno) + 1 - node.lineno)
            for block in ("body", "orelse", "finalbody"):
                enter(getattr(node, block, []), name)

    enter(tree.body, "")
    return found


def keys(found: Iterable[Mutant], source: str) -> dict[Mutant, tuple[str, str, str]]:
    """File, function and mutation of each of one file's mutants, which name it whatever variables are called and lines look like.

    Where a function has several of one kind, the mutation says which, in the order of the text: "constant: 1 to 1 + 1 (2 of 3)".
    """
    scope = scopes(source)
    alike: dict[tuple[str, str, str], list[Mutant]] = {}
    for mutant in found:
        line = source.count("\n", 0, mutant.start) + 1
        alike.setdefault((mutant.file, scope[line], f"{mutant.operator}: {mutant.change}"), []).append(mutant)
    return {
        mutant: (file, function, mutation + (f" ({number} of {len(same)})" if len(same) > 1 else ""))
        for (file, function, mutation), same in alike.items()
        for number, mutant in enumerate(same, 1)
    }


def equivalents(path: Path) -> dict[tuple[str, str, str], str]:
    """Why a mutant is equivalent, by file, function and mutation ("*" for each of the function or constant)."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return {(entry["file"], entry["function"], mutation): entry["reason"] for entry in entries for mutation in entry["mutations"]}


def unmatched(known: Iterable[tuple[str, str, str]], named: Iterable[tuple[str, str, str]]) -> list[str]:
    """The keys of equivalent mutants that are no mutant's: what they speak of has changed, and with it perhaps the reason."""
    there = {*named} | {(file, scope, "*") for file, scope, _ in named}
    return [" | ".join(key) for key in known if key not in there]


def line_of(source: str, position: int) -> str:
    """The line around a position, without its indentation."""
    end = source.find("\n", position)
    return source[source.rfind("\n", 0, position) + 1 : end if end >= 0 else len(source)].strip()
