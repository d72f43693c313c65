"""PTX text to a `Kernel`: its parameters, its registers, and a flat list of instructions whose branch targets are indices.

A scope `{ ... }`, which inline assembly opens, has its own registers and labels. They are renamed, so that the list stays flat.
Sources: PTX ISA 9.0, 4.3 "Statements", 11.2 "Specifying Kernel Entry Points and Functions", 11.5.3 ".file", 11.5.4 ".loc".
"""

import re
from typing import NamedTuple

STATEMENT = re.compile(r"\s*(?:(\{)|(\})|([\w$]+):(?!:)|((?:[^;{}\"]|\{[^{}]*\}|\"[^\"]*\")*);)")
OPERAND = re.compile(r"\[[^\]]*\]|\{[^}]*\}|[^,\[\]{}]+")
PARAMETER = re.compile(r"\.param (?:\.align (\d+) )?\.(\w+)(?: \.ptr \.\w+ \.align \d+)? (\w+)(?:\[(\d+)\])?")
FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', re.MULTILINE)
LOCATION = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:,\s*function_name\s+\S+,\s*inlined_at\s+(\d+)\s+(\d+))?", re.MULTILINE)
#: Bits of a register by its declared type.
WIDTH = {"pred": 1} | {f"{kind}{bits}": bits for kind in "bsuf" for bits in (16, 32, 64)}


class Unsupported(NotImplementedError):
    """The kernel has an instruction, a modifier or a directive that the emulator does not know."""


class Place(NamedTuple):
    """A line of the source that PTX was made from, and the (file, line) that it was inlined into, if it was."""

    file: str
    line: int
    called_from: tuple[str, int] | None = None

    def __str__(self) -> str:
        name = self.file.rsplit("/", 1)[-1]
        called = "" if self.called_from is None else f" (inlined at {self.called_from[0].rsplit('/', 1)[-1]}:{self.called_from[1]})"
        return f"{name}:{self.line}{called}"


class Address(NamedTuple):
    """[base + offset]; for a tensor copy [base, {coordinates}]."""

    base: str
    offset: int
    coordinates: tuple[str, ...] = ()


Operand = str | Address | tuple[str, ...]


class Instruction(NamedTuple):
    """One instruction.

    opcode: the name with its modifiers. guard: a predicate register and whether it is negated. number: of the line in the PTX.
    place: the line of the source, None without a line table.
    """

    opcode: str
    guard: tuple[str, bool] | None
    operands: tuple[Operand, ...]
    number: int
    text: str
    place: Place | None


class Kernel(NamedTuple):
    """One kernel.

    parameters: name -> (offset, bytes). registers: name -> bits. labels: name -> index into code. threads: per program (CTA).
    """

    name: str
    parameters: dict[str, tuple[int, int]]
    registers: dict[str, int]
    code: list[Instruction]
    labels: dict[str, int]
    threads: int


def parse(text: str) -> Kernel:
    """The one kernel of a module that Triton's compiler made.

    Raises:
        Unsupported: the module defines functions or more than one kernel, or has a directive that is not known here.
    """
    head, entry, rest = text.partition(".visible .entry")
    if not entry or ".entry" in rest:
        raise Unsupported("a module must have exactly one kernel")
    if re.search(r"^\s*(?:\.visible |\.weak )?\.func", text, re.MULTILINE):
        raise Unsupported("device functions (@triton.jit(noinline=True)) are not supported: let them be inlined")
    header, _, body = rest.partition("\n{\n")
    name = re.match(r"\s*([\w$]+)", header)
    threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", header)
    if name is None or threads is None:
        raise Unsupported("a kernel needs .reqntid")
    first = head.count("\n") + header.count("\n") + 3  # the line after the brace
    files = {int(number): path for number, path in FILE.findall(text)}
    body, places = _places(body, first, files)
    return Kernel(name[1], _parameters(header), *_statements(body, first, places), int(threads[1]))


