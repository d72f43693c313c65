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
# # 02. Zeropoint: a scale and a shift
#
# **Question.** Absmax gives as many codes to the negative side as to the positive one. What if the data has only one
# side, or mostly one?
#
# **You need** [01, absmax](01_absmax.ipynb). **You leave with** the asymmetric quantizer, its product, and a measured
# answer to "absmax or zeropoint?".

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt

import fast
import reference
from reference import bounds
from tutorials import checks, model_data, pictures, predict, running_table, source
from tutorials.example import W, X

np.set_printoptions(precision=4, suppress=True)

# %% [markdown]
# ## The idea
#
# The 4 x 4 example goes from -1.905 to 12.70. Absmax reserves codes down to -127 for a -12.70 that does not exist: more
# than half of the codes are unused. Zeropoint quantization spreads the 256 codes from the smallest value to the
# largest, wherever those are. The price is a second number, the **zero point**: the code of zero.
#
# One condition is added: the range always includes zero, so that zero has a code of its own and is dequantized to
# exactly zero. Padding is zero, a masked entry is zero, and chapter 05 sets whole columns to zero. None of these may
# become 0.003.

# %%
lo, hi = X.min(), X.max()
figure, ax = plt.subplots(figsize=(7.2, 2.1))
for y, name, low, high, color in (
    (1, "absmax", -hi, hi, pictures.BLUE),
    (0, "zeropoint", lo, hi, pictures.ORANGE),
):
    ax.plot(
        [low, high], [y, y], color=color, linewidth=9, alpha=0.35, solid_capstyle="butt"
    )
    codes = (-127, 127) if name == "absmax" else (-128, 127)
    ax.text(low, y + 0.2, codes[0], ha="right")
    ax.text(high, y + 0.2, codes[1], ha="center")
    ax.text(
        0,
        y + 0.2,
        0 if name == "absmax" else reference.zeropoint_quantize(X).zero_point.item(),
        ha="left",
    )
    ax.plot(X.ravel(), np.full(X.size, y), "|", color=pictures.GREY, markersize=14)
ax.set(
    yticks=[0, 1],
    yticklabels=["zeropoint", "absmax"],
    xlabel="entry of X (ticks); the number above is its code",
    ylim=(-0.5, 1.7),
)
ax.grid(False)
pictures.show(
    figure,
    f"Two bars over the number line. Absmax covers {-hi:.2f} to {hi:.2f} with codes "
    "-127 to 127; "
    f"zeropoint covers {lo:.3f} to {hi:.2f} with "
    "codes -128 to 127. No entry of X lies in the left part of the absmax bar.",
)

# %% [markdown]
# ## The formula
#
# With $l = \min(x, 0)$ and $h = \max(x, 0)$ over the slice:
#
# $$ s = \frac{h - l}{255}, \qquad z = \operatorname{rint}\!\left(-128 - l \cdot \tfrac{255}{h-l}\right), \qquad
# q = \operatorname{rint}\!\left(x \cdot \tfrac{255}{h - l}\right) + z, \qquad \hat x = (q - z) \cdot s $$
#
# with $q$ and $z$ clipped to [-128, 127] (the paper's equations 1 to 3, which use 254 steps and the range -127 to 127;
# equation 2 [there](https://arxiv.org/abs/2208.07339), for the zero point, has a misprint, a product with $X$ instead
# of the scale).
#
# ## By hand
#
# > **Predict.** From -1.905 to 12.70 is 14.605. What is a step, and which code is zero? 12.70 gets code 127. Which code
# > does 0.50 get?

# %%
codes, scale, zero_point = reference.zeropoint_quantize(X)
back = reference.zeropoint_dequantize(codes, scale, zero_point)
predict.number("one step", scale.item(), ".4f")
predict.number("the code of zero", zero_point.item())
predict.number("the code of 0.50", codes[0, 0])
below, above = -lo / scale.item(), X[0, 0] / scale.item()
predict.explain(
    f"A step is {hi - lo:.3f} / 255 = {scale.item():.4f}; absmax has 0.1. The minimum "
    f"lies {below:.1f} steps below zero, so zero gets the code -128 + {below:.0f} = "
    f"{zero_point.item()}. 0.50 lies {above:.1f} steps above zero: code "
    f"{zero_point.item()} + {above:.0f} = {codes[0, 0]}."
)
figure = pictures.matrices(
    [
        ("X", X, "{:g}", (lo == X) | (hi == X)),
        ("codes", codes, "{:d}", None),
        ("codes - zero point", codes - zero_point, "{:d}", None),
        ("error", back - X, "{:.3f}", None),
    ]
)
pictures.show(
    figure,
    "Four 4 by 4 matrices: X with its smallest and its largest entry framed; the "
    "codes, most of them near "
    f"{zero_point.item()}; the codes less the zero point; the errors, the largest "
    f"{np.abs(back - X).max():.3f}.",
)

# %% [markdown]
# ## The code

# %%
source.show(reference.zeropoint_quantize, reference.zeropoint_dequantize)

