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
# # 01. Absmax: eight bits and one scale
#
# **Question.** A weight or an activation is a real number, stored in 16 or 32 bits. Can 8 bits represent it, and how
# wrong is the result?
#
# **You need** NumPy; [00, bits, tokens, layers](00_bits_and_layers.ipynb) if *token*, *feature* or *float16* is new to
# you. **You leave with** an int8 quantizer of your own, and a bound on its error that you can prove in one line.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt

import fast
import reference
from reference import bounds
from tutorials import checks, model_data, pictures, predict, running_table, source
from tutorials.example import X

np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## The idea
#
# An int8 is an integer from -128 to 127. To store real numbers in it, choose a **scale**: the value of one step of the
# integer. Divide by the scale, round to an integer, and keep that integer, the **code**. To dequantize, multiply the
# code by the scale. Only the rounding loses anything.
#
# The scale has to be large enough that the largest magnitude still fits, and as small as possible, since it is also the
# distance between two neighbouring representable values. *Absmax* quantization takes exactly that one: the largest
# magnitude becomes 127.
#
# Nothing about it is clever. Its two properties matter for everything that follows: **one** entry, the largest, sets
# the scale, and **all** the other entries lose precision to it.

# %%
m, k = 512, 576
figure = pictures.movement(
    [
        ("X", f"{m} x {k}, float16", 2 * m * k),
        "read once:\nmax |x|",
        ("scale", "1 float32", 4),
        "read again:\nrint(x / scale)",
        ("codes", f"{m} x {k}, int8", m * k),
    ]
)
pictures.show(
    figure,
    f"X, {m} by {k} in float16, {2 * m * k} bytes, is read once to find its largest "
    "magnitude, which gives one scale of 4 bytes, and "
    f"read again to write {m * k} int8 codes: half the bytes, and two passes over the "
    "input.",
)

# %% [markdown]
# ## The formula
#
# $$ s = \frac{\max |x|}{127}, \qquad q = \operatorname{rint}\!\left(x \cdot \tfrac{127}{\max|x|}\right), \qquad \hat
# x = q \cdot s $$
#
# `rint` rounds to the nearest integer, and a tie (exactly half) to the even neighbour. This is section 2.1 of
# [Dettmers et al. (2022)](https://arxiv.org/abs/2208.07339). The codes run from -127 to 127; -128 stays unused, so that
# the codes of $-x$ are the negated codes of $x$.
#
# ## By hand
#
# Here is the matrix that we follow through the whole course: four tokens (rows), four features (columns).

# %%
print(X)

# %% [markdown]
# > **Predict.** Which entry sets the scale, and what is the scale? Which codes do 12.70, 0.50 and 0.08 get? Which entry
# > of the first row will be the most wrong, relative to its size?

# %%
codes, scale = reference.absmax_quantize(X)
back = reference.absmax_dequantize(codes, scale)
predict.number("the scale", scale.item(), ".4g")
predict.text("the codes of 12.70, 0.50 and 0.08", codes[[1, 0, 0], [2, 0, 2]])
worst = np.argmax(np.abs(back[0] - X[0]) / np.abs(X[0]))
entries = [f"{entry:g}" for entry in X[0]]
predict.choice("the most wrong entry of row one", entries, entries[worst])
predict.explain(
    f"The largest magnitude is {X.max():.2f}, so the scale is {X.max():.2f} / 127 = "
    f"{scale.item():.1f}, and coding is dividing by {scale.item():.1f} and rounding. "
    f"0.08 is 0.8 of a step, so it becomes 1 and is dequantized to {back[0, 2]:.2f}."
)
figure = pictures.matrices(
    [
        ("X", X, "{:g}", np.abs(X) == np.abs(X).max()),
        ("codes", codes, "{:d}", None),
        ("codes x scale", back, "{:.1f}", None),
        ("error", back - X, "{:.3f}", None),
    ]
)
pictures.show(
    figure,
    "Four 4 by 4 matrices: X, with 12.70 framed as the entry that sets the scale; its "
    "codes; the codes times the scale; the errors, "
    f"the largest of which is {np.abs(back - X).max():.3f}.",
)

