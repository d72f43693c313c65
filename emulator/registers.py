"""The registers of a program: one NumPy array each, all threads along one axis, and which of them nothing has written yet.

Sources: PTX ISA 9.0, 5.1.1 "Register State Space", 6.2 "Source Operands", 6.3 "Destination Operands".
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Fault
from .parse import Kernel, Unsupported
from .rules import Run
from .values import SIGNED, UNSIGNED, Array, constant, dtype

if TYPE_CHECKING:
    from .machine import Machine

LANES = 32
#: What registers hold that nothing has written: a NaN, and a large number.
POISON = {1: 1, 16: 0x7E57, 32: 0x7FC5A5A5, 64: 0x7FF8A5A5A5A5A5A5}


class Registers:
    """The registers of a kernel, and constants beside them, by slots.

    poison: changes what unwritten registers hold. start: what each slot holds when a program begins.
    """

    mask: Array
    regs: list[Any]
    undefined: list[Array | None]
    in_flight: set[int]

    def __init__(self, kernel: Kernel, poison: int) -> None:
        self.kernel = kernel
        self.threads, self.warps = kernel.threads, kernel.threads // LANES
        self.warp_of = np.arange(self.threads) // LANES
        self.everybody = np.ones(self.threads, bool)
        self.all_undefined = np.full(self.threads, 255, np.uint8)
        self.slots: dict[Any, int] = {}
        self.start: list[Any] = []
        for name, bits in kernel.registers.items():
            value = POISON[bits] ^ (poison & (2**bits - 1))
            self.slot(name, np.bool_(value & 1) if bits == 1 else UNSIGNED[bits // 8](value))
        self.registers = len(self.start)

    def slot(self, key: Any, value: Any) -> int:
        """The slot of a register or a constant; a new one if there is none."""
        if key not in self.slots:
            self.slots[key] = len(self.start)
            self.start.append(value)
        return self.slots[key]

    def place(self, operand: Any, kind: str) -> int:
        """The slot of a register, or of a constant as the bits of `kind`."""
        if operand in self.slots:
            return self.slots[operand]
        if operand in self.kernel.parameters:  # its address
            return self.slot(operand, np.uint64(self.kernel.parameters[operand][0]))
        try:
            return self.slot((operand, kind), constant(operand, kind))
        except ValueError:
            raise Unsupported(f"operand {operand}") from None

    def reader(self, operand: Any, kind: str) -> Callable[[list[Any]], Any]:
        """registers -> the operand's values as NumPy's type of `kind`; of a wider register the low bits."""
        slot, to = self.place(operand, kind), dtype(kind)
        value = self.start[slot]
        if value.dtype == np.bool_ or to == np.bool_ or value.dtype.itemsize == np.dtype(to).itemsize:
            return (lambda r: r[slot]) if value.dtype == to else (lambda r: r[slot].view(to))
        narrow = UNSIGNED[np.dtype(to).itemsize]
        return lambda r: r[slot].astype(narrow).view(to)

    def writer(self, name: Any, kind: str) -> Callable[["Machine", Any], None]:
        """(machine, values of `kind`) -> into the register, widened as their sign says; in active threads only."""
        if name == "_":
            return lambda m, value: None
        slot = self.slots[name]
        register = self.start[slot].dtype
        source = np.dtype(dtype(kind))
        if register == np.bool_:
            as_bits = lambda v: v  # noqa: E731
        elif register.itemsize == source.itemsize:
            as_bits = lambda v: v.view(register)  # noqa: E731
        else:
            to = (SIGNED if source.kind == "i" else UNSIGNED)[register.itemsize]
            plain = UNSIGNED[source.itemsize] if source.kind == "f" else source
            as_bits = lambda v: v.view(plain).astype(to).view(register)  # noqa: E731

        def write(m: "Machine", value: Any) -> None:
            value = as_bits(value)
            m.regs[slot] = value if m.mask is m.everybody else np.where(m.mask, value, m.regs[slot])

        return write

    def pure(self, function: Callable[..., Any], operands: Iterable[Any], to: str, sources: list[str]) -> Run:
        """The step that writes `function` of the other operands to the first."""
        first, *rest = operands
        if len(rest) != len(sources):
            raise Unsupported(f"{len(rest)} source operands instead of {len(sources)}")
        write = self.writer(first, to)
        readers = [self.reader(o, s) for o, s in zip(rest, sources, strict=True)]
        if len(readers) == 1:
            (a,) = readers
            return lambda m: write(m, function(a(m.regs)))
        if len(readers) == 2:
            a, b = readers
            return lambda m: write(m, function(a(m.regs), b(m.regs)))
        return lambda m: write(m, function(*[read(m.regs) for read in readers]))

    def lanes(self) -> Array:
        """Numbers of the active threads."""
        return np.flatnonzero(self.mask)

    def full(self, value: Any) -> Array:
        """One value per thread."""
        return value if value.ndim else np.broadcast_to(value, (self.threads,))

    # Undefined values: of registers that nothing has written, and of what is computed from them. Bit i of a thread's uint8 stands for
    # byte i of the register: the compiler packs bytes into registers of which it leaves others unwritten.

    def undefined_in(self, slots: Iterable[int]) -> Array | None:
        """(threads,) uint8: which bytes of any of the slots are undefined; None for none."""
        found = None
        for slot in slots:
            if (held := self.undefined[slot]) is not None:
                if slot in self.in_flight:
                    raise Fault("pending", f"register {self.name_of(slot)} is used before the wait for the operation that writes it")
                found = held if found is None else found | held
        return found

    def mark(self, slot: int, undefined: Array | None) -> None:
        """After a write to the slot by the active threads: where it is undefined now, as bool for whole registers or uint8 by bytes."""
        before = self.undefined[slot]
        if before is None and undefined is None:
            return
        now = np.zeros(self.threads, np.uint8) if undefined is None else spread(undefined)
        if self.mask is not self.everybody:
            now = np.where(self.mask, now, np.uint8(0) if before is None else before)
        self.undefined[slot] = now if now.any() else None

    def check_defined(self, slots: Iterable[int]) -> None:
        """The slots are defined in all active threads."""
        for slot in slots:
            held = self.undefined[slot]
            if held is not None and (wrong := (held != 0) & self.mask).any():
                self.undefined_in([slot])
                thread = int(np.flatnonzero(wrong)[0])
                fault = Fault("uninitialized", f"register {self.name_of(slot)} holds what nothing has written")
                fault.thread = thread
                raise fault

    def name_of(self, slot: int) -> str:
        return next(str(name) for name, number in self.slots.items() if number == slot)


def spread(undefined: Array) -> Array:
    """Which registers are undefined, bool, as which bytes of them; bytes stay as they are."""
    return np.where(undefined, np.uint8(255), np.uint8(0)) if undefined.dtype == bool else undefined
