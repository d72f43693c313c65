"""Wrong kernels, as readers write them: each is refused and told of its own mistake, and none of them ends the process.

Every kernel here is one of two with a switch, since Triton reads a kernel's source: `how` says which line is wrong.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

triton, tl = map(pytest.importorskip, ("triton", "triton.language"))

import fast.kernels  # noqa: F401, which makes up for what Triton 3.6's interpreter lacks, as it does in the notebooks
from tutorials.checks import kernel_checks, launches
from tutorials.checks.engine import Stopped

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="accesses are seen in Triton's interpreter alone")


@triton.jit
def rows_kernel(x, codes, scale, K, stride, BLOCK_K: tl.constexpr, HOW: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    inside = columns < K
    if HOW == "subscript":
        values = x[row]
    elif HOW == "no mask":
        values = tl.load(x + row * stride + columns)
    elif HOW == "packed x":
        values = tl.load(x + row * K + columns, mask=inside, other=0.0)
    elif HOW == "far":
        values = tl.load(x + 1_000_000 + columns, mask=inside, other=0.0)
    else:
        values = tl.load(x + row * stride + columns, mask=inside, other=0.0)
    absmax = tl.max(values, axis=0) if HOW == "sign" else tl.max(tl.abs(values), axis=0)
    usable = absmax >= (-1.0 if HOW == "no guard" else 2.0**-100)
    safe = tl.where(usable, absmax, 1.0)
    inverse = tl.where(usable, tl.math.div_rn(1.0, safe) * 127.0, 0.0)
    steps = (values * inverse + 12582912.0) - 12582912.0
    if HOW == "truncation":
        steps = values * inverse
    elif HOW == "division":
        steps = (values / tl.math.div_rn(safe, 127.0) + 12582912.0) - 12582912.0
    elif HOW == "x * 127 / absmax":
        steps = (tl.math.div_rn(values * 127.0, safe) + 12582912.0) - 12582912.0
    if HOW == "stride of codes":
        tl.store(codes + row * stride + columns, steps.to(tl.int8), mask=inside)
    elif HOW == "store without mask":
        tl.store(codes + row * K + columns, steps.to(tl.int8))
    elif HOW == "store into x":
        tl.store(x + row * stride + columns, steps, mask=inside)
    else:
        tl.store(codes + row * K + columns, steps.to(tl.int8), mask=inside)
    result = tl.math.div_rn(safe, 127.0)
    if HOW == "reciprocal":
        result = tl.math.div_rn(127.0, safe)
    elif HOW == "absmax":
        result = safe
    tl.store(scale + row, tl.where(usable, result, 0.0))


@triton.jit
def product_kernel(a, b, y, scale_a, scale_b, M, N, K, stride_a, stride_b, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, HOW: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_m, in_n = rows < M, columns < N
    end = K + (BLOCK_K if HOW == "no mask on K" else 0)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32 if HOW == "float32" else tl.int32)
    for k in range(0, BLOCK_K if HOW == "first block" else K, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)[None, :]
        of_a = (in_m if HOW != "rows of a" else rows >= 0)[:, None] & (ks < end)
        of_b = (in_n if HOW != "rows of b" else columns >= 0)[:, None] & (ks < end)
        left = tl.load(a + rows[:, None] * stride_a + ks, mask=of_a, other=0)
        right = tl.load(b + columns[:, None] * stride_b + ks, mask=of_b, other=0)
        if HOW == "float32":
            acc += tl.dot(left.to(tl.float32), right.to(tl.float32).T)
        elif HOW == "last block":
            acc = tl.dot(left, right.T, out_dtype=tl.int32)
        else:
            acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
        if HOW == "int16":
            acc = acc.to(tl.int16).to(tl.int32)
    sa = tl.load(scale_a + rows) if HOW == "no mask on scale_a" else tl.load(scale_a + rows, mask=in_m, other=0.0)
    sb = tl.load(scale_b + columns) if HOW == "no mask on scale_b" else tl.load(scale_b + columns, mask=in_n, other=0.0)
    if HOW == "scales swapped":
        sa = tl.load(scale_b + rows, mask=rows < N, other=0.0)
        sb = tl.load(scale_a + columns, mask=columns < M, other=0.0)
    result = acc.to(tl.float32)
    if HOW != "no epilogue" and HOW != "no scale_a":
        result *= sa[:, None]
    if HOW != "no epilogue" and HOW != "no scale_b":
        result *= sb[None, :]
    if HOW == "masked by rows":
        tl.store(y + rows[:, None] * N + columns[None, :], result, mask=in_m[:, None] & (columns >= 0)[None, :])
    elif HOW == "masked by columns":
        tl.store(y + rows[:, None] * N + columns[None, :], result, mask=(rows >= 0)[:, None] & in_n[None, :])
    elif HOW == "stride M":
        tl.store(y + rows[:, None] * M + columns[None, :], result, mask=in_m[:, None] & in_n[None, :])
    else:
        tl.store(y + rows[:, None] * N + columns[None, :], result, mask=in_m[:, None] & in_n[None, :])


class Wrong:
    """A kernel whose switch is set before the checker launches it."""

    def __init__(self, kernel, how):
        self.kernel, self.how, self.__name__ = kernel, how, "my_kernel"

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.kernel[grid](*arguments, HOW=self.how, **options)


ROWS = {
    "stride of codes": (r"program 1 stores offset \d+ of codes, a buffer of 2, line \d+: tl.store\(codes", "codes is packed"),
    "store without mask": (r"program 0 stores offset 3 of codes, a buffer of 3, line \d+", "the store of codes writes beyond column K"),
    "far": (r"program 0 loads offset 1000000 of x, a buffer of 5, line \d+", None),
    "store into x": (r"program 0 stores into x, an input, line \d+", None),
    "subscript": (r"it raised \w+Error in line \d+: values = x\[row\]", None),
    "no mask": (": got", "the load reads beyond column K"),
    "packed x": (": got", "rows of x are `stride` apart"),
    "sign": (": got", "tl.max(tl.abs(values)) the largest magnitude"),
    "no guard": (": got", "is a zero row"),
    "truncation": ("codes: got", "truncation"),
    "division": ("codes: got", "x / scale lands"),
    "x * 127 / absmax": ("codes: got", "x * 127 / absmax lands"),
    "reciprocal": ("scale: got", "not its reciprocal"),
    "absmax": ("scale: got", "the scale is the value of one step"),
}
PRODUCT = {
    "masked by rows": (r"program \(0, 0\) stores offset 1 of y, a buffer of 1, line \d+", "the store of y writes beyond column N"),
    "masked by columns": (r"program \(0, 0\) stores offset 1 of y, a buffer of 1, line \d+", "the store of y writes beyond row M"),
    "stride M": (r"program \(0, 0\) stores offset 2 of y, a buffer of 2, line \d+", "rows of y are N apart"),
    "rows of a": (r"program \(0, 0\) loads offset \d+ of a, a buffer of \d+, line \d+", "the load of a reads beyond row M"),
    "rows of b": (r"program \(0, 0\) loads offset \d+ of b, a buffer of \d+, line \d+", "the load of b reads beyond row N"),
    "no mask on scale_a": (r"program \(0, 0\) loads offset 1 of scale_a, a buffer of 1", "the load of scale_a reads beyond row M"),
    "no mask on scale_b": (r"program \(0, 0\) loads offset 1 of scale_b, a buffer of 1", "the load of scale_b reads beyond row N"),
    "float32": ("y: got", "the accumulator is float32"),
    "int16": ("y: got", "the accumulator is int16"),
    "scales swapped": ("y: got", "scale_a belongs to the rows of y"),
    "no mask on K": ("y: got", "the last block of K reads past the row"),
    "first block": ("y: got", "only the first block of K was added"),
    "last block": ("y: got", "only the last block of K is left"),
    "no epilogue": ("y: got", "the epilogue is missing"),
    "no scale_a": ("y: got", "scale_a is missing"),
    "no scale_b": ("y: got", "scale_b is missing"),
}
EVERY = [(kernel_checks.quantize_rows, rows_kernel, how, *said) for how, said in ROWS.items()]
EVERY += [(kernel_checks.product, product_kernel, how, *said) for how, said in PRODUCT.items()]


@pytest.mark.parametrize(("checker", "kernel", "how", "fault", "hint"), EVERY, ids=[f"{k.__name__}-{how}" for _, k, how, _, _ in EVERY])
def test_a_wrong_kernel_is_told_of_its_own_mistake(checker, kernel, how, fault, hint):
    verdict = checker(Wrong(kernel, how))
    assert not verdict.passed
    assert re.search(fault, verdict.message), verdict.message
    told = re.search(r"^Hint: (.*)", verdict.message, re.MULTILINE)
    if hint is None:
        assert told is None, told
    else:
        assert told, verdict.message
        assert hint in told[1]


@pytest.mark.parametrize(("checker", "kernel"), [(kernel_checks.quantize_rows, rows_kernel), (kernel_checks.product, product_kernel)])
def test_the_kernel_with_no_line_wrong_passes(checker, kernel):
    verdict = checker(Wrong(kernel, "nothing"))
    assert verdict.passed, verdict.message


# The guard itself


@triton.jit
def moves(source, target, first, count: tl.constexpr, atomic: tl.constexpr):
    offsets = first + tl.arange(0, count)
    values = tl.load(source + offsets)
    if atomic:
        tl.atomic_add(target + offsets, values)
    else:
        tl.store(target + offsets, values)


def launch(first, count=4, atomic=False, inside=None):
    memory = launches.Memory()
    source = memory.rows("source", np.zeros(16 if inside == "source" else 8, np.int32))
    target = memory.result("target", (8,), np.int32, -1)
    memory.launch(moves, (1,), source, target, first, count, atomic)
    return target


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("first", [0, 4])
def test_what_lies_inside_is_moved(first, atomic):
    assert launch(first, atomic=atomic).tolist().count(0 if not atomic else -1) >= 4


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (5, "program 0 loads offset 8 of source, a buffer of 8"),
        (-1, "program 0 loads offset -1 of source, a buffer of 8"),
        (8, "program 0 loads offset 8 of source, a buffer of 8"),
        (100_000, "program 0 loads offset 100000 of source, a buffer of 8"),
        (-100_000, "program 0 loads offset -100000 of source, a buffer of 8"),
    ],
)
def test_a_load_outside_is_stopped_and_named(first, message):
    with pytest.raises(Stopped, match=re.escape(message)) as stopped:
        launch(first)
    assert "values = tl.load(source + offsets)" in str(stopped.value)


@pytest.mark.parametrize("atomic", [False, True])
def test_a_store_outside_is_stopped_and_named(atomic):
    with pytest.raises(Stopped, match=r"program 0 stores offset 8 of target, a buffer of 8, line \d+: tl\."):
        launch(6, atomic=atomic, inside="source")


def test_an_access_that_begins_inside_and_ends_outside_is_stopped():
    memory = launches.Memory()
    source = memory.rows("source", np.zeros(8, np.int32))
    target = memory.result("target", (8,), np.int32, -1)
    shifted = torch.as_strided(source.view(torch.int8), (28,), (1,), 2)[: 4 * 6].numpy()
    memory.check(np.array([shifted.ctypes.data], np.uint64), np.ones(1, bool), 4, False, 1)
    with pytest.raises(Stopped):
        memory.check(np.array([source.data_ptr() + 30], np.uint64), np.ones(1, bool), 4, False, 1)
    assert target[0] == -1


def test_the_interpreter_is_as_it_was_after_a_launch_that_was_stopped():
    from triton.runtime import interpreter

    before = interpreter._interpreter
    with pytest.raises(Stopped):
        launch(8)
    assert interpreter._interpreter is before


# Launches of a reader's own, without a checker


OUTSIDE = """
import os

