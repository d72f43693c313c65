"""What the sanitizer reports: a `Fault` names the kernel, the line of its source, the thread, the address, and what was wrong."""

from .parse import Instruction


class Fault(Exception):
    """Something that the program must not do.

    kind: one word, one of KINDS. what: a sentence. address: where in memory, in bytes, or None. kernel, program (number in the grid),
    thread (number in the program) and instruction are filled in by the machine that ran it; thread is None where several are at fault.
    """

    def __init__(self, kind: str, what: str, index: int | None = None, address: int | None = None) -> None:
        assert kind in KINDS, kind
        self.kind, self.what, self.index, self.address = kind, what, index, address
        self.kernel: str | None = None
        self.program: int | None = None
        self.thread: int | None = None
        self.instruction: Instruction | None = None
        super().__init__(kind, what)

    @property
    def line(self) -> int | None:
        """The line of the kernel's source; None where the PTX has no line table."""
        place = None if self.instruction is None else self.instruction.place
        return None if place is None else place.line

    def __str__(self) -> str:
        parts = [f"{self.kind}: {self.what}"]
        if self.address is not None:
            parts.append(f"address {self.address:#x}")
        if self.kernel is not None:
            thread = "" if self.thread is None else f", thread {self.thread}"
            parts.append(f"kernel {self.kernel}, program {self.program}{thread}")
        if self.instruction is not None:
            place = "" if self.instruction.place is None else f"{self.instruction.place}; "
            parts.append(f"{place}PTX line {self.instruction.number}: {self.instruction.text}")
        return "\n  ".join(parts)


#: The rules of the sanitizer, by the word that a report begins with.
KINDS = {
    "bounds": "an access outside of every buffer, of shared memory or of tensor memory",
    "alignment": "an address that is not a multiple of the width of its access",
    "uninitialized": "a use of a register, or a read of memory, that nothing has written",
    "pending": "a use of what an asynchronous copy or a matrix product has not finished with",
    "race": "two accesses, at least one of them a write, that no barrier orders",
    "barrier": "an mbarrier that is not initialized, or counts other bytes or threads than come",
    "divergence": "threads of a warp or program that part where all of them must take part",
    "deadlock": "threads that wait for what cannot happen any more",
    "fence": "a fence that is missing between threads and the copy engine or the matrix unit",
    "operand": "an operand that the manual forbids",
}
