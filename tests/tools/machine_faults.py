"""Faults in the machine code: one at a time is put into a compiled kernel, and the emulator must find it.

    python -m tests.tools.machine_faults                    a sample of every kind, every kernel, every architecture
    python -m tests.tools.machine_faults --arch sm_90 --kernel decode_kernel --sample 0      every place of every variant
    python -m tests.tools.machine_faults --resume --out FILE.json     goes on with a run that was ended
    make machine-faults                                     and keeps the record that the verification page shows

The kernels are those that the cases of tests/compiled_cases.py launch, in all their variants. Two places are the same fault if they have
the kind, the line of source and the form of instruction in common. One is drawn, from the variant that runs quickest; where it survives,
up to five more, from other variants. Of faults that take order away (barriers, waits, fences, commits) each place in that variant is tried.

A fault is caught if the sanitizer stops the program or the result differs. Of the faults of order some change nothing, since the compiler
puts two barriers where one suffices, and the sanitizer's vector clocks decide which: all that survive alone are removed together, one
after the other, as long as every two accesses that conflict stay ordered. What can go in this company is *redundant*: the barriers that are
left order everything. What cannot is *caught in company*. Every other survivor is in the record; why it is one, and whether any input could
show it, stands in tests/tools/surviving_faults.toml.
"""

import argparse
import hashlib
import json
import linecache
import os
import random
import re
import sys
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from emulator.parse import Instruction, Kernel
from tests.tools import replay
from tests.tools.fault_sites import ORDERING, FaultSite, signature, sites, written

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).parent / "surviving_faults.toml"
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")
#: Launches of one variant on which a survivor is tried.
INPUTS = 4
#: Places of one fault that are tried, the first of them in the quickest variant.
PLACES = 6

#: A place: the launches of a variant, and the fault.
Place = tuple[list[replay.Noted], FaultSite]


def variants(arch: str, kernels: Sequence[str]) -> dict[str, list[list[replay.Noted]]]:
    """Kernel -> its variants, each as the launches of it; the quickest first."""
    from tests import compiled_cases

    found: dict[str, dict[Any, list[replay.Noted]]] = defaultdict(lambda: defaultdict(list))
    for name, call in compiled_cases.cases(arch).items():
        for launch in replay.noted(arch, name, call):
            if not kernels or launch.name in kernels:
                same = found[launch.name][tuple(i.text for i in launch.kernel.code)]
                same.append(launch)
                # The last launch of a case is compared with the reference itself; the others need the whole case to be sure.
                same.sort(key=lambda x: (not x.last, x.seconds))
                del same[INPUTS:]
    return {name: sorted(found[name].values(), key=lambda launches: launches[0].seconds) for name in sorted(found)}


def chosen(kernel: str, every: list[list[replay.Noted]], sample: int, seed: int) -> tuple[dict[int, list[Place]], list[list[Place]]]:
    """(faults of order by variant, the other faults, each as the places to try). sample: of the others, per kind; 0 for all places."""
    ordering: dict[int, list[Place]] = {}
    others: dict[Any, list[list[Place]]] = defaultdict(list)
    for number, launches in enumerate(every):
        code = launches[0].kernel
        reached = np.sum([launch.reached for launch in launches], axis=0)
        groups: dict[Any, list[Place]] = defaultdict(list)
        for site in sites(code):
            if reached[site.at]:
                groups[signature(code, site)].append((launches, site))
        for key, places in groups.items():
            if key[0] not in ORDERING:
                others[key].append(places)
            elif not sample or not any(key == signature(known[0][0].kernel, known[1]) for v in ordering.values() for known in v):
                ordering.setdefault(number, []).extend(places)
    dice = random.Random(f"{seed}{kernel}")
    if not sample:
        return ordering, [[place] for groups_of in others.values() for places in groups_of for place in places]
    by_kind: dict[str, list[list[Place]]] = defaultdict(list)
    for key in sorted(others):
        by_kind[key[0]].append([dice.choice(places) for places in others[key][:PLACES]])
    return ordering, [fault for kind in sorted(by_kind) for fault in dice.sample(by_kind[kind], min(sample, len(by_kind[kind])))]


def outcome(arch: str, calls: dict[str, Callable[[], None]], launches: list[replay.Noted], faults: Sequence[FaultSite]) -> str:
    """What catches the faults, on the first of the launches on which something does; "" for nothing."""
    for launch in launches:
        if not any(launch.reached[fault.at] for fault in faults):
            continue
        if not launch.left and (found := launch.run([], note=True)):
            raise RuntimeError(f"{arch}, {launch.case}: without any fault {found}")
        found = launch.run(faults)
        if found == "difference" and not launch.last:
            found = replay.outcome_of_case(arch, calls[launch.case], launch, faults)
        if found:
            return found
    return ""


