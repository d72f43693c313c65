"""Faults in the machine code: one at a time is put into the PTX of a kernel, and the emulator must find it.

    python -m tests.tools.machine_faults                              a sample of every kind, every kernel, every architecture
    python -m tests.tools.machine_faults --arch sm_90 --kernel decode_kernel --sample 0      all places of all kinds
    make machine-faults                                         and keeps the record that the verification page shows

A fault is caught if the sanitizer stops the program or its result differs from the reference. The record has each survivor with its
line; why it is one, where that is known, stands in tests/tools/surviving_faults.toml.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

EXPLAINED = Path(__file__).parent / "surviving_faults.toml"
#: Kernel -> the beginning of the name of the case (tests/compiled_cases.py) that it runs in.
CASES = {
    "scan_columns": "scan", "quantize_rows": "quantize rows, repeated", "product_kernel": "product 0: {}, zeropoint",
    "decode_kernel": "decode 2:",
}  # fmt: skip
#: Seconds after which a program is taken not to end, which counts as caught.
LIMIT = 120
#: Kinds of which every place is tried, whatever the sample.
WHOLE = ("remove a barrier", "remove a wait", "raise a wait", "remove a fence")

OPPOSITE = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}


class FaultSite(NamedTuple):
    """A line of PTX (from 1 on) and what stands there instead."""

    kind: str
    line: int
    text: str


def sites(ptx: str) -> Iterator[FaultSite]:
    """Every fault that could be put into a module."""
    lines = ptx.split("\n")
    begin = next(i for i, text in enumerate(lines) if text == "{")
    for number, text in enumerate(lines[begin:], begin + 1):
        code = text.split("//")[0]
        removed = ""
        if re.search(r"\bbar\.sync", code):
            yield FaultSite("remove a barrier", number, removed)
        elif re.search(r"\b(cp\.async\.wait_group|wgmma\.wait_group|tcgen05\.wait)", code):
            yield FaultSite("remove a wait", number, removed)
            if found := re.search(r"wait_group(?:\.sync\.aligned)?\s+(0x)?(\d+)", code):
                higher = f"{int(found[2], 16 if found[1] else 10) + 1}"
                yield FaultSite("raise a wait", number, code[: found.start(2) - len(found[1] or "")] + higher + code[found.end(2) :])
        elif "mbarrier.try_wait" in code:
            # The branch that waits again follows; without it the first answer, which may be no, is taken.
            again = next((n for n, t in enumerate(lines[number : number + 3], number + 1) if "bra" in t), None)
            if again:
                yield FaultSite("remove a wait", again, removed)
        elif re.search(r"\b(fence\.proxy|wgmma\.fence)", code):
            yield FaultSite("remove a fence", number, removed)
        elif found := re.search(r"\b(mma\.sync\S+)\s+(.*);", code):
            yield from _operands(number, code)
        elif found := re.search(r"(@)(!?)(%p\d+)\s", code):
            turned = code[: found.start(2)] + ("" if found[2] else "!") + code[found.end(2) :]
            yield FaultSite("turn a predicate", number, turned)
        elif found := re.search(r"\bsetp\.(lt|le|gt|ge|eq|ne)\.", code):
            yield FaultSite("turn a comparison", number, code[: found.start(1)] + OPPOSITE[found[1]] + code[found.end(1) :])
        elif found := re.search(r"\[\s*(%\w+)(?:\s*\+\s*(\d+))?\s*\]", code):
            if re.search(r"\b(ld|st|ldmatrix|stmatrix)\b", code):
                shifted = f"[{found[1]}+{int(found[2] or 0) + 16}]"
                yield FaultSite("shift an address", number, code[: found.start()] + shifted + code[found.end() :])
        elif found := re.search(r"\b(shl|shr)\.\w+\s+(\S+), (\S+), (\d+);", code):
            yield FaultSite("shift a shift", number, code[: found.start(4)] + str(int(found[4]) + 1) + code[found.end(4) :])
        elif (found := re.search(r"\b(sub\.\w+|selp\.\w+)\s+(\S+), ([^,]+), ([^,;]+)([,;])", code)) and found[3] != found[4]:
            exchanged = f"{found[1]} {found[2]}, {found[4]}, {found[3]}{found[5]}"
            yield FaultSite("exchange operands", number, code[: found.start()] + exchanged + code[found.end() :])


def _operands(number: int, code: str) -> Iterator[FaultSite]:
    """Two registers of A, and of B, in each other's place."""
    lists = list(re.finditer(r"\{([^}]*)\}", code))
    for part in lists[1:3]:
        names = [n.strip() for n in part[1].split(",")]
        for first in range(len(names) - 1):
            if names[first] != names[first + 1]:
                swapped = names.copy()
                swapped[first], swapped[first + 1] = swapped[first + 1], swapped[first]
                yield FaultSite("exchange operands of mma", number, code[: part.start(1)] + ", ".join(swapped) + code[part.end(1) :])


class _TooLongError(Exception):
    pass


def _alarm(*_: Any) -> None:
    raise _TooLongError


