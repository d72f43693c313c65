"""The counts of the kernels on docs/kernels.md, from the record of `python -m experiments.profile`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .tables import markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
BEGIN, END = "<!-- begin: made by python -m experiments.profile -->", "<!-- end -->"
RESOURCES = ("issue", "alu", "fma", "xu", "shared memory", "matrix", "cache", "HBM")


def changes(rows: Sequence[dict[str, Any]], earlier: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What an earlier record had and what these rows have, as "then → now", of those that both have."""
    then = {(r["name"], r["gpu"]): r for r in earlier}

    def cells(r: dict[str, Any]) -> list[str]:
        cycles = [f"{r['cycles'][resource]:,.0f}" for resource in ("issue", "shared memory")]
        waste = [f"{r[kind] - r[f'fewest_{kind}']:,.0f}" for kind in ("sectors", "wavefronts")]
        return [*cycles, *waste, f"{r['in_flight']:,.0f}", r["bound"]]

    found = []
    for r in rows:
        if before := then.get((r["name"], r["gpu"])):
            pairs = zip(cells(before), cells(r), strict=True)
            found.append([f"{r['name']}, {r['gpu']}", *(a if a == b else f"{a} → {b}" for a, b in pairs)])
    return found


def tables(rows: Sequence[dict[str, Any]], earlier: Sequence[dict[str, Any]], make: Callable[..., str]) -> str:
    """Counts, cycles by resource, bytes on their way, and what has changed since an earlier record, of the rows of a record."""
    counts = [
        [
            f"{r['name']}, {r['arch']}", f"{sum(r['instructions'].values()):,.0f}", f"{sum(r['issued'].values()):,.0f}",
            f"{r['sectors']:,.0f}", f"{r['fewest_sectors']:,.0f}", f"{r['wavefronts']:,.0f}", f"{r['fewest_wavefronts']:,.0f}",
            f"{r['waits']:,.0f}", f"{r['matrix_instructions']:,.0f}", f"{r['registers']}", f"{r['shared']:,}",
        ]
        for r in rows
    ]  # fmt: skip
    cycles = [
        [f"{r['name']}, {r['gpu']}", *(f"{r['cycles'][resource]:,.0f}" for resource in RESOURCES), r["bound"], f"{r['microseconds']:.1f}"]
        for r in rows
    ]
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
    heads = counted, ["cycles per program", *RESOURCES, "bound", "launch, µs"], flying
    found = [make(head, body) for head, body in zip(heads, (counts, cycles, flights), strict=True)]
    if changed := changes(rows, earlier):
        found.append(
            make(["then → now", "issue", "shared memory", "sectors in part", "bank conflicts", "bytes on their way", "bound"], changed)
        )
    return "\n\n".join(found)


def with_tables(page: str, rows: Sequence[dict[str, Any]], earlier: Sequence[dict[str, Any]] = ()) -> str:
    """docs/kernels.md with its tables replaced by those of a record, beside an earlier one."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(rows, earlier, markdown)}\n\n{END}{after}"