def removable(arch: str, calls: dict[str, Callable[[], None]], launches: list[replay.Noted], alone: list[FaultSite]) -> dict[int, str]:
    """Of faults of order that each survive alone: place -> what catches it in the company of those before it that may go; "" if it may."""
    gone: list[FaultSite] = []
    found = {}
    for site in alone:
        found[site.at] = outcome(arch, calls, launches, [*gone, site])
        if not found[site.at]:
            gone.append(site)
    return found


def in_loop(code: Kernel, at: int) -> bool:
    """Whether a branch behind a place goes back to before it."""
    return any(i.opcode.startswith("bra") and code.labels[str(i.operands[0])] <= at <= n for n, i in enumerate(code.code))


def entry(launches: list[replay.Noted], site: FaultSite) -> dict[str, Any]:
    """What the record says of a fault."""
    code = launches[0].kernel
    i = code.code[site.at]
    return {
        "kind": site.kind, "line": str(i.place), "source": source(i), "ptx": i.text, "instead": written(site), "case": launches[0].case,
        "in_loop": in_loop(code, site.at),
    }  # fmt: skip


def campaign(
    arch: str, kernels: Sequence[str], sample: int, seed: int, done: Sequence[str], lines: Path | None, own: str
) -> list[dict[str, Any]]:
    """Tries the faults of the kernels on one architecture but those that are done; each row also becomes a line of a file, with `own`."""
    os.environ["EMULATE"] = arch
    import torch

    torch.set_num_threads(1)
    from tests import compiled_cases

    calls = compiled_cases.cases(arch)
    begin = time.perf_counter()
    every = variants(arch, kernels)
    print(f"{arch}: {sum(map(len, every.values()))} variants of {len(every)} kernels, {time.perf_counter() - begin:.0f} s", flush=True)
    rows = []
    for kernel in [name for name in every if name not in done]:
        rows.append(of_kernel(arch, calls, kernel, every[kernel], sample, seed) | {"kernels": list(every)})
        if lines:
            with lines.open("a") as file:
                file.write(json.dumps([own, rows[-1]]) + "\n")
    return rows


def digest(sample: int, seed: int) -> str:
    """Names what a row depends on: the kernels, the cases, the emulator, and the settings."""
    files = [path for folder in ("fast/kernels", "emulator") for path in sorted((ROOT / folder).glob("*.py"))]
    files += [ROOT / "tests" / name for name in ("compiled_cases.py", "tools/fault_sites.py", "tools/replay.py")]
    text = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(text + f"{sample} {seed}".encode()).hexdigest()[:16]


def of_kernel(
    arch: str, calls: dict[str, Callable[[], None]], kernel: str, its_variants: list[list[replay.Noted]], sample: int, seed: int
) -> dict[str, Any]:
    """Tries the faults of one kernel; the row of the record."""
    begin = time.perf_counter()
    tried: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    how: Counter[str] = Counter()
    company: list[dict[str, Any]] = []
    redundant: list[dict[str, Any]] = []
    survivors: list[dict[str, Any]] = []
    ordering, others = chosen(kernel, its_variants, sample, seed)
    for places in ordering.values():
        alone: dict[str, list[FaultSite]] = defaultdict(list)
        launches = places[0][0]
        for _, site in places:
            tried[site.kind] += 1
            found = outcome(arch, calls, launches, [site])
            how[found or "survived"] += 1
            caught[site.kind] += bool(found)
            if not found:
                alone[site.kind].append(site)
        for sites_alone in alone.values():
            together = removable(arch, calls, launches, sites_alone)
            for site in sites_alone:
                found = together[site.at]
                (company if found else redundant).append(entry(launches, site) | {"caught_by": found})
    for fault in others:
        kind = fault[0][1].kind
        tried[kind] += 1
        found = next(filter(None, (outcome(arch, calls, launches, [site]) for launches, site in fault)), "")
        how[found or "survived"] += 1
        caught[kind] += bool(found)
        if not found:
            survivors.append(entry(*fault[-1]))
            print(f"survived: {arch} {kernel} {described(survivors[-1])}", flush=True)
    seconds = time.perf_counter() - begin
    counts = f"{caught.total()} of {tried.total()} caught, {len(company)} in company, {len(redundant)} redundant, {len(survivors)} survive"
    print(f"{arch} {kernel}: {counts}, {seconds:.0f} s", flush=True)
    return {
        "arch": arch, "kernel": kernel, "variants": len(its_variants), "tried": dict(tried), "caught": dict(caught), "how": dict(how),
        "company": company, "redundant": redundant, "survivors": survivors, "seconds": round(seconds),
    }  # fmt: skip


