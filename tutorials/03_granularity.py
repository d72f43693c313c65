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
# # 03. One scale is not enough: tensor, row, vector
#
# **Question.** In chapter 01 one large entry took precision from every other entry of the matrix. How many scales may a
# matrix have, and which entries may share one, if the product is still to run in int8?
#
# **You need** [01](01_absmax.ipynb); [02](02_zeropoint.ipynb) helps. **You leave with** vector-wise quantization, the
# product of LLM.int8().

# %%
import textwrap

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
# A linear layer computes $Y = X W^\top$: every result is a sum over the features $k$,
#
# $$ Y_{mn} = \sum_k X_{mk} W_{nk} \approx \sum_k (s\, q)_{mk} (s\, q)_{nk} . $$
#
# The sum can run on integers alone if the scales can be factored out of it, and they can exactly if they **do not
# depend on $k$**. So X may have a scale for each row $m$ (each token) and W a scale for each row $n$ (each output
# feature). What is *not* possible is a scale for each column $k$: each summand would need its own factor. Keep this in
# mind: it is why outliers, which occur in columns, are a problem.
#
# The paper's three granularities:
#
# | name | scales of X | scales of W |
# | --- | --- | --- |
# | `tensor` | 1 | 1 |
# | `row` | M, one per token | 1 |
# | `vector` | M | N, one per output feature |

# %%
m, k, n = 512, 576, 1536
x_codes = f"X codes\n{m} x {k} int8\n{pictures.quantity(m * k)}"
w_codes = f"W codes, transposed\n{k} x {n} int8\n{pictures.quantity(k * n)}"
sums = f"accumulators\n{m} x {n} int32\n{m * n * k:,}\nmultiply-adds"
boxes = (
    (0, 0, 2.2, 1.6, pictures.BLUE, x_codes),
    (2.9, 2.0, 3.2, 1.3, pictures.ORANGE, w_codes),
    (2.9, 0, 3.2, 1.6, pictures.GREEN, sums),
)
of_w = f"{n} scales of W: one per column of Y"
of_x = f"{m} scales of X: one per row of Y\n(the narrow bar at the left)"


def draw(size, limits, notes):
    figure, ax = plt.subplots(figsize=size)
    for x, y, width, height, color, text in boxes:
        pictures.box(ax, x, y, width, height, color)
        at = x + width / 2, y + height / 2
        ax.text(*at, text, ha="center", va="center", fontsize=9.5)
    pictures.box(ax, 2.45, 0, 0.22, 1.6, pictures.BLUE, 0.5)
    pictures.box(ax, 2.9, 1.7, 3.2, 0.2, pictures.ORANGE, 0.5)
    for (x, y), text in notes:
        ax.text(x, y, text, va="center", fontsize=9.5)
    pictures.blank(ax, *limits)
    return figure


last = "Y = accumulator x both"
beside = [((6.25, 1.8), of_w), ((6.25, 0.9), of_x), ((6.25, 0.1), last)]
below = [((0, -0.4), of_w), ((0, -1.05), of_x), ((0, -1.7), last)]
figure = draw((7.6, 3.1), ((-0.1, 9.4), (-0.1, 3.4)), beside)
narrow = draw((3.9, 3.6), ((-0.1, 6.2), (-2.0, 3.4)), below)
pictures.show(
    figure,
    f"X codes, {m} by {k}, times the transposed W codes, {k} by {n}, give {m} by {n} "
    f"int32 accumulators, with {m * n * k:,} multiply-adds. "
    f"A column of {m} scales applies to the rows of the result, a row of {n} scales to "
    "its columns; each "
    "accumulator is multiplied by one of each.",
    narrow,
)

# %% [markdown]
# ## The formula
#
# $$ Y_{mn} \approx \Big( \underbrace{\textstyle\sum_k q^X_{mk}\, q^W_{nk}}_{\text{int32, exact}} \Big) \cdot s^X_m
# \cdot s^W_n $$
#
# The scales form an outer product (equation 7 of the paper). The integers are summed exactly, but not in 8 bits: one
# product reaches $127^2 = 16129$. In int32, K of them fit as long as $K \cdot 127^2 \le 2^{31} - 1$.
#
# > **Predict.** How large may K be? The largest language models have K of about 50,000.