def outcome(arch: str, kernel: str, call: Callable[[], None], site: FaultSite | None) -> str:
    """What found the fault: a kind of the sanitizer, "difference", "no end"; "" for nothing."""
    import emulator
    import fast
    from tests.comparison import poisoned

    def change(ptx: str) -> str:
        if site is None or f".entry {kernel}(" not in ptx:
            return ptx
        lines = ptx.split("\n")
        lines[site.line - 1] = site.text
        return "\n".join(lines)

    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(LIMIT)
    try:
        with emulator.gpu(arch, change=change), fast.backend("triton"), poisoned():
            call()
    except emulator.Fault as fault:
        return fault.kind
    except AssertionError:
        return "difference"
    except _TooLongError:
        return "no end"
    finally:
        signal.alarm(0)
    return ""


def campaign(arch: str, kernel: str, sample: int, seed: int) -> dict[str, Any]:
    """Tries the faults of one kernel on one architecture."""
    os.environ["EMULATE"] = arch
    import torch

    torch.set_num_threads(1)
    import emulator
    from tests import compiled_cases

    every = compiled_cases.cases(arch)
    prefix = CASES[kernel].split("{")[0]
    name = next(n for n in every if n.startswith(prefix) and ("{}" not in CASES[kernel] or "outliers" in n))
    call = every[name]
    begin = time.perf_counter()
    if found := outcome(arch, kernel, call, None):
        raise RuntimeError(f"{arch}, {kernel}: without any fault {found}")
    with emulator.gpu(arch) as device:
        call()
    launch = next(x for x in device.launches if x.kernel == kernel)
    reached = {i.number: count for i, count in zip(launch.machine.kernel.code, launch.reached, strict=True)}
    places = {i.number: i for i in launch.machine.kernel.code}
    by_kind: dict[str, list[FaultSite]] = {}
    for site in sites(launch.ptx):
        if reached.get(site.line):
            by_kind.setdefault(site.kind, []).append(site)
    tried: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    how: Counter[str] = Counter()
    survivors = []
    for kind, found_sites in sorted(by_kind.items()):
        chosen = found_sites
        if sample and kind not in WHOLE and len(found_sites) > sample:
            chosen = random.Random(f"{seed}{arch}{kernel}{kind}").sample(found_sites, sample)
        for site in chosen:
            result = outcome(arch, kernel, call, site)
            tried[kind] += 1
            caught[kind] += bool(result)
            how[result or "survived"] += 1
            if not result:
                i = places[site.line]
                print(f"survived: {arch} {kernel} {kind}: {i.place}: {i.text}  ->  {' '.join(site.text.split())}", flush=True)
                survivors.append({"kind": kind, "line": str(i.place), "ptx": i.text, "instead": " ".join(site.text.split())})
    print(f"{arch} {kernel}: {caught.total()} of {tried.total()} caught, {time.perf_counter() - begin:.0f} s", flush=True)
    return {
        "arch": arch, "kernel": kernel, "case": name, "places": {k: len(v) for k, v in by_kind.items()}, "tried": dict(tried),
        "caught": dict(caught), "how": dict(how), "survivors": survivors,
    }  # fmt: skip


def explanation(survivor: dict[str, str]) -> str | None:
    """Why a survivor is one, from tests/tools/surviving_faults.toml: the first entry whose kind and pattern fit."""
    for entry in tomllib.loads(EXPLAINED.read_text())["fault"]:
        if (
            entry["kind"] == survivor["kind"]
            and re.search(entry["ptx"], survivor["ptx"])
            and re.search(entry.get("line", ""), survivor["line"])
        ):
            return entry["why"]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", action="append", help="only this architecture (repeatable)")
    parser.add_argument("--kernel", action="append", choices=CASES, help="only this kernel (repeatable)")
    parser.add_argument("--sample", type=int, default=10, help="places per kind, kernel and architecture; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", help="a JSON record")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")
    architectures = options.arch or ["sm_80", "sm_89", "sm_90", "sm_100"]
    work = [(a, k) for a in architectures for k in options.kernel or CASES]
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(campaign, arch, kernel, options.sample, options.seed) for arch, kernel in work]
        rows = [future.result() for future in futures]
    tried, caught = (sum(sum(r[what].values()) for r in rows) for what in ("tried", "caught"))
    for kind in sorted({k for r in rows for k in r["tried"]}):
        print(f"{kind:26} {sum(r['caught'].get(kind, 0) for r in rows):5} of {sum(r['tried'].get(kind, 0) for r in rows):5} caught")
    unexplained = 0
    for r in rows:
        for s in r["survivors"]:
            s["why"] = explanation(s)
            unexplained += s["why"] is None
            if s["why"] is None:
                print(f"not explained: {r['arch']} {r['kernel']} {s['kind']}: {s['ptx']}")
    print(f"{caught} of {tried} caught ({caught / max(1, tried):.1%}), {unexplained} survivors without an explanation")
    if options.out:
        from experiments import machine

        record = machine.heading("machine_faults", {"sample": options.sample, "seed": options.seed})
        record["command"] = "python -m tests.tools.machine_faults " + " ".join(sys.argv[1:])
        Path(options.out).write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
