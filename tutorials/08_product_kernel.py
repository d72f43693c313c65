# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08. A product kernel of our own, in three steps
#
# **Question.** LLM.int8() is an int8 product, a float product, two sets of scales, a bias and a sum. How does one
# kernel compute all of it, and why should it be one?
#
# **You need** [06](06_weights_and_batch.ipynb) and [07](07_quantize_kernel.ipynb). **You leave with** a kernel that
# computes all of LLM.int8() after quantization in one launch, step 2 of it written by yourself.

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from matplotlib import pyplot as plt

import reference
from fast.kernels import int8_matmul
from tutorials import model_data, pictures, predict
from tutorials.checks import kernel_checks
from tutorials.example import W, X

np.set_printoptions(precision=4, suppress=True)
kernel_checks.guard_every_launch()  # a wrong address stops a kernel, not the notebook

# %% [markdown]
# ## The idea
#
# Every entry of Y needs a row of X and a row of W. One program for each entry would read $2K$ bytes for $K$
# multiply-adds: half a multiply-add per byte, far more traffic than memory can deliver.
#
# A program therefore owns a **tile** of Y, say 128 x 128. It loops over K in blocks: load 128 x BLOCK_K codes of X, as
# many of W, multiply the two blocks on the matrix unit, and add to 128 x 128 **accumulators**, which stay in registers
# all the time. Each code loaded is used 128 times.
#
# > **Predict.** M = N = K = 4096. How often is each code of X read, with one program per entry, and with tiles of 128 x
# > 128?

