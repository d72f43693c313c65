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
# # 09. Reading the real kernel, in ten stops
#
# **Question.** The product kernel of `fast` computes what ours does. It has several times as many lines. What are they
# for, and how does one read such a kernel?
#
# **You need** [08](08_product_kernel.ipynb). **You leave with** every line of `fast/kernels/product.py` read once, and
# a way to read the next kernel.

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from matplotlib import pyplot as plt

import fast
import reference
from fast.kernels import epilogue, product
from fast.kernels.configurations import product_configuration
from tutorials import checks, pictures, predict, source
from tutorials.example import W, X

torch.set_grad_enabled(False)
np.set_printoptions(precision=5, suppress=True)

# %% [markdown]
# ## The idea
#
# A kernel is not read from its first line to its last. Look for the answers to five questions, in this order:
#
# 1. What does one program own? (stop 1)
# 2. What does it load in its main loop, and where are the masks? (stops 2 to 4)
# 3. What is in registers when the loop ends? (stops 5 to 7)
# 4. What does it still add? (stops 8 and 9)
# 5. What does it store? (stop 10)
#
# Any other line is there for speed, or for a case that our kernel did not have.
#
# ## The formula
#
# Three lines of the kernel are the formula; the others serve them.

# %%
source.beside(
    (
        r"A = q^X q^{W\top}",
        (reference.vectorwise.accumulate, "return"),
        (product.product_kernel, "acc = tl.dot"),
    ),
    (
        r"A \odot s^X s^{W\top}",
        (reference.vectorwise.rescale, "return"),
        (product.product_kernel, "result = (acc"),
    ),
    (
        r"X_{:,O} W_{:,O}^\top",
        (reference.decomposition.outlier_product, "return"),
        (product.outlier_product, "return"),
    ),
)

# %% [markdown]
# ## By hand
#
# We send the 4 x 4 example along. It fits in one tile, so one program does everything: at each stop, what it holds for
# the entry in the second row and first column of Y. Chapter 05 found 0.6503 there.
#
# ## Stop 1: which tile is mine
#
# Ours had a grid of two dimensions. This one has a single number, and computes the tile from it, in an order of its
# own.

# %%
source.part(product.product_kernel, "program =", "tile_m, tile_n =")
source.show(epilogue.owned_tile)

# %% [markdown]
# Programs start in the order of their ids, about as many as the GPU has processors, and share what they read through
# the L2 cache. If they own a *row* of tiles, they share one strip of X, and each needs its own strip of W; if they own
# a compact *group*, they share both.
#
# > **Predict.** 32 x 32 tiles, 128 programs run concurrently. How many different strips do they read, row by row, and
# > in groups of 8 rows of tiles?


# %%
def strips(order, together=128):
    first = order[:together]
    return len({m for m, _ in first}) + len({n for _, n in first})


def grouped(tiles_m, tiles_n, group):
    for start in range(0, tiles_m, group):
        for n in range(tiles_n):
            for m in range(start, min(start + group, tiles_m)):
                yield m, n


counts = {group: strips(list(grouped(32, 32, group))) for group in (1, 2, 4, 8, 16)}
predict.number("strips, row by row", counts[1])
predict.number("strips, in groups of 8", counts[8])
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.2))
for ax, group in zip(axes, (1, 8), strict=True):
    order = list(grouped(32, 32, group))
    board = np.full((32, 32), np.nan)
    for i, (m, n) in enumerate(order[:128]):
        board[m, n] = 1 + i / 128
    ax.imshow(board, cmap=pictures.MAGNITUDE_STRONG, vmin=0, vmax=2)
    ax.set(
        title=f"groups of {group}: {strips(order)} strips",
        xlabel="tile of N",
        ylabel="tile of M",
    )
    ax.grid(False)
pictures.show(
    figure,
    "Two boards of 32 by 32 tiles, the first 128 programs coloured. One row of tiles "
    "after the other "
    f"fills four whole rows: {counts[1]} strips of X and W are "
    f"read. Groups of eight rows fill a block of 8 by 16: {counts[8]} strips.",
)
print("strips read by the first 128 programs, by group:", counts)

# %% [markdown]
# ## Stop 2: how many outlier columns
#
# The count lies behind the list, as in our kernel. It is loaded long before it is needed, so that the int8 loop hides
# the hundreds of cycles that a load takes. `DECOMPOSE` is a `constexpr`: without decomposition the
# line is `count = 0`, and everything that depends on it is compiled out. The 4 x 4 example: 1.

# %%
source.part(product.product_kernel, "# Load the count now", "count =")

# %% [markdown]
# ## Stop 3: the int8 loop, with the copy engine
#
# From sm_90 on a GPU has an engine that copies a whole tile, named by its corner, and fills what lies outside of the
# matrix with zeros: no addresses, no mask. The loop is the formula's first line: our step 1.

# %%
source.part(product.product_kernel, "# The copy engine", "acc = tl.dot")

# %% [markdown]
# ## Stop 4: the int8 loop, with pointers
#
# Elsewhere the loop has pointers. Our masks for rows are gone: `tl.minimum(..., M - 1)` repeats the last row, which is
# computed again and never stored. The mask of K is compiled out if `BLOCK_K` divides K. Row numbers have 64 bits, since
# one times a stride may exceed 2**31.

