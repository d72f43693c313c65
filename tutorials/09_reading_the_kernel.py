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
from tutorials import checks, pictures, source
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
# A line that answers none of them is there for speed, or for a case that our kernel did not have: here zeropoint codes,
# one scale for all rows, int32 results, a bias, 16-bit types, sizes beyond 32 bits.
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
# Programs start in the order of their ids; about as many run concurrently as the GPU has processors. Programs that run
# concurrently share what they read through the L2 cache. If they own a *row* of tiles, they share one strip of X, and
# each needs its own strip of W; if they own a compact *group*, they share both.
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
counts = {group: strips(list(grouped(32, 32, group))) for group in (1, 2, 4, 8, 16)}
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
# The count lies behind the list, as in our kernel. It is loaded here, long before it is needed: the load takes hundreds
# of cycles, and the int8 loop has other things to do meanwhile. `DECOMPOSE` is a `constexpr`: without decomposition the
# line is `count = 0`, and everything that depends on it is compiled out. The 4 x 4 example: 1.

# %%
source.part(product.product_kernel, "# Load the count now", "acc =")

# %% [markdown]
# ## Stop 3: the int8 loop, with the copy engine
#
# From sm_90 on a GPU has an engine that copies a whole tile: the program names its corner, and no thread computes an
# address. It also fills what lies outside of the matrix with zeros, so there is no mask. The loop is the formula's
# first line: our step 1.

# %%
source.part(product.product_kernel, "# The copy engine", "acc = tl.dot")

# %% [markdown]
# ## Stop 4: the int8 loop, with pointers
#
# Elsewhere the loop has pointers. Our masks for rows are gone: `tl.minimum(..., M - 1)` repeats the last row, which is
# computed again and never stored. A mask costs an instruction per load; this costs one per tile. The mask of K is
# compiled out if `BLOCK_K` divides K. The numbers are 64 bits wide, since a row number times a stride may exceed 2**31.
#
# > **Predict.** The example has 4 rows, the tile 16. Which rows does the program load?

# %%
source.part(product.product_kernel, "rows = tl.minimum", "w_codes +=")

# %% [markdown]
# Rows 0, 1, 2 and thirteen times 3. After the loop the accumulator of our entry is 127 x 100 + 18 x (-127) + 0 x 40 +
# (-55) x 60 = 7114, as in chapter 05.
#
# ## Stop 5: what may be stored
#
# The masks of our kernel, for the store alone. Without a scale the accumulators themselves are the result: this kernel
# is also `int8_matmul`.

# %%
source.part(product.product_kernel, "rows = tile_m", "tl.store(target, acc")

# %% [markdown]
# ## Stop 6: the scales
#
# `per_row` is 1 with a scale per row. With one scale in all it is 0: then every row reads scale 0, without a branch.
# The scale of W may be stored as its largest magnitude, as bitsandbytes' checkpoints do; then the division happens
# here, in registers. The example: 0.02 and 0.001.

# %%
source.part(product.product_kernel, "x_scale = tl.load", "w_scale =")
source.show(epilogue.weight_scale)

# %% [markdown]
# ## Stop 7: the correction of zeropoint
#
# Chapter 02: a product of zeropoint codes needs three more terms. They are integers, so the correction is exact; `WIDE`
# is for a K at which it may exceed int32. With absmax none of these lines exist.

# %%
source.part(product.product_kernel, "w_zero_point = None", "acc = corrected")

# %% [markdown]
# ## Stop 8: to float32, in the same registers
#
# Our kernel had two tiles of sums: `acc` in int32 and `part` in float32. A tile of 128 x 256 fills half of the
# registers; two do not fit. So the accumulators are converted first, and the outlier products are added **to** them. If
# the outlier weights are codes, the scale of W is applied at the very end, and until then everything is in units of
# `w_scale * 128`.
#
# > **Predict.** Why 128? What is 100 / 128 in float16, and what would 100 itself be after an outlier of 60000?

# %%
source.part(product.product_kernel, "if float_weight is not None:", "w_rows =")

# %% [markdown]
# A code divided by 128 is at most 1 in magnitude and exact in both 16-bit types, so a product is no larger than the
# outlier itself: it cannot overflow where x did not. The example: 7114 x (0.02 / 128) = 1.11156.
#
# ## Stop 9: the outlier columns
#
# Twice the same function. In large batches the kernel before has gathered the first `capacity` outlier columns side by
# side, so that they can be read in blocks of 16. Those beyond are read in place, through the list, as in our kernel.

# %%
source.part(product.product_kernel, "gathered = 0", "result = from_code_units")

# %% [markdown]
# The function itself has two loops: 16 columns at a time on the matrix unit if X has 16 bits, one at a time in float32
# if it does not. The second is our step 3.

# %%
source.show(product.add_outlier_columns)

# %% [markdown]
# The example arrives in float32: one column, 12.70 x (40 / 128) = 3.96875, together 5.08031; and `from_code_units`
# multiplies by 0.001 x 128: 0.65028.
#
# ## Stop 10: bias, cast, store
#
# Everything that is left happens in registers: the bias is added in float32, the result rounded to the type of Y, each
# entry stored once. `rounded` is a cast; for bfloat16 under the interpreter it rounds by hand.

# %%
source.part(product.product_kernel, "if bias is not None:", "tl.store(target, rounded")

# %% [markdown]
# ## The same call on `fast`
#
# > **Predict.** Which of these have to be equal, and which only lie within a bound?

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
# The accumulators are equal, bit for bit. Without outlier columns Y is equal too, on a CPU, and within one unit in the
# last place where a GPU fuses a multiplication and an addition. With them it lies within the bound of a float32 sum
# (chapter 05). And stop 1 has a law of its own: each tile belongs to exactly one program.
#
# > **Predict.** Which line of stop 1 does that law depend on, if the rows of tiles do not divide by `GROUP_M`?


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
# Leave out `tl.minimum` in stop 1, the line that cuts the last group.

# %%
for tiles_m in (8, 16, 9, 12):
    every = {(m, n) for m in range(tiles_m) for n in range(5)}
    missing = len(every - owned(tiles_m, 5, 8, cut=False))
    print(f"{tiles_m:>2} x 5 tiles: {missing} tiles of Y never computed")

# %% [markdown]
# With tiles of 128 rows, 1024 tokens are 8 rows of tiles: every power of two that one would test passes. A batch of
# 1100 tokens has 9, and part of its result is whatever lay in memory.
#
# ## The running table
#
# Bytes that one program moves, at each stop, for a large layer (M = N = K = 4096, 16 outlier columns, float16): its
# tile is the one that the tables of `fast` choose for an H100.

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
print(f"tile {config.block_m} x {config.block_n}")
print(f"{'stop':<22} {'bytes':>10} {'share':>7}")
for name, size in moved.items():
    print(f"{name:<22} {size:>10,} {size / sum(moved.values()):>7.2%}")

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
# **Read on:** [10, a layer, a model](10_layer_and_model.ipynb). The code: `fast/kernels/decode.py` (one launch for a
# few rows), `configurations.py`; [the page on the kernels](../docs/kernels.md).
