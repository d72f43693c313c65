"""SASS, NVIDIA's machine code as cuobjdump prints it: its instructions, which of them lie in a loop, and what one waits for there."""

import re
from itertools import pairwise
from typing import NamedTuple


class Line(NamedTuple):
    """One instruction. predicate: under which it is executed, "" for always. text: without it."""

    address: int
    predicate: str
    text: str

    @property
    def opcode(self) -> str:
        """With its modifiers: "IGMMA.64x128x32.S8.S8"."""
        return self.text.split()[0]


def lines(dump: str) -> list[Line]:
    """The instructions of a dump of one kernel (cuobjdump --dump-sass)."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]+[^;]*);", dump)
    return [Line(int(address, 16), predicate.strip(), text.strip()) for address, predicate, text in found]


def targets(line: Line) -> list[int]:
    """Where a branch may go other than on; calls come back."""
    return [int(line.text.split("0x")[-1].rstrip(")"), 16)] if line.opcode.startswith(("BRA", "JMP")) and "0x" in line.text else []


def goes_on(line: Line) -> bool:
    """Whether the next instruction may follow."""
    always = not line.predicate and not re.search(r"\bU?PT?\d*,", line.text) and ".DIV" not in line.opcode
    return not (always and line.opcode.startswith(("BRA", "JMP", "EXIT", "RET")))


def loops(code: list[Line]) -> list[list[Line]]:
    """The loops, each with all that lies in it, loops within it as well: the instructions that can reach each other."""
    begins = {0, *(t for line in code for t in targets(line)), *(after.address for line, after in pairwise(code) if targets(line))}
    ends = [*sorted(begins)[1:], code[-1].address + 1]
    blocks = [[line for line in code if a <= line.address < b] for a, b in zip(sorted(begins), ends, strict=True)]
    at = {begin: number for number, begin in enumerate(sorted(begins))}
    follows = [
        {at[t] for t in targets(block[-1])} | ({number + 1} if goes_on(block[-1]) and number + 1 < len(blocks) else set())
        for number, block in enumerate(blocks)
    ]

    def reached(number: int) -> set[int]:
        found: set[int] = set()
        ahead = set(follows[number])
        while ahead:
            found |= ahead
            ahead = set().union(*(follows[n] for n in ahead)) - found
        return found

    reach = [reached(number) for number in range(len(blocks))]
    found, done = [], set()
    for number in range(len(blocks)):
        if number in reach[number] and number not in done:
            together = [n for n in range(len(blocks)) if n in reach[number] and number in reach[n]]
            done.update(together)
            found.append([line for n in together for line in blocks[n]])
    return found


def between(loop: list[Line], begin: str, end: str) -> list[Line]:
    """The instructions of a loop after the first whose text fits `begin` and before the next that fits `end`, in this turn or the next one.

    Of a branch that leads out of line, as to a wait that failed, the way straight on is taken.
    """
    at = {line.address: line for line in loop}
    line = next(line for line in loop if re.search(begin, line.text))
    found: list[Line] = []
    while True:
        line = at[line.address + 16] if line.address + 16 in at else at[targets(line)[0]]
        if re.search(end, line.text):
            return found
        found.append(line)