# %%
source.part(product.product_kernel, "rows = tl.minimum", "acc = add_products")
source.show(product.add_products)

# %% [markdown]
# > **Predict.** The example has 4 rows, the tile 16. How many times does the program load the last row? And what is the
# > accumulator of our entry after the loop? The codes are 127, 18, 0, -55 and 100, -127, 40, 60.

# %%
outliers = reference.outlier_columns(X)
regular = np.where(outliers, np.float32(0), X)
(xq, sx), (wq, sw) = (reference.absmax_quantize(each, -1) for each in (regular, W))
rows = np.minimum(np.arange(16), len(X) - 1)
predict.number("loads of the last row", int((rows == len(X) - 1).sum()))
acc = reference.int8_matmul(xq, wq)[1, 0]
assert acc == 127 * 100 + 18 * -127 + 0 * 40 + -55 * 60
predict.number("the accumulator", int(acc))

# %% [markdown]
#
# ## Stop 5: what may be stored
#
# Our masks, for the store alone. Without a scale the accumulators are the result: this kernel is also `int8_matmul`.

# %%
source.part(product.product_kernel, "rows = tile_m", "target = y")

# %% [markdown]
# ## Stop 6: the scales
#
# `per_row` is 1 with a scale per row, and 0 with one scale in all: then every row reads scale 0, without a branch. If W
# has its largest magnitudes in place of scales, as in bitsandbytes' checkpoints, the division happens here. The
# example: 0.02 and 0.001.

# %%
source.part(product.product_kernel, "x_scale = tl.load", "w_scale =")
source.show(epilogue.weight_scale)

# %% [markdown]
# ## Stop 7: the correction of zeropoint
#
# Chapter 02: a product of zeropoint codes needs three more terms. They are integers, so the correction is exact; `WIDE`
# is for a K at which it may exceed int32. With absmax none of these lines exist.

# %%
source.part(product.product_kernel, "if x_side.zero_point", "acc = corrected")

# %% [markdown]
# ## Stop 8: to float32, in the same registers
#
# Our kernel had two tiles of sums: `acc` in int32 and `part` in float32. A tile of 128 x 256 fills half of the
# registers; two do not fit. So the accumulators are converted first, and the outlier products are added **to** them. If
# the outlier weights are codes, everything is in units of `w_scale * 128` until the end, for the sake of a matrix
# instruction that multiplies 16-bit numbers.

# %%
source.part(product.product_kernel, "if float_weight is not None:", "result = acc.to")

# %% [markdown]
# > **Predict.** An outlier of 60000 meets the weight code 100. What is the product in float16? And what is 60000 times
# > 100 / 128?

# %%
with np.errstate(over="ignore"):
    predict.text("60000 x 100", np.float16(60000) * np.float16(100))
    scaled = np.float16(60000) * np.float16(100 / 128)
    predict.number("60000 x (100 / 128)", float(scaled))
predict.explain(
    "A code divided by 128 is exact in both 16-bit types, and a product no larger than "
    f"the outlier. The example: {acc} x ({sx[1, 0]:.2f} / 128) = "
    f"{acc * sx[1, 0] / 128:.5f}."
)

# %% [markdown]
#
# ## Stop 9: the outlier columns
#
# Twice the same function. In large batches the kernel before has gathered the first `capacity` outlier columns side by
# side, to be read in blocks of 16. Those beyond are read in place, through the list, as in our kernel.

# %%
source.part(product.product_kernel, "gathered = 0", "result = from_code_units")

# %% [markdown]
# The function has two loops: 16 columns at a time on the matrix unit if X has 16 bits, else one at a time, our step 3:

# %%
source.part(product.add_outlier_columns, "# No matrix instruction", "result +=")

# %% [markdown]
# The example arrives in float32: one column, 12.70 x (40 / 128) = 3.96875, together 5.08031; and `from_code_units`
# multiplies by 0.001 x 128: 0.65028.
#
# ## Stop 10: bias, cast, store
#
# The bias is added in float32, the result rounded to the type of Y, each entry stored once. `rounded` is a cast; for
# bfloat16 under the interpreter it rounds by hand.

# %%
source.part(product.product_kernel, "if bias is not None:", "tl.store(target, rounded")

# %% [markdown]
# ## The same call on `fast`
#
# The mask of the outlier columns and the int8 product have to be equal, Y lies within a bound.

# %%
with fast.backend("triton"):
    layer = fast.Int8Linear.from_float(torch.from_numpy(W))
    followed = layer(torch.from_numpy(X))[1, 0].item()
print(f"the entry that we followed: {followed:.5f}\n")