# %% [markdown]
# Look at the first and third rows. Their largest magnitudes are 1.27 and 0.635, and they use only the codes from -13 to
# 6, because the 12.70 in the *second* row sets the scale. 0.08 is dequantized to 0.10, a quarter too much. Chapter 03
# is about this.
#
# ## The code
#
# This is the reference implementation itself; the notebook reads it from its file. `encode` takes the largest
# magnitudes as an argument; the next chapters need that.

# %%
source.show(
    reference.absmax_quantize,
    reference.absmax.absolute_maximum,
    reference.absmax.encode,
    reference.absmax.inverse_and_scale,
)

# %% [markdown]
# Three details of this code matter.
#
# - **Reciprocal, then multiply.** On paper `x * 127 / absmax`, `x / scale` and `x * (1 / absmax * 127)` are the same
#   number. In float32 they differ in the last place, and at a tie the last place decides the code. The contract has to
#   pick one; this one takes one division per slice and one multiplication per entry.
# - **A zero slice.** If all entries are zero, absmax is 0 and 1 / 0 is infinite. Such a slice gets scale 0 and codes 0.
# - **NaN and infinity** give the scale NaN: the slice is dequantized to NaN. A NaN must never turn into a plausible
#   number.
#
# ## The same call on `fast`
#
# `fast` is an independent implementation in Torch and Triton. It has to produce the same codes and the same scale, *bit
# for bit*: not close, equal. For integers nothing less is acceptable. (On CPU tensors `fast` uses its Torch path;
# chapters 07 to 09 use the Triton kernels.)

# %%
fast_codes, fast_scale = fast.absmax_quantize(torch.from_numpy(X))
assert np.array_equal(fast_codes.numpy(), codes)
assert np.array_equal(fast_scale.numpy(), scale)
print(
    "equal, bit for bit:",
    fast_codes.dtype,
    tuple(fast_codes.shape),
    f"scale {fast_scale.item():.4f}",
)

# %% [markdown]
# ## Real data
#
# X is now the input of a linear layer of SmolLM2-135M, a small language model, while it reads 512 tokens of English:
# the last block's `gate_proj`. It has 512 x 576 entries.
#
# > **Predict.** The largest magnitude is about 31. How large is a step then? Half of all entries are at most an eighth.
# > Which codes do these get?

# %%
x, w = model_data.layer()
codes, scale = reference.absmax_quantize(x)
typical = np.median(np.abs(x))
used = len(np.unique(codes))
within_five = np.mean(np.abs(codes.astype(int)) <= 5)
most = np.abs(codes[np.abs(x) <= typical].astype(int)).max()
predict.number("one step", scale.item(), ".3f")
predict.number("the largest code among the smaller half of the entries", most)
print(f"largest magnitude {np.abs(x).max():.2f}, median magnitude {typical:.3f}")
print(
    f"codes that occur at all: {used} of 255; code 0: {np.mean(codes == 0):.1%} of the "
    f"entries; -5 to 5: {within_five:.1%}"
)

figure, (left, right) = plt.subplots(1, 2)
left.hist(x.ravel(), bins=80, color=pictures.BLUE)
left.set(yscale="log", xlabel="entry of X", ylabel="entries", title="before: float32")
right.bar(*np.unique(codes, return_counts=True), width=1, color=pictures.ORANGE)
right.set(yscale="log", xlabel="code", ylabel="entries", title="after: int8")
pictures.show(
    figure,
    "Two histograms with logarithmic counts. Left: the entries of X crowd around zero; "
    "a second hump lies around 7, and a single entry "
    f"at {x.max():.0f}. Right: their codes; "
    f"{within_five:.0%} of all entries share the eleven codes from -5 to 5; the second "
    "hump lies around code 30, and the single entry has code 127.",
)

# %% [markdown]
# We store eight bits per entry. Yet half of the entries are rounded to zero, and nearly all of them share eleven codes,
# for which three and a half bits would do.
#
# And there is the second hump of chapter 00 again, around 7 on the left and 30 on the right.
#
# > **Predict.** Two columns of the 576 hold all entries above 5. If they were not there, how large would a step be?

