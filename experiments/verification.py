"""What has been checked, and how closely: runs the tests, counts, and writes docs/verification.md and the picture of docs/bounds.md.

    python -m experiments.verification                                everything: the whole suite, file by file, and all compilers
    python -m experiments.verification --only test_bounds.py          these test files anew, the rest of the record as it was
    python -m experiments.verification --only compiled picture        what the kernels compile to; bounds against measured errors
    python -m experiments.verification --jobs 2                       two files at a time
    python -m experiments.verification --check                        says whether docs/verification.md is what the record says

A law is a test function; a case is one input that it was tried on. Nothing is recorded of a file in which a test failed, and the command
ends with an error then.
"""

import argparse
import base64
import datetime
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import reference
from reference import bounds

from . import command, machine, records
from .command import InputError
from .pages.verification import PAGE, page_text, picture, with_part

ROOT = Path(__file__).resolve().parents[1]

#: Parts of the record besides the test files.
COMPILED, PICTURE = "compiled", "picture"

#: pytest's exit status where the markers leave no test.
NO_TESTS = 5

#: Tests name the ratios and counts that they note so: `record_property("ratio: product", 0.99)`.
RATIO, PATTERNS = "ratio: ", "bit patterns"


def run_tests(file: str) -> dict[str, Any]:
    """Runs one file of tests/ in a process of its own and counts what it tried.

    Raises:
        InputError: a test failed; the message is the end of pytest's output.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"tests/{file}", "-m", "not deep and not site", "-q", "-p", "no:cacheprovider"]
        options = [f"--junitxml={report}", "-o", "junit_family=xunit1"]
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
        if done.returncode not in (0, NO_TESTS):
            raise InputError(f"tests/{file} did not pass, so nothing is recorded:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        return {"date": today(), "gpu": machine.device()["gpu"], **counted(ElementTree.parse(report).getroot())}


def run_files(files: Sequence[str], jobs: int) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Runs files of tests/, `jobs` at a time: a row for each that passed, and what is to be said of the others."""

    def row_or_failure(file: str) -> dict[str, Any] | str:
        try:
            return run_tests(file)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(jobs) as pool:
        found = dict(zip(files, tqdm(pool.map(row_or_failure, files), total=len(files), unit="file", disable=None), strict=True))
    return {name: row for name, row in found.items() if isinstance(row, dict)}, [text for text in found.values() if isinstance(text, str)]


def today() -> str:
    """The date in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def counted(report: ElementTree.Element) -> dict[str, Any]:
    """What a JUnit report of pytest, with Hypothesis' statistics in it, says.

    Returns:
        laws: how many test functions passed; tests: the same with each parametrization counted; cases: inputs tried, the examples
        of a generated test or one for a test that is not; seconds; ratios: the largest ratio of error and bound by name, that a test
        noted or that Hypothesis' `target` found; bit_patterns: the largest number of them that one test covers.
    """
    passed = [case for case in report.iter("testcase") if case.find("skipped") is None]
    noted = [(p.get("name", ""), p.get("value", "")) for p in report.iter("property")]
    statistics = [base64.b64decode(value).decode() for name, value in noted if name.startswith("hypothesis-statistics-")]
    examples = [sum(map(int, re.findall(r"(\d+) passing", text))) for text in statistics]
    ratios: dict[str, float] = {}
    found = [(name.removeprefix(RATIO), float(value)) for name, value in noted if name.startswith(RATIO)]
    for text in statistics:
        found += [(label, float(score)) for score, label in re.findall(r"([\d.e-]+)  \(label='([^']+)'\)", text)]
    for name, ratio in found:
        ratios[name] = max(ratio, ratios.get(name, 0.0))
    return {
        "laws": len({(case.get("classname"), re.sub(r"\[.*", "", case.get("name", ""), flags=re.DOTALL)) for case in passed}),
        "tests": len(passed),
        "cases": len(passed) - len(statistics) + sum(examples),
        "seconds": sum(float(case.get("time", 0)) for case in passed),
        "ratios": ratios,
        "bit_patterns": max((int(value) for name, value in noted if name == PATTERNS), default=0),
    }


def compile_kernels() -> list[dict[str, Any]]:
    """Compiles every kernel for every architecture that tests/tools/generated_code.py names; a row each.

    Raises:
        InputError: one does not compile.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.tools.generated_code"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"tests.tools.generated_code failed:\n{done.stderr[-3000:]}")
    facts = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda fact: fact["arch"])
    rows = []
    for arch, group in itertools.groupby(facts, key=lambda fact: fact["arch"]):
        own = list(group)
        matrix = {unit for fact in own for name in fact["instructions"] if (unit := matrix_unit(name))}
        rows.append(
            {
                "arch": arch,
                "kernels": len({fact["kernel"] for fact in own}),
                "specializations": len(own),
                "spilling": sum(fact["stack"] > 0 for fact in own),
                "matrix": sorted(matrix),
            }
        )
    return rows