# %% [markdown]
# ## The product
#
# Shifted codes do not multiply as simply as absmax codes. Expand the product of two shifted sums:
#
# $$ \sum_k (q_x - z_x)(q_w - z_w) = \underbrace{\sum_k q_x q_w}_{\text{int8 product}} - z_x
# \underbrace{\sum_k q_w}_{\text{once, at load}} - z_w \underbrace{\sum_k q_x}_{\text{once per row of X}} + K z_x z_w . $$
#
# The function that does it:

# %%
source.show(reference.vectorwise.zeropoint_product)

# %% [markdown]
# > **Predict.** The expensive part has M N K multiplications and additions. How many corrections does the rest need for
# > each of the M N results?

# %%
xq, sx, zx = reference.zeropoint_quantize(X)
wq, sw, zw = reference.zeropoint_quantize(W)
acc = xq.astype(int) @ wq.astype(int).T
x_sum, w_sum = (
    xq.sum(axis=1, dtype=int, keepdims=True),
    wq.sum(axis=1, dtype=int, keepdims=True),
)
corrections = (-zx * w_sum.T, -zw * x_sum, X.shape[1] * zx * zw)
corrected = acc + sum(corrections)
assert np.array_equal(corrected, (xq.astype(int) - zx) @ (wq.astype(int) - zw).T)
predict.number("corrections for each result", len(corrections))
predict.explain(
    "Before them come M K additions for the sums over X. With K in the hundreds or "
    "thousands that is little, but it is not nothing, and the accumulator is wider: "
    "codes of magnitude 128 instead of 127, and differences up to 255."
)
figure = pictures.matrices(
    [
        ("int8 product", acc, "{:d}", None),
        ("after the corrections", corrected, "{:d}", None),
        ("times both scales", corrected * sx * sw.T, "{:.4f}", None),
        ("X W' in float", X @ W.T, "{:.4f}", None),
    ],
    width=2.8,
)
pictures.show(
    figure,
    f"The int8 product of the codes, its first entry {acc[0, 0]}; after the three "
    f"corrections, {corrected[0, 0]}; times both scales, "
    f"{(corrected * sx * sw.T)[0, 0]:.4f}; and the float product, "
    f"{(X @ W.T)[0, 0]:.4f}.",
)

# %% [markdown]
# ## The same call on `fast`
#
# The corrections are integers, evaluated exactly on both sides, so the products must be equal too.

# %%
y = reference.quantized_matmul(X, W, "tensor", "zeropoint")
for mine, theirs in zip(
    reference.zeropoint_quantize(X),
    fast.zeropoint_quantize(torch.from_numpy(X)),
    strict=True,
):
    assert np.array_equal(mine, theirs.numpy())
assert np.array_equal(
    y,
    fast.quantized_matmul(
        torch.from_numpy(X), torch.from_numpy(W), "tensor", "zeropoint"
    ).numpy(),
)
print("codes, scale, zero point and product: equal, bit for bit")

# %% [markdown]
# ## Real data: absmax or zeropoint?
#
# How much finer the zeropoint step is depends on one thing only: how one-sided the slice is. We can compare both steps
# without measuring model quality: $(h - l) / 255$ against $2 \max|x| / 254$. A ratio of 1 means symmetric, 1/2 entirely
# one-sided.
#
# > **Predict.** For the inputs of the 210 linear layers of SmolLM2, is the ratio nearer to 1 or to 1/2? And for the
# > weights?

# %%
inputs = model_data.layer_inputs()
model = model_data.model()


def step_ratio(a):
    return float(
        reference.zeropoint_quantize(a).scale.item()
        / reference.absmax_quantize(a).scale.item()
    )


of_inputs = np.array([step_ratio(x) for name, x in inputs.items() if name != "lm_head"])
of_weights = np.array(
    [
        step_ratio(model.get_submodule(name).weight.detach().numpy())
        for name in inputs
        if name != "lm_head"
    ]
)
predict.number("median ratio of the inputs", np.median(of_inputs), ".2f")
predict.number("median ratio of the weights", np.median(of_weights), ".2f")

figure, ax = plt.subplots()
bins = np.linspace(0.48, 1.02, 28)
ax.hist(of_inputs, bins, color=pictures.ORANGE, alpha=0.6, label="inputs")
ax.hist(of_weights, bins, color=pictures.BLUE, alpha=0.6, label="weights")
ax.set(
    xlabel="zeropoint step / absmax step, one slice per tensor", ylabel="linear layers"
)
ax.legend()
pictures.show(
    figure,
    f"Histogram over {len(of_inputs)} layers of the zeropoint step divided by the "
    "absmax step. Weights: "
    f"median {np.median(of_weights):.2f}. "
    f"Inputs: median {np.median(of_inputs):.2f}, down to {of_inputs.min():.2f}.",
)