# %%
columns = np.flatnonzero((x > 5).any(axis=0))
largest = np.abs(np.delete(x, columns, axis=1)).max()
predict.number("one step without them", largest / 127, ".3f")
print(f"without columns {columns.tolist()}: largest magnitude {largest:.2f}, ", end="")
print(f"steps {np.abs(x).max() / largest:.1f} times as fine")

# %% [markdown]
# The hump is column 17, and one single entry of the other column sets the scale of all 294,912. What such columns are is
# the mystery that chapter 04 solves.
#
# ## The law
#
# Rounding moves a number by at most half a step. So, up to float32's own rounding, for every entry
#
# $$ |x - q s| \le \tfrac{s}{2} . $$
#
# Proof: $x / s$ lies within 1/2 of the nearest integer $q$; multiply by $s$. Nothing is clipped, since $|x| \le 127 s$.
# The code is computed from a rounded reciprocal, a rounded product with 127, and a rounded product with x; each is off
# by a factor of at most $1 \pm 2^{-24}$. Scale and dequantization add two more such factors. On a number of at most 127
# steps, five of them amount to $5 \cdot 127 \cdot 2^{-24} < 2^{-14}$ of a step. So the bound that a test can state is
# $s\,(1/2 + 2^{-14})$: `bounds.round_trip_bound`.
#
# > **Predict.** On the real X: what is the largest error in units of the step? And on average? (If the position within
# > a step is random, the error is spread evenly over 0 to 1/2.)

# %%
error = np.abs(reference.absmax_dequantize(codes, scale).astype(np.float64) - x)
assert (error <= bounds.round_trip_bound(scale)).all()
steps = error / scale.item()
predict.number("the largest error, in steps", steps.max(), ".3f")
predict.number("the mean error, in steps", steps.mean(), ".3f")

# %% [markdown]
# ## Break it
#
# Three lines that look like absmax quantization. Each violates a law that takes one line to write.
#
# > **Predict.** Which of the three is wrong by up to one step, and which by far more?

# %%
x_small = np.array([[-2.0, 0.992, 0.5, 0.13]], np.float32)
absmax = np.abs(x_small).max()
wrong = {
    "cut off instead of round": (x_small * (127 / absmax)).astype(np.int8),
    "scale to 128": (np.rint(x_small * (128 / absmax)))
    .astype(np.int16)
    .astype(np.int8),
    "largest value, not magnitude": np.rint(x_small * (127 / x_small.max()))
    .astype(np.int16)
    .astype(np.int8),
}
right, s = reference.absmax_quantize(x_small)
off = {name: np.abs(q * s - x_small).max() / s.item() for name, q in wrong.items()}
assert min(off.values()) > 0.5 + 2.0**-14
predict.choice("wrong by at most one step", list(wrong), min(off, key=off.get))
predict.number("the error of the worst, in steps", max(off.values()), ".0f")
print(f"{'right':<30} {right.tolist()}")
for name, q in wrong.items():
    print(f"{name:<30} {q.tolist()}   largest error {off[name]:.2f} steps")

to_128 = [
    np.rint(sign * x_small * 64).clip(-128, 127).astype(int).tolist()
    for sign in (1, -1)
]
print("scaled to 128 and clipped, x and -x get", *to_128)

# %% [markdown]
# Truncation looks harmless: under one step. But its error always points to zero, so errors add up over a long sum
# instead of cancelling. On the real layer:
#
# > **Predict.** The error of a single code doubles. What happens to the error of the product?

# %%
exact = x.astype(np.float64) @ w.T.astype(np.float64)
inverse = (np.float32(1) / np.abs(x).max()) * np.float32(127)
errors = []
for name, codes in (
    ("np.rint", np.rint(x * inverse)),
    ("astype(np.int8)", (x * inverse).astype(np.int8)),
):
    back = codes.astype(np.float32) * scale
    errors.append(running_table.error(back @ w.T, exact))
    left = np.abs(back).sum() / np.abs(x).sum()
    print(f"{name:<16} error of Y {errors[-1]:.1%}; of the ", end="")
    print(f"sum of magnitudes of X {left:.0%} is left")