rng = np.random.default_rng(0)
for m, k, n, planted in ((1, 64, 16, 1), (20, 100, 40, 3), (33, 128, 65, 0)):
    x = rng.normal(size=(m, k)).astype(np.float32)
    x[rng.integers(m, size=planted), rng.choice(k, planted, replace=False)] = 30
    w = rng.normal(size=(n, k)).astype(np.float32)
    xt, wt = torch.from_numpy(x), torch.from_numpy(w)
    with fast.backend("triton"):
        assert np.array_equal(
            fast.outlier_columns(xt).numpy(), reference.outlier_columns(x)
        )
        assert np.array_equal(
            fast.quantized_matmul(xt, wt).numpy(), reference.quantized_matmul(x, w)
        )
        theirs = fast.llm_int8_matmul(xt, wt).numpy()
    mine = reference.llm_int8_matmul(x, w)
    o = reference.outlier_columns(x)
    magnitudes = np.abs(x[:, o]).astype(np.float64) @ np.abs(w[:, o]).T
    part = np.abs(reference.quantized_matmul(np.where(o, np.float32(0), x), w))
    assert (
        np.abs(mine - theirs) <= 2 * (o.sum() + 1) * 2.0**-24 * (magnitudes + part)
    ).all()
    print(
        f"{m} x {k} x {n}, {int(o.sum())} outlier columns: mask and int8 product "
        "equal, Y within its bound"
    )

# %% [markdown]
# ## The law
#
# The laws of chapter 08 hold here as well. And stop 1 has one of its own: each tile belongs to exactly one program.


# %%
def tile_of(program, tiles_m, tiles_n, group, cut=True):
    in_group = group * tiles_n
    first_m = program // in_group * group
    group_m = min(tiles_m - first_m, group) if cut else group
    return first_m + program % in_group % group_m, program % in_group // group_m


def owned(tiles_m, tiles_n, group, cut=True):
    programs = range(tiles_m * tiles_n)
    return {tile_of(program, tiles_m, tiles_n, group, cut) for program in programs}


for tiles_m in range(1, 12):
    for tiles_n in range(1, 6):
        every = {(m, n) for m in range(tiles_m) for n in range(tiles_n)}
        assert all(owned(tiles_m, tiles_n, group) == every for group in (1, 2, 8))
print("1 to 11 by 1 to 5 tiles, groups of 1, 2 and 8: each tile exactly once")

# %% [markdown]
# ## Break it
#
# Leave out `tl.minimum` in stop 1, the line that cuts the last group. With tiles of 128 rows, 1024 tokens are 8 rows of
# tiles, 1100 are 9.
#
# > **Predict.** Five columns of tiles, groups of 8. How many tiles are never computed, with 8 rows of tiles and with 9?

# %%
missing = {}
for tiles_m in (8, 16, 9, 12):
    every = {(m, n) for m in range(tiles_m) for n in range(5)}
    missing[tiles_m] = len(every - owned(tiles_m, 5, 8, cut=False))
for tiles_m in (8, 9):
    predict.number(f"{tiles_m} rows of tiles", missing[tiles_m])
for tiles_m, number in missing.items():
    print(f"{tiles_m:>2} x 5 tiles: {number} tiles of Y never computed")

# %% [markdown]
# Every power of two that one would test passes. The missing part of Y is whatever lay in memory.
#
# ## The running table
#
# What one program moves at each stop: M = N = K = 4096, 16 outlier columns, float16, the tile that `fast` chooses for
# an H100.

# %%
config = product_configuration("sm_90", 4096, 4096, general=False)
sides = config.block_m + config.block_n
moved = {
    "2, the count": 4,
    "3, the int8 loop": sides * 4096,
    "6, the scales": 4 * sides,
    "9, gathered columns": 2 * sides * 16,
    "10, Y stored": 2 * config.block_m * config.block_n,
}
for name, size in moved.items():
    print(f"{name:<22} {size:>10,} bytes {size / sum(moved.values()):>7.2%}")

# %% [markdown]
# ## Exercise
#
# Read stops 1 and 9 once more, and write `my_program(program, tiles_m, tiles_n, group_m, count, capacity)`: which tile
# the program owns, how many outlier columns it reads from the gathered buffer, and how many in place.


# %%
def my_program(program, tiles_m, tiles_n, group_m, count, capacity):
    return NotImplemented  # tile_m, tile_n, gathered, in_place


checks.program(my_program)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_program(program, tiles_m, tiles_n, group_m, count, capacity):
#     in_group = group_m * tiles_n
#     first_m = program // in_group * group_m
#     rows = min(tiles_m - first_m, group_m)
#     tile_m = first_m + program % in_group % rows
#     tile_n = program % in_group // rows
#     gathered = min(count, capacity)
#     return tile_m, tile_n, gathered, count - gathered
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. Ask a kernel what one program owns, loads, holds, adds and stores; the other lines serve a special case or the
#    clock.
# 2. A `constexpr` or an absent operand makes several kernels of one text: what a call does not need is compiled out.
# 3. Registers decide the order: the outlier products are added to the converted accumulators, since a second tile of
#    sums does not fit.
#
# [Look inside](../docs/theatre/inside.md) shows what the compiler made of a tile: threads, banks, copies on their way.
# **Read on:** [10, a layer, a model](10_layer_and_model.ipynb). The code: `fast/kernels/decode.py` (one launch for a
# few rows), `configurations.py`; [the page on the kernels](../docs/kernels.md).
