"""Mutation testing: makes small faults in `reference/`, `fast/` and `emulator/`, one at a time, and runs the tests on each.

    python -m tests.tools.mutants                     a random sample of all mutants, for half an hour
    python -m tests.tools.mutants --resume            goes on where the last run stopped; what survived is tried again first
    python -m tests.tools.mutants --file fast/kernels/product.py --minutes 5 --seed 1
    python -m tests.tools.mutants --list              shows the mutants, and runs nothing

Hypothesis tries fewer examples here than in `make test` (tests/conftest.py), and a law that is parametrized is tried on a few of its cases,
drawn once, so the score is rather too low than too high.

A mutant that no test notices is a line that no test checks, or a change that means the same: tests/tools/equivalent_mutants.toml says which
and why, by function and mutation. A run fails where an entry there matches no mutant. The record, experiments/results/mutants.json, holds
the counts and each survivor with its diff.

Why not an existing tool. mutmut 3.8 leaves out every function with a decorator, which is every Triton kernel and every registered
operator, and every constant of a module. cosmic-ray 8.7 makes 9,098 mutants of these files, most of them by putting each of
twelve operators in the place of each, knows nothing of masks, accumulator types and trip counts, has no sampling, and starts Python anew
for each mutant: 3.5 s of imports, for tests that take less. Here one process imports Torch and Triton once and forks for each mutant; the
fault is in a file on disk, since Triton reads the source of a kernel.
"""

import argparse
import datetime
import difflib
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.tools.mutations import Mutant, equivalents, keys, line_of, mutants, unmatched

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "experiments" / "results" / "mutants.json"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
COPIED = ("reference", "fast", "emulator", "tests", "experiments", "pyproject.toml", "docs/contract.md")
PACKAGES = ("torch", "triton", "numpy", "hypothesis", "pytest")

#: One mutant may take this long: many times what its tests take, so that only an endless loop gets there, a fault that was noticed.
SECONDS = 600

#: Of how many of its parameters a test function is run.
CASES = 8

BACKBONE = ("worked_examples", "errors", "edges", "exhaustive", "pairs", "laws")

KERNELS = ("worked_examples", "guarded", "exhaustive", "edges", "kernels", "pairs")

#: Tests of the emulator on PTX by hand.
BY_HAND = ("emulator", "emulator_asynchronous", "emulator_transfers", "emulator_matrix", "emulator_instructions")

#: Which tests run for which files, the quick ones first, which of the three sides (tests/comparison.py) they run on, and which of them
#: do (pytest's -k): a layer of few rows has one kernel, another has others (ROUTES of tests/comparison.py).
TESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "reference/bounds.py": (("bounds",), ("reference",), ""),
    "reference/features.py": (("features",), ("reference",), ""),
    "reference/*.py": ((*BACKBONE, "structure"), ("reference", "cpu"), ""),
    "fast/kernels/decode.py": (KERNELS, ("triton",), "not tiled"),
    "fast/kernels/outliers.py": (KERNELS, ("triton",), "not decode and not single"),
    "fast/kernels/quantization.py": (KERNELS, ("triton",), "not decode and not single"),
    "fast/kernels/*.py": (KERNELS, ("triton",), ""),
    "fast/cpu/*.py": ((*BACKBONE, "cpu"), ("cpu",), ""),
    "fast/bitsandbytes_checkpoint.py": (("bitsandbytes_checkpoint",), ("cpu",), ""),
    "fast/model.py": (("quantize_model", "selection"), ("cpu",), ""),
    "fast/selection/*.py": (("selection", "quantize_model"), ("cpu",), ""),
    "fast/transformers_traits.py": (("selection", "quantize_model"), ("cpu",), ""),
    "fast/linear.py": (
        ("worked_examples", "errors", "linear", "new_weights", "bitsandbytes_checkpoint", "edges", "pairs", "structure"),
        ("cpu",),
        "",
    ),
    "fast/operators.py": (("worked_examples", "edges", "operators", "derivatives", "pairs"), ("cpu",), ""),
    "fast/eager.py": (("worked_examples", "edges", "derivatives", "new_weights", "operators"), ("cpu",), ""),
    "fast/guard.py": (("guard", "linear"), ("cpu",), ""),
    "fast/*.py": ((*BACKBONE, "linear", "structure"), ("cpu",), ""),
    **{f"emulator/{name}.py": (("emulator_instructions",), (), "") for name in ("integers", "moves", "floats", "values", "exchange")},
    **{f"emulator/{name}.py": (("emulator_matrix", "emulator_asynchronous"), (), "") for name in ("matrix", "warpgroup", "tensor_memory")},
    **{f"emulator/{name}.py": (("emulator_profiler",), (), "not machine_code") for name in ("ceilings", "counters", "profiler", "sass")},
    **{f"emulator/{name}.py": (("emulator_strangers",), (), "") for name in ("launch", "parameters")},
    "emulator/*.py": (BY_HAND, (), ""),
}