def described(survivor: dict[str, Any]) -> str:
    """A survivor in one line."""
    change = f"{survivor['ptx']}  ->  {survivor['instead']}"
    return f"{survivor['kind']}: {survivor['case']}, {survivor['line']}: {change}  # {survivor['source']}"


def source(instruction: Instruction) -> str:
    """The line of source that an instruction was made from, of this repository where the file is in it."""
    if instruction.place is None:
        return ""
    parts = Path(instruction.place.file).parts
    here = [Path(*parts[n:]) for n in range(1, len(parts)) if (ROOT / Path(*parts[n:])).is_file()]
    return linecache.getline(str(ROOT / here[0] if here else instruction.place.file), instruction.place.line).strip()


def explanation(survivor: dict[str, Any]) -> dict[str, Any] | None:
    """The first entry of tests/tools/surviving_faults.toml whose kind and patterns fit a survivor."""
    for entry in tomllib.loads(EXPLAINED.read_text())["fault"]:
        fits = all(re.search(entry.get(field, ""), survivor[field]) for field in ("source", "ptx", "instead"))
        if fits and entry["kind"] == survivor["kind"]:
            return entry
    return None


def summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Sums over the rows of a record."""
    return {
        "tried": sum(sum(r["tried"].values()) for r in rows),
        "caught": sum(sum(r["caught"].values()) for r in rows),
        "company": sum(len(r["company"]) for r in rows),
        "redundant": sum(len(r["redundant"]) for r in rows),
        "equivalent": sum(s["equivalent"] for r in rows for s in r["survivors"]),
        "explained": sum(s["why"] is not None and not s["equivalent"] for r in rows for s in r["survivors"]),
        "unexplained": sum(s["why"] is None for r in rows for s in r["survivors"]),
    }


def report(rows: list[dict[str, Any]]) -> None:
    """Prints the counts, and adds to each survivor why it is one."""
    for kind in sorted({k for r in rows for k in r["tried"]}):
        company, redundant = (sum(s["kind"] == kind for r in rows for s in r[what]) for what in ("company", "redundant"))
        tried, caught = (sum(r[what].get(kind, 0) for r in rows) for what in ("tried", "caught"))
        print(f"{kind:32} {caught:5} of {tried:5} caught, {company} in company, {redundant} redundant")
    for r in rows:
        for s in r["survivors"]:
            known = explanation(s)
            s |= {"why": known and known["why"], "equivalent": bool(known and known["equivalent"])}
            if s["why"] is None:
                print(f"not explained: {r['arch']} {r['kernel']} {described(s)}")
    sums = summary(rows)
    found, counted = sums["caught"] + sums["company"], sums["tried"] - sums["redundant"] - sums["equivalent"]
    print(
        f"{sums['caught']} of {sums['tried']} caught alone, {sums['company']} in company; {sums['redundant']} redundant, "
        f"{sums['equivalent']} equivalent; {found} of the other {counted}, {found / max(1, counted):.1%}; "
        f"{sums['explained']} survivors explained, {sums['unexplained']} not"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="only this architecture (repeatable)")
    parser.add_argument("--kernel", action="append", default=[], help="only this kernel, by its function's name (repeatable)")
    parser.add_argument("--sample", type=int, default=12, help="faults per kind, kernel and architecture, those of order aside; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--resume", action="store_true", help="keep what FILE.json.rows has of the same kernels, cases and settings")
    parser.add_argument("--out", help="a JSON record")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")
    own = digest(options.sample, options.seed)
    lines = Path(options.out + ".rows") if options.out else None
    rows: list[dict[str, Any]] = []
    if lines and lines.exists():
        if options.resume:
            held = [json.loads(line) for line in lines.read_text().splitlines()]
            rows = [row for theirs, row in held if theirs == own]
        else:
            lines.unlink()
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = []
        for arch in options.arch or ARCHITECTURES:
            held_rows = [row for row in rows if row["arch"] == arch]
            done = [row["kernel"] for row in held_rows]
            if held_rows and set(done) >= set(held_rows[0]["kernels"]):
                continue
            futures.append(pool.submit(campaign, arch, options.kernel, options.sample, options.seed, done, lines, own))
        rows += [row for future in futures for row in future.result()]
    report(rows)
    if options.out:
        from experiments import machine

        record = machine.heading("machine_faults", {"sample": options.sample, "seed": options.seed})
        record["command"] = "python -m tests.tools.machine_faults " + " ".join(sys.argv[1:])
        Path(options.out).write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")
        assert lines
        lines.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
