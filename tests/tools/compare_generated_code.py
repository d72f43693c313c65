"""Says whether two versions of the kernels compile to the same instructions: `python -m tests.tools.compare_generated_code BEFORE AFTER`.

A version is a git revision, "." for the files as they are, or a JSON file that `--save` wrote. Every variant of every kernel that
`generated_code` finds in a version is compiled by the compiler that is installed here, for each architecture, down to its assembly
(PTX, or AMD's own). What is compared is the multiset of instructions: their order, and the numbers of registers and labels, may differ.

The exit status is 1 where a variant differs by more than the loads of its arguments.
"""

import argparse
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")

#: Where a revision keeps the list of its variants, the newest place first.
VARIANTS = ("tests.tools.generated_code", "tests.generated_code")

#: "architecture, case, kernel" -> instructions, shared memory and a digest.
Version = dict[str, dict[str, Any]]


def variants() -> Any:
    """The module that lists and compiles the variants of the version in the current directory."""
    for name in VARIANTS:
        if (Path.cwd() / (name.replace(".", "/") + ".py")).exists():
            return importlib.import_module(name)
    raise ModuleNotFoundError(f"{Path.cwd()} must hold one of {', '.join(VARIANTS)}")


def instructions(assembly: str) -> list[str]:
    """The instructions of PTX or of AMD's assembly, one per line, without the numbers of registers, labels and parameters."""
    if ".amdgcn_target" in assembly:
        code = assembly[: assembly.index(".section\t.rodata")]
        found = re.findall(r"^\s+([a-z]+_[a-z0-9_]+(?:[^;\n]*[^;\s])?)", code, re.MULTILINE)
        return [re.sub(r"\b[vsa](\d+\b|\[\d+:\d+\])", "register", re.sub(r"\.LBB[\d_]+", "label", line)) for line in found]
    found = re.findall(r"^\s*((?:@!?%p\d+ )?(?:[a-z][a-z0-9_]*)(?:\.[\w:]+)*(?:\s[^;]*)?);", assembly, re.MULTILINE)
    found = [" ".join(line.split()) for line in found]
    return [re.sub(r"%[a-z]+\d+", "register", re.sub(r"\$L__\w+|\w+_param_\d+", "name", line)) for line in found]


def assembly(launch: Any) -> tuple[str, dict[str, Any]]:
    """Compiles one variant as far as its assembly: the name of the variant, and what is compared of it."""
    from triton.backends.nvidia.compiler import CUDABackend

    kept: dict[str, Any] = {}
    module = variants()
    compile_variant = module.triton.compile

    def keep(*args: Any, **kwargs: Any) -> Any:
        kept["built"] = compile_variant(*args, **kwargs)
        return kept["built"]

    nothing = {"registers": 0, "stack": 0, "instructions": {}}
    with (
        mock.patch.object(CUDABackend, "make_cubin", return_value=b""),  # the assembler would take most of the time
        mock.patch.object(module.triton, "compile", keep),
        mock.patch.object(module, "read_nvidia", return_value=nothing),
        mock.patch.object(module, "read_amd", return_value=nothing),
    ):
        module.compiled(launch)
    built = kept["built"]
    lines = Counter(instructions(built.asm["amdgcn" if launch.arch == "gfx942" else "ptx"]))
    names: Counter[str] = Counter()
    for line, count in lines.items():
        names[re.sub(r"^@!?register ", "", line).split()[0]] += count
    digest = hashlib.sha256(repr(sorted(lines.items())).encode()).hexdigest()
    facts = {"instructions": dict(sorted(names.items())), "shared": built.metadata.shared, "digest": digest}
    return f"{launch.arch}, {launch.case}, {launch.kernel}", facts


def compiled_here(architectures: list[str], jobs: int) -> Version:
    """Compiles the version in the current directory."""
    work = [launch for arch in architectures for launch in variants().launches(arch)]
    with ProcessPoolExecutor(jobs) as pool:
        found: Version = {}
        for name, facts in pool.map(assembly, work):
            assert name not in found, name
            found[name] = facts
    return found