predict.number("the error of Y grows by a factor of", errors[1] / errors[0], ".2g")

# %% [markdown]
# More than half of X's total magnitude is lost: every entry smaller than a step is now zero.
#
# Now the tie. 0.07 / 0.14 x 127 is 63.5 on paper.
#
# > **Predict.** Three ways to write the same formula: do they agree?

# %%
pair = np.array([0.14, 0.07], np.float32)
top, number = pair.max(), np.float32(127)
ways = {
    "x * (1 / absmax * 127)": np.rint(pair * ((np.float32(1) / top) * number)),
    "x * 127 / absmax": np.rint(pair * number / top),
    "x / scale": np.rint(pair / (top / number)),
}
different = len({code.tobytes() for code in ways.values()})
predict.number("how many different codes of 0.07 do the three give?", different)
for name, code in ways.items():
    print(f"{name:<24} {code}")

rows = np.random.default_rng(0).normal(size=(4096, 576)).astype(np.float32)
tops = np.abs(rows).max(axis=1, keepdims=True)
ours = np.rint(rows * ((np.float32(1) / tops) * number))
print(
    f"of {rows.size:,} codes, x / scale gives "
    f"{np.sum(ours != np.rint(rows / (tops / number)))} others"
)

# %% [markdown]
# Neither answer is *wrong*: each is within half a step. But two implementations that are compared bit for bit have to
# agree on one, and a comparison with a tolerance of 1 would not detect a real bug of 1.
#
# And the zero slice, without its guard:

# %%
zeros = np.zeros((1, 2), np.float32)
with np.errstate(all="ignore"):
    print("unguarded:", zeros * (127 / np.abs(zeros).max()))
print("guarded:  ", reference.absmax_quantize(zeros))

# %% [markdown]
# ## The running table
#
# One table accompanies the tutorial. Y = X W' is computed by each method on the real layer above, and compared with the
# product in float64: the error is the norm of the difference over the norm of Y. The bytes are those of W.

# %%
running_table.show(x, w, chapter=1)

# %% [markdown]
# Half the bytes for an error of an eighth. The rest of the tutorial keeps the bytes and reduces the error.
#
# ## Exercise
#
# Write `my_absmax(x)`: one scale for the whole array, codes in int8, scale in float32. An array whose largest magnitude
# is below $2^{-100}$ gets scale 0 and codes 0. The checker compares bit for bit, and shows the smallest input on which
# you differ.


# %%
def my_absmax(x):
    return NotImplemented  # codes, scale


checks.absmax(my_absmax)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_absmax(x):
#     absmax = np.abs(x).max()
#     if absmax < 2.0**-100:
#         return np.zeros(x.shape, np.int8), np.float32(0)
#     inverse = (np.float32(1) / absmax) * np.float32(127)
#     return np.rint(x * inverse).astype(np.int8), absmax / np.float32(127)
# ```
#
# </details>
#
# What does the checker say to a wrong answer? Truncation, for one:


# %%
def truncating(x):
    absmax = np.abs(x).max()
    if absmax < 2.0**-100:
        return np.zeros(x.shape, np.int8), np.float32(0)
    inverse = (np.float32(1) / absmax) * np.float32(127)
    return (x * inverse).astype(np.int8), absmax / np.float32(127)


checks.absmax(truncating)

# %% [markdown]
# ## Three lines to remember
#
# 1. A code is an integer number of steps; a step is the scale; the largest magnitude of the slice sets the scale.
# 2. The error of an entry is at most half a step, whatever its size: small entries beside a large one lose most.
# 3. Which float32 operations, in which order, is part of the definition: at ties they decide the code.
#
# **Read on:** [02, zeropoint](02_zeropoint.ipynb), for data that is not symmetric. The paper: section 2.1. The exact
# arithmetic: [the contract](../docs/contract.md).
