"""A machine that writes down what each instruction did: which threads took part, which memory they reached, what registers came of it.

A run counts as a profiler's does and has no shadow. For pictures of one program; a trace of many would not fit.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .counters import CountingMachine
from .machine import Machine, Step
from .parse import Instruction
from .values import Array

#: Instructions that are written down, by the beginnings of their names.
NOTED = ("ld.global", "st.global", "ld.shared", "st.shared", "cp.async", "ldmatrix", "stmatrix", "mma", "shfl")


@dataclass(frozen=True, eq=False)
class Moment:
    """One instruction that was run, by all threads at once that took part.

    Attributes:
        opcode: with its modifiers.
        line: of the kernel's source, or None.
        file: that the line is in, or None.
        threads: numbers of those that took part.
        addresses: in memory, of each of these threads, by "global" and "shared": of a copy both.
        width: bytes that each thread moves; of ldmatrix, that each of its addresses stands for.
        fetched: of a copy, the bytes that each thread reads: 0 where its mask is not set, and zeros arrive.
        operand: a number that the instruction has instead, such as how many groups of copies may still be on their way.
        results: of mma, the registers that it wrote, one row of all threads for each.
    """

    opcode: str
    line: int | None
    file: str | None
    threads: Array
    addresses: dict[str, Array]
    width: int
    fetched: Array | None
    operand: int | None
    results: tuple[Array, ...]


class TracingMachine(CountingMachine):
    """moments: what was run, in order."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.moments: list[Moment] = []
        super().__init__(*arguments, **options)

    def _build(self, instruction: Instruction) -> Step:
        step = super()._build(instruction)
        if step.what != "run" or not instruction.opcode.startswith(NOTED):
            return step
        look = self._look(instruction)

        def noted(m: Machine) -> None:
            before = look(m)  # an instruction may write the register that its address came from
            step.action(m)
            self.moments.append(before(m))

        return step._replace(action=noted)

    def _look(self, i: Instruction) -> Callable[[Machine], Callable[[Machine], Moment]]:
        spaces = self._spaces(i)
        line, file = (i.place.line, i.place.file) if i.place else (None, None)
        width, operand = _width(i), None
        if i.opcode.startswith("cp.async.wait_group"):
            operand = int(str(i.operands[0]), 0)
        if i.opcode.startswith("shfl"):
            operand = int(str(i.operands[2]), 0)
        live = self.reader(i.operands[3], "u32") if _is_copy(i) and len(i.operands) > 3 else None
        written = [self.slots[name] for name in i.operands[0]] if i.opcode.startswith("mma") else []

        def look(m: Machine) -> Callable[[Machine], Moment]:
            threads = m.lanes()
            addresses = {space: address(m)[threads] for space, address in spaces.items()}
            fetched = None if live is None else m.full(live(m.regs))[threads].astype(np.int64)

            def after(m: Machine) -> Moment:
                results = tuple(m.full(m.regs[slot])[threads].copy() for slot in written)
                return Moment(i.opcode, line, file, threads, addresses, width, fetched, operand, results)

            return after

        return look

    def _spaces(self, i: Instruction) -> dict[str, Callable[[Machine], Array]]:
        """How the addresses of an instruction are read, by the memory that they are in."""
        if _is_copy(i):
            return {"shared": self._address(i.operands[0]), "global": self._address(i.operands[1])}
        if i.opcode.startswith(("ldmatrix", "stmatrix")):
            return {"shared": self._address(i.operands[i.opcode.startswith("ldmatrix")])}
        if i.opcode.startswith(("ld.", "st.")):
            space = "global" if "global" in i.opcode else "shared"
            return {space: self._address(i.operands[i.opcode.startswith("ld.")])}
        return {}


def _is_copy(i: Instruction) -> bool:
    return re.match(r"cp\.async\.c[ag]\.", i.opcode) is not None


def _width(i: Instruction) -> int:
    if _is_copy(i):
        return int(str(i.operands[2]), 0)
    if i.opcode.startswith(("ldmatrix", "stmatrix")):
        return 16
    if i.opcode.startswith(("ld.", "st.")):
        vector = re.search(r"\.v([248])", i.opcode)
        return (int(vector[1]) if vector else 1) * int(re.sub(r"\D", "", i.opcode.split(".")[-1])) // 8
    return 0
