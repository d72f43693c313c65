"""The machine code beside the PTX: what ptxas makes of it, how often each of its instructions is issued, and which loads are on their
way at once.

ptxas drops moves, folds several operations of PTX into one, and orders loads before their uses: issue slots and latency are a matter of its
instructions (SASS), not of PTX's. ptxas notes for each instruction the line of PTX that it was made from, and the emulator has counted how
often that line ran. Where a block of instructions that ptxas cannot move (accesses to memory, barriers, matrix products, shuffles)
stands, those decide how often the block runs.
Sources: CUDA Binary Utilities, "nvdisasm", "Instruction Set Reference"; CUDA C++ Programming Guide, "Arithmetic Instructions: Throughput of
Native Arithmetic Instructions".
"""

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .parse import Kernel, Place

#: Opcode up to its first dot -> the pipe that it is issued to, as Nsight Compute calls them; the rest goes by `pipe_of`.
PIPES = {
    "IMMA": "tensor", "HMMA": "tensor", "IGMMA": "tensor", "HGMMA": "tensor", "UTCHMMA": "tensor", "UTCIMMA": "tensor", "UTCQMMA": "tensor",
    "LDG": "memory", "STG": "memory", "LDS": "memory", "STS": "memory", "LDSM": "memory", "STSM": "memory", "LDGSTS": "memory",
    "UTMALDG": "memory", "UTMASTG": "memory", "LD": "memory", "ST": "memory", "LDL": "memory", "STL": "memory", "ATOM": "memory",
    "ATOMG": "memory", "ATOMS": "memory", "RED": "memory", "REDG": "memory", "LDC": "memory", "LDCU": "memory", "LDTM": "memory",
    "STTM": "memory", "SHFL": "memory", "REDUX": "memory", "SYNCS": "memory", "ERRBAR": "memory", "CCTL": "memory",
    "BAR": "barrier", "DEPBAR": "barrier", "LDGDEPBAR": "barrier", "WARPSYNC": "barrier", "WARPGROUP": "barrier", "FENCE": "barrier",
    "MEMBAR": "barrier", "ARRIVES": "barrier", "B2R": "barrier", "R2B": "barrier",
    "BRA": "branch", "EXIT": "branch", "BSSY": "branch", "BSYNC": "branch", "CALL": "branch", "RET": "branch", "NOP": "branch",
    "BREAK": "branch", "BRX": "branch", "YIELD": "branch",
    "I2F": "xu", "F2I": "xu", "F2F": "xu", "MUFU": "xu", "POPC": "xu", "FLO": "xu", "BREV": "xu",
    "FADD": "fma", "FMUL": "fma", "FFMA": "fma", "FFMA2": "fma", "FADD2": "fma", "FMUL2": "fma", "HADD2": "fma", "HMUL2": "fma",
    "HFMA2": "fma", "IMAD": "fma heavy", "IDP": "fma heavy",
}  # fmt: skip
#: What ptxas neither drops nor moves across a branch, with the PTX that it is made from.
KEPT = {
    "LDG": r"ld\.global", "STG": r"st\.global", "LDS": r"ld\.shared", "STS": r"st\.shared", "LDSM": "ldmatrix", "STSM": "stmatrix",
    "LDGSTS": r"cp\.async\.c[ag]\.", "UTMALDG": r"cp\.async\.bulk\.tensor", "IMMA": r"mma\.sync\S*\.s32\.[su]8",
    "HMMA": r"mma\.sync\S*\.(?:b?f16|tf32)", "IGMMA": r"wgmma\.mma_async\S*\.s32\.[su]8",
    "HGMMA": r"wgmma\.mma_async\S*\.(?:b?f16|tf32)", "BAR": r"bar(?:rier)?\.sync", "SHFL": r"shfl\.sync",
}  # fmt: skip
#: Those of KEPT of which ptxas may join several into a wider one, so that they are counted in bytes per lane.
JOINED = ("LDG", "STG", "LDS", "STS")


class Assembled(NamedTuple):
    """What ptxas makes of a module. lines: of its PTX without comments and blank lines, the number of each in the text that was given."""

    cubin: bytes
    lines: tuple[int, ...]
    registers: int
    spilled: int


class Line(NamedTuple):
    """One instruction of the machine code. predicate: "" for none. ptx: number of the line of PTX that it was made from, 0 for none."""

    opcode: str
    operands: str
    predicate: str
    ptx: int

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]


class Code(NamedTuple):
    """The machine code of a kernel. targets: index of a branch -> index that it goes to. ends: index after the kernel's last exit."""

    lines: list[Line]
    targets: dict[int, int]
    ends: int