#: Of these files all parameters of a test function are run: each is an instruction or a rule of its own, and takes no time.
EVERY_CASE = "emulator/*.py"

#: Left out. configurations.py: its rows change speed and not results; tests/tools/generated_code.py holds them to what compiles without
#: spills.
#: huggingface, distributed.py: each of their tests loads a model, seconds to minutes for each mutant.
#: old_interpreter.py: what it mends is another version's. hopper.py: Triton's interpreter, which the mutants run in, has no Gluon;
#: tests/tools/machine_faults.py puts faults into what the compiler makes of it. emulator/manual.py: section numbers.
LEFT_OUT = (
    "emulator/manual.py", "emulator/__main__.py", "fast/kernels/configurations.py", "fast/kernels/hopper.py",
    "fast/kernels/old_interpreter.py", "fast/distributed.py", "fast/huggingface/*", "*/__init__.py",
)  # fmt: skip


def files() -> list[str]:
    """The files that are mutated, by their paths in the repository."""
    found = [path.relative_to(ROOT) for package in ("reference", "fast", "emulator") for path in sorted((ROOT / package).rglob("*.py"))]
    return [str(path) for path in found if not any(path.match(pattern) for pattern in LEFT_OUT)]


def tests_of(file: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The test files of a file, the sides that they run on, and the expression that chooses among them."""
    return next(chosen for pattern, chosen in TESTS.items() if Path(file).match(pattern))


class Chosen:
    """A pytest plugin: of the tests of sides that a fault can reach, at most `cases` of each law, and each law once before any again."""

    def __init__(self, sides: tuple[str, ...], cases: int) -> None:
        self.sides, self.cases = sides, cases

    def pytest_collection_modifyitems(self, items: list) -> None:
        laws: dict[str, list] = {}
        for item in items:
            if str(_side(item)) in (*self.sides, "None"):
                laws.setdefault(item.nodeid.partition("[")[0], []).append(item)
        draw = random.Random(0)
        rounds = itertools.zip_longest(*(draw.sample(law, min(len(law), self.cases)) for law in laws.values()))
        items[:] = [item for cases in rounds for item in cases if item is not None]


def _side(item: Any) -> Any:
    side = item.callspec.params.get("side") if hasattr(item, "callspec") else None
    return side if type(side).__name__ == "Side" else None


def tried(mutants: Iterable[Mutant], sources: dict[str, str], copies: list[Path], seconds: float) -> Iterator[tuple[Mutant, str, float]]:
    """Runs the tests on one mutant after the other, in each of the copies at the same time.

    Args:
        mutants: what to try.
        sources: the text of each file.
        copies: where the tests run, one mutant in each.
        seconds: after so long no other mutant is started.

    Yields:
        Each mutant when it is done; "killed", "timed out" or "survived"; the seconds it took.
    """
    waiting = iter(mutants)
    begun = time.monotonic()
    running: dict[Path, tuple[Mutant, int, float]] = {}
    while True:
        for copy in copies:
            if copy in running or time.monotonic() - begun > seconds or (mutant := next(waiting, None)) is None:
                continue
            (copy / mutant.file).write_text(mutant.apply(sources[mutant.file]), encoding="utf-8")
            child = os.fork()
            if child == 0:
                _run_tests(mutant.file, copy)
            running[copy] = mutant, child, time.monotonic()
        if not running:
            return
        for copy, (mutant, child, started) in list(running.items()):
            outcome = _outcome(child, started)
            if outcome is not None:
                del running[copy]
                (copy / mutant.file).write_text(sources[mutant.file], encoding="utf-8")
                yield mutant, outcome, time.monotonic() - started
        time.sleep(0.02)


def check_baseline(pending: list[Mutant], sources: dict[str, str], copies: list[Path], passed: list[str]) -> None:
    """Runs the tests of each file without any fault: a test that fails by itself would count as a kill.

    Args:
        pending: the mutants that will be tried.
        sources: the text of each file.
        copies: where the tests run.
        passed: digests of what has passed before, test files and sources; what passes now is added.

    Raises:
        SystemExit: one failed; its output is shown.
    """
    everything = "".join(path.read_text(encoding="utf-8") for path in sorted(copies[0].rglob("*.py")))
    digests = {
        file: hashlib.sha256((everything + repr(tests_of(file))).encode()).hexdigest()[:16]
        for file in {tests_of(mutant.file): mutant.file for mutant in pending}.values()
    }
    unchanged = [Mutant(file, "none", 0, 0, "") for file, digest in digests.items() if digest not in passed]
    for mutant, outcome, seconds in tried(unchanged, sources, copies, math.inf):
        print(f"without a fault: the tests of {mutant.file} {outcome}, {seconds:.1f} s", flush=True)
        if outcome != "survived":
            sys.exit("".join((copy / "output.txt").read_text(encoding="utf-8", errors="replace") for copy in copies))
        passed.append(digests[mutant.file])


def _run_tests(file: str, copy: Path) -> None:
    """In the child: runs the tests of `file` and ends the process, with 0 if they all passed."""
    code = 1
    try:
        os.setsid()
        os.chdir(copy)
        sys.path[0] = str(copy)
        output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import pytest

        names, sides, chosen = tests_of(file)
        cases = sys.maxsize if Path(file).match(EVERY_CASE) else CASES
        options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not deep and not site", "-k", chosen]
        options += ["-W", "ignore:Module already imported so cannot be rewritten"]  # by the parent, on purpose
        code = int(pytest.main([*options, *(f"tests/test_{name}.py" for name in names)], plugins=[Chosen(sides, cases)]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _outcome(child: int, started: float) -> str | None:
    """How the tests in process `child` ended, or None while they run."""
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        return "survived" if status == 0 else "killed"
    if time.monotonic() - started > SECONDS:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "timed out"
    return None


def make_copies(folder: Path, processes: int) -> list[Path]:
    """Copies what the tests need, once for each process, and imports here what every mutant needs, so that it is imported once."""
    ignored = shutil.ignore_patterns("__pycache__", "*.png", "results")
    copies = [folder / str(process) for process in range(processes)]
    for copy in copies:
        for name in COPIED:
            source, target = ROOT / name, copy / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=ignored)
            else:
                target.parent.mkdir(exist_ok=True, parents=True)
                shutil.copy(source, target)
    # The same size and the same second would pass for the same file.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    # The first entry becomes the copy of each child.
    sys.path[:] = ["", *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    for package in ("numpy", "torch", "triton", "triton.language", "triton.runtime.interpreter", "hypothesis", "pytest"):
        importlib.import_module(package)
    sys.modules["torch"].set_num_threads(1)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "fast", "reference", "emulator")]:
        del sys.modules[name]
    return copies


def describe(mutant: Mutant, source: str, outcome: str, seconds: float) -> dict[str, Any]:
    """What the record keeps of a mutant."""
    diff = list(difflib.unified_diff(source.splitlines(), mutant.apply(source).splitlines(), lineterm="", n=0))[2:]
    return {
        "file": mutant.file,
        "line": source.count("\n", 0, mutant.start) + 1,
        "operator": mutant.operator,
        "diff": diff,
        "outcome": outcome,
        "seconds": round(seconds, 1),
    }


def identity(mutant: Mutant, source: str) -> str:
    """Names a mutant as long as its file stays as it is."""
    text = "\0".join((mutant.file, hashlib.sha256(source.encode()).hexdigest(), *map(str, mutant[1:5])))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def summary(results: dict[str, dict[str, Any]], possible: int, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The record."""

    def counts(key: str) -> dict[str, dict[str, int]]:
        table: dict[str, Counter] = {}
        for result in results.values():
            table.setdefault(result[key], Counter())[result["outcome"]] += 1
        return {name: {"made": sum(row.values()), **dict(sorted(row.items()))} for name, row in sorted(table.items())}

    outcomes = Counter(result["outcome"] for result in results.values())
    killed = outcomes["killed"] + outcomes["timed out"]
    judged = len(results) - outcomes["equivalent"]
    return {
        "command": "python -m tests.tools.mutants --resume",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": sys.version.split()[0], **{name: metadata.version(name) for name in PACKAGES}},
        "seed": options.seed,
        "seconds": round(seconds),
        "possible": possible,
        "made": len(results),
        "killed": killed,
        "timed_out": outcomes["timed out"],
        "equivalent": outcomes["equivalent"],
        "survived": outcomes["survived"],
        "score": round(killed / judged, 4) if judged else None,
        "left_out": list(LEFT_OUT),
        "by_file": counts("file"),
        "by_operator": counts("operator"),
        "survivors": [result for result in results.values() if result["outcome"] in ("survived", "equivalent")],
        "mutants": {name: [result["outcome"], result["seconds"]] for name, result in results.items()},
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=28, help="start no mutant after this long (28)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many mutants are tried at a time (one a core)")
    parser.add_argument("--sample", type=int, help="try at most this many, a random sample")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which mutants are tried (0)")
    parser.add_argument("--file", action="append", help="only this file; may be given several times")
    parser.add_argument("--resume", action="store_true", help="keep what the record holds of files that have not changed")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--list", action="store_true", help="show the mutants and run nothing")
    options = parser.parse_args()
    unknown = set(options.file or ()) - set(files())
    if unknown:
        parser.error(f"--file must be one of {', '.join(files())}, got {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    """Runs the command line; 1 if a mutant survived that is not known to be equivalent."""
    options = parse()
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for file in files()}
    named = {mutant: key for file, source in sources.items() for mutant, key in keys(mutants(file, source), source).items()}
    known = equivalents(EQUIVALENT)
    if stale := unmatched(known, named.values()):
        sys.exit("no mutant has these keys of tests/tools/equivalent_mutants.toml (--list shows the keys there are):\n" + "\n".join(stale))
    reasons = {mutant: known.get(key) or known.get((*key[:2], "*")) for mutant, key in named.items()}
    everything = list(named)
    chosen = [mutant for mutant in everything if not options.file or mutant.file in options.file]
    random.Random(options.seed).shuffle(chosen)
    if options.list:
        for mutant in sorted(chosen[: options.sample]):
            source = sources[mutant.file]
            print(" | ".join(named[mutant]))
            print(f"    {line_of(source, mutant.start)}  ->  {line_of(mutant.apply(source), mutant.start)}")
        print(len(chosen[: options.sample]), "mutants")
        return 0

    def save(results: dict[str, dict[str, Any]], passed: list[str], seconds: float) -> dict[str, Any]:
        record = summary(results, len(everything), options, seconds) | {"passed": passed}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        partial = options.out.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(options.out)
        return record

    record = try_all(chosen, reasons, sources, options, save)
    print(
        f"{record['made']} of {record['possible']} mutants made, {record['killed']} killed ({record['timed_out']} by the clock), ", end=""
    )
    print(f"{record['equivalent']} equivalent, {record['survived']} survived: score {record['score']}")
    return int(record["survived"] > 0)


def try_all(
    chosen: list[Mutant],
    reasons: dict[Mutant, str | None],
    sources: dict[str, str],
    options: argparse.Namespace,
    save: Callable[[dict[str, dict[str, Any]], list[str], float], dict[str, Any]],
) -> dict[str, Any]:
    """Tries the chosen mutants and returns the record, which is saved after each, so that a run that is ended can be resumed.

    Args:
        chosen: what to try.
        reasons: every mutant, and why it is equivalent, or None.
        sources: the text of each file.
        options: the command line.
        save: writes the record.
    """
    old: dict[str, Any] = {"mutants": {}, "seconds": 0, "passed": []}
    if options.resume and options.out.exists():
        old |= json.loads(options.out.read_text(encoding="utf-8"))
    results: dict[str, dict[str, Any]] = {}
    for mutant in reasons:
        name = identity(mutant, sources[mutant.file])
        if name in old["mutants"]:
            outcome, seconds = old["mutants"][name]
            results[name] = _judged(mutant, sources[mutant.file], outcome, seconds, reasons[mutant])
    names = {mutant: identity(mutant, sources[mutant.file]) for mutant in chosen}
    pending = [mutant for mutant in chosen if names[mutant] in results and results[names[mutant]]["outcome"] == "survived"]
    pending += [mutant for mutant in chosen if names[mutant] not in results]
    pending = pending[: options.sample]

    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = make_copies(Path(folder), options.processes)
        check_baseline(pending, sources, copies, old["passed"])
        left = 60 * options.minutes - (time.monotonic() - started)
        for number, (mutant, outcome, seconds) in enumerate(tried(pending, sources, copies, left)):
            line = results[names[mutant]] = _judged(mutant, sources[mutant.file], outcome, seconds, reasons[mutant])
            print(
                f"{number + 1}/{len(pending)} {line['outcome']:>10} {seconds:6.1f} s  {mutant.file}:{line['line']} {mutant.operator}",
                flush=True,
            )
            if line["outcome"] == "survived":
                print("    " + "\n    ".join(line["diff"]), flush=True)
            save(results, old["passed"], old["seconds"] + time.monotonic() - started)
    return save(results, old["passed"], old["seconds"] + time.monotonic() - started)


def _judged(mutant: Mutant, source: str, outcome: str, seconds: float, reason: str | None) -> dict[str, Any]:
    why = reason if outcome in ("survived", "equivalent") else None
    result = describe(mutant, source, "equivalent" if why else "survived" if outcome == "equivalent" else outcome, seconds)
    return result | {"reason": why} if why else result


if __name__ == "__main__":
    sys.exit(main())