def version(name: str, architectures: list[str], jobs: int) -> Version:
    """What a version compiles to: read from a file, or compiled in a checkout of its own."""
    if name.endswith(".json"):
        return json.loads(Path(name).read_text())
    with tempfile.TemporaryDirectory() as folder:
        checkout = ROOT
        if name != ".":
            checkout = Path(folder) / "checkout"
            subprocess.run(["git", "clone", "--quiet", "--shared", "--no-checkout", ROOT, checkout], check=True)
            revision = subprocess.run(["git", "rev-parse", name], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            subprocess.run(["git", "checkout", "--quiet", revision], cwd=checkout, check=True)
        # A cache of its own: what is put there lacks the machine code.
        environment = os.environ | {"PYTHONPATH": str(checkout), "TRITON_CACHE_DIR": f"{folder}/cache"}
        environment.pop("TRITON_INTERPRET", None)
        file = Path(folder) / "version.json"
        command = [sys.executable, "-P", __file__, ".", "--here", "--save", str(file), "--jobs", str(jobs)]
        command += [f"--arch={arch}" for arch in architectures]
        subprocess.run(command, cwd=checkout, env=environment, check=True)
        return json.loads(file.read_text())


#: What AMD's compiler loads a kernel's arguments with, and what it puts around those loads: neighbours in memory are loaded together,
#: so another order of the arguments gives loads of other widths, and waits at other places. They run once per wave, before the loops.
ARGUMENT_LOADS = re.compile(r"s_(load_dword|waitcnt|nop|mov_b32|add_i32|addk_i32)")


def differences(before: Version, after: Version) -> tuple[list[str], list[str]]:
    """One line per variant that is not the same in both; and the variants that differ in the loads of their arguments only."""
    lines = [f"{name}: only before" for name in before.keys() - after.keys()]
    lines += [f"{name}: only after" for name in after.keys() - before.keys()]
    loads = []
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        a: Counter[str] = Counter(old["instructions"])
        b: Counter[str] = Counter(new["instructions"])
        if old["shared"] == new["shared"] and name.startswith("gfx942") and all(ARGUMENT_LOADS.match(one) for one in (a - b) + (b - a)):
            loads += [name] if a != b else []
        elif a != b:
            counts = f"{a.total()} -> {b.total()} instructions"
            lines.append(f"{name}: {counts}, shared {old['shared']} -> {new['shared']} B, less {dict(a - b)}, more {dict(b - a)}")
        elif old["shared"] != new["shared"]:
            lines.append(f"{name}: the same instructions, shared memory {old['shared']} -> {new['shared']} B")
        elif old["digest"] != new["digest"]:
            lines.append(f"{name}: the same instructions, other constants or kinds of operands")
    return sorted(lines), sorted(loads)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("versions", nargs="+", metavar="VERSION", help='a git revision, "." or a JSON file; two, or one with --save')
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="only this architecture (repeatable)")
    parser.add_argument("--save", type=Path, help="write what the only VERSION compiles to into this JSON file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the process that a checkout gets
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    if len(options.versions) != (1 if options.save else 2):
        parser.error("two versions to compare, or one with --save")
    architectures = options.arch or list(ARCHITECTURES)
    if options.save:
        found = compiled_here(architectures, options.jobs) if options.here else version(options.versions[0], architectures, options.jobs)
        options.save.write_text(json.dumps(found))
        return 0
    before, after = (
        {name: facts for name, facts in version(v, architectures, options.jobs).items() if name.split(",")[0] in architectures}
        for v in options.versions
    )
    for arch in architectures:
        counts = [sum(name.startswith(f"{arch},") for name in found) for found in (before, after)]
        print(f"{arch}: {counts[0]} variants before, {counts[1]} after")
    lines, loads = differences(before, after)
    if loads:
        print(f"{len(loads)} variants of gfx942 differ in the scalar loads of their arguments only, which depend on the arguments' order")
    print("\n".join(lines) if lines else f"the same instructions in every{' other' if loads else ''} variant")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