def matrix_unit(instruction: str) -> str | None:
    """The family that a matrix instruction belongs to, such as IGMMA of IGMMA.64x128x32.S8.S8; None for any other instruction."""
    found = re.search("[A-Z]*MMA|mfma", instruction)
    return found and found[0]


def measure_errors(seed: int = 0) -> dict[str, Any]:
    """Errors against their bounds, by K and by the size of an outlier; in units of x_scale * w_scale, with float64 as the judge."""
    rng = np.random.default_rng(seed)
    by_k = []
    for k in (2**i for i in range(3, 15)):
        x, w = (rng.standard_normal((16, k), dtype=np.float32) for _ in range(2))
        worst = np.full((1, k), 126.5 + 2.0**-12, np.float32)
        worst[:, 0] = 127
        by_k.append({"k": k, "bound": bound_in_steps(x, w), "normal": error_in_steps(x, w), "worst": error_in_steps(worst, worst)})
    x, w = rng.standard_normal((64, 1024), dtype=np.float32), rng.standard_normal((64, 1024), dtype=np.float32)
    by_size = []
    for size in (6, 10, 20, 50, 100, 200, 500, 1000):
        x[:, 5] = np.where(np.arange(64) % 2, size, -size)
        row: dict[str, Any] = {"size": size}
        for name, threshold in (("vectorwise", None), ("llm_int8", 6.0)):
            row[name] = np.abs(reference.llm_int8_matmul(x, w, threshold) - x.astype(np.float64) @ w.T.astype(np.float64)).max()
            row[f"{name}_bound"] = bounds.llm_int8_matmul_bound(x, w, threshold).max()
        by_size.append(row)
    return {"by_k": by_k, "by_size": by_size}


def steps(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float64]:
    """The product of the scales, (M, N)."""
    x_scale, w_scale = (reference.absmax_quantize(t, -1).scale.astype(np.float64) for t in (x, w))
    return x_scale * w_scale.T


def error_in_steps(x: NDArray[np.float32], w: NDArray[np.float32]) -> float:
    """The largest error of a vector-wise product."""
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    return float((np.abs(reference.quantized_matmul(x, w) - exact) / steps(x, w)).max())


def bound_in_steps(x: NDArray[np.float32], w: NDArray[np.float32]) -> float:
    """Its bound."""
    x_scale, w_scale = (reference.absmax_quantize(t, -1).scale for t in (x, w))
    return float((bounds.quantized_matmul_bound(x_scale, w_scale, x.shape[1]) / steps(x, w)).max())


def check(record: dict[str, Any] | None) -> None:
    """Compares the page with the record.

    Raises:
        InputError: the page says something else, or there is no record.
    """
    if record is None:
        raise InputError("there is no record: run python -m experiments.verification")
    page = PAGE.read_text(encoding="utf-8")
    if with_part(page, page_text(record, records.read("mutants"), records.read("machine_faults"))) != page:
        raise InputError("docs/verification.md is not what experiments/results says: run python -m experiments.verification --only")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.verification", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="*",
        metavar="PART",
        help=f'files of tests/, "{COMPILED}" or "{PICTURE}"; the rest stays as the record has it. Without a part: the page alone',
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="files of tests/ to run at a time (default 1)")
    parser.add_argument("--check", action="store_true", help="run nothing; exit with an error if docs/verification.md is stale")
    parser.add_argument("--out", metavar="FILE.json", help="the record (default experiments/results/verification.json)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = parse(arguments)
    out = records.output_path(options.out, "verification")
    previous = json.loads(out.read_text()) if out.is_file() else None
    if options.check:
        check(previous)
        return
    known = sorted(path.name for path in (ROOT / "tests").glob("test_*.py"))
    chosen = [*known, COMPILED, PICTURE] if options.only is None else options.only
    unknown = sorted(set(chosen) - {*known, COMPILED, PICTURE})
    if unknown:
        raise InputError(f"--only takes files of tests/, {COMPILED} or {PICTURE}, got {', '.join(unknown)}")

    empty: dict[str, Any] = {"files": {}, "compiled": [], "errors": None}
    kept = empty if previous is None or options.only is None else {name: previous[name] for name in empty}
    record = machine.heading("verification", {"markers": "not deep and not site"}) | kept
    if COMPILED in chosen:
        record["compiled"] = compile_kernels()
    if PICTURE in chosen:
        record["errors"] = measure_errors()
    rows, failures = run_files([part for part in chosen if part in known], options.jobs)
    record["files"] |= rows
    record["files"] = {name: row for name, row in sorted(record["files"].items()) if name in known}
    record = records.plain(record)

    written = records.write(out, record, [] if record["errors"] is None else [picture(record["errors"])])
    if out == records.output_path(None, "verification"):
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_part(page, page_text(record, records.read("mutants"), records.read("machine_faults"))), encoding="utf-8")
        written.append(PAGE)
    print(page_text(record, records.read("mutants"), records.read("machine_faults")))
    print("wrote", *written, file=sys.stderr)
    if failures:
        raise InputError("\n\n".join(failures))


if __name__ == "__main__":
    command.run_command(main)
