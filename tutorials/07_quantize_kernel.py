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
# # 07. A Triton kernel from nothing: quantizing rows
#
# **Question.** NumPy quantizes a matrix in five steps, each of which reads and writes all of it. A GPU is fast at
# arithmetic and slow at memory. How does one write the five steps as one?
#
# **You need** [01](01_absmax.ipynb) and [03](03_granularity.ipynb); nothing about GPUs. **You leave with** a kernel of
# your own that agrees with the reference bit for bit.
#
# No GPU is needed: with `TRITON_INTERPRET=1`, set *before* Triton is imported, Triton runs kernels on the CPU, one
# program after the other, with NumPy. It is slow, but the results are the same.

# %%
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from matplotlib import pyplot as plt

import fast
import reference
from fast.kernels import arithmetic, quantization
from tutorials import model_data, pictures, predict, source
from tutorials.checks import kernel_checks
from tutorials.example import X

np.set_printoptions(precision=4, suppress=True)
kernel_checks.guard_every_launch()  # a wrong address stops a kernel, not the notebook

# %% [markdown]
# ## The idea
#
# A GPU runs thousands of **programs** at once. All run the same code, the *kernel*; each has a number, its **program
# id**, and works on its own part of the data. A matrix lies in the GPU's main memory; a program loads a **block** of it
# into registers, computes there, and stores a block of results.
#
# Arithmetic on registers is nearly free. Loads and stores are expensive: by its data sheet, an H100 does about 20
# float32 operations in the time that it takes to move one byte. So the plan for quantizing is: one program per row,
# each entry **loaded once**, the largest magnitude and the codes computed in registers, each code **stored once**.
#
# > **Predict.** With float16 input, how many bytes per entry does the fused kernel move? And five separate steps: |x|,
# > the maximum, the product, the rounding, the cast?

# %%
m, k = 4096, 4096
steps = [  # bytes read and written per entry; intermediate results are float32
    ("|x|", 2, 4),
    ("maximum", 4, 0),
    ("x * inverse", 2, 4),
    ("rint", 4, 4),
    ("to int8", 4, 1),
]
separate = sum(r + w for _, r, w in steps)
fused = steps[0][1] + steps[-1][2]  # the first step's input, the last one's output
predict.number("bytes per entry, one kernel", fused)
predict.number("bytes per entry, five steps", separate)
figure, ax = plt.subplots(figsize=(8, 2.4))
bars = {"five steps": separate, "one kernel": fused}
names = [
    f"{name}: {entry} bytes per entry, {pictures.quantity(entry * m * k)}"
    for name, entry in bars.items()
]
left = 0
for (name, r, w), color in zip(steps, pictures.COLORS, strict=True):
    ax.barh(names[0], r + w, left=left, color=color, alpha=0.6, label=name)
    left += r + w
ax.barh(names[1], fused, color=pictures.BLUE, alpha=0.6)
ax.invert_yaxis()
ax.set(xlabel=f"bytes moved per entry of {m} x {k}")
ax.grid(axis="y")
figure.legend(loc="outside lower center", ncols=5)
pictures.show(
    figure,
    f"Bytes moved for each entry: five separate steps {separate}, one fused kernel "
    f"{fused}. For a {m} by {k} float16 matrix that is "
    f"{pictures.quantity(separate * m * k)} against "
    f"{pictures.quantity(fused * m * k)}.",
)

# %% [markdown]
# ## The formula
#
# The formula of chapter 01, with a row of X as the slice; one program computes it for one $m$:
#
# $$ a = \max_k |X_{mk}|, \qquad s_m = \frac{a}{127}, \qquad q_{mk} = \operatorname{rint}\!\left( X_{mk} \cdot \tfrac{127}{a} \right) $$
#
# ## Step 1: pointers
#
# A kernel gets no arrays but *pointers* to their first entries. The entry in row $m$ and column $k$ of a matrix lies
# `stride * m + k` entries further, where the stride is the distance between rows. A block of pointers is a pointer plus
# a block of offsets: `tl.arange(0, 4)` is (0, 1, 2, 3).
#
# The kernel below copies a matrix, one program per row. `tl.constexpr` marks what is known when the kernel is compiled;
# a block's size has to be, and has to be a power of two.


