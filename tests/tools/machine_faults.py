"""Faults in the machine code: one at a time is put into a compiled kernel, and the emulator must find it.

    python -m tests.tools.machine_faults                    a sample of every kind, every kernel, every architecture
    python -m tests.tools.machine_faults --arch sm_90 --kernel decode_kernel --sample 0      every place of every variant
    make machine-faults                                     and keeps the record that the verification page shows

The kernels are those that the cases of tests/compiled_cases.py launch, in all their variants. A place is the same fault as another if
it has the kind, the line of source and the form of instruction in common with it; each is tried in the variant that runs quickest, and of
faults that take order away (barriers, waits, fences, commits) each place there is tried.

A fault is caught if the sanitizer stops the program or the result differs. What survives is tried on the other inputs on which the cases
launch the same variant. Of faults of order that still survive, some change nothing: the compiler puts two barriers where one suffices.
The sanitizer decides that: its vector clocks then still order every two accesses that conflict. Whether both barriers together are
needed is tried as well: the fault is removed together with its neighbours of the same kind, until something is caught; it is then
recorded as redundant, with its twin. Every other survivor is in the record; why it is one stands in tests/tools/surviving_faults.toml.
"""

import argparse
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

from emulator.parse import Instruction
from tests.tools import replay
from tests.tools.fault_sites import ORDERING, FaultSite, signature, sites, written

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).parent / "surviving_faults.toml"
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100")
#: Launches of one variant on which a survivor is tried.
INPUTS = 3
#: How many neighbours of a fault of order are removed with it, at most.
NEIGHBOURS = 6


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


def chosen(kernel: str, every: list[list[replay.Noted]], sample: int, seed: int) -> list[tuple[list[replay.Noted], FaultSite]]:
    """The faults to try, with the launches of the variant that each is put into. sample: 0 for all places of all variants."""
    seen: set[Any] = set()
    ordering: list[tuple[list[replay.Noted], FaultSite]] = []
    others: dict[str, list[list[tuple[list[replay.Noted], FaultSite]]]] = defaultdict(list)
    for launches in every:
        code = launches[0].kernel
        reached = sum(launch.reached for launch in launches)
        groups: dict[Any, list[tuple[list[replay.Noted], FaultSite]]] = defaultdict(list)
        for site in sites(code):
            if reached[site.at]:
                groups[signature(code, site)].append((launches, site))
        for key, places in groups.items():
            if key in seen and sample:
                continue
            seen.add(key)
            if key[0] in ORDERING or not sample:
                ordering += places
            else:
                others[key[0]].append(places)
    result = ordering
    for kind in sorted(others):
        dice = random.Random(f"{seed}{kernel}{kind}")
        dice.shuffle(others[kind])
        result += [dice.choice(places) for places in others[kind][:sample]]
    return result


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


def twin(arch: str, calls: dict[str, Callable[[], None]], launches: list[replay.Noted], site: FaultSite) -> tuple[list[int], str]:
    """(the places removed together with a fault of order, what then catches them); places and word empty if nothing does."""
    code = launches[0].kernel
    same = sorted(
        {other.at: other for other in sites(code) if other.kind == site.kind and other.at != site.at}.values(), key=lambda o: o.at
    )
    near = sorted(same, key=lambda other: abs(other.at - site.at))[:NEIGHBOURS]
    for together in [[other] for other in near] + [near[:count] for count in range(2, len(near) + 1)]:
        if found := outcome(arch, calls, launches, [site, *together]):
            return sorted(other.at for other in together), found
    return [], ""


