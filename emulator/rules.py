"""The table of instructions: which opcodes are known, where the manual defines each, and what turns one into a step of the machine.

A pattern spells out every modifier that is understood. What no pattern matches is refused by name when the kernel is loaded.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from .parse import Instruction, Unsupported

if TYPE_CHECKING:
    from .machine import Machine

Run = Callable[["Machine"], None]
Build = Callable[[Instruction, "Machine", re.Match[str]], Run]


class Rule(NamedTuple):
    """One form of instruction.

    pattern: of the whole opcode. section: of the PTX ISA manual, as chapter and instruction; `manual.numbers` gives its number.
    build: gives the function that the machine calls to run it. writes: the first operand is written. strict: its register operands must
    be defined; else what is computed from an undefined value is undefined. own: the function keeps track of undefined values itself.
    """

    pattern: re.Pattern[str]
    section: str
    build: Build
    writes: bool
    strict: bool
    own: bool


RULES: list[Rule] = []


def rule(pattern: str, section: str, writes: bool = True, strict: bool = False, own: bool = False) -> Callable[[Build], Build]:
    """Decorates the builder of the opcodes that match `pattern`."""

    def note(build: Build) -> Build:
        RULES.append(Rule(re.compile(pattern), section, build, writes, strict, own))
        return build

    return note


@cache
def rule_for(opcode: str) -> tuple[Rule, re.Match[str]]:
    """The rule of an opcode.

    Raises:
        Unsupported: there is none.
    """
    for candidate in RULES:
        if found := candidate.pattern.fullmatch(opcode):
            return candidate, found
    known = sorted({r.pattern.pattern for r in RULES if r.pattern.pattern.split("\\.")[0] == opcode.split(".")[0]})
    hint = f"; known forms: {', '.join(known)}" if known else ""
    raise Unsupported(f"instruction {opcode} is not supported{hint}")
