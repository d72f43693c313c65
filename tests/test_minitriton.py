"""`tutorials.minitriton` against Triton's interpreter: every kernel of the chapters and of the ladder, and the rules between dtypes.

Both run the same text on the same bytes; everything in memory afterwards has to be equal, bit for bit.
"""

import importlib.util
import itertools
import linecache
import os
import re

import numpy as np
import pytest
import torch

triton, tl = map(pytest.importorskip, ("triton", "triton.language"))

import fast.kernels  # noqa: F401, which makes up for what Triton 3.6's interpreter lacks
import reference
from tutorials import blocks, chapter_kernels, guarding, minitriton
from tutorials.checks import launches, launching
from tutorials.example import W, X

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton's interpreter is the other side")

F32 = np.float32
SHAPES = ((1, 1), (5, 7), (3, 64), (2, 129))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """text, name -> (kernel of minitriton, kernel of Triton), which needs a file to read the source from."""
    folder, known = tmp_path_factory.mktemp("kernels"), {}

    def make(text, name):
        if text not in known:
            path = folder / f"kernel_{len(known)}.py"
            path.write_text(f"import triton\nimport triton.language as tl\n\n\n{text}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            known[text] = module
        return in_minitriton(text, name), getattr(known[text], name)

    return make


def in_minitriton(text, name):
    scope = {"triton": minitriton, "tl": minitriton.language}
    linecache.cache["kernel"] = (len(text), None, text.splitlines(keepends=True), "kernel")
    exec(compile(text, "kernel", "exec"), scope)
    return scope[name]


def both(kernels, grid, arguments, **options):
    """Runs both on copies of the arguments; compares all that their buffers hold. bfloat16 comes as a Buffer."""
    ours, theirs = kernels
    mine = [argument_for(a, ours=True) for a in arguments]
    other = [argument_for(a, ours=False) for a in arguments]
    ours[grid](*mine, **options)
    theirs[grid](*other, **options)
    for before, a, b in zip(arguments, mine, other, strict=True):
        if isinstance(before, Memory):
            np.testing.assert_array_equal(a.flat.view(np.uint8), b.untyped_storage_bytes())
    return [a for before, a in zip(arguments, mine, strict=True) if isinstance(before, Memory)]


class Memory:
    """An argument: entries, their shape and the length of their rows, as either side takes them."""

    def __init__(self, flat, shape, stride=None, bfloat16=False):
        self.flat, self.shape, self.stride, self.bfloat16 = flat, shape, stride, bfloat16


class Tensor(torch.Tensor):
    """A tensor whose whole storage can be compared."""

    def untyped_storage_bytes(self):
        return np.frombuffer(bytes(self.untyped_storage()), np.uint8)


def argument_for(argument, ours):
    if not isinstance(argument, Memory):
        return argument
    flat = argument.flat.copy()
    if ours:
        dtype = blocks.bfloat16 if argument.bfloat16 else None
        return minitriton.Buffer("x", flat, argument.shape, argument.stride, dtype=dtype)
    tensor = torch.from_numpy(flat.view(np.int16)).view(torch.bfloat16) if argument.bfloat16 else torch.from_numpy(flat)
    return tensor.as_subclass(Tensor)


def matrix(values, extra=3, fill=1e30, bfloat16=False):
    """Rows that are `extra` longer than they need, and a block of `fill` behind the last."""
    rows, columns = values.shape
    wide = np.full(rows * (columns + extra) + 1024, fill, F32 if bfloat16 else values.dtype)
    wide[: rows * (columns + extra)].reshape(rows, columns + extra)[:, :columns] = values
    return Memory(blocks.narrowed(wide) if bfloat16 else wide, values.shape, columns + extra, bfloat16)


def result(shape, dtype, sentinel=-99):
    return Memory(np.full(int(np.prod(shape)), sentinel, dtype), shape)


def vector(values):
    return Memory(values, values.shape)


# The kernels of the chapters


def normal(m, k, seed=0):
    return np.random.default_rng(seed).normal(size=(m, k)).astype(F32)


def typed(values):
    """The three dtypes of chapter 06, each with rows that are longer than K; float16 has no 1e30."""
    yield matrix(values)
    yield matrix(values.astype(np.float16), fill=60000)
    yield matrix(values, bfloat16=True)


def run_copy_rows(kernels):
    for m, k in ((1, 1), (4, 4), (3, 8), (2, 64)):
        (_, y) = both(kernels, (m,), [matrix(normal(m, k)), result((m, k), F32), k, k + 3], BLOCK_K=k)
        np.testing.assert_array_equal(y.flat, normal(m, k).ravel())


def run_row_absmax(kernels):
    for (m, k), masked in itertools.product(SHAPES, (True, False)):
        for x in typed(normal(m, k)):
            both(kernels, (m,), [x, result((m,), F32), k, k + 3], BLOCK_K=minitriton.next_power_of_2(k), MASKED=masked)


def run_quantize_rows(kernels):
    hard = np.array([[0, 0, 0, 0], [127, 0.5, 1.5, -2.5], [2.0**-101, 0, 0, 0], [2.0**-100, 1e-38, 0, -1]], F32)
    for values in (hard, X, *(normal(m, k, seed) for m, k in SHAPES for seed in (0, 1))):
        for x in typed(values):
            (m, k), block = values.shape, minitriton.next_power_of_2(values.shape[1])
            arguments = [x, result((m, k), np.int8), result((m,), F32), k, k + 3]
            (_, codes, scale) = both(kernels, (m,), arguments, BLOCK_K=block, enable_fp_fusion=False)
            seen = blocks.widened(x.flat) if x.bfloat16 else x.flat
            right = reference.absmax_quantize(np.lib.stride_tricks.sliding_window_view(seen, k)[:: k + 3][:m].astype(F32), axis=-1)
            np.testing.assert_array_equal(codes.flat.reshape(m, k), right.codes)
            np.testing.assert_array_equal(scale.flat, right.scale.ravel())


def run_broken_rows(kernels):
    for how, (m, k) in itertools.product(("truncation", "sign", "mask", "stride", "nothing"), ((4, 4), (3, 7))):
        x = matrix(np.abs(normal(m, k)) + F32(0.5), fill=4)  # no zero row: what a NaN becomes is no one's rule
        arguments = [x, result((m, k), np.int8), result((m,), F32), k, k + 3]
        both(kernels, (m,), arguments, BLOCK_K=minitriton.next_power_of_2(k), HOW=how, enable_fp_fusion=False)


def product_arguments(m, n, k, y, scales=True):
    rng = np.random.default_rng(m + n + k)
    a, b = (matrix(rng.integers(-127, 128, (rows, k), np.int8), 31, 77) for rows in (m, n))
    of_rows, of_columns = (vector(rng.uniform(0.5, 2, size).astype(F32)) for size in (m, n))
    return [a, b, result((m, n), y), *((of_rows, of_columns) if scales else ())], (m, n, k, k + 31, k + 31)


PRODUCTS = ((1, 1, 1), (4, 4, 4), (17, 33, 100), (16, 16, 32), (3, 35, 64))


def tiles(m, n):
    return -(-m // 16), -(-n // 16)


def run_int8_product(kernels):
    for m, n, k in PRODUCTS:
        arguments, sizes = product_arguments(m, n, k, np.int32, scales=False)
        both(kernels, tiles(m, n), [*arguments, *sizes], BLOCK=16, BLOCK_K=32)


def run_scaled_product(kernels):
    for m, n, k in PRODUCTS:
        arguments, sizes = product_arguments(m, n, k, F32)
        both(kernels, tiles(m, n), [*arguments, *sizes], BLOCK=16, BLOCK_K=32)


def run_broken_product(kernels):
    for how in ("nothing", "mask of K", "not accumulated", "int16", "scales swapped"):
        for m, n, k in ((16, 16, 40), (5, 5, 64)):
            arguments, sizes = product_arguments(m, n, k, F32)
            both(kernels, tiles(m, n), [*arguments, *sizes], BLOCK=16, BLOCK_K=32, HOW=how)


def run_llm_int8_product(kernels):
    for x, w in ((X, W), (normal(17, 40), normal(33, 40, 1)), (normal(2, 5), normal(3, 5, 1))):
        x = x.copy()
        x[0, x.shape[1] // 2] = 12.7
        outliers = reference.outlier_columns(x)
        (xq, sx), (wq, sw) = reference.absmax_quantize(np.where(outliers, F32(0), x), -1), reference.absmax_quantize(w, -1)
        listed = np.array([*np.flatnonzero(outliers), *[0] * int((~outliers).sum()), outliers.sum()], np.int32)
        (m, k), n = x.shape, len(w)
        arguments = [matrix(xq, 5, 77), matrix(wq, 5, 77), result((m, n), F32), vector(sx.ravel()), vector(sw.ravel())]
        arguments += [Memory(x.ravel(), x.shape), vector(listed), m, n, k, k + 5, k + 5]
        y = both(kernels, tiles(m, n), arguments, BLOCK=16, BLOCK_K=32)[2]
        mine = reference.Int8Linear.from_float(w)(x)
        # Two sums of `o` float32 products and their scales, in another order: one rounding for each on either side.
        kept = np.abs(reference.absmax_dequantize(wq, sw))
        regular = np.abs(reference.quantized_matmul(np.where(outliers, F32(0), x), w))
        o = int(outliers.sum())
        bound = 2 * 2.0**-24 * ((o + 2) * np.abs(x[:, outliers]) @ kept[:, outliers].T + 2 * regular)
        assert (np.abs(y.flat.reshape(m, n) - mine) <= bound).all()


def test_every_kernel_of_the_chapters_is_run_here():
    assert {f"run_{name}" for name in chapter_kernels.every()} == {name for name in globals() if name.startswith("run_")}


@interpreted
@pytest.mark.parametrize("name", list(chapter_kernels.every()))
def test_a_kernel_of_a_chapter_leaves_the_same_bytes(made, name):
    globals()[f"run_{name}"](made(chapter_kernels.every()[name].text, name))


# The rules between dtypes

#: Of bfloat16 Triton's interpreter adds the bits: Torch is the other side there.
DTYPES = ("int8", "int32", "uint8", "int64", "float16", "float32")
EXPRESSIONS = {
    "sums": "a + b, a - b, a * b",
    "quotients": "a / b, b / a",
    "comparisons": "(a < b).to(tl.int32) + 2 * (a == b).to(tl.int32) + 4 * (a >= b).to(tl.int32)",
    "numbers": "a + 1, 2 - a, a * 3, a * 0.5",
    "where": "tl.where(a > b, a, b), tl.where(a > b, a, 0), tl.where(a > b, 1.0, 0.0)",
    "extremes": "tl.max(a, axis=0) + a, tl.min(a, axis=0) + a, tl.maximum(a, b), tl.minimum(a, b)",
    "total": "tl.sum(a, axis=0) + b",
    "magnitudes": "tl.abs(a) + 0",
}
TEXT = """@triton.jit
def rule(x, y, z, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    a, b = tl.load(x + lanes), tl.load(y + lanes)
    place = 0
{stores}
"""
INTEGERS = np.array([1, 2, 3, -1, 100, 127, -128, 7], np.int64)
FLOATS = np.array([1, 0.5, -2.25, 3.140625, 100, -0.125, 60, 7], F32)


def operand(name):
    if name == "bfloat16":
        return Memory(blocks.narrowed(FLOATS), (8,), bfloat16=True)
    dtype = np.dtype(name)
    return Memory((FLOATS if dtype.kind == "f" else INTEGERS).astype(dtype), (8,))


def torch_ones(*dtypes):
    return [*(torch.ones(8, dtype=getattr(torch, name)) for name in dtypes), torch.ones(16, dtype=torch.float64)]


@interpreted
@pytest.mark.parametrize("rule", EXPRESSIONS)
def test_dtypes_meet_as_in_triton(made, rule):
    expressions = [part.strip() for part in re.split(r",(?![^()]*\))", EXPRESSIONS[rule])]
    stores = "".join(f"    tl.store(z + {8 * n} + lanes, ({e}).to(tl.float64))\n" for n, e in enumerate(expressions))
    kernels = made(TEXT.format(stores=stores), "rule")
    for a, b in itertools.product(DTYPES, repeat=2):
        if rule == "quotients" and "uint8" in (a, b) and "int" in a and "int" in b and a != b:
            for kernel, stopped in zip(kernels, (guarding.Stopped, Exception), strict=True):
                with pytest.raises(stopped, match="different signedness"):
                    kernel[(1,)](*([np.ones(8, a), np.ones(8, b), np.ones(16)] if kernel is kernels[0] else torch_ones(a, b)), BLOCK=8)
            continue
        both(kernels, (1,), [operand(a), operand(b), result((8 * len(expressions),), np.float64)], BLOCK=8)


@interpreted
def test_casts_are_those_of_triton(made):
    text = """@triton.jit
def cast(x, y, BLOCK: tl.constexpr, TO: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    tl.store(y + lanes, tl.load(x + lanes).to(TO).to(tl.float64))
"""
    ours, theirs = made(text, "cast")
    for source, target in itertools.product(DTYPES, DTYPES):
        mine, other = argument_for(operand(source), True), argument_for(operand(source), False)
        found, right = np.zeros(8), torch.zeros(8, dtype=torch.float64)
        ours[(1,)](mine, found, BLOCK=8, TO=getattr(minitriton.language, target))
        theirs[(1,)](other, right, BLOCK=8, TO=getattr(tl, target))
        np.testing.assert_array_equal(found, right.numpy(), err_msg=f"{source} to {target}")


def test_every_bfloat16_survives_and_every_float32_between_is_rounded_to_even():
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    finite = bits[np.isfinite(blocks.widened(bits))]
    np.testing.assert_array_equal(blocks.narrowed(blocks.widened(finite)), finite)
    some = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint64).astype(np.uint32).view(F32)
    some = some[np.isfinite(some)]
    right = torch.from_numpy(some).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(blocks.narrowed(some), right)


def test_bfloat16_is_computed_as_torch_computes_it():
    text = """@triton.jit
def rule(x, y, z, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    a, b = tl.load(x + lanes), tl.load(y + lanes)
    tl.store(z + lanes, a + b)
    tl.store(z + 512 + lanes, a * b)
    tl.store(z + 1024 + lanes, a - 0.1)
    tl.store(z + 1536 + lanes, (a.to(tl.float32) * b).to(tl.bfloat16))
"""
    x, y = (torch.randn(512, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16) for seed in (0, 1))
    buffers = [minitriton.Buffer("x", t.view(torch.int16).numpy().view(np.uint16).copy(), dtype=blocks.bfloat16) for t in (x, y)]
    z = minitriton.Buffer("z", np.zeros(2048, np.uint16), dtype=blocks.bfloat16)
    in_minitriton(text, "rule")[(1,)](*buffers, z, BLOCK=512)
    right = torch.cat([x + y, x * y, x - torch.tensor(0.1, dtype=torch.bfloat16), (x.float() * y).to(torch.bfloat16)])
    np.testing.assert_array_equal(z.flat, right.view(torch.int16).numpy().view(np.uint16))


# What it refuses, and what it sees

WRONG = {
    "a subscript": ("values = x[row]", r"it raised TypeError in line \d+: values = x\[row\]"),
    "an odd block": ("values = tl.arange(0, 3)", "arange's range must be a power of 2"),
    "other without mask": ("values = tl.load(x + row, other=0.0)", "`other` cannot be provided without `mask`"),
    "a block as a condition": ("values = 1 if tl.arange(0, 4) > 2 else 0", "neither true nor false"),
    "what is not there": ("values = tl.gather(x, row)", "tl.gather is not among what runs here"),
    "a float as an offset": ("values = tl.load(x + 1.5)", "a pointer moves by whole numbers"),
    "far outside": ("values = tl.load(x + 1_000_000)", r"program 0 loads offset 1000000 of x, a buffer of 4, line 4: values = tl.load"),
    "before the first": ("values = tl.load(x - 1)", r"program 0 loads offset -1 of x, a buffer of 4, line 4"),
    "into an input": ("tl.store(x + row, 1.0)", r"program 0 stores into x, an input, line 4: tl.store"),
    "beyond the result": ("tl.store(y + 4 + row, 1.0)", r"program 0 stores offset 4 of y, a buffer of 4, line 4: tl.store"),
}
ONE_LINE = "@triton.jit\ndef wrong(x, y):\n    row = tl.program_id(0)\n    {line}\n"


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_line_is_stopped_and_named(how):
    line, message = WRONG[how]
    memory = launching.Memory()
    x, y = memory.rows("x", np.ones(4, F32)), memory.result("y", (4,), F32, -99)
    with pytest.raises(guarding.Stopped, match=message):
        memory.launch(in_minitriton(ONE_LINE.format(line=line), "wrong"), (1,), x, y)
    assert (y.flat == -99).all()


@interpreted
@pytest.mark.parametrize("how", ["far outside", "before the first", "into an input", "beyond the result"])
def test_both_sides_say_the_same_of_a_wrong_access(made, how):
    said = []
    for kernel, module in zip(made(ONE_LINE.format(line=WRONG[how][0]), "wrong"), (launching, launches), strict=True):
        memory = module.Memory()
        x, y = memory.rows("x", np.ones(4, F32)), memory.result("y", (4,), F32, -99)
        with pytest.raises(guarding.Stopped) as stopped:
            memory.launch(kernel, (1,), x, y)
        said.append(re.sub(r"line \d+", "line", str(stopped.value)))
    assert said[0] == said[1]


def test_every_access_is_seen_with_its_line_and_its_lanes():
    kernel = in_minitriton(chapter_kernels.every()["quantize_rows"].text, "quantize_rows")
    x, codes, scale = X[:, :3], np.zeros((4, 3), np.int8), np.zeros(4, F32)
    with minitriton.watching() as seen:
        kernel[(4,)](x, codes, scale, 3, 4, BLOCK_K=4)
    kernel[(4,)](x, codes, scale, 3, 4, BLOCK_K=4)  # nobody watches this one
    assert [(a.buffer.name, a.stores, a.bytes) for a in seen.accesses] == 4 * [("x", False, 12), ("codes", True, 3), ("scale", True, 4)]
    assert [a.program for a in seen.accesses[::3]] == [(0,), (1,), (2,), (3,)]
    second = seen.accesses[3]
    assert second.offsets.tolist() == [4, 5, 6, 7]
    assert second.mask.tolist() == [True, True, True, False]
    assert second.values.tolist() == [*X[1, :3].tolist(), 0]
    text = chapter_kernels.every()["quantize_rows"].text.splitlines()
    assert "tl.load(x" in text[second.line - 1]
    np.testing.assert_array_equal(codes, reference.absmax_quantize(x, axis=-1).codes)


def test_what_a_kernel_calls_is_a_part_of_it():
    text = """@triton.jit
def twice(x):
    return x + x


@triton.jit
def caller(x, y):
    tl.store(y, twice(tl.load(x)))
"""
    y = np.zeros(1, F32)
    in_minitriton(text, "caller")[(1,)](np.full(1, 3, F32), y)
    assert y[0] == 6
    with pytest.raises(RuntimeError, match="inside of a kernel"):
        in_minitriton(text, "twice")(1)