# %%
largest = {name: (2**31 - 1) // code**2 for name, code in (("a", 127), ("z", 128))}
predict.number("the largest K, with absmax", largest["a"])
print("zeropoint: K up to", largest["z"])
print("an int8 accumulator overflows after", 127 // 127**2 + 1, "product")
print("a float32 accumulator stops being exact beyond K =", 2**24 // 127**2)

# %% [markdown]
# ## By hand
#
# > **Predict.** The largest magnitudes of the rows of X are 1.27, 12.70, 0.635 and 8.89. What are the four scales, and
# > which codes do the entries of the first row, 0.50, -1.27, 0.08 and 0.33, get now?

# %%
xq, sx = reference.absmax_quantize(X, axis=-1)
wq, sw = reference.absmax_quantize(W, axis=-1)
predict.text("the four scales", sx)
predict.text("the codes of the first row", xq[0])
figure = pictures.matrices(
    [
        ("X", X, "{:g}", np.abs(X) == np.abs(X).max(axis=1, keepdims=True)),
        ("scales", sx, "{:.3f}", None),
        ("codes of X", xq, "{:d}", None),
        ("scales of W", sw, "{:.3f}", None),
        ("codes of W", wq, "{:d}", None),
    ],
    width=2.4,
)
pictures.show(
    figure,
    "X with the largest magnitude of each row framed; its four scales 0.01, 0.1, 0.005 "
    "and 0.07; its "
    "codes, where each row now reaches 127; the four "
    "scales of W, 0.001, 0.002, 0.004 and 0.005, and its codes.",
)

# %% [markdown]
# The first row now has the codes 50, -127, 8 and 33 instead of 5, -13, 1 and 3: ten times finer, and the same for the
# third. Rows two and four are no better than before, since they contain the large entries themselves.
#
# The first result by hand: 50 x 100 + (-127) x (-127) + 8 x 40 + 33 x 60 = 23,429, and 23,429 x 0.01 x 0.001 = 0.23429.
# In float: 0.05 + 0.16129 + 0.0032 + 0.0198 = 0.23429.

# %%
acc = reference.int8_matmul(xq, wq)
figure = pictures.matrices(
    [
        ("accumulators", acc, "{:d}", None),
        (
            "Y = acc x scale x scale",
            reference.vectorwise.rescale(acc, sx, sw),
            "{:.4f}",
            None,
        ),
        ("X W' in float", X @ W.T, "{:.4f}", None),
    ],
    width=3.0,
)
pictures.show(
    figure,
    f"The 4 by 4 int32 accumulators, the first {acc[0, 0]}; Y, the first "
    f"{(acc * sx * sw.T)[0, 0]:.5f}; and the float product next to it.",
)
exact = X.astype(np.float64) @ W.T.astype(np.float64)
for granularity in ("tensor", "row", "vector"):
    y = reference.quantized_matmul(X, W, granularity)
    print(
        f"{granularity:<7} error of each row of Y: "
        f"{np.linalg.norm(y - exact, axis=1) / np.linalg.norm(exact, axis=1)}"
    )

# %% [markdown]
# The third row of Y is a surprise: one scale per row of W makes it slightly *worse*. With so few entries this is
# chance; with hundreds it is not, as the real data below shows.
#
# ## The code

# %%
source.show(
    reference.quantized_matmul,
    reference.vectorwise.absmax_product,
    reference.vectorwise.rescale,
    reference.vectorwise.accumulate,
)

# %% [markdown]
# `accumulate` multiplies in float64 because NumPy has no fast integer product. Is that still an integer product? Yes:
# every partial sum is an integer below $2^{53}$, so float64 represents each of them exactly.
#
# ## The same call on `fast`
#
# The accumulators are integers: equal. Y is one integer converted to float32, and two multiplications in a fixed order,
# so it is equal too, bit for bit.

# %%
a, b = torch.from_numpy(X), torch.from_numpy(W)
assert np.array_equal(
    fast.int8_matmul(torch.from_numpy(xq), torch.from_numpy(wq)).numpy(), acc
)
for granularity in ("tensor", "row", "vector"):
    for quantizer in ("absmax", "zeropoint"):
        mine = reference.quantized_matmul(X, W, granularity, quantizer)
        assert np.array_equal(
            mine, fast.quantized_matmul(a, b, granularity, quantizer).numpy()
        )
print("3 granularities x 2 quantizers: equal, bit for bit")

# %% [markdown]
# ## Real data
#
# The inputs of `gate_proj` in all 30 blocks of SmolLM2, and the error of Y with one scale, with one per row, and
# vector-wise.
#
# > **Predict.** Where will the curves of one scale and of one scale per row lie closest together: where all tokens have
# > similar magnitudes, or where they differ? And how much smaller is the error vector-wise, over all blocks?

# %%
model = model_data.model()
names = [f"model.layers.{i}.mlp.gate_proj" for i in range(len(model.model.layers))]
curves = {g: [] for g in ("tensor", "row", "vector")}
spread = []
for name in names:
    x, w = model_data.layer(name)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    tops = np.abs(x).max(axis=1)
    spread.append(tops.max() / np.median(tops))
    for granularity, errors in curves.items():
        errors.append(
            running_table.error(reference.quantized_matmul(x, w, granularity), exact)
        )

figure, ax = plt.subplots()
for (granularity, errors), marker in zip(curves.items(), "o^s", strict=True):
    ax.plot(100 * np.array(errors), marker + "-", markersize=4, label=granularity)
ax.set(
    xlabel="block",
    ylabel="error of Y (%)",
    ylim=(0, None),
    title="gate_proj, absmax, 512 positions",
)
ax.legend()
last = {g: errors[-1] for g, errors in curves.items()}
pictures.show(
    figure,
    "Error of Y in percent over the 30 blocks for the granularities tensor, row and "
    "vector. Vector lies lowest; in the last block tensor "
    f"has {last['tensor']:.1%}, row {last['row']:.1%}, vector {last['vector']:.1%}.",
)
mean = {g: np.mean(errors) for g, errors in curves.items()}
gain = np.array(curves["tensor"]) / np.array(curves["row"])
alike, unlike = options = "of similar magnitude", "of different magnitude"
closest = alike if np.corrcoef(spread, gain)[0, 1] > 0 else unlike
predict.choice("they lie closest where the tokens are", options, closest)
predict.number("times as small vector-wise", mean["tensor"] / mean["vector"], ".2g")
print("mean over the blocks:", {g: f"{error:.2%}" for g, error in mean.items()})
times = [f"{factor:.1f}" for factor in (np.median(spread), spread[-1])]
print("largest row over median row, in the median block and in the last:", *times)

# %% [markdown]
# The largest row is seldom much larger than the others, so scales for the rows of X alone gain little, except at the
# end. The rows of W differ more: most of the gain in the middle of the model comes from them.
#
# ## The law
#
# Write $\hat x = x + \delta$, $\hat w = w + \eta$, with $|\delta| \le s^X_m / 2$ and $|\eta| \le s^W_n / 2$. Then
#
# $$ |\hat Y - Y|_{mn} = \Big| \sum_k x\eta + \delta w + \delta\eta \Big| \le \frac{s^W_n}{2} \sum_k |x_{mk}| +
# \frac{s^X_m}{2} \sum_k |w_{nk}| + \frac{K s^X_m s^W_n}{4} . $$
#
# A derived bound, not a tolerance: no entry of Y may exceed it, on any data, with a little room for float32's
# roundings. If the data is unknown, $|x| \le 127\, s^X_m$ and $|w| \le 127\, s^W_n$ turn it into a bound that follows
# from the scales and K alone,
#
# $$ |\hat Y - Y|_{mn} \lesssim 127\, K\, s^X_m s^W_n , $$
#
# one part in 127 of the largest product possible with these scales: `bounds.quantized_matmul_bound`, against which the
# tests check both implementations. The typical error is much smaller than either bound, since errors of both signs
# cancel.

# %%
source.show(bounds.quantized_matmul_bound)

# %% [markdown]
# > **Predict.** On real data, how much of each bound does the worst entry of Y use, in percent?

# %%
x, w = model_data.layer()
sx, sw = reference.absmax_quantize(x, -1).scale, reference.absmax_quantize(w, -1).scale
x64, w64 = x.astype(np.float64), w.astype(np.float64)
step_x, step_w = bounds.round_trip_bound(sx), bounds.round_trip_bound(sw).T
y = reference.quantized_matmul(x, w).astype(np.float64)
rounding = 3 * bounds.U * np.abs(y)
of_the_data = (
    step_w * np.abs(x64).sum(1, keepdims=True)
    + step_x * np.abs(w64).sum(1)
    + x.shape[1] * step_x * step_w
    + rounding
)
of_the_scales = bounds.quantized_matmul_bound(sx, sw, x.shape[1])
error = np.abs(y - x64 @ w64.T)
assert (error <= of_the_data).all()
assert (error <= of_the_scales).all()
for name, bound in (
    ("from the data", of_the_data),
    ("from the scales and K", of_the_scales),
):
    predict.number(f"of the bound {name}", 100 * (error / bound).max(), ".2g", "%")
    print(f"{name}: the median entry of Y uses {np.median(error / bound):.2%}")

# %% [markdown]
# ## Break it
#
# [A widely read post](https://huggingface.co/blog/hf-bitsandbytes-integration) dequantizes a weight with
# `CB * SCB / 127`, where `CB` are the codes (N, K) and `SCB` the N largest magnitudes of its rows. It was
# [reported in 2023](https://github.com/huggingface/blog/issues/1126).
#
# > **Predict.** Along which axis do N numbers broadcast against (N, K)? With which of two shapes does this raise an
# > error?

# %%
CB, SCB = reference.absmax_quantize(W, axis=-1).codes, np.abs(W).max(axis=1)
published = CB * SCB / 127
right = CB * SCB[:, None] / 127
print(
    f"published, off by {np.abs(published - W).max():.3f}\nright, off by "
    f"{np.abs(right - W).max():.3f}"
)
by_rows = np.array_equal(published[0], CB[0] * SCB[0] / 127)
raises = {}
for n in (4, 3):
    try:
        CB[:n] * SCB[:n]
    except ValueError as error:
        raises[f"{n} x 4"] = error
axes = ("a row of W", "a column of W")
predict.choice("each of the N numbers scales", axes, axes[0 if by_rows else 1])
predict.choice("an error is raised for", ("4 x 4", "3 x 4"), next(iter(raises)))
print(*raises.values())
try:
    reference.absmax_dequantize(CB, (SCB / 127).astype(np.float32))
except ValueError as error:
    print("the reference refuses it even where it would broadcast:")
    print(*textwrap.wrap(str(error), 84), sep="\n")

# %% [markdown]
# A square layer hides the bug, and many layers are square: no exception, the right shape, numbers of a plausible size.
# Take a real one, `q_proj` of the first block:
#
# > **Predict.** Rounding may be off by one half-step. By how many is the published line off, at most?

# %%
_, square = model_data.layer("model.layers.0.self_attn.q_proj")
codes, scale = reference.absmax_quantize(square, axis=-1)
absmax = np.abs(square).max(axis=1)
half_steps = np.abs(codes * absmax / 127 - square) / (scale / 2)
right = np.abs(codes * scale - square) / (scale / 2)
predict.number("its largest error, in half-steps", half_steps.max(), ".0f")
print(f"right: at most {right.max():.3f} half-steps")
print(f"median: published {np.median(half_steps):.1f}, right {np.median(right):.1f}")
print(f"largest weight: published {np.abs(codes * absmax / 127).max():.2f}, ", end="")
print(f"right {np.abs(square).max():.2f}")
assert half_steps.max() > 1 + 2.0**-13

# %% [markdown]
# One line checks the law "at most one half step". Nothing checks "close enough".
#
# Two more, about the accumulator. The second is how
# [one library multiplies on a CPU](https://github.com/huggingface/optimum-quanto/issues/64):

# %%
row = np.full((1, 2000), 127, np.int8)
row[0, 0] = 126
print("exact:  ", int(reference.int8_matmul(row, row)[0, 0]))
print(
    "int8:   ",
    int((row @ row.T)[0, 0]),
    " (the product keeps the dtype of its operands)",
)
print(
    "float32:",
    int(np.cumsum(row[0, ::-1].astype(np.float32) ** 2)[-1]),
    " (one after the other, beyond 2**24)",
)

# %% [markdown]
# ## The running table

# %%
running_table.show(x, w, chapter=3)

# %% [markdown]
# Six kilobytes of scales beside 885 kB of codes, and a quarter of the error with which we began. The remaining error
# comes from large entries inside the rows.
#
# ## Exercise
#
# Write `my_vectorwise(x, w)`: quantize both by rows with absmax, multiply in integers, scale back to float32. Your
# `my_absmax` from chapter 01 quantizes one slice; here each row is a slice.


# %%
def my_vectorwise(x, w):
    return NotImplemented  # y, float32 (M, N)


checks.vectorwise(my_vectorwise)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def by_rows(a):
#     absmax = np.abs(a).max(axis=1, keepdims=True)
#     zero = absmax < 2.0**-100
#     safe = np.where(zero, np.float32(1), absmax)
#     inverse = (np.float32(1) / safe) * np.float32(127)
#     codes = np.where(zero, 0, np.rint(a * inverse)).astype(np.int8)
#     return codes, np.where(zero, np.float32(0), safe / np.float32(127))
#
#
# def my_vectorwise(x, w):
#     (xq, sx), (wq, sw) = by_rows(x), by_rows(w)
#     acc = xq.astype(np.int32) @ wq.astype(np.int32).T
#     return (acc.astype(np.float32) * sx) * sw.T
# ```
#
# </details>
#
# ## Three lines to remember
#
# 1. Scales that do not depend on $k$ can be factored out of the sum: each row of X and of W may have one; a column may
#    not.
# 2. The accumulators are int32 and exact; all the error is in the codes.
# 3. Scales keep their reduced axis, (N, 1), so that they cannot broadcast along the wrong axis.
#
# **Read on:** [04, outliers](04_outliers.ipynb): large entries inside the rows. The paper: sections 2.2 and 3.1.
# [The contract](../docs/contract.md).