def _parameters(header: str) -> dict[str, tuple[int, int]]:
    """Each parameter lies at the next multiple of its alignment (PTX ISA 9.0, 5.1.6.1 "Kernel Function Parameters")."""
    parameters, at = {}, 0
    for align, kind, name, count in PARAMETER.findall(header):
        size = int(count) if count else int(kind[1:]) // 8
        unit = int(align) if align else size
        at = -(-at // unit) * unit
        parameters[name] = (at, size)
        at += size
    return parameters


def _places(body: str, number: int, files: dict[int, str]) -> tuple[str, list[tuple[int, Place]]]:
    """`body` without comments and line directives, its line breaks kept; (line, place) of each `.loc`, ascending."""
    found = []
    counted = 0
    for match in LOCATION.finditer(body):
        number += body.count("\n", counted, match.start())
        counted = match.start()
        caller = (files.get(int(match[4]), "?"), int(match[5])) if match[4] else None
        line = number + match[0].count("\n")  # blank lines before the directive belong to the match
        found.append((line, Place(files.get(int(match[1]), "?"), int(match[2]), caller)))
    return re.sub(r"//[^\n]*|^[ \t]*\.loc\s[^\n]*", "", body, flags=re.MULTILINE), found


class _Scopes:
    """The names that open scopes have renamed, innermost last."""

    def __init__(self) -> None:
        self.renamed: list[dict[str, str]] = [{}]
        self.made = 0

    def open(self, inside: str) -> None:
        self.made += 1
        names = re.findall(r"^\s*([\w$]+):(?!:)", inside, re.MULTILINE)
        for declared in re.findall(r"\.reg\s+\.\w+\s+([^;]+);", inside):
            names += re.split(r",\s*", declared.strip())
        self.renamed.append(self.renamed[-1] | {name: f"{name}@{self.made}" for name in names})

    def name(self, name: str) -> str:
        return self.renamed[-1].get(name, name)


def _statements(body: str, number: int, places: list[tuple[int, Place]]) -> tuple[dict[str, int], list[Instruction], dict[str, int]]:
    registers: dict[str, int] = {}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    scopes = _Scopes()
    at = counted = 0
    place: Place | None = None
    ahead = iter([*places, (1 << 60, None)])
    following, next_place = next(ahead)
    while found := STATEMENT.match(body, at):
        begins = found.start() + len(found[0]) - len(found[0].lstrip())
        number += body.count("\n", counted, begins)
        counted, at = begins, found.end()
        while following <= number:
            place = next_place
            following, next_place = next(ahead)
        opening, closing, label, statement = found.groups()
        statement = (statement or "").strip()
        if opening:
            scopes.open(body[at : _end_of_scope(body, at)])
        elif closing:
            scopes.renamed.pop()
            if not scopes.renamed:
                return registers, code, labels
        elif label:
            labels[scopes.name(label)] = len(code)
        elif statement.startswith(".reg"):
            registers |= _declared(statement, scopes)
        elif statement.startswith("."):
            if not statement.startswith(".pragma"):
                raise Unsupported(f"line {number}: directive {statement!r}")
        elif statement:
            code.append(_instruction(statement, scopes, number, place))
    raise Unsupported(f"line {number}: the kernel does not end, or the statement after this line is of no known form")


def _declared(statement: str, scopes: _Scopes) -> dict[str, int]:
    kind, names = statement.split(None, 2)[1:]
    if kind[1:] not in WIDTH:
        raise Unsupported(f"registers of type {kind}")
    registers = {}
    for item in re.split(r",\s*", names.strip()):
        stem, _, count = item.rstrip(">").partition("<")
        for name in [stem] if not count else [f"{stem}{i}" for i in range(int(count))]:
            registers[scopes.name(name)] = WIDTH[kind[1:]]
    return registers


def _end_of_scope(body: str, at: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(body, at):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise Unsupported("a scope does not end")


def _instruction(text: str, scopes: _Scopes, number: int, place: Place | None) -> Instruction:
    guard = None
    rest = text
    if found := re.match(r"@(!?)([%\w$]+)\s+", text):
        guard = (scopes.name(found[2]), bool(found[1]))
        rest = text[found.end() :]
    opcode, _, operands = rest.replace("\t", " ").replace("\n", " ").partition(" ")
    parsed = tuple(_operand(o.strip(), scopes) for o in OPERAND.findall(operands) if o.strip())
    return Instruction(opcode, guard, parsed, number, " ".join(text.split()), place)


def _operand(text: str, scopes: _Scopes) -> Operand:
    if text.startswith("["):
        inner = text[1:-1].strip()
        if "{" in inner:
            base, coordinates = inner.split(",", 1)
            return Address(scopes.name(base.strip()), 0, tuple(scopes.name(n.strip()) for n in coordinates.strip(" {}").split(",")))
        base, _, offset = inner.partition("+")
        return Address(scopes.name(base.strip()), int(offset, 0) if offset else 0)
    if text.startswith("{"):
        return tuple(scopes.name(n.strip()) for n in text[1:-1].split(","))
    if "|" in text:  # two destinations
        return "|".join(scopes.name(n.strip()) for n in text.split("|"))
    return scopes.name(text)