def tool(name: str, target: str = "") -> Path:
    """A program of the CUDA tools that the Triton wheel carries."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newer = folder / f"{name}-blackwell"
    return newer if target.startswith("sm_1") and newer.exists() else folder / name


@cache
def assembled(ptx: str, fused: bool = False) -> Assembled:
    """Assembles a module as Triton does. fused: whether products and sums may become one operation (Triton's enable_fp_fusion)."""
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]  # type: ignore[index]
    # Without comments and blank lines the text that ptxas numbers is, line by line, the one that it is given.
    kept = [(number, text) for number, line in enumerate(ptx.split("\n"), 1) if (text := re.sub(r'//[^"]*$', "", line).strip())]
    with tempfile.TemporaryDirectory() as made:
        file, cubin = Path(made) / "kernel.ptx", Path(made) / "kernel.cubin"
        file.write_text("".join(f"{text}\n" for _, text in kept))
        options = ["-v", "-lineinfo", "--regAllocOptLevel=2", f"--gpu-name={target}", *([] if fused else ["--fmad=false"])]
        said = subprocess.run([tool("ptxas", target), *options, file, "-o", cubin], capture_output=True, text=True, check=True).stderr
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
        registers = int(re.search(r"Used (\d+) registers", said)[1])  # type: ignore[index]
        return Assembled(
            cubin.read_bytes(), tuple(number for number, _ in kept), registers, sum(map(int, spills.groups())) if spills else 0
        )


@cache
def disassembled(ptx: str, fused: bool = False) -> Code:
    """The machine code of a module's kernel."""
    made = assembled(ptx, fused)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(made.cubin)
        text = subprocess.run([tool("nvdisasm"), "-c", "-gp", file], capture_output=True, text=True, check=True).stdout
    return read(text, made.lines)


def read(text: str, numbers: Sequence[int]) -> Code:
    """The instructions in what nvdisasm prints. numbers: of the line of PTX that stands at each place of the text that ptxas was given."""
    lines: list[Line] = []
    labels: dict[str, int] = {}
    ptx = 0
    for line in text[text.index(".section\t.text") :].split("\n"):
        if found := re.match(r'\s*//## File "\.nv_debug_ptx_txt", line (\d+)', line):
            ptx = numbers[int(found[1]) - 1]
        elif found := re.match(r"(\.L\w+):", line):
            labels[found[1]] = len(lines)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);", line):
            lines.append(Line(found[2], found[3].strip(), (found[1] or "").strip(), ptx))
    targets = {}
    for at, found_line in enumerate(lines):
        if found_line.name == "BRA" and (to := re.search(r"\((\.L\w+)\)", found_line.operands)) and to[1] in labels:
            targets[at] = labels[to[1]]
    exits = [at for at, x in enumerate(lines) if x.name == "EXIT" and not x.predicate]
    return Code(lines, targets, exits[-1] + 1 if exits else len(lines))


def pipe_of(opcode: str) -> str:
    """The pipe of an instruction: tensor, memory, barrier, branch, xu, fma, fma heavy, uniform, or alu for all others."""
    name = opcode.partition(".")[0]
    if name in PIPES:
        return PIPES[name]
    return "uniform" if name[0] == "U" or name in ("R2UR", "S2UR", "VOTEU") else "alu"


def blocks(code: Code) -> list[range]:
    """The basic blocks, in the order of the code."""
    ends = {at + 1 for at, x in enumerate(code.lines) if x.name in ("BRA", "EXIT", "RET", "CALL", "BRX")}
    cuts = sorted({0, len(code.lines), *ends, *code.targets.values()})
    return [range(first, last) for first, last in pairwise(cuts)]


def executions(code: Code, kernel: Kernel, reached: Sequence[int]) -> list[float]:
    """How many warps issue each instruction. reached: of each of the kernel's PTX instructions, how many warps ran it.

    Slow paths count as not taken: what stands behind the last exit (waits that have to be repeated, divisions by the tiny and the
    huge), and blocks that end in a call to it.
    """
    ran: dict[int, int] = defaultdict(int)
    kept: dict[int, set[str]] = defaultdict(set)
    for instruction, count in zip(kernel.code, reached, strict=True):
        ran[instruction.number] = max(ran[instruction.number], int(count))
        kept[instruction.number] |= {name for name, pattern in KEPT.items() if re.match(pattern, instruction.opcode)}
    found = [0.0] * len(code.lines)
    for block in blocks(code):
        last = code.lines[block[-1]]
        if block.start >= code.ends or (last.name == "CALL" and not last.predicate):
            continue
        lines = [code.lines[at] for at in block]
        firm = [ran[x.ptx] for x in lines if x.name in kept[x.ptx] and not x.predicate]
        under_predicate = [ran[x.ptx] for x in lines if x.name in kept[x.ptx] and x.predicate not in ("", "@!PT")]
        # What moves, moves to where it runs less often: behind an exit, or in front of a loop. A predicate lets fewer warps through.
        often = min(firm) if firm else max(under_predicate) if under_predicate else median(ran[x.ptx] for x in lines)
        for at in block:
            found[at] = float(often)
    return found


