"""The faults that can be put into a compiled kernel: an instruction removed, or changed in one place.

Each is a slip that a compiler or a writer of PTX could make, and each leaves a program that loads.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from emulator.parse import Address, Instruction, Kernel, Operand

OPPOSITE = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}
#: Kinds that take order or a wait away. Removing one of two that each suffice changes nothing: such a place is tried with its twin.
ORDERING = ("remove a barrier", "remove a wait", "raise a wait", "remove a fence", "remove a commit")
WAITS = re.compile(r"cp\.async\.wait|cp\.async\.bulk\.wait_group|wgmma\.wait_group|tcgen05\.wait")
FENCES = re.compile(r"fence\.|wgmma\.fence|membar")
COMMITS = re.compile(r"cp\.async\.commit_group|cp\.async\.bulk\.commit_group|wgmma\.commit_group|tcgen05\.commit|mbarrier\.arrive")


class FaultSite(NamedTuple):
    """at: index in the kernel's code. instead: the instruction that stands there; None where it is removed. part: of the instruction."""

    kind: str
    at: int
    instead: Instruction | None
    part: str = ""


def sites(kernel: Kernel) -> Iterator[FaultSite]:
    """Every fault that can be put into a kernel."""
    for at, i in enumerate(kernel.code):
        yield from _ordering(kernel, at, i)
        if found := re.search(r"\bmma\.sync\b", i.opcode):
            yield from _fragments(at, i)
        elif i.opcode.startswith(("wgmma.mma_async", "tcgen05.mma")) and isinstance(i.operands[1], str):
            d, a, b, *rest = i.operands
            yield FaultSite("exchange operands of a product", at, i._replace(operands=(d, b, a, *rest)))
        if i.guard is not None:
            yield FaultSite("turn a predicate", at, i._replace(guard=(i.guard[0], not i.guard[1])))
        if found := re.match(r"setp\.(lt|le|gt|ge|eq|ne)\.", i.opcode):
            opcode = i.opcode[: found.start(1)] + OPPOSITE[found[1]] + i.opcode[found.end(1) :]
            yield FaultSite("turn a comparison", at, i._replace(opcode=opcode))
        if re.match(r"(ld|st)\.(?:global|shared|volatile)|(ld|st)matrix", i.opcode):
            moved: tuple[Operand, ...] = tuple(o._replace(offset=o.offset + 16) if isinstance(o, Address) else o for o in i.operands)
            yield FaultSite("shift an address", at, i._replace(operands=moved))
        if re.match(r"sh[lr]\.", i.opcode) and str(i.operands[2]).isdigit():
            yield FaultSite("shift a shift", at, i._replace(operands=(*i.operands[:2], str(int(str(i.operands[2])) + 1))))
        if re.match(r"(sub|selp)\.", i.opcode) and i.operands[1] != i.operands[2]:
            to, left, right, *rest = i.operands
            yield FaultSite("exchange operands", at, i._replace(operands=(to, right, left, *rest)))


def _ordering(kernel: Kernel, at: int, i: Instruction) -> Iterator[FaultSite]:
    """What takes order away: barriers, waits, fences and commits."""
    if re.match(r"bar(?:rier)?\.sync", i.opcode):
        yield FaultSite("remove a barrier", at, None)
    elif WAITS.match(i.opcode):
        yield FaultSite("remove a wait", at, None)
        if i.operands:
            yield FaultSite("raise a wait", at, i._replace(operands=(str(int(str(i.operands[0]), 0) + 1), *i.operands[1:])))
    elif i.opcode.startswith("mbarrier.try_wait"):
        # The branch that waits again follows; without it the first answer, which may be no, is taken.
        again = next((n for n in range(at + 1, min(at + 4, len(kernel.code))) if kernel.code[n].opcode.startswith("bra")), None)
        if again is not None:
            yield FaultSite("remove a wait", again, None)
    elif FENCES.match(i.opcode):
        yield FaultSite("remove a fence", at, None)
    elif COMMITS.match(i.opcode):
        yield FaultSite("remove a commit", at, None)


def _fragments(at: int, i: Instruction) -> Iterator[FaultSite]:
    """Two registers side by side of A, of B and of C in each other's place."""
    for number in (1, 2, 3):
        names = i.operands[number]
        if isinstance(names, str | Address):
            continue
        for first in range(len(names) - 1):
            if names[first] != names[first + 1]:
                swapped = (*names[:first], names[first + 1], names[first], *names[first + 2 :])
                changed: list[Operand] = list(i.operands)
                changed[number] = swapped
                yield FaultSite("exchange operands of a product", at, i._replace(operands=tuple(changed)), f"{'DABC'[number]}{first}")


def signature(kernel: Kernel, site: FaultSite) -> tuple[str, str, str, str]:
    """What makes two places the same fault: the kind, the line of source, the form of the instruction, and the part of it."""
    i = kernel.code[site.at]
    return site.kind, str(i.place), i.opcode, site.part


def written(site: FaultSite) -> str:
    """The instruction that stands in the fault's place, as PTX; "" where it is removed."""
    i = site.instead
    if i is None:
        return ""
    guard = "" if i.guard is None else f"@{'!' if i.guard[1] else ''}{i.guard[0]} "
    operands = []
    for o in i.operands:
        if isinstance(o, Address):
            coordinates = f", {{{', '.join(o.coordinates)}}}" if o.coordinates else ""
            operands.append(f"[{o.base}{f'+{o.offset}' if o.offset else ''}{coordinates}]")
        else:
            operands.append(o if isinstance(o, str) else "{" + ", ".join(o) + "}")
    return f"{guard}{i.opcode} {', '.join(operands)}".strip()
