"""The counts of the kernels on docs/kernels.md, from the record of `python -m experiments.profile`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .tables import markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
BEGIN, END = "<!-- begin: made by python -m experiments.profile -->", "<!-- end -->"
RESOURCES = ("issue", "alu", "fma", "xu", "shared memory", "matrix", "cache", "HBM")


def tables(rows: Sequence[dict[str, Any]], make: Callable[..., str]) -> str:
    """Counts, cycles by resource, and bytes on their way, of the rows of a record."""
    counts = [
        [
            f"{r['name']}, {r['arch']}", f"{sum(r['instructions'].values()):,.0f}", f"{sum(r['issued'].values()):,.0f}",
            f"{r['sectors']:,.0f}", f"{r['fewest_sectors']:,.0f}", f"{r['wavefronts']:,.0f}", f"{r['fewest_wavefronts']:,.0f}",
            f"{r['waits']:,.0f}", f"{r['matrix_instructions']:,.0f}", f"{r['registers']}", f"{r['shared']:,}",
        ]
        for r in rows
    ]  # fmt: skip
    cycles = [[f"{r['name']}, {r['gpu']}", *(f"{r['cycles'][resource]:,.0f}" for resource in RESOURCES), r["bound"]] for r in rows]
    flights = [
        [
            f"{r['name']}, {r['gpu']}", str(r["resident"]), f"{max((f['flying'] for f in r['flights']), default=0)}",
            f"{r['in_flight']:,.0f}", f"{r['in_flight_needed']:,.0f}",
        ]
        for r in rows
    ]  # fmt: skip
    counted = [
        "per program", "PTX", "machine code", "sectors", "at best", "wavefronts", "at best", "waits", "matrix", "registers", "shared, B",
    ]  # fmt: skip
    flying = ["bytes on their way", "programs at once", "by loads, per lane", "to a multiprocessor", "needed"]
    heads = counted, ["cycles per program", *RESOURCES, "bound"], flying
    return "\n\n".join(make(head, body) for head, body in zip(heads, (counts, cycles, flights), strict=True))


def with_tables(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """docs/kernels.md with its tables replaced by those of a record."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(rows, markdown)}\n\n{END}{after}"