def campaign(arch: str, kernels: Sequence[str], sample: int, seed: int) -> list[dict[str, Any]]:
    """Tries the faults of the kernels on one architecture."""
    os.environ["EMULATE"] = arch
    import torch

    torch.set_num_threads(1)
    from tests import compiled_cases

    calls = compiled_cases.cases(arch)
    begin = time.perf_counter()
    every = variants(arch, kernels)
    print(f"{arch}: {sum(map(len, every.values()))} variants of {len(every)} kernels, {time.perf_counter() - begin:.0f} s", flush=True)
    rows = []
    for kernel, its_variants in every.items():
        begin = time.perf_counter()
        tried: Counter[str] = Counter()
        caught: Counter[str] = Counter()
        how: Counter[str] = Counter()
        redundant, survivors = [], []
        work = chosen(kernel, its_variants, sample, seed)
        for launches, site in work:
            tried[site.kind] += 1
            if found := outcome(arch, calls, launches, [site]):
                caught[site.kind] += 1
                how[found] += 1
                continue
            i = launches[0].kernel.code[site.at]
            entry = {
                "kind": site.kind, "line": str(i.place), "source": source(i), "ptx": i.text, "instead": written(site), "case": launches[0].case,
            }  # fmt: skip
            with_it, found = twin(arch, calls, launches, site) if site.kind in ORDERING else ([], "")
            if found:
                twins = [f"{launches[0].kernel.code[at].place}" for at in with_it]
                redundant.append(entry | {"twins": twins, "caught_together": found})
            else:
                survivors.append(entry)
                print(f"survived: {arch} {kernel} {site.kind}: {entry['case']}, {i.place}: {i.text}  ->  {written(site)}", flush=True)
        seconds = time.perf_counter() - begin
        counts = f"{caught.total()} of {tried.total()} caught, {len(redundant)} redundant, {len(survivors)} survive"
        print(f"{arch} {kernel}: {counts}, {seconds:.0f} s", flush=True)
        rows.append({
            "arch": arch, "kernel": kernel, "variants": len(its_variants), "tried": dict(tried), "caught": dict(caught), "how": dict(how),
            "redundant": redundant, "survivors": survivors, "seconds": round(seconds),
        })  # fmt: skip
    return rows


def source(instruction: Instruction) -> str:
    """The line of source that an instruction was made from, of this repository where the file is in it."""
    if instruction.place is None:
        return ""
    parts = Path(instruction.place.file).parts
    here = [Path(*parts[n:]) for n in range(1, len(parts)) if (ROOT / Path(*parts[n:])).is_file()]
    return linecache.getline(str(ROOT / here[0] if here else instruction.place.file), instruction.place.line).strip()


def explanation(survivor: dict[str, Any]) -> str | None:
    """Why a survivor is one, from tests/tools/surviving_faults.toml: the first entry whose kind and patterns fit."""
    for entry in tomllib.loads(EXPLAINED.read_text())["fault"]:
        fits = all(re.search(entry.get(field, ""), survivor[field]) for field in ("source", "ptx", "instead"))
        if fits and entry["kind"] == survivor["kind"]:
            return str(entry["why"])
    return None


def summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Sums over the rows of a record."""
    return {
        "tried": sum(sum(r["tried"].values()) for r in rows),
        "caught": sum(sum(r["caught"].values()) for r in rows),
        "redundant": sum(len(r["redundant"]) for r in rows),
        "explained": sum(s["why"] is not None for r in rows for s in r["survivors"]),
        "unexplained": sum(s["why"] is None for r in rows for s in r["survivors"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="only this architecture (repeatable)")
    parser.add_argument("--kernel", action="append", default=[], help="only this kernel, by its function's name (repeatable)")
    parser.add_argument("--sample", type=int, default=12, help="faults per kind, kernel and architecture, those of order aside; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", help="a JSON record")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler: unset it")
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(campaign, a, options.kernel, options.sample, options.seed) for a in options.arch or ARCHITECTURES]
        rows = [row for future in futures for row in future.result()]
    for kind in sorted({k for r in rows for k in r["tried"]}):
        redundant = sum(s["kind"] == kind for r in rows for s in r["redundant"])
        tried, caught = (sum(r[what].get(kind, 0) for r in rows) for what in ("tried", "caught"))
        print(f"{kind:32} {caught:5} of {tried:5} caught" + (f", {redundant} redundant" if redundant else ""))
    for r in rows:
        for s in r["survivors"]:
            s["why"] = explanation(s)
            if s["why"] is None:
                print(f"not explained: {r['arch']} {r['kernel']} {s['kind']}: {s['line']}: {s['ptx']}  ->  {s['instead']}")
    sums = summary(rows)
    print(
        f"{sums['caught']} of {sums['tried']} caught; {sums['redundant']} redundant, {sums['explained']} explained, "
        f"{sums['unexplained']} not explained; {sums['caught'] / max(1, sums['tried'] - sums['redundant']):.1%} of those not redundant"
    )
    if options.out:
        from experiments import machine

        record = machine.heading("machine_faults", {"sample": options.sample, "seed": options.seed})
        record["command"] = "python -m tests.tools.machine_faults " + " ".join(sys.argv[1:])
        Path(options.out).write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