# %%
M = N = K = 4096
predict.number("one program per entry", N // 1, "d", "times")
predict.number("tiles of 128 x 128", N // 128, "d", "times")
print(
    f"{'tile':>10} {'each code of X is read':>24} {'bytes loaded':>14} "
    f"{'multiply-adds per byte':>22}"
)
for tile in (1, 16, 64, 128, 256):
    loaded = (M // tile) * (N // tile) * 2 * tile * K
    print(
        f"{tile:>4} x {tile:<4}{N // tile:>17} times {pictures.quantity(loaded):>18} "
        f"{M * N * K / loaded:>20.1f}"
    )

of_y = "Y (M x N)\n\nthe tile's accumulators\nstay in registers"


def draw(size, limits, places):
    figure, ax = plt.subplots(figsize=size)
    for x, y, width, height, color in (
        (0, 0, 4, 2, pictures.BLUE),
        (4.5, 2.4, 2.4, 2.2, pictures.ORANGE),
        (4.5, 0, 2.4, 2, pictures.GREEN),
    ):
        pictures.box(ax, x, y, width, height, color, 0.08)
    for i in range(4):
        pictures.box(ax, i + 0.05, 0.75, 0.9, 0.5, pictures.BLUE, 0.08 + 0.07 * i)
        ax.text(i + 0.5, 1.0, f"step {i + 1}", ha="center", va="center", fontsize=8.5)
        down = 4.05 - 0.55 * i
        pictures.box(ax, 5.4, down, 0.6, 0.5, pictures.ORANGE, 0.08 + 0.07 * i)
        ax.text(5.7, down + 0.25, i + 1, ha="center", va="center", fontsize=8.5)
    pictures.box(ax, 5.4, 0.75, 0.6, 0.5, pictures.GREEN, 0.6)
    for (x, y, side), text in places.items():
        ax.text(x, y, text, ha=side, va="center", fontsize=10)
    pictures.blank(ax, *limits)
    return figure


w_codes = "W codes, transposed\n(K x N)"
beside = {(-0.1, 1, "right"): "X codes\n(M x K)", (7, 3.5, "left"): w_codes}
below = {(0, 2.4, "left"): "X codes (M x K)", (4.2, 3.5, "right"): w_codes}
figure = draw((7.6, 3.4), ((-1.2, 9.3), (-0.1, 4.7)), beside | {(7, 1, "left"): of_y})
narrow = draw((3.9, 4), ((-0.1, 7), (-2, 4.7)), below | {(4.5, -1, "left"): of_y})
pictures.show(
    figure,
    "A tile of Y needs a strip of rows of X and a strip of columns of transposed W. "
    "Both strips are read "
    "in four blocks along K, block 1 of X with block 1 of W, and so on; "
    "the accumulators of the tile stay in registers.",
    narrow,
)

# %% [markdown]
# ## The formula
#
# The formula of chapter 05, with the outlier weights taken from the codes (chapter 06); one program computes it for the
# rows $m$ and columns $n$ of one tile:
#
# $$ Y_{mn} = \underbrace{\Big( \textstyle\sum_k q^X_{mk} q^W_{nk} \Big)}_{\text{step 1, int32}} \cdot
# \underbrace{s^X_m\, s^W_n}_{\text{step 2}} + \underbrace{\Big( \textstyle\sum_{k \in O} X_{mk}\, q^W_{nk} \Big) \cdot
# s^W_n}_{\text{step 3, float32}} $$
#
# ## Step 1: tiles and int32 accumulators
#
# A grid of programs, one per tile. `tl.dot` multiplies two blocks; on int8 blocks with int32 accumulators it is exact.
# Rows and columns past the end, and the last block of K, are masked; a zero code adds nothing.


# %%
@triton.jit
def int8_product(
    a, b, y, M, N, K, stride_a, stride_b, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_m, in_n = rows < M, columns < N
    acc = tl.zeros((BLOCK, BLOCK), tl.int32)
    for k in range(0, K, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)[None, :]
        left_mask, right_mask = in_m[:, None] & (ks < K), in_n[:, None] & (ks < K)
        left = tl.load(a + rows[:, None] * stride_a + ks, mask=left_mask, other=0)
        right = tl.load(b + columns[:, None] * stride_b + ks, mask=right_mask, other=0)
        acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
    of_y = y + rows[:, None] * N + columns[None, :]
    tl.store(of_y, acc, mask=in_m[:, None] & in_n[None, :])


def launch(kernel, a, b, y, *rest):
    (m, k), n = a.shape, b.shape[0]
    grid = (triton.cdiv(m, 16), triton.cdiv(n, 16))
    sizes = m, n, k, a.stride(0), b.stride(0)
    kernel[grid](a, b, y, *rest, *sizes, BLOCK=16, BLOCK_K=32)
    return y.numpy()


outliers = reference.outlier_columns(X)
(xq, sx), (wq, sw) = (
    reference.absmax_quantize(np.where(outliers, np.float32(0), X), -1),
    reference.absmax_quantize(W, -1),
)
acc = launch(
    int8_product,
    torch.from_numpy(xq),
    torch.from_numpy(wq),
    torch.full((4, 4), -99, dtype=torch.int32),
)
assert np.array_equal(acc, reference.int8_matmul(xq, wq))
print("the 4 x 4 example, its outlier column cleared:\n", acc)

for m, n, k in ((1, 1, 1), (17, 33, 100), (40, 5, 64)):
    rng = np.random.default_rng(m)
    a, b = (rng.integers(-127, 128, (rows, k), np.int8) for rows in (m, n))
    got = launch(
        int8_product,
        torch.from_numpy(a),
        torch.from_numpy(b),
        torch.full((m, n), -99, dtype=torch.int32),
    )
    assert np.array_equal(got, reference.int8_matmul(a, b))
    assert np.array_equal(got, int8_matmul(torch.from_numpy(a), torch.from_numpy(b)))
print("awkward shapes: equal to the reference, and to the kernel of fast")

# %% [markdown]
# The 4 x 4 example takes one program, 12 of its 16 rows and columns masked. A tile of 4 x 4 would do for it, but matrix
# units work on blocks of at least 16.
#
# ## Step 2: the epilogue
#
# > **Predict.** Storing the accumulators, and scaling them in another kernel, moves how many bytes for each entry of Y?
# > And scaling them while they are still in registers? (The accumulators are int32, Y is float16.)

# %%
accumulator, result = np.dtype(np.int32).itemsize, np.dtype(np.float16).itemsize
predict.number("in another kernel", 2 * accumulator + result, "d", "bytes")
predict.number("in registers", result, "d", "bytes")
predict.explain(
    f"{accumulator} bytes written, {accumulator} read, {result} written, against "
    f"{result} written."
)

# %% [markdown]
# So the scales are applied in the **epilogue**, the last lines of the same kernel. Each program needs one scale for
# each of its rows and one for each of its columns.


# %%
@triton.jit
def scaled_product(
    a, b, y, scale_a, scale_b, M, N, K, stride_a, stride_b,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_m, in_n = rows < M, columns < N
    acc = tl.zeros((BLOCK, BLOCK), tl.int32)
    for k in range(0, K, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)[None, :]
        left_mask, right_mask = in_m[:, None] & (ks < K), in_n[:, None] & (ks < K)
        left = tl.load(a + rows[:, None] * stride_a + ks, mask=left_mask, other=0)
        right = tl.load(b + columns[:, None] * stride_b + ks, mask=right_mask, other=0)
        acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)

    sa = tl.load(scale_a + rows, mask=in_m, other=0.0)
    sb = tl.load(scale_b + columns, mask=in_n, other=0.0)
    result = (acc.to(tl.float32) * sa[:, None]) * sb[None, :]
    of_y = y + rows[:, None] * N + columns[None, :]
    tl.store(of_y, result, mask=in_m[:, None] & in_n[None, :])


tensors = [torch.from_numpy(array) for array in (xq, wq, sx.ravel(), sw.ravel())]
y = launch(scaled_product, *tensors[:2], torch.full((4, 4), torch.nan), *tensors[2:])
regular = reference.quantized_matmul(np.where(outliers, np.float32(0), X), W)
assert np.array_equal(y, regular)
print("the regular part: equal to the reference, bit for bit\n", y)

# %% [markdown]
# Equal, since the epilogue does what the reference does, in its order: to float32, times the scale of the row, times
# the scale of the column.
#
# ## Step 3: the outlier loop
#
# The outlier columns are known only on the device: a kernel has just computed them from X. If the host read their
# number, it would synchronize with the GPU at every layer. So their column numbers stay in device memory as a **list**,
# with the count after it, and the product kernel loads the count as the trip count of a second loop.
#
# The weights of these columns come from the codes (chapter 06): a code is exact in 16 bits, so X's column times the
# codes is accumulated in float32, and the scale of W is applied afterwards.


# %%
@triton.jit
def llm_int8_product(
    a, b, y, scale_a, scale_b, x, outliers, M, N, K, stride_a, stride_b,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_m, in_n = rows < M, columns < N
    acc = tl.zeros((BLOCK, BLOCK), tl.int32)
    for k in range(0, K, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)[None, :]
        left_mask, right_mask = in_m[:, None] & (ks < K), in_n[:, None] & (ks < K)
        left = tl.load(a + rows[:, None] * stride_a + ks, mask=left_mask, other=0)
        right = tl.load(b + columns[:, None] * stride_b + ks, mask=right_mask, other=0)
        acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)

    part = tl.zeros((BLOCK, BLOCK), tl.float32)
    count = tl.load(outliers + K)
    for o in range(count):
        k = tl.load(outliers + o)
        x_o = tl.load(x + rows * K + k, mask=in_m, other=0.0)
        w_o = tl.load(b + columns * stride_b + k, mask=in_n, other=0)
        part += x_o[:, None] * w_o.to(tl.float32)[None, :]

    sa = tl.load(scale_a + rows, mask=in_m, other=0.0)
    sb = tl.load(scale_b + columns, mask=in_n, other=0.0)
    result = (acc.to(tl.float32) * sa[:, None]) * sb[None, :] + part * sb[None, :]
    of_y = y + rows[:, None] * N + columns[None, :]
    tl.store(of_y, result, mask=in_m[:, None] & in_n[None, :])


listed = torch.tensor(
    [*np.flatnonzero(outliers), *[0] * int((~outliers).sum()), outliers.sum()],
    dtype=torch.int32,
)
y = launch(
    llm_int8_product,
    *tensors[:2],
    torch.full((4, 4), torch.nan),
    *tensors[2:],
    torch.from_numpy(X),
    listed,
)
layer = reference.Int8Linear.from_float(W)
kept = reference.absmax_dequantize(layer.weight, layer.weight_scale)
o = int(outliers.sum())
bound = (
    2.0**-24
    * 2
    * (
        (o + 2) * np.abs(X[:, outliers]) @ np.abs(kept[:, outliers]).T
        + 2 * np.abs(regular)
    )
)
assert (np.abs(y - layer(X)) <= bound).all()
print("list", listed.tolist(), "\nY within its bound of the reference's layer\n", y)

# %% [markdown]
# The bound is that of chapter 05 with two more roundings, since here the scale of W is applied after the sum, and in
# the reference before. That is LLM.int8(), in one launch after quantization.
#
# ## Real data
#
# The same kernel on the layer of the running table, 64 positions.
#
# > **Predict.** The second loop runs over 2 of 576 columns. How large is the part of Y that comes from them, measured
# > by that of the other 574?

# %%
x, w = model_data.layer()
x = x[:64]
outliers = reference.outlier_columns(x)
(xq, sx), (wq, sw) = (
    reference.absmax_quantize(np.where(outliers, np.float32(0), x), -1),
    reference.absmax_quantize(w, -1),
)
listed = torch.tensor(
    [*np.flatnonzero(outliers), *[0] * int((~outliers).sum()), outliers.sum()],
    dtype=torch.int32,
)
tensors = [torch.from_numpy(array) for array in (xq, wq, sx.ravel(), sw.ravel())]
y = launch(
    llm_int8_product,
    *tensors[:2],
    torch.full((len(x), len(w)), torch.nan),
    *tensors[2:],
    torch.from_numpy(x),
    listed,
)
mine = reference.Int8Linear.from_float(w)(x)
kept = reference.absmax_dequantize(wq, sw)
regular = reference.quantized_matmul(np.where(outliers, np.float32(0), x), w)
o = int(outliers.sum())
bound = (
    2.0**-24
    * 2
    * (
        (o + 2) * np.abs(x[:, outliers]) @ np.abs(kept[:, outliers]).T
        + 2 * np.abs(regular)
    )
)
assert (np.abs(y - mine) <= bound).all()

parts = np.linalg.norm(regular, axis=1), np.linalg.norm(mine - regular, axis=1)
figure, ax = plt.subplots()
ax.plot(
    parts[0],
    "s-",
    color=pictures.BLUE,
    markersize=3,
    label=f"int8 loop, {len(outliers) - o} columns",
)
ax.plot(
    parts[1],
    "o-",
    color=pictures.ORANGE,
    markersize=3,
    label=f"outlier loop, {o} columns",
)
ax.set(
    xlabel="position",
    ylabel="norm of its part of Y",
    ylim=(0, None),
    title="gate_proj, block 29",
)
ax.legend()
ratio = np.median(parts[1] / parts[0])
predict.number("outlier part over int8 part, median", ratio, ".2f")
pictures.show(
    figure,
    f"The norm of the two parts of Y at {len(x)} positions. The outlier loop's part is "
    f"{ratio:.2f} times as large as the int8 loop's, in "
    "the median.",
)
print("Y is within its bound of the reference")

# %% [markdown]
# ## The law
#
# Step 1 is exact, so its accumulators are equal, bit for bit. Step 2 does the reference's roundings in the reference's
# order, so Y is equal too: on a CPU bit for bit, and within one unit in the last place where a GPU fuses a
# multiplication and an addition. Step 3 adds a float32 sum, which lies within a bound (chapter 05).

# %%
rng = np.random.default_rng(0)
for m, n, k in ((1, 1, 1), (16, 32, 64), (17, 33, 100), (40, 5, 64)):
    xs = rng.normal(size=(m, k)).astype(np.float32)
    ws = rng.normal(size=(n, k)).astype(np.float32)
    (a, sa), (b, sb) = (reference.absmax_quantize(each, -1) for each in (xs, ws))
    given = [torch.from_numpy(each) for each in (a, b, sa.ravel(), sb.ravel())]
    y = torch.full((m, n), torch.nan)
    y = launch(scaled_product, *given[:2], y, *given[2:])
    assert np.array_equal(y, reference.quantized_matmul(xs, ws))
    full = "full" if m % 16 == n % 16 == 0 else "cut"
    print(f"{m:>2} x {k:>3} x {n:>2}: step 2 equal, bit for bit; tiles {full}")

# %% [markdown]
# ## Break it
#
# > **Predict.** Four mistakes in step 2: no mask for K; `tl.dot` does not add to what was before; int16 accumulators;
# > the two scales exchanged. A test with M = N = 16, K = 32 and all scales 0.5 finds one of them. Which? And which one
# > does it miss only because the scales are equal?


# %%
@triton.jit
def broken_product(
    a, b, y, scale_a, scale_b, M, N, K, stride_a, stride_b,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, HOW: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_m, in_n = rows < M, columns < N
    end = K + (BLOCK_K if HOW == "mask of K" else 0)
    acc = tl.zeros((BLOCK, BLOCK), tl.int32)
    for k in range(0, K, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)[None, :]
        left_mask, right_mask = in_m[:, None] & (ks < end), in_n[:, None] & (ks < end)
        left = tl.load(a + rows[:, None] * stride_a + ks, mask=left_mask, other=0)
        right = tl.load(b + columns[:, None] * stride_b + ks, mask=right_mask, other=0)
        before = None if HOW == "not accumulated" else acc
        acc = tl.dot(left, right.T, before, out_dtype=tl.int32)
        if HOW == "int16":
            acc = acc.to(tl.int16).to(tl.int32)
    sa = tl.load(scale_a + rows, mask=in_m, other=0.0)
    sb = tl.load(scale_b + columns, mask=in_n, other=0.0)
    result = (acc.to(tl.float32) * sa[:, None]) * sb[None, :]
    if HOW == "scales swapped":
        result = (acc.to(tl.float32) * sb[:, None]) * sa[None, :]
    of_y = y + rows[:, None] * N + columns[None, :]
    tl.store(of_y, result, mask=in_m[:, None] & in_n[None, :])


def wrong_entries(how, m, n, k, alike=False):
    rng = np.random.default_rng(0)
    wide_a, wide_b = (
        torch.from_numpy(rng.integers(-127, 128, (rows, k + 32), np.int8))
        for rows in (m, n)
    )
    a, b = wide_a[:, :k], wide_b[:, :k]
    scales = [
        torch.full((rows,), 0.5) if alike else torch.linspace(low, 2, rows)
        for rows, low in ((m, 1), (n, 0.5))
    ]
    y = torch.full((m, n), torch.nan)
    grid = (triton.cdiv(m, 16), triton.cdiv(n, 16))
    sizes = m, n, k, a.stride(0), b.stride(0)
    broken_product[grid](a, b, y, *scales, *sizes, BLOCK=16, BLOCK_K=32, HOW=how)
    exact = reference.int8_matmul(a.numpy().copy(), b.numpy().copy()).astype(np.float32)
    return int(
        (y.numpy() != (exact * scales[0].numpy()[:, None]) * scales[1].numpy()).sum()
    )


shapes = ((16, 16, 32), (16, 16, 40), (16, 16, 64), (16, 5, 32))
print(
    f"{'wrong entries':<18}{'scales all 0.5':>16}"
    + "".join(f"{'x'.join(map(str, shape)):>12}" for shape in shapes)
)
mistakes = "mask of K", "not accumulated", "int16", "scales swapped"
counts = {
    how: [wrong_entries(how, *shapes[0], alike=True)]
    + [wrong_entries(how, *shape) for shape in shapes]
    for how in ("nothing", *mistakes)
}
(found,) = (how for how in mistakes if counts[how][0])
(scales,) = (how for how in mistakes if counts[how][1] > 0 == counts[how][0])
predict.choice("found", mistakes, found)
predict.choice("missed because of the scales", mistakes, scales)
for how, (alike, *others) in counts.items():
    print(f"{how:<18}{alike:>16}" + "".join(f"{count:>12}" for count in others))

# %% [markdown]
# A single full block of K hides two of them (columns 1, 2 and 5), and equal scales hide the swap. That is why the tests
# draw their shapes and scales at random.
#
# ## The running table
#
# Bytes moved for each entry of Y beyond loading the codes, with float16 results:

# %%
print(f"{'product, scales, outliers and sum':<36} bytes per entry of Y")
print(f"{'four kernels':<36} {4 + (4 + 2) + 2 + (2 + 2 + 2):>5}")
print(f"{'one kernel':<36} {2:>5}   <- new")

# %% [markdown]
# (Four kernels: int32 accumulators written; read and written as float16; the outlier part written; both read and the
# sum written.)
#
# ## Exercise
#
# Write `my_product`: step 2, from memory. Codes `a` (M, K) and `b` (N, K) with rows `stride_a` and `stride_b` apart,
# `y` (M, N) float32 packed, one program per tile of 16 x 16, K in blocks of 32. On the site,
# [the ladder](../docs/theatre/write.md#tile) gets there in three rungs, and [the theatre](../docs/theatre/index.md) shows
# this chapter's kernel at work, line by line.


# %%
@triton.jit
def my_product(
    a, b, y, scale_a, scale_b, M, N, K, stride_a, stride_b,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):
    pass


kernel_checks.product(my_product)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# @triton.jit
# def my_product(
#     a, b, y, scale_a, scale_b, M, N, K, stride_a, stride_b,
#     BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
# ):
#     rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
#     columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
#     in_m, in_n = rows < M, columns < N
#     acc = tl.zeros((BLOCK, BLOCK), tl.int32)
#     for k in range(0, K, BLOCK_K):
#         ks = k + tl.arange(0, BLOCK_K)[None, :]
#         left_mask, right_mask = in_m[:, None] & (ks < K), in_n[:, None] & (ks < K)
#         left = tl.load(a + rows[:, None] * stride_a + ks, mask=left_mask, other=0)
#         right = tl.load(b + columns[:, None] * stride_b + ks, mask=right_mask, other=0)
#         acc = tl.dot(left, right.T, acc, out_dtype=tl.int32)
#     sa = tl.load(scale_a + rows, mask=in_m, other=0.0)
#     sb = tl.load(scale_b + columns, mask=in_n, other=0.0)
#     result = (acc.to(tl.float32) * sa[:, None]) * sb[None, :]
#     of_y = y + rows[:, None] * N + columns[None, :]
#     tl.store(of_y, result, mask=in_m[:, None] & in_n[None, :])
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. A program owns a tile of Y and keeps its accumulators in registers; the larger the tile, the more often each loaded
#    byte is used.
# 2. Everything after the product (scales, outliers, bias, cast) happens in registers, before the store.
# 3. The outlier list and its length stay on the device: the host never synchronizes to read them.
#
# **Read on:** [09, reading the real one](09_reading_the_kernel.ipynb): `fast/kernels/product.py`, in ten stops.
