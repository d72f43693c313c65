"""Mutation testing of native.c and its parts: makes small faults in them, one at a time, and holds each against the reference.

    python -m tests.tools.native_mutants                        a random sample of 60 mutants
    python -m tests.tools.native_mutants --count 200 --seed 1
    python -m tests.tools.native_mutants --instructions avx2

Every mutant is compiled with sanitizers into a program of its own (tests/native_driver.c), so a read outside of an array or an endless
loop is noticed, too. It survives if all cases come out as the contract asks. native_equivalents.toml explains survivors; one that it does
not explain is printed with its line, and the command fails.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from itertools import product as combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fast
from fast.cpu import build, engine
from fast.cpu.native import Native
from fast.weights import QuantizedWeight
from tests import native_driver
from tests.comparison import DTYPES, OUTLIER_WEIGHTS, QUANTIZERS, REFERENCE, assert_product, assert_same
from tests.strategies import Recipe

#: What might have been written by mistake.
SWAPS = {
    "<": ("<=",), "<=": ("<",), ">": (">=",), ">=": (">",), "+": ("-",), "-": ("+",), "*": ("+",), "/": ("*",), "&": ("|",), "|": ("&",),
    "&&": ("||",), "||": ("&&",), "==": ("!=",), "!=": ("==",), "+=": ("-=", "="), "-=": ("+=",), "<<": (">>",), ">>": ("<<",),
    "++": ("--",), "^": ("&",), "%": ("/",),
}  # fmt: skip
TOKEN = re.compile(r"[ (](<<|>>|<=|>=|==|!=|\+=|-=|&&|\|\||[-+*/&|^%<>])[ ]|(\+\+)|(?<![\w.\"])(\d+)(?![\w.\"])")

#: By key, why a mutant that survives computes the same results, or is one that only time can tell.
EQUIVALENT = Path(__file__).with_name("native_equivalents.toml")

#: A mutant that takes this many times as long as the file itself, and seconds, does not end.
TIMES, SECONDS = 20, 60


class Mutant(NamedTuple):
    """The text from `start` to `end` of a file, replaced."""

    file: str
    start: int
    end: int
    replacement: str

    def line(self, source: str) -> str:
        """The line in question, without its indentation."""
        return source.splitlines()[source.count("\n", 0, self.start)].strip()

    def key(self, source: str) -> str:
        """What it is known by, whatever the lines above it become."""
        begin = source.rfind("\n", 0, self.start) + 1
        before, after = source[begin : self.start].lstrip(), source[self.end :].split("\n", 1)[0]
        return f"{before}[{source[self.start : self.end]} -> {self.replacement}]{after}"


def mutants(file: str, source: str) -> list[Mutant]:
    """Every mutant of a file."""
    code = re.sub(r"/\*.*?\*/", lambda comment: " " * len(comment.group()), source, flags=re.DOTALL)
    found = []
    for token in TOKEN.finditer(code):
        group = token.lastindex or 0
        text, (start, end) = token.group(group), token.span(group)
        replacements = SWAPS.get(text) or (str(int(text) + 1), *([str(int(text) - 1)] if int(text) else []))
        found += [Mutant(file, start, end, replacement) for replacement in replacements]
    return found


class Case(NamedTuple):
    """A layer, an input, and what the reference makes of them."""

    x: Tensor
    weight: QuantizedWeight
    bias: Tensor | None
    threshold: float | None
    per_row: bool
    quantizer: str
    y: Tensor
    met: Tensor
    outliers: Tensor
    quantized: Any
    acc: Tensor


def cases() -> Iterator[Case]:
    """Few rows and many, whole registers and not, every option; the awkward values among them."""
    shapes = (
        (1, 70, 17),
        (3, 130, 9),
        (8, 64, 50),
        (9, 67, 5),
        (37, 70, 53),
        (70, 33, 7),
        (20, 300, 9),
        (66, 2060, 7),
        (2, 40_000, 3),
        (9, 40_000, 2),
    )
    options = list(combinations(DTYPES, QUANTIZERS, OUTLIER_WEIGHTS, (True, False)))
    for number, ((m, k, n), (dtype, quantizer, outlier_weight, per_row)) in enumerate(combinations(shapes, options)):
        spoiled = ("nan", "inf") if number % 7 == 0 and m > 2 else ()
        outliers = ("none", "some columns", "threshold", "last column")[number % 4]
        pattern = ("normal", "zero rows", "positive", "equal")[number // 3 % 4]
        layout = ("contiguous", "every other row")[number % 2]
        x = Recipe((m, k), dtype, number, pattern=pattern, outliers=outliers, layout=layout, spoiled=spoiled).tensor()
        w = Recipe((n, k), dtype, number + 1, exponent=-3).tensor()
        bias = Recipe((n,), dtype, number + 2).tensor() if number % 3 else None
        threshold = None if number % 5 == 4 else 6.0
        granularity = "vector" if per_row else "tensor"
        axis = -1 if per_row else None
        codes = getattr(REFERENCE, f"{quantizer}_quantize")(w, axis)
        met = w.float() if outlier_weight == "float" else getattr(REFERENCE, f"{quantizer}_dequantize")(*codes)
        with fast.backend("torch"):
            weight = QuantizedWeight.of_layer(fast.Int8Linear.from_float(w, None, threshold, outlier_weight, quantizer, granularity))
        y = REFERENCE.layer(w, bias, threshold, outlier_weight, quantizer, granularity)(x)
        acc = REFERENCE.int8_matmul(codes.codes[:m], codes.codes)
        quantized = getattr(REFERENCE, f"{quantizer}_quantize")(x, axis)
        yield Case(x, weight, bias, threshold, per_row, quantizer, y, met, REFERENCE.outlier_columns(x, threshold), quantized, acc)


def check(native: Native, chosen: list[Case]) -> None:
    """Raises `AssertionError` where the engine breaks the contract."""
    for case in chosen:
        y = native.linear(case.x, case.weight, case.bias, case.threshold, case.per_row)
        assert_product(y, case.y, case.x, case.met, case.outliers, case.bias)
        for actual, expected in zip(native.quantize(case.x, case.per_row, case.quantizer), case.quantized, strict=False):
            if actual is not None:
                assert_same(actual, expected)
        if case.threshold is not None:
            assert_same(native.outlier_columns(case.x, case.threshold), case.outliers)
        if case.quantizer == "absmax" and case.per_row and case.weight.float_weight is None:
            check_experts(native, case)
        codes = case.weight.codes
        assert_same(native.int8_matmul(codes[: len(case.x)], codes), case.acc)


def check_experts(native: Native, case: Case) -> None:
    """One call for five experts, two of them without rows, has the results of a call for each."""
    rows, weight = len(case.x), case.weight
    cuts = [0, rows // 3, rows // 3, rows - rows // 4, rows - rows // 4, rows - rows // 5]
    codes, absmax = (torch.stack([t.roll(e, 0) for e in range(5)]) for t in (weight.codes, weight.absmax))  # type: ignore[union-attr]
    bias = None if case.bias is None else torch.stack([case.bias.roll(e) for e in range(5)])
    y = case.x.new_zeros(case.y.shape)
    for e, (start, end) in enumerate(pairwise(cuts)):
        if end > start:
            own = QuantizedWeight(codes[e], absmax[e])
            y[start:end] = native.linear(case.x[start:end], own, None if bias is None else bias[e], case.threshold, True)
    assert_same(native.experts_linear(case.x, codes, absmax, bias, torch.tensor(cuts[1:]), case.threshold), y)


def verdict(mutant: Mutant | None, name: str, chosen: list[Case], folder: Path, limit: float) -> str:
    """ "not C", "killed" or "survived"."""
    for path in build.sources():
        source = path.read_text(encoding="utf-8")
        if mutant is not None and path.name == mutant.file:
            source = source[: mutant.start] + mutant.replacement + source[mutant.end :]
        (folder / "fast" / "cpu" / path.name).write_text(source)
    made = folder / "driver"
    flags = (*(flag for flag in build.FLAGS if flag not in ("-fPIC", "-shared")), "-w", *engine.INSTRUCTIONS[name].flags)
    driver = str(folder / "tests" / "native_driver.c")
    command = [build.find_compiler(), *flags, *native_driver.SANITIZERS, "-O0", driver, "-o", str(made), "-lm"]
    if subprocess.run(command, capture_output=True).returncode:
        return "not C"
    driven = native_driver.Driven(name, lambda: [str(made)])
    timer = threading.Timer(limit, driven.kill)
    timer.start()
    try:
        check(Native(driven), chosen)  # type: ignore[arg-type]
    except (AssertionError, RuntimeError, MemoryError, ValueError):
        return "killed"
    finally:
        timer.cancel()
        driven.kill()
    return "survived"


def main(arguments: list[str]) -> int:
    """The command; 1 if a mutant survives that nothing explains."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.native_mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="how many mutants (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--survivors", action="store_true", help="instead of a sample those that native_equivalents.toml explains")
    parser.add_argument("--instructions", choices=engine.available(), default=engine.available()[0], help="default: the fastest")
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)  # threads of its own are a part of the file
    sources = {path.name: path.read_text(encoding="utf-8") for path in build.sources() if path.name != "native_registers.h"}
    everything = [mutant for name, source in sources.items() for mutant in mutants(name, source)]
    explained = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    by_key = {mutant.key(sources[mutant.file]): mutant for mutant in everything}
    found = Counter(mutant.key(sources[mutant.file]) for mutant in everything)
    if stale := [key for key in explained if found[key] != 1]:
        sys.exit("not one mutant has each of these keys of tests/tools/native_equivalents.toml:\n" + "\n".join(stale))
    if options.survivors:
        sample = [by_key[key] for key in explained]
    else:
        sample = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    counts = dict.fromkeys(("killed", "survived", "explained", "not C"), 0)
    chosen = list(cases())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "fast" / "cpu").mkdir(parents=True)
        (folder / "tests").mkdir()
        shutil.copy(native_driver.SOURCE, folder / "tests")
        start = time.monotonic()
        assert verdict(None, options.instructions, chosen, folder, threading.TIMEOUT_MAX) == "survived", "the files themselves are wrong"
        limit = max(SECONDS, TIMES * (time.monotonic() - start))
        for mutant in sample:
            source = sources[mutant.file]
            said = verdict(mutant, options.instructions, chosen, folder, limit)
            if said == "survived" and mutant.key(source) in explained:
                said = "explained"
            counts[said] += 1
            if said == "survived":
                print(f"{mutant.file}:{source.count(chr(10), 0, mutant.start) + 1}: {mutant.key(source)}", flush=True)
    print(f"{len(everything)} mutants, {len(sample)} tried: {', '.join(f'{count} {said}' for said, count in counts.items())}")
    return 1 if counts["survived"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