# %%
@triton.jit
def copy_rows(x, y, K, stride, BLOCK_K: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    values = tl.load(x + row * stride + columns)
    tl.store(y + row * K + columns, values)


# %% [markdown]
# > **Predict.** In the 4 x 4 example, which program touches 8.89, and at which offset from the start of X?

# %%
x = torch.from_numpy(X)
y = torch.full_like(x, torch.nan)
copy_rows[(4,)](x, y, 4, x.stride(0), BLOCK_K=4)  # in brackets: the grid, four programs
assert torch.equal(x, y)
offset = int(np.flatnonzero(X.ravel() == np.float32(8.89))[0])
predict.number("the program that touches 8.89", offset // x.stride(0))
predict.number("its offset from the start of X", offset)

figure = pictures.memory(
    X, [f"program {program}: x + {program} * 4 + (0 to 3)" for program in range(4)]
)
pictures.show(
    figure,
    "The 16 entries of X in a row, as they lie in memory, with their offsets 0 to 15 "
    "below. Program 0 "
    "owns offsets 0 to 3, program 1 4 to 7, program 2 8 to 11, "
    "program 3 12 to 15; 8.89 is at offset 14.",
)

# %% [markdown]
# ## Step 2: a mask
#
# K is seldom a power of two. The block is then larger than the row, and its last lanes point past the end: into the
# next row, or out of the matrix. A **mask** says which lanes are active; the others get the value `other`.
#
# For the largest magnitude, `other` is 0, which no magnitude is smaller than.
#
# > **Predict.** Of the 4 x 4 example take three columns. Without the mask, in how many of the four rows will the
# > largest magnitude be wrong?


# %%
@triton.jit
def row_absmax(x, absmax, K, stride, BLOCK_K: tl.constexpr, MASKED: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    start = x + row * stride
    values = (
        tl.load(start + columns, mask=columns < K, other=0.0)
        if MASKED
        else tl.load(start + columns)
    )
    tl.store(absmax + row, tl.max(tl.abs(values), axis=0))


narrow = x[:, :3]  # three of the four columns: K = 3, but rows are still 4 apart
found = {}
for masked in (True, False):
    absmax = torch.full((4,), torch.nan)
    row_absmax[(4,)](narrow, absmax, 3, narrow.stride(0), BLOCK_K=4, MASKED=masked)
    found[masked] = absmax.numpy()
    print("masked  " if masked else "unmasked", found[masked])
right = np.abs(X[:, :3]).max(axis=1)
print("NumPy   ", right)
predict.number("wrong rows without the mask", int((found[False] != right).sum()))

# %% [markdown]
# Both agree, although the second is wrong: the fourth column happens to have no large entry. Bugs of this kind have to
# be *provoked*; the checker below, like the test suite, fills everything beyond the matrix with huge numbers.

# %%
poisoned = torch.full((4, 4), 1e30)
poisoned[:, :3] = x[:, :3]
for masked in (True, False):
    absmax = torch.full((4,), torch.nan)
    row_absmax[(4,)](poisoned, absmax, 3, 4, BLOCK_K=4, MASKED=masked)
    print("masked  " if masked else "unmasked", absmax.numpy())

# %% [markdown]
# ## Step 3: rounding, ties to even
#
# Triton has no `rint` that works on every back end. But a float32 has 24 bits of mantissa, and from $2^{23}$ on
# neighbouring float32 numbers are 1 apart. Add $1.5 \cdot 2^{23}$ to a small number, and the *addition itself* has to
# round to a whole number, ties to even, as every IEEE operation does. Subtract it again, exactly.
#
# > **Predict.** What does it make of 0.5, 1.5, 2.5 and -2.5? And of 63.5?

# %%
magic = np.float32(1.5 * 2**23)
ties = np.array([0.5, 1.5, 2.5, -2.5, 63.5, -0.49, 126.51], np.float32)
rounded = (ties + magic) - magic
predict.text("0.5, 1.5, 2.5 and -2.5 become", rounded[:4] + 0.0)
predict.number("63.5 becomes", rounded[4])
print(rounded)
many = np.random.default_rng(0).uniform(-256, 256, 1_000_000).astype(np.float32)
assert np.array_equal((many + magic) - magic, np.rint(many))
print("a million random numbers: equal to rint")

# %% [markdown]
# It costs two additions, which is nothing. One caveat: a compiler that fuses `x * inverse + magic` into one operation
# with one rounding changes the result near ties. The launches in `fast` disable this (`enable_fp_fusion=False`).
#
# ## Step 4: all of it
#
# The formula of chapter 01, the guard for zero slices, and nothing that is not on this page:


# %%
@triton.jit
def quantize_rows(x, codes, scale, K, stride, BLOCK_K: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    inside = columns < K
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(
        tl.float32
    )  # the only load

    absmax = tl.max(tl.abs(values), axis=0)
    usable = absmax >= 2.0**-100
    safe = tl.where(usable, absmax, 1.0)
    inverse = tl.where(usable, tl.math.div_rn(1.0, safe) * 127.0, 0.0)

    steps = (values * inverse + 12582912.0) - 12582912.0  # 1.5 * 2**23
    tl.store(
        codes + row * K + columns, steps.to(tl.int8), mask=inside
    )  # the only store of K entries
    tl.store(scale + row, tl.where(usable, tl.math.div_rn(safe, 127.0), 0.0))


codes = torch.full((4, 4), -99, dtype=torch.int8)
scale = torch.full((4, 1), torch.nan)
quantize_rows[(4,)](x, codes, scale, 4, x.stride(0), BLOCK_K=4, enable_fp_fusion=False)
right = reference.absmax_quantize(X, axis=-1)
assert np.array_equal(codes.numpy(), right.codes)
assert np.array_equal(scale.numpy(), right.scale)
print(codes.numpy(), scale.numpy().ravel())

# %% [markdown]
# The same codes as in chapter 03. `div_rn` is the division that rounds as IEEE says; a plain `/` between float32
# numbers may be approximate on a GPU.
#
# One 4 x 4 matrix proves little. Several seeds, awkward shapes, rows longer than K, all three input dtypes:


# %%
def agrees(m, k, seed, dtype):
    values = torch.from_numpy(
        np.random.default_rng(seed).normal(size=(m, k + 3)).astype(np.float32)
    ).to(dtype)[:, :k]
    codes = torch.full((m, k), -99, dtype=torch.int8)
    scale = torch.full((m, 1), torch.nan)
    quantize_rows[(m,)](
        values,
        codes,
        scale,
        k,
        values.stride(0),
        BLOCK_K=triton.next_power_of_2(k),
        enable_fp_fusion=False,
    )
    right = reference.absmax_quantize(values.float().numpy(), axis=-1)
    return np.array_equal(codes.numpy(), right.codes) and np.array_equal(
        scale.numpy(), right.scale
    )


cases = [
    (m, k, seed, dtype)
    for m, k in ((1, 1), (5, 7), (3, 64), (2, 129), (4, 576))
    for seed in range(3)
    for dtype in (torch.float16, torch.bfloat16, torch.float32)
]
assert all(agrees(*case) for case in cases)
print(f"{len(cases)} cases: codes and scales equal, bit for bit")

# %% [markdown]
# ## Real data
#
# The input of `down_proj` in block 11 of SmolLM2, 512 positions: each program finds the scale of its own position.
#
# > **Predict.** One scale in 512 is very much larger than the others. Which position might that be, counted from 0? And
# > how many times as large as the median is its scale?

# %%
real = torch.from_numpy(model_data.layer_inputs()["model.layers.11.mlp.down_proj"])
m, k = real.shape
codes, scale = torch.full((m, k), -99, dtype=torch.int8), torch.full((m, 1), torch.nan)
quantize_rows[(m,)](
    real,
    codes,
    scale,
    k,
    real.stride(0),
    BLOCK_K=triton.next_power_of_2(k),
    enable_fp_fusion=False,
)
right = reference.absmax_quantize(real.numpy(), axis=-1)
assert np.array_equal(codes.numpy(), right.codes)
assert np.array_equal(scale.numpy(), right.scale)

figure, ax = plt.subplots()
ax.plot(scale.numpy().ravel(), ".", color=pictures.BLUE, markersize=4)
ax.set(
    yscale="log",
    xlabel="position = program",
    ylabel="scale (one step)",
    title="down_proj, block 11",
)
pictures.show(
    figure,
    f"The scale of each of {m} positions, logarithmic. The first has "
    f"{scale[0].item():.2g}; the others lie around "
    f"{scale.median().item():.2g}, the largest of them at "
    f"{scale[1:].max().item():.2g}.",
)
predict.number("the position", scale.argmax().item())
predict.number("times the median", (scale.max() / scale.median()).item(), ".2g")
print(f"{m} programs: equal, bit for bit. Scale of position 0: {scale[0].item():.2f}; ")
print(f"median of all: {scale.median().item():.4f}")

# %% [markdown]
# The first token of a text carries magnitudes of its own in many language models
# ([Sun et al., 2024](https://arxiv.org/abs/2402.17762)). With one scale for the whole tensor it would set the precision
# of all 512 positions; here it sets only its own.
#
# ## The kernel of `fast`
#
# Side by side: the formula, NumPy, and Triton as in `fast/kernels`, each line taken from its file.

# %%
source.beside(
    (
        r"a = \max \lvert x \rvert",
        (reference.absmax.absolute_maximum, "return"),
        (quantization.quantize_blocks, "up = tl.max(all_up"),
    ),
    (
        r"\text{usable: } a \ge 2^{-100}",
        (reference.absmax.inverse_and_scale, "usable ="),
        (arithmetic.parameters, "usable ="),
    ),
    (
        r"\mathrm{inverse} = (1 / a) \cdot 127",
        (reference.absmax.inverse_and_scale, "inverse ="),
        (arithmetic.parameters, "inverse ="),
    ),
    (
        r"s = a / 127",
        (reference.absmax.inverse_and_scale, "scale ="),
        (arithmetic.parameters, "scale ="),
    ),
    (
        r"q = \operatorname{rint}(x \cdot \mathrm{inverse})",
        (reference.absmax.encode, "codes ="),
        (arithmetic.encode, "steps ="),
    ),
)

# %% [markdown]
# The kernel around these lines also handles rows too long for registers (read twice), outlier columns left out, one
# scale for the whole tensor, and zeropoint; [the page on the kernels](../docs/kernels.md) explains it.
#
# ## The same call on `fast`
#
# Chapters 01 to 06 ran the Torch path of `fast`. Here is its Triton path, on the same input:

# %%
for quantizer in ("absmax", "zeropoint"):
    for axis in (None, -1):
        mine = getattr(reference, f"{quantizer}_quantize")(X, axis)
        with fast.backend("triton"):
            theirs = getattr(fast, f"{quantizer}_quantize")(x, axis)
        assert all(
            np.array_equal(a, b.numpy()) for a, b in zip(mine, theirs, strict=True)
        )
print("absmax and zeropoint, one scale and one per row: equal, bit for bit")

# %% [markdown]
# ## The law
#
# Codes and scales equal those of the reference, bit for bit, for every shape, stride and dtype; nothing outside the
# result is written. There is no tolerance. `tests/test_kernels.py` draws the shapes and poisons the buffers.
#
# ## Break it
#
# > **Predict.** Four kernels, each with one mistake. How many of them give a wrong code on the 4 x 4 example? And how
# > many on data with K = 3, rows 4 apart and huge numbers beyond the matrix?


# %%
@triton.jit
def broken_rows(x, codes, scale, K, stride, BLOCK_K: tl.constexpr, HOW: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_K)
    inside = columns < K
    start = x + row * (K if HOW == "stride" else stride)
    values = (
        tl.load(start + columns)
        if HOW == "mask"
        else tl.load(start + columns, mask=inside, other=0.0)
    )
    absmax = tl.max(values, axis=0) if HOW == "sign" else tl.max(tl.abs(values), axis=0)
    inverse = tl.math.div_rn(1.0, absmax) * 127.0
    steps = (
        values * inverse
        if HOW == "truncation"
        else (values * inverse + 12582912.0) - 12582912.0
    )
    tl.store(codes + row * K + columns, steps.to(tl.int8), mask=inside)
    tl.store(scale + row, tl.math.div_rn(absmax, 127.0))


def wrong_codes(values, how):
    m, k = values.shape
    codes, scale = (
        torch.full((m, k), -99, dtype=torch.int8),
        torch.full((m, 1), torch.nan),
    )
    with np.errstate(all="ignore"):
        broken_rows[(m,)](
            values,
            codes,
            scale,
            k,
            values.stride(0),
            BLOCK_K=triton.next_power_of_2(k),
            HOW=how,
            enable_fp_fusion=False,
        )
    return int(
        (
            codes.numpy() != reference.absmax_quantize(values.numpy(), axis=-1).codes
        ).sum()
    )


data = {"4 x 4": x, "padded, K = 3": poisoned[:, :3]}
mistakes = ("truncation", "sign", "mask", "stride")
table = {
    how: [wrong_codes(values, how) for values in data.values()] for how in mistakes
}
for column, name in enumerate(data):
    caught = sum(counts[column] > 0 for counts in table.values())
    predict.number(f"wrong kernels on {name}", caught)
print(f"{'wrong codes':<14}" + "".join(f"{name:>16}" for name in data))
for how, counts in table.items():
    print(f"{how:<14}" + "".join(f"{count:>16}" for count in counts))

# %% [markdown]
# On a square, packed, well-behaved matrix half of the bugs are invisible.
#
# ## The running table
#
# No new line for the error: a kernel changes speed, not results, as the bit-for-bit comparison shows. It saves memory
# traffic. The times are in chapter 11.

# %%
print(f"{'quantizing X':<16} bytes moved per entry")
print(f"{'five steps':<16} {separate:>5}")
print(f"{'one kernel':<16} {fused:>5}   <- new")

# %% [markdown]
# ## Exercise
#
# A wrong kernel does no harm here: before it loads or stores outside of its buffers it is stopped, and you are told
# which program, which buffer and which line it was.
#
# Write `my_quantize_rows`. It is launched with one program per row. `x`: (M, K) float32, rows `stride` apart; `codes`:
# (M, K) int8, packed; `scale`: (M,) float32; `BLOCK_K` is a power of two, at least K. Try it without looking at step 4. On
# the site, [the ladder](../docs/theatre/write.md#quantize-rows) checks it in the browser and shows what it loads.


# %%
@triton.jit
def my_quantize_rows(x, codes, scale, K, stride, BLOCK_K: tl.constexpr):
    pass


kernel_checks.quantize_rows(my_quantize_rows)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# @triton.jit
# def my_quantize_rows(x, codes, scale, K, stride, BLOCK_K: tl.constexpr):
#     row = tl.program_id(0)
#     columns = tl.arange(0, BLOCK_K)
#     inside = columns < K
#     values = tl.load(x + row * stride + columns, mask=inside, other=0.0)
#     absmax = tl.max(tl.abs(values), axis=0)
#     usable = absmax >= 2.0**-100
#     safe = tl.where(usable, absmax, 1.0)
#     inverse = tl.where(usable, tl.math.div_rn(1.0, safe) * 127.0, 0.0)
#     steps = (values * inverse + 12582912.0) - 12582912.0
#     tl.store(codes + row * K + columns, steps.to(tl.int8), mask=inside)
#     tl.store(scale + row, tl.where(usable, tl.math.div_rn(safe, 127.0), 0.0))
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. A program owns a block: load it once, compute in registers, store once. Bytes moved are what counts.
# 2. Every load that may reach beyond the row has a mask and an `other`; every store has a mask.
# 3. A kernel is right if it equals the reference on shapes, strides and data chosen to break it.
#
# **Read on:** [08, the product kernel](08_product_kernel.ipynb). The code: `fast/kernels/quantization.py`.