# %% [markdown]
# So the answer has two parts. Weights of a linear layer are nearly symmetric, and zeropoint gains little there. Inputs
# often are not, and the reason is outliers: a few feature columns of one sign (chapter 04). Once these are removed
# (chapter 05), there is less to gain; chapter 06 measures how much less. The paper's method uses absmax, which needs
# no corrections.
#
# ## The law
#
# The error is again at most half a step, $s\,(1/2 + \varepsilon)$, and zero is exact. The clip costs nothing: it acts
# only where a number lies exactly half-way, and then the other neighbour is equally far. For example -1.5 and 253.5,
# with a step of exactly 1: -1.5 is even-rounded to -2, its zero point to -126, and 253.5 to 254, one code too many.
#
# $\varepsilon$ is what float32 adds: code and value pass through at most six roundings on numbers of at most 255 steps,
# $6 \cdot 255 \cdot 2^{-24} < 2^{-13}$. `bounds.round_trip_bound` allows $2^{-12}$.

# %%
x, w = model_data.layer()
for a in (x, w, np.array([[-1.5, 253.5]], np.float32)):
    q, s, z = reference.zeropoint_quantize(a)
    back = reference.zeropoint_dequantize(q, s, z).astype(np.float64)
    assert (np.abs(back - a) <= bounds.round_trip_bound(s, "zeropoint")).all()
    assert (back[a == 0] == 0).all()
    print(f"largest error {np.abs(back - a).max() / s.item():.3f} steps")
tie = reference.zeropoint_quantize(np.array([[-1.5, 253.5]], np.float32))
print(
    "the tie: codes",
    tie.codes.tolist(),
    "scale",
    tie.scale.item(),
    "zero point",
    tie.zero_point.item(),
)

# %% [markdown]
# ## Break it
#
# > **Predict.** Three variations of one line. Which one changes a value by one step at most? And a product without its
# > corrections: how wrong is it, if the largest entry of the right one is 6.6?


# %%
def encode(a, include_zero=True, clip=True, order="product first"):
    low, high = (
        (min(a.min(), np.float32(0)), max(a.max(), np.float32(0)))
        if include_zero
        else (a.min(), a.max())
    )
    inverse = (np.float32(1) / (high - low)) * np.float32(255)
    zero = np.clip(np.rint(np.float32(-128) - low * inverse), -128, 127)
    q = (
        np.rint(a * inverse) + zero
        if order == "product first"
        else np.rint(a * inverse + zero)
    )
    q = np.clip(q, -128, 127) if clip else q
    return (q.astype(int).astype(np.int8).astype(int) - zero) * (high - low) / 255


tie, above, near = (
    np.array([v], np.float32) for v in ([-1.5, 253.5], [5.0, 7.0], [0.0, 0.06, 0.01])
)
off = {}
for name, a, options in (
    ("no clip", tie, {"clip": False}),
    ("a range without zero", above, {"include_zero": False}),
    ("the sum rounded, not the product", near, {"order": "sum"}),
):
    right, wrong = encode(a), encode(a, **options)
    off[name] = np.abs(wrong - right).max() / reference.zeropoint_quantize(a).scale
    print(f"{name}: x {a[0]}\n  right {right[0]}, wrong {wrong[0]}")

uncorrected = np.abs(acc * sx * sw.T - X @ W.T).max()
predict.choice("off by one step at most", list(off), min(off, key=off.get))
predict.number("the error of the product without corrections", uncorrected, ".1f")
assert uncorrected > np.abs(y - X @ W.T).max()

# %% [markdown]
# Without the clip, one code wraps around and 253.5 becomes -2. Without zero in the range, the zero point would lie
# outside the codes; clipping it shifts every value. Rounding the sum differs only at ties.
#
# ## The running table

# %%
running_table.show(x, w, chapter=2)

# %% [markdown]
# On this one-sided input the error is nearly halved, for four more bytes.
#
# ## Exercise
#
# Write `my_zeropoint(x)`: one scale and one zero point (int32) for the whole array. Extent below $2^{-100}$: codes,
# scale and zero point 0.


# %%
def my_zeropoint(x):
    return NotImplemented  # codes, scale, zero_point


checks.zeropoint(my_zeropoint)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def my_zeropoint(x):
#     lo, hi = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
#     if hi - lo < 2.0**-100:
#         return np.zeros(x.shape, np.int8), np.float32(0), np.int32(0)
#     inverse = (np.float32(1) / (hi - lo)) * np.float32(255)
#     zero_point = np.clip(np.rint(np.float32(-128) - lo * inverse), -128, 127)
#     codes = np.clip(np.rint(x * inverse) + zero_point, -128, 127)
#     return codes.astype(np.int8), (hi - lo) / np.float32(255), np.int32(zero_point)
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. Zeropoint spreads its codes between the smallest and the largest value; the gain is at most a factor of 2, and only
#    on one-sided data.
# 2. Zero is always exactly representable; otherwise padding and masked entries would add errors.
# 3. The product needs two sums and three corrections, all exact, in integers.
#
# **Read on:** [03, granularity](03_granularity.ipynb): one scale is not enough. The paper: section 2.1.
# [The contract](../docs/contract.md).