os.environ["TRITON_INTERPRET"] = "1"
import torch, triton, triton.language as tl
from tutorials.checks import kernel_checks

kernel_checks.guard_every_launch()
kernel_checks.guard_every_launch()  # once more changes nothing

@triton.jit
def copy(x, y, first, count: tl.constexpr):
    offsets = first + tl.arange(0, count)
    tl.store(y + offsets, tl.load(x + offsets))

x, y = torch.arange(12, dtype=torch.int32)[4:], torch.zeros(12, dtype=torch.int32)
copy[(1,)](x, y, 0, 8)
print(y.tolist())
for first in (1, 1 << 28):
    try:
        copy[(1,)](x, y, first, 8)
    except Exception as error:
        print(type(error).__name__, str(error).split("\\n")[0])
"""


def test_a_launch_without_a_checker_cannot_end_the_process_either(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(OUTSIDE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(launches.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=True)
    lines = run.stdout.split("\n")
    assert lines[0] == "[4, 5, 6, 7, 8, 9, 10, 11, 0, 0, 0, 0]"
    where = r"line 14: tl\.store\(y \+ offsets, tl\.load"
    assert re.match(rf"OutOfBounds program 0 loads offset 8 of x, a buffer of 8, {where}", lines[1]), lines[1]
    assert re.match(rf"OutOfBounds program 0 loads offset \d+ of [xy], a buffer of \d+, {where}", lines[2]), lines[2]