def agreement(code: Code, kernel: Kernel, reached: Sequence[int], issued: Sequence[float]) -> dict[str, tuple[float, float, float]]:
    """How the two counts agree: kind -> (issued without a predicate, run in PTX, issued in all), those of JOINED in bytes per lane.

    PTX's count leaves out warps in which a predicate is false of all lanes, for which the machine code takes its issue slot all the
    same: it lies between the other two unless ptxas moves an access behind an exit.
    """
    found = {}
    for kind, pattern in KEPT.items():
        mine = [(x, n * (width(x.opcode) if kind in JOINED else 1)) for x, n in zip(code.lines, issued, strict=True) if x.name == kind]
        always, at_most = sum(n for x, n in mine if not x.predicate), sum(n for x, n in mine if x.predicate != "@!PT")
        theirs = [(i.opcode, int(n)) for i, n in zip(kernel.code, reached, strict=True) if re.match(pattern, i.opcode)]
        found[kind] = always, sum(n * (_ptx_width(opcode) if kind in JOINED else 1) for opcode, n in theirs), at_most
    return {kind: counts for kind, counts in found.items() if any(counts)}


def _ptx_width(opcode: str) -> int:
    """Bytes per lane of an access in PTX."""
    vector, bits = re.search(r"\.v([248])\.", opcode), re.search(r"(\d+)$", opcode)
    return (int(vector[1]) if vector else 1) * int(bits[1]) // 8  # type: ignore[index]


class Flight(NamedTuple):
    """Loads from global memory into registers, of one stretch of the code.

    place: of the branch that ends the loop; None for what stands outside of loops. loaded: bytes per lane, in one round. flying: the most
    bytes per lane that are on their way at once, because nothing has used or overwritten their registers yet.
    """

    place: Place | None
    loaded: int
    flying: int


def loops(code: Code) -> list[range]:
    """Innermost loops: of each target that a branch goes back to, the instructions up to the last such branch."""
    ends: dict[int, int] = {}
    for at, to in code.targets.items():
        if to < at < code.ends:
            ends[to] = max(ends.get(to, 0), at)
    found = [range(first, last + 1) for first, last in ends.items()]
    return sorted((a for a in found if not any(b != a and b.start in a and b[-1] in a for b in found)), key=lambda r: r.start)


def flights(code: Code, kernel: Kernel, issued: Sequence[float]) -> list[Flight]:
    """The loads in flight of each innermost loop that ran and loads, and of the rest of the program. issued: from `executions`."""
    places = {i.number: i.place for i in kernel.code}
    inner = loops(code)
    found = []
    for loop in inner:
        body = [code.lines[at] for at in loop if issued[at]]
        found.append(Flight(places.get(code.lines[loop[-1]].ptx), *_in_flight([*body, *body], rounds=2)))
    outside = [x for at, x in enumerate(code.lines) if issued[at] and not any(at in loop for loop in inner)]
    found.append(Flight(None, *_in_flight(outside, rounds=1)))
    return [flight for flight in found if flight.loaded]


def _in_flight(lines: Iterable[Line], rounds: int) -> tuple[int, int]:
    """(bytes loaded in one of the rounds, most on their way at once), per lane. Loads return in the order in which they were issued."""
    flying: list[tuple[set[int], int]] = []
    loaded = most = 0
    for line in lines:
        touched = touched_registers(line)
        held = [number for number, (registers, _) in enumerate(flying) if registers & touched]
        if held:
            flying = flying[held[-1] + 1 :]
        if line.name == "LDG":
            size = width(line.opcode)
            flying.append((registers_of(line.operands.partition(",")[0], max(1, size // 4)), size))
            loaded += size
            most = max(most, sum(size for _, size in flying))
    return loaded // rounds, most


def touched_registers(line: Line) -> set[int]:
    """Numbers of the registers that an instruction reads or overwrites."""
    stored = max(1, width(line.opcode) // 4) if line.name in ("STG", "STS", "ST", "STL") else 1
    written = max(1, width(line.opcode) // 4) if line.name in ("LDG", "LDS", "LDL") else 2 if ".WIDE" in line.opcode else 1
    first, _, rest = line.operands.partition(",")
    return registers_of(first, written) | registers_of(rest, stored)


def registers_of(operands: str, wide: int) -> set[int]:
    """Numbers of the registers that operands name: `wide` side by side for each, two for the 64 bits of an address."""
    found = set()
    for number, modifiers in re.findall(r"\bR(\d+)((?:\.\w+)*)", operands):
        found |= {int(number) + n for n in range(2 if ".64" in modifiers else wide)}
    return found


def width(opcode: str) -> int:
    """Bytes per lane of an access to memory."""
    parts = opcode.split(".")
    return 16 if "128" in parts else 8 if "64" in parts else 2 if {"U16", "S16"} & set(parts) else 1 if {"U8", "S8"} & set(parts) else 4
